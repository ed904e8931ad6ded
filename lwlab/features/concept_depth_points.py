"""Reading a study of concept depth: accuracy with intervals, and where each concept arrives."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from lwlab.errors import BadInput
from lwlab.results import label, provenance
from lwlab.stats import Estimate, interval

#: The paper's thresholds: a jump is a ratio of neighbours of at least 1.1, a change one that is
#: 0.03 away from 1. The others are ours: ready is within 0.02 of the peak, and a
#: concept whose peak is not 0.15 above chance (three standard errors of 100 texts) has no half.
JUMP, FLAT, NEAR, LEARNED = 1.1, 0.03, 0.02, 0.15


def accuracy(found: xr.Dataset, *, n: int = 1000, seed: int = 0) -> xr.DataArray:
    """Accuracy by layer with its bootstrap interval over groups, (..., layer, estimate).

    `found` is a `study` or a `probe_layers`.
    """
    if "concept" not in found.dims:
        return interval(found["correct"], n=n, seed=seed)
    parts = [
        interval(found["correct"].sel(concept=k), groups=found["group"].sel(concept=k).values,
                 n=n, seed=seed)
        for k in found.concept.values
    ]  # fmt: skip
    whole = xr.concat(
        parts, "concept", combine_attrs="override", coords="minimal", compat="override"
    )
    return whole.assign_attrs({**found.attrs, **whole.attrs, "long_name": "held-out accuracy"})


def points(
    found: xr.Dataset,
    *,
    jump: float = JUMP,
    flat: float = FLAT,
    near: float = NEAR,
    learned: float = LEARNED,
    chance: float = 0.5,
    n: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Where a concept arrives, in layers, along `draw`: number 0 is the data, the rest resamples.

    With accuracy a_i at layer i and b_i = a_i / a_(i-1):

        jump     = min{i: b_i >= 1.1}          (NaN where there is no such layer)
        converge = max{i: |b_i - 1| >= 0.03}   (the first layer where it is flat throughout)
        ready    = min{i: a_i >= max a - 0.02}
        half     = min{i: a_i >= (chance + max a) / 2}   (NaN where max a < chance + 0.15)

    The first two are the paper's (there divided by the number of layers), the others are ours.
    On a plateau the first three hang on single texts; `half` is where the curve is steep.
    Resamples draw groups of texts, the same ones for every variant, so that differences along
    `variant` are paired. `estimate` gives value and interval.
    """
    if not jump > 1 or not flat > 0 or near < 0 or not learned > 0:
        raise BadInput(
            f"jump={jump}, flat={flat}, near={near}, learned={learned}: jump is above 1, flat and "
            "learned above 0, near not negative"
        )
    how = (jump, flat, near, learned, chance)
    correct = found["correct"]
    if "concept" in correct.dims:
        parts = [
            _points(correct.sel(concept=k), found["group"].sel(concept=k).values,
                    how, n, seed)
            for k in found.concept.values
        ]  # fmt: skip
        out = xr.concat(parts, "concept", coords="minimal", compat="override")
    else:
        out = _points(correct, found["group"].values, how, n, seed)
    if "concept" in out.dims:
        out = out.assign_coords(concept=found.concept)
    about = {k: found.attrs[k] for k in ("model", "technique", "paper", "n") if k in found.attrs}
    return out.assign_attrs(
        provenance(**about, jump=jump, flat=flat, near=near, learned=learned, seed=seed)
    )


def _points(
    correct: xr.DataArray, group: Any, how: tuple[float, ...], n: int, seed: int
) -> xr.Dataset:
    jump, flat, near, learned, chance = how
    moved = correct.transpose("prompt", ..., "layer")
    there = np.asarray(group) >= 0
    of = np.unique(np.asarray(group)[there], return_inverse=True)[1]
    data = moved.values[there]
    count = int(of.max()) + 1
    sums = np.zeros((count, *data.shape[1:]))
    np.add.at(sums, of, data)
    rng = np.random.default_rng(seed)
    weights = np.vstack([np.ones(count), rng.multinomial(count, np.full(count, 1 / count), size=n)])
    curve = np.tensordot(weights, sums, 1)
    curve /= (weights @ np.bincount(of)).reshape(-1, *[1] * (curve.ndim - 1))
    layers = moved.layer.values.astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = curve[..., 1:] / curve[..., :-1]
    rises, moves = ratio >= jump, np.abs(ratio - 1) >= flat
    first = np.where(rises.any(-1), layers[1:][rises.argmax(-1)], np.nan)
    last = moves.shape[-1] - 1 - moves[..., ::-1].argmax(-1)
    final = np.where(moves.any(-1), layers[1:][last], layers[0])
    # Rounding must not decide between layers that are 0.02 apart.
    top = curve.max(-1, keepdims=True)
    ready = layers[(curve >= top - near - 1e-9).argmax(-1)]
    half = layers[(curve >= (top + chance) / 2 - 1e-9).argmax(-1)]
    half = np.where(top[..., 0] >= chance + learned, half, np.nan)
    kept = [str(d) for d in moved.dims[1:-1]]
    coords = {d: moved[d].values for d in kept if d in moved.coords}
    return xr.Dataset({
        k: label(v, ("draw", *kept), coords, units="layers")
        for k, v in (("jump", first), ("converge", final), ("ready", ready), ("half", half))
    })  # fmt: skip


def estimate(draws: xr.DataArray, level: float = 0.95) -> Estimate:
    """Value on the data (draw 0) and the interval of the resamples.

    Resamples without a value are left out; where the data have none, all three are NaN.
    """
    values = np.asarray(draws.values, dtype=float)
    if draws.dims != ("draw",):
        raise BadInput(f"one number a draw is needed, got {draws.dims}: select or average the rest")
    rest = values[1:][np.isfinite(values[1:])]
    if not len(rest) or np.isnan(values[0]):
        return Estimate(float(values[0]), float("nan"), float("nan"))
    low, high = np.quantile(rest, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(values[0]), float(low), float(high))
