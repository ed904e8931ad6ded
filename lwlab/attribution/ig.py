"""Integrated gradients along the embeddings, read at every component.

Sundararajan, Taly & Yan 2017 (arXiv:1703.01365) for inputs; the mean gradient of inner components
over the same path as in Hanna, Pezzelle & Belinkov 2024 (arXiv:2403.17806), EAP-IG.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import xarray as xr

from lwlab.attribution.pairs import COMPONENTS, Pair, Values
from lwlab.attribution.steps import check_steps, said
from lwlab.models.model import Model
from lwlab.models.sites import Address
from lwlab.tasks.base import Task
from lwlab.tracing.edits import Edit


def scores(
    model: Model,
    task: Task | Pair,
    components: str | Iterable[str] = COMPONENTS,
    layers: Iterable[int] | int | None = None,
    *,
    steps: int = 5,
    tolerance: float | None = None,
    max_steps: int = 80,
    normalise: bool = True,
    batch_size: int = 16,
) -> xr.DataArray:
    """Estimate the effect of patching by the mean gradient between the corrupt and the clean run.

    IG(c, l, p) = <a - a', 1/S sum_s dm/da |_{e_s}>, the run at e_s starting from the embeddings
    e' + (s - 1/2)/S (e - e'), s = 1..S (the midpoint rule). Costs S forward and backward passes.

    Completeness: at the stream entering the first block the sum over positions tends to
    m(x) - m(x') as S grows. Attribute `completeness_gap` says by how much the worst prompt misses
    that, as a share of mean |m(x) - m(x')|. With a `tolerance` S is doubled, batch by batch, until
    the gap is below it, to at most `max_steps`; where it stays open a warning says so and attribute
    `converged` is False. Attribute `steps` is the largest S taken.

    Returns (component, prompt, layer, position), normalised as in `exact.scores`; raises as it
    does, and BadInput for numbers of steps or a tolerance that make no sense.
    """
    check_steps(steps, max_steps, tolerance)
    pair = Pair.of(model, task)
    embed, first = Address("embed"), Address("resid_pre", 0)
    clean, corrupt = pair.read([embed, first])
    ours, theirs = pair.metrics()
    effect = float((ours - theirs).abs().mean())
    gaps: dict[int, float] = {}
    used: list[int] = []

    def average(rows: torch.Tensor, at: list[Address], n: int) -> Values:
        total: Values = {}
        for s in range(n):
            point = torch.lerp(corrupt[embed][rows], clean[embed][rows], (s + 0.5) / n)
            step = pair.slopes(model, rows, at, [Edit(embed, point)])
            total = {a: total[a] + g if total else g for a, g in step.items()}
        return {a: g / n for a, g in total.items()}

    def slopes(rows: torch.Tensor, at: list[Address]) -> Values:
        n = steps
        while True:
            found = average(rows, list(dict.fromkeys([*at, first])), n)
            dots = ((clean[first][rows] - corrupt[first][rows]) * found[first]).double()
            gap = float((dots.flatten(1).sum(1) - (ours - theirs)[rows]).abs().max())
            gaps[int(rows[0])] = gap / effect if effect else 0.0
            if tolerance is None or gap <= tolerance * effect or 2 * n > max_steps:
                used.append(n)
                return found
            n *= 2

    out = pair.estimate(
        slopes, components, layers, normalise=normalise, batch_size=batch_size,
        technique="integrated gradients", paper="1703.01365",
    )  # fmt: skip
    return out.assign_attrs(said("ig", max(gaps.values()), max(used), tolerance))
