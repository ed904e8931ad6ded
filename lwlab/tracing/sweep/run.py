"""`sweep` and `sweep_plan`: every cell of a site edited, one at a time, exactly."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
import xarray as xr

from lwlab.models.model import Model, Prompts
from lwlab.tasks.base import Task
from lwlab.tracing.sweep.choose import Engine
from lwlab.tracing.sweep.job import Job
from lwlab.tracing.sweep.label import labelled
from lwlab.tracing.sweep.plan import Plan
from lwlab.tracing.sweep.request import EditLike, Indices, check

Positions = int | str | Iterable[int | str] | None
Progress = bool | Callable[[float, float], None] | None


def sweep(
    model: Model,
    task: Task,
    sites: str | Iterable[str] = "resid_pre",
    *,
    layers: Indices = None,
    positions: Positions = None,
    heads: Indices = None,
    edit: EditLike = "patch",
    into: Literal["clean", "corrupt"] | None = None,
    reference: Prompts | None = None,
    memory: float = 512e6,
    engine: Engine = "auto",
    skip: bool = True,
    progress: Progress = None,
    resume: str | os.PathLike[str] | None = None,
    neuron_blocks: int = 16,
    split: bool = True,
    seed: int = 0,
    scale: float = 1.0,
) -> xr.Dataset:
    """Edit every cell of `sites`, one at a time, and measure what each does to the task's metric.

    S(s, l, p, u) = m(x; a[s, l, p, u] <- a') - m(x): m the task's metric at the last token, x the
    prompts `into` names, a' the new value of one cell: one site, layer and position, and one head
    (sites with heads), key/value head (k, v) or block of neurons (`neuron_blocks` to a layer).
    With `split=False`, a site's heads or neurons are edited all at once.
    Nothing is approximated: engines differ only in what they do not compute twice.

    `edit`, with a the value in the unedited run:
      "patch"    a' = the value in the other run, clean into corrupt, or corrupt into clean
      "zero"     a' = 0
      "mean"     a' = mean over the prompts and positions of `reference` (default: x itself)
      "resample" a' = the value in another prompt of `reference`, drawn by `seed`
      "noise"    a' = a + scale * std(a) * e; e ~ N(0, 1) by `seed`, std over the cell's features
      a function a' = f(a), with a and a' [cells, features]; it must treat each cell by itself
    `into`: "corrupt" for a patch and "clean" for other edits, unless given.

    `positions`: own positions of each prompt, also negative, or names from `task.positions`.
    `memory`: bytes to use beside the model. `engine`: "packed" (edited copies join at their layer
    and hold only the tokens from the edited one on), "resume" (they join at their layer, on the
    model's own blocks), "plain" (one forward each), or the first of these that serves ("auto").
    `skip`: give cells that provably change nothing their 0 without running them. `progress`: True
    for a bar, or f(done, total). `resume`: a file that keeps finished cells, and from which the
    same sweep goes on. Interrupted from the keyboard, what is done is returned, the rest NaN.

    Returns a Dataset with one variable for each site: (prompt, layer, position[, head | kv_head |
    neuron_block]), in the metric's units, NaN where a prompt has no such position; coordinates
    `group`, `text`, `token_str`; attributes `engine`, `engine_reason`, `cells`, `skipped`, `rows`,
    `flops`, `complete`, and `base_metric` as a variable (prompt). `result.lw.interval()` gives the
    mean over prompts with its interval.

    Raises BadInput, UnknownName or MissingSite before any long computation: a site, layer, head or
    position that is not there, twins of unequal length, a metric that does not give one finite
    number a prompt, a budget too small for one cell, a file of another sweep. NoFiring when an
    edit never ran. Source: Heimersheim & Nanda 2024 (arXiv:2404.15255).
    """
    request = check(
        model, task, sites, layers, positions, heads, edit, into, reference, memory,
        neuron_blocks, split, skip, seed, scale,
    )  # fmt: skip
    job = Job(request, engine, resume)
    complete = True
    with torch.no_grad():
        try:
            job.run(progress)
        except KeyboardInterrupt:
            complete = False
            warnings.warn(
                f"sweep interrupted: {job.left()} of {job.cells} cells are missing (NaN)",
                stacklevel=2,
            )
    return labelled(job, complete)


def sweep_plan(
    model: Model,
    task: Task,
    sites: str | Iterable[str] = "resid_pre",
    *,
    layers: Indices = None,
    positions: Positions = None,
    heads: Indices = None,
    edit: EditLike = "patch",
    into: Literal["clean", "corrupt"] | None = None,
    reference: Prompts | None = None,
    memory: float = 512e6,
    engine: Engine = "auto",
    skip: bool = True,
    progress: Progress = None,
    resume: str | os.PathLike[str] | None = None,
    neuron_blocks: int = 16,
    split: bool = True,
    seed: int = 0,
    scale: float = 1.0,
) -> Plan:
    """Say what `sweep` with the same arguments will do and cost; see `Plan`.

    Runs the unedited prompts (to know which cells change nothing) and a product of matrices for
    about 50 ms (to know the machine), and no cell. Raises as `sweep` does.
    """
    request = check(
        model, task, sites, layers, positions, heads, edit, into, reference, memory,
        neuron_blocks, split, skip, seed, scale,
    )  # fmt: skip
    with torch.no_grad():
        return Job(request, engine, resume).plan()


__all__: list[Any] = ["sweep", "sweep_plan"]
