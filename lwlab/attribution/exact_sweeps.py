"""How to read exact activation patching. Heimersheim & Nanda, arXiv:2404.15255.

The front of sweeps: what `lw.sweep` finds as shares of the effect (`restored`), its interval over
prompts (`result.lw.interval()`), any of its cells run again as a whole forward pass (`verify`), and
the arithmetic of the ways to compute it (`arithmetic`). The engines are in `lwlab.tracing.sweep`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
import xarray as xr

from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.results import label, provenance
from lwlab.tasks.base import Task
from lwlab.tracing import engine
from lwlab.tracing.sweep import Plan, sweep, sweep_plan
from lwlab.tracing.sweep.cost import attention, projections

__all__ = ["PAPER", "Plan", "arithmetic", "gap", "restored", "sweep", "sweep_plan", "verify"]

PAPER = "2404.15255"
WAYS = ("one forward a cell", "from the edited layer on", "and from the edited token on")
_UNITS = ("head", "kv_head", "neuron_block")


@torch.no_grad()
def gap(model: Model, task: Task) -> xr.Dataset:
    """m(x) and m(x'): the task's metric of each clean and each corrupt prompt, (prompt)."""
    out = {}
    for which in ("clean", "corrupt"):
        logits = engine.run(model, list(getattr(task, which))).logits
        if logits is None:
            raise BadInput(f"{model.name} gives no logits, so a task cannot be scored on it")
        out[which] = label(task.metric(logits), "prompt", name=which, units=task.metric.name)
    return xr.Dataset(out, attrs=provenance(model, task))


def restored(model: Model, task: Task, result: xr.Dataset) -> xr.Dataset:
    """Effects of a sweep as shares of the whole: S / (mean m(x) - mean m(x')), signs kept.

    1 means that one cell brings all of the clean answer back (into="corrupt"), -1 that it takes all
    of it away (into="clean"). Raises BadInput where clean and corrupt prompts score the same.
    """
    ends = gap(model, task).mean("prompt")
    whole = float(ends.clean - ends.corrupt)
    if whole == 0:
        raise BadInput(
            f"{task.name}: clean and corrupt prompts score the same ({float(ends.clean):.3g}), so "
            "there is no effect to take a share of"
        )
    out = result.drop_vars("base_metric", errors="ignore")
    out = out / whole
    for name in out.data_vars:
        about = {"units": "", "long_name": f"share of the effect, {name}"}
        out[name].attrs = result[name].attrs | about
    return out.assign_attrs(result.attrs | {"normalised": True, "whole_effect": whole})


def verify(
    model: Model,
    task: Task,
    result: xr.Dataset,
    n: int = 8,
    *,
    edit: Callable[[torch.Tensor], torch.Tensor] | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Run `n` of a sweep's cells again, each by one whole forward pass of one prompt.

    Cells are drawn among those that are not zero, from each site in turn. For a sweep of `task`
    with edit "patch" or "zero", or with a function, which is given again as `edit`.

    Returns (cell): `sweep`, `again` and `difference` in the metric's units, with each cell's site,
    prompt, layer, position and unit (head, key/value head or neuron block; -1 where it has none).
    Raises BadInput for other edits, which depend on more than the cell, and where all is zero.
    """
    how = edit or str(result.attrs.get("edit"))
    if not callable(how) and how not in ("patch", "zero"):
        raise BadInput(
            f"a sweep with edit={how!r} cannot be checked cell by cell; "
            "'patch', 'zero' and functions (edit=f) can"
        )
    draw = np.random.default_rng(seed)
    live: list[list[tuple[Any, ...]]] = []
    for name, values in result.data_vars.items():
        if "layer" in values.dims:
            found = draw.permutation(np.argwhere(np.nan_to_num(values.values) != 0))
            live.append([(str(name), *at) for at in found[:n].tolist()])
    chosen = [cell for turn in zip_longest(*live) for cell in turn if cell is not None][:n]
    if not chosen:
        raise BadInput("every cell of this sweep is zero: there is nothing to check")
    rows = []
    for site, prompt, *at in chosen:
        cell = result[site].isel(prompt=prompt).isel(dict(zip(result[site].dims[1:], at)))
        unit = next((u for u in _UNITS if u in cell.coords), None)
        options: dict[str, Any] = {"edit": how, "into": result.attrs["into"], "engine": "plain"}
        if unit == "neuron_block":
            options["neuron_blocks"] = result.sizes[unit]
        elif unit:
            options["heads"] = [int(cell[unit])]
        layer, position = cell.layer.item(), cell.position.item()
        again = sweep(model, task.subset([prompt]), site, layers=layer, positions=[position],
                      **options)[site].isel(prompt=0, layer=0, position=0)  # fmt: skip
        if unit:
            again = again.sel({unit: cell[unit]})
        number = int(cell[unit]) if unit else -1
        rows.append((site, prompt, layer, str(position), number, float(cell), float(again)))
    names = ("site", "prompt", "layer", "position", "unit", "sweep", "again")
    columns: dict[str, Any] = {k: ("cell", list(v)) for k, v in zip(names, zip(*rows))}
    out = xr.Dataset({k: columns.pop(k) for k in ("sweep", "again")}, columns, result.attrs)
    return out.assign(difference=abs(out.sweep - out.again))


def arithmetic(model: Model, lengths: Iterable[int]) -> xr.DataArray:
    """Operations of a sweep of one stream over all layers and positions, (way, length), in 1e9.

    With L layers, T tokens, c operations a row in a block's weights and a = 4 H d_head of attention
    for each pair of query and key: L^2 T * T (c + a T) by a forward a cell, L (L + 1) / 2 * T
    * T (c + a T) from the edited layer on, and L (L + 1) / 2 * T (T + 1) / 2 * (c + a T) from the
    edited token on too. Without the unembedding, and without what the last layer can leave out.
    """
    sizes = [int(t) for t in lengths]
    if not sizes or min(sizes) < 1:
        raise BadInput(f"lengths={sizes}; give numbers of tokens, such as [14, 128]")
    n, c = model.n_layers, sum(projections(model))
    table = []
    for t in sizes:
        row = c + attention(model, t)
        above = n * (n + 1) // 2
        table.append([n * n * t * t * row, above * t * t * row, above * t * (t + 1) // 2 * row])
    return label(
        np.array(table).T / 1e9, ("way", "length"), {"way": list(WAYS), "length": sizes},
        name="operations", units="1e9", long_name="operations", model=model.name,
    )  # fmt: skip
