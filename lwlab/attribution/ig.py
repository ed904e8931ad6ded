"""Integrated gradients along the embeddings, read at every component.

Sundararajan, Taly & Yan 2017 (arXiv:1703.01365) for inputs; the mean gradient of inner components
over the same path as in Hanna, Pezzelle & Belinkov 2024 (arXiv:2403.17806), EAP-IG.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import xarray as xr

from lwlab.attribution.pairs import COMPONENTS, Pair, Values
from lwlab.errors import BadInput
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
    normalise: bool = True,
    batch_size: int = 16,
) -> xr.DataArray:
    """Estimate the effect of patching by the mean gradient between the corrupt and the clean run.

    IG(c, l, p) = <a - a', 1/S sum_s dm/da |_{e_s}>, the run at e_s starting from the embeddings
    e' + (s - 1/2)/S (e - e'), s = 1..S (the midpoint rule). Costs S forward and backward passes.

    At the stream entering the first block (in models whose positions are not added to it) the sum
    over positions tends to m(x) - m(x') as S grows: completeness. Returns (component, prompt,
    layer, position), normalised as in `exact.scores`; raises as it does, and BadInput for no steps.
    """
    if steps < 1:
        raise BadInput(f"steps={steps}; integrated gradients need at least one")
    pair = Pair.of(model, task)
    embed = Address("embed")
    clean, corrupt = (values[embed] for values in pair.read([embed]))

    def slopes(rows: torch.Tensor, at: list[Address]) -> Values:
        total: Values = {}
        for s in range(steps):
            point = torch.lerp(corrupt[rows], clean[rows], (s + 0.5) / steps)
            step = pair.slopes(model, rows, at, [Edit(embed, point)])
            total = {a: total[a] + g if total else g for a, g in step.items()}
        return {a: g / steps for a, g in total.items()}

    return pair.estimate(
        slopes, components, layers, normalise=normalise, batch_size=batch_size,
        technique="integrated gradients", paper="1703.01365", steps=steps,
    )  # fmt: skip
