"""Attribution patching: the effect of every patch at once, to first order.

Nanda 2023, "Attribution patching"; Syed, Rager & Conmy 2023 (arXiv:2310.10348).
"""

from __future__ import annotations

from collections.abc import Iterable

import xarray as xr

from lwlab.attribution.pairs import COMPONENTS, Pair
from lwlab.models.model import Model
from lwlab.tasks.base import Task


def scores(
    model: Model,
    task: Task | Pair,
    components: str | Iterable[str] = COMPONENTS,
    layers: Iterable[int] | int | None = None,
    *,
    normalise: bool = True,
    batch_size: int = 16,
) -> xr.DataArray:
    """Estimate the effect of patching by the gradient of the corrupt run.

    AtP(c, l, p) = <a - a', dm/da |_{x'}>, normalised as in `exact.scores`. Two forward passes and
    one backward pass for all components, layers and positions. Returns (component, prompt, layer,
    position); raises as `exact.scores` does.
    """
    pair = Pair.of(model, task)
    return pair.estimate(
        lambda rows, at: pair.slopes(model, rows, at), components, layers, normalise=normalise,
        batch_size=batch_size, technique="attribution patching", paper="2310.10348",
    )  # fmt: skip
