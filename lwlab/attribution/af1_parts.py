"""What the functions of `af1` share: prompts run once, streams that stand in, checks and labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from lwlab.attribution.af1_rows import Rows, Sees
from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.results import label, provenance
from lwlab.tasks.base import Task

PAPER = "2509.09650"


def prepare(model: Model, task: Task | Rows, sees: Sees | None = None) -> Rows:
    """Run the prompts once, for all functions of this module to share.

    `sees`: which tokens of the common start a restricted token may look at, "prefix" (all, the
    default) or "first". Every function takes the result in the place of a task. Raises BadInput
    for prompts of unequal length, without a common first token, or answers of several tokens; for
    an architecture whose attention cannot be restricted; and where the model answers none right.
    """
    rows = task if isinstance(task, Rows) else Rows(model, task, sees or "prefix")
    if rows.model.module is not model.module or sees not in (None, rows.sees):
        raise BadInput(
            f"these prompts were prepared for {rows.model.name} with sees={rows.sees!r}; prepare "
            "them again from the task"
        )
    rows.require_solved()
    return rows


def expected(rows: Rows, layer: int, technique: str = "cama") -> torch.Tensor:
    """Streams [prompts, m, d_model] that stand in for the rows entering block `layer`.

    "cama": the mean over prompts with the same token there; "mean": over all prompts; "zero";
    "skip": the stream entering block 0, as if the blocks before were not there. ("alone" of
    `waiting` needs a run of its own.)
    """
    h = rows.base[layer]
    if technique == "skip":
        return rows.base[0]
    if technique == "zero":
        return torch.zeros_like(h)
    if technique == "mean":
        return h.mean(0, keepdim=True).expand_as(h)
    same = (rows.ids[:, None] == rows.ids[None]).to(h)  # [prompts, prompts, m]
    return torch.einsum("ijm,jmd->imd", same / same.sum(1, keepdim=True), h)


def chance(rows: Rows) -> float:
    """Share of the solved prompts that the best constant answer gets right."""
    counts = np.unique(rows.answers[rows.require_solved()].cpu().numpy(), return_counts=True)[1]
    return float(counts.max() / counts.sum())


def ordered(model: Model, wait: int, until: int) -> None:
    """Raise BadInput unless 0 <= wait <= until <= n_layers."""
    n = model.n_layers
    if not 0 <= wait <= until <= n:
        raise BadInput(
            f"layers out of order: wait={wait}, until={until}; {model.name} has {n} blocks and "
            f"needs 0 <= wait <= until <= {n} (it waits before block `wait`, transfers before "
            "block `until`, and leaves the last token alone from there on)"
        )


def rising(what: str, values: Iterable[int], low: int, high: int) -> list[int]:
    """Return whole numbers as a list; BadInput unless they rise and lie in low..high."""
    out = [int(v) for v in values]
    if not out or sorted(set(out)) != out or not low <= out[0] <= out[-1] <= high:
        raise BadInput(f"{what}={out}: give rising numbers from {low} to {high}")
    return out


def labelled(
    rows: Rows, found: Sequence[torch.Tensor], coords: dict[str, Any], **about: Any
) -> xr.Dataset:
    """Make the Dataset of `correct` and `log_prob`, [*coords, prompt]."""
    keep = rows.require_solved().tolist()
    named = {**coords, "prompt": keep, "text": ("prompt", [rows.task.clean[i] for i in keep])}
    arrays = {
        k: label(x.float(), (*coords, "prompt"), named).drop_attrs()
        for k, x in zip(("correct", "log_prob"), found)
    }
    arrays["log_prob"].attrs["units"] = "nats"
    solved = {"n_solved": len(keep), "sees": rows.sees, "chance": chance(rows)}
    return xr.Dataset(arrays, attrs=provenance(
        rows.model, rows.task, paper=PAPER, **solved, **about,
    ))  # fmt: skip
