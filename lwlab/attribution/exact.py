"""Exact activation patching: put one clean activation into the corrupt run and see what it changes.

The ground truth that first-order methods are judged by, one intervention for each component, layer
and position. Heimersheim & Nanda 2024 (arXiv:2404.15255) tell how to read it. The sweep itself is
`lw.sweep`; here its cells become shares of the effect, beside those of the other techniques.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import xarray as xr

from lwlab.attribution.pairs import COMPONENTS, Pair
from lwlab.models.model import Model
from lwlab.tasks.base import Task
from lwlab.tracing.sweep import sweep


def scores(
    model: Model,
    task: Task | Pair,
    components: str | Iterable[str] = COMPONENTS,
    layers: Iterable[int] | int | None = None,
    *,
    normalise: bool = True,
    memory: float = 512e6,
) -> xr.DataArray:
    """Effect of each clean activation in the corrupt run.

    AP(c, l, p) = m(x' with a'(c, l, p) <- a(c, l, p)) - m(x'), with m the task's metric; divided
    by mean m(x) - mean m(x') if `normalise`, so that 1 means that the clean answer is restored.
    A component that has heads or neurons is patched whole.

    Returns (component, prompt, layer, position). Cells that provably change nothing, as all before
    the first token in which a prompt differs from its twin, are exactly zero and are not run.
    `memory` bounds in bytes what the sweep holds beside the model.

    Raises BadInput, UnknownName or MissingSite before the run: components or layers that the model
    lacks, an unfit task (see `Pair.of`), a zero effect to normalise by, as `lw.sweep` does.
    """
    pair = Pair.of(model, task)
    sites, chosen = pair.sites(components), pair.layers(layers)
    about = {"technique": "activation patching", "paper": "2404.15255"}
    if torch.equal(pair.clean.ids, pair.corrupt.ids):
        values = np.zeros((len(sites), len(pair), len(chosen), pair.width - pair.begin))
    else:
        found = sweep(model, pair.task, sites, layers=chosen, split=False, memory=memory)
        pair.know(torch.tensor(found.attrs["donor_metric"]), torch.tensor(found.base_metric.values))
        values = np.stack([found[s].values[..., pair.begin :] for s in sites])
        about |= {k: found.attrs[k] for k in ("engine", "engine_reason")}
    return pair.label(torch.from_numpy(values), sites, chosen, normalise=normalise, **about)
