"""Bits in closed form: for the columns of a matrix, and for the layers of a model."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from lwlab.errors import BadInput
from lwlab.results import label

PAPER = "2506.05664"
THETA = 1.95  # measured loss falls as 2^(-theta R); 2 in the theory
Floats = NDArray[np.float64]


class Allocation(NamedTuple):
    """`bits` [columns]; `gain`: predicted total loss over that of uniform bits."""

    bits: Floats
    gain: float


def allocation(
    c: ArrayLike, rate: float, *, weights: ArrayLike | None = None,
    least: float | None = None, most: float | None = None,
) -> Allocation:  # fmt: skip
    """Minimise sum_j c_j 4^-R_j with mean R_j = `rate`: the closed form, [columns] bits.

    R_j = rate + log2((c_j / w_j) / GM) / 2, with `weights` w_j (how many weights share R_j; ones if
    not given) in the mean and in GM = exp(sum w log(c / w) / sum w). With `least` or `most`, bits
    outside are clipped and the others solved again until the mean is `rate` (reverse water-filling,
    the optimum with bounds).

    Raises BadInput for c that are not positive and finite, or a rate outside least..most.
    """
    values = _positive(c, "c")
    w = np.ones_like(values) if weights is None else _positive(weights, "weights")
    if w.shape != values.shape:
        raise BadInput(f"weights has shape {w.shape}, c {values.shape}")
    low, high = (-math.inf if least is None else least), (math.inf if most is None else most)
    if not math.isfinite(rate) or not low <= rate <= high:
        raise BadInput(f"a mean of {rate:g} bits cannot be met with {low:g} to {high:g} a column")
    half = 0.5 * np.log2(values / w)
    bits = half + rate - float(w @ half) / w.sum()
    # The water level that meets the mean lies between the levels at which all sit on one bound.
    if bits.min() < low or bits.max() > high:
        down, up = -64.0 - half.max() + min(rate, 0), 64.0 + rate - half.min()
        for _ in range(200):
            middle = 0.5 * (down + up)
            short = float(w @ np.clip(half + middle, low, high)) / w.sum() < rate
            down, up = (middle, up) if short else (down, middle)
        bits = np.clip(half + 0.5 * (down + up), low, high)
    total = float((values * 4.0**-bits).sum())
    return Allocation(bits, total / float((values * 4.0**-rate).sum()))


def gain(losses: ArrayLike) -> float:
    """GM / AM of column losses: what the closed form leaves of the loss; 1 where all are equal.

    Columns without loss (inputs that are never on) are left out; 1 if no column has any.
    """
    values = np.asarray(losses, dtype=np.float64).ravel()
    if not np.isfinite(values).all() or (values < 0).any():
        raise BadInput("a loss is negative or not finite")
    values = values[values > 0]
    return float(np.exp(np.log(values).mean()) / values.mean()) if values.size else 1.0


def levels(
    losses: ArrayLike, rate: float, *, theta: float = THETA, fit: bool = True
) -> NDArray[np.int64]:
    """How many levels each column gets, from its loss L_j at `rate` uniform bits, [columns].

    n_j = ((L_j / GM(L)) 2^(theta rate))^(1 / theta), rounded and at least 1: whole numbers of
    levels, so bits log2 n_j are fractional. As coded (fit=False) the mean of log2 n_j misses
    `rate`, up where columns hit one level (0 bits). With `fit` the target loss in place of GM(L) is
    moved until the mean is the largest that does not exceed `rate`: equal size.

    Raises BadInput for losses that are negative, not finite or all zero, a rate outside 1..16, or
    a theta that is not positive.
    """
    values = np.asarray(losses, dtype=np.float64).ravel()
    if not values.size or not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise BadInput("losses: give numbers of 0 or more, finite, not all zero")
    check_rate(rate)
    if not theta > 0:
        raise BadInput(f"theta={theta}: loss falls as 2^(-theta bits), so it is positive")
    used = values > 0
    ideal = np.zeros_like(values)
    logs = np.log2(values[used])
    ideal[used] = (logs - logs.mean()) / theta + rate

    def at(shift: float) -> NDArray[np.int64]:
        found = np.rint(2.0 ** np.clip(ideal + shift, 0, 16)).astype(np.int64)
        return np.where(used, np.maximum(found, 1), 1)

    if not fit:
        return at(0.0)
    down, up = -32.0 - float(np.abs(ideal).max()), 32.0 + float(np.abs(ideal).max())
    for _ in range(100):
        middle = 0.5 * (down + up)
        over = float(np.log2(at(middle)).mean()) > rate + 1e-12
        down, up = (down, middle) if over else (middle, up)
    return at(down)


def layer_bits(table: xr.Dataset, megabytes: float, cost: ArrayLike | None = None) -> xr.DataArray:
    """Apply the closed form across layers: whole bits over (layer,) that fit into `megabytes`.

    c_l is read from the `error_table`, log c_l = mean over its widths b of log(error_l(b) 4^b), or
    given as `cost` (any factor common to all layers drops out), such as what rounding each layer
    alone to the same bits costs in nats: errors of outputs are not in one currency across layers.
    R_l = log2((c_l / N_l)) / 2 + level, N_l the layer's weights, rounded to the nearest width
    of the table; the level is the highest that fits. Takes the place of `allocate`; the result goes
    to `fake_quantized` or the bit board. Attributes tell `megabytes` used and the summed `error`.

    Raises BadInput for a budget under the fewest bits, a layer without any error, or a cost that
    is not one positive number a layer.
    """
    widths = np.sort(table.bits.values).astype(int)
    error = table.error.sum("module").transpose("layer", "bits").sel(bits=widths).values
    size = table.megabytes.sum("module").transpose("layer", "bits").sel(bits=widths).values
    n = table.weights.sum("module").values
    if not megabytes >= size[:, 0].sum() - 1e-9:
        raise BadInput(
            f"{megabytes:g} MB are too few: {widths[0]} bits everywhere take "
            f"{size[:, 0].sum():.2f} MB"
        )
    if cost is not None:
        c = np.asarray(cost, dtype=np.float64)
        if c.shape != n.shape or not np.isfinite(c).all() or not (c > 0).all():
            raise BadInput(f"cost has shape {c.shape}: give one positive number a layer, {n.shape}")
        logs = np.log2(c)
    elif (error > 0).any(1).all():
        logs = np.nanmean(np.log2(np.where(error > 0, error, np.nan)) + 2 * widths, axis=1)
    else:
        raise BadInput("a layer has no error at any width: its weights lie on the grid already")
    half = 0.5 * (logs - np.log2(n))
    rows = np.arange(len(half))

    def at(level: float) -> NDArray[np.intp]:
        return np.abs((half + level)[:, None] - widths).argmin(1)

    down, up = widths[0] - half.max() - 1, widths[-1] - half.min() + 1
    if size[rows, at(up)].sum() > megabytes + 1e-9:
        for _ in range(100):
            middle = 0.5 * (down + up)
            fits = size[rows, at(middle)].sum() <= megabytes + 1e-9
            down, up = (middle, up) if fits else (down, middle)
    else:
        down = up
    found = at(down)
    return label(
        widths[found], ("layer",), {"layer": table.layer.values}, name="bits",
        **{**table.attrs, "technique": "BAQ across layers", "paper": PAPER,
           "budget": float(megabytes), "megabytes": float(size[rows, found].sum()),
           "error": float(error[rows, found].sum())},
    )  # fmt: skip


def _positive(values: ArrayLike, what: str) -> Floats:
    out = np.asarray(values, dtype=np.float64).ravel()
    if not out.size or not np.isfinite(out).all() or not (out > 0).all():
        raise BadInput(f"{what}: give positive, finite numbers")
    return out


def check_rate(rate: float) -> None:
    """Raise BadInput unless `rate` is a mean of 1 to 16 bits."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 1 <= rate <= 16:
        raise BadInput(f"rate={rate!r}: give a mean of 1 to 16 bits")
