"""What sweeps are held to: one forward pass with plain torch hooks for each cell; odd tasks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from reference import forward

import lwlab as lw
from lwlab.models.sites import SITES, Address
from lwlab.models.tokens import Tokens
from lwlab.tasks import Task
from lwlab.tracing.blocks import together

NAMES = [("Mary", "John"), ("Tom", "Anna")]
UNEVEN = (
    ("Mary gave the ball to", "John gave the ball to"),
    ("the old man saw Mary in the park and said to", "the old man saw Tom in the park and said to"),
    ("Anna and Tom went home", "Tom and Tom went home"),
)


class LeftPadded(Task):
    """A task whose tokens come with their padding on the left."""

    def tokens(self, model: lw.Model, which: Literal["clean", "corrupt"] = "clean") -> Tokens:
        """The prompts, padded on the left."""
        return super().tokens(model, which).pad("left")


def ioi(model: lw.Model, n: int = 2) -> Task:
    """IOI prompts of fourteen tokens for toys."""
    return lw.tasks.ioi(model, n=n, names=NAMES)


def uneven(model: lw.Model, kind: type[Task] = Task) -> Task:
    """Three prompts of different lengths, two with answers of their own."""
    ids = [model.token_id(w) for w in ("Mary", "John", "Tom")]
    foils = [model.token_id(w) for w in ("Tom", "Anna", "Anna")]
    clean, corrupt = (tuple(pair[i] for pair in UNEVEN) for i in (0, 1))
    changed = [0, 4, 0]
    return kind(
        "uneven", clean, corrupt, ("Mary", "John", "Tom"), ("Tom", "Anna", "Anna"),
        torch.tensor(ids)[:, None], torch.tensor(foils)[:, None],
        {"name": torch.tensor(changed)}, ("name",), torch.arange(3), ("a", "b", "c"),
        torch.tensor([len(c.split()) for c in clean]),
    )  # fmt: skip


def all_sites(model: lw.Model) -> list[str]:
    """Every site with a value at each layer and position."""
    wanted = [s for s in model.sites() if SITES[s].scope == "layer"]
    return [s for s in wanted if SITES[s].dims[0] == "position"]


def one_cell(
    model: lw.Model,
    task: Any,
    site: str,
    layer: int,
    p: int,
    prompt: int,
    part: int | slice | None,
    new: Any,
    into: str = "corrupt",
) -> float:
    """Effect of one cell by a plain forward pass of one prompt, without padding.

    `new`: "patch", or a function of the old value of the cell.
    """  # fmt: skip
    one = task.subset([prompt])
    here, there = (together(task.tokens(model, w).pad("right"), [prompt]) for w in _order(into))
    at = Address(site, layer)
    key: Any = slice(None) if part is None else part
    with torch.no_grad():
        base = one.metric(forward(model, here)[0][:, -1])
        donor = forward(model, there, [at])[1][at].reshape(1, here.ids.shape[1], -1)

        def put(old: torch.Tensor) -> torch.Tensor:
            full = old.reshape(
                1, here.ids.shape[1], *old.shape[old.ndim - _features(site) :]
            ).clone()
            value = donor.view(full.shape)[0, p, key] if new == "patch" else new(full[0, p, key])
            full[0, p, key] = value
            return full.reshape(old.shape)

        z, _ = forward(model, here, edit={at: put})
        return float(one.metric(z[:, -1]) - base)


def _order(into: str) -> tuple[Any, Any]:
    return ("corrupt", "clean") if into == "corrupt" else ("clean", "corrupt")


def _features(site: str) -> int:
    return len(SITES[site].dims) - 1


def some_cells(result: Any, site: str, n: int, seed: int = 0) -> list[dict[str, int]]:
    """Cells of a result: some at random, and the one with the largest effect."""
    array = result[site]
    cells = np.argwhere(np.isfinite(array.values))
    rng = np.random.default_rng(seed)
    picked = cells[rng.choice(len(cells), min(n, len(cells)), replace=False)].tolist()
    picked.append(np.unravel_index(np.nanargmax(np.abs(array.values)), array.shape))
    return [dict(zip(array.dims, map(int, c))) for c in picked]


def check_cells(
    model: lw.Model,
    task: Any,
    result: Any,
    site: str,
    n: int,
    new: Any = "patch",
    into: str = "corrupt",
    blocks: int = 3,
) -> None:
    """Compare cells of a result with `one_cell`."""  # fmt: skip
    for cell in some_cells(result, site, n):
        unit = next(
            (d for d in result[site].dims if d in ("head", "kv_head", "neuron_block")), None
        )
        part: int | slice | None = None if unit is None else cell[unit]
        if unit == "neuron_block":
            edges = np.linspace(0, model.d_mlp, blocks + 1).round().astype(int)
            part = slice(int(edges[cell[unit]]), int(edges[cell[unit] + 1]))
        got = float(result[site].isel(cell))
        layer = int(result.layer[cell["layer"]])
        p, i = int(result.position[cell["position"]]), cell["prompt"]
        want = one_cell(model, task, site, layer, p, i, part, new, into)
        np.testing.assert_allclose(got, want, atol=2e-5, err_msg=f"{site} {cell}")


__all__ = ["LeftPadded", "all_sites", "check_cells", "ioi", "one_cell", "replace", "uneven"]
