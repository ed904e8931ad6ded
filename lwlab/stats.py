"""Intervals and correlations: every mean gets an interval, every correlation says when it has none.

Resampling is over independent groups (prompts, or pairs of prompts that corrupt each other), with
the percentile interval of Efron and Tibshirani, An Introduction to the Bootstrap (1993), ch. 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy import stats as _scipy

from lwlab.errors import BadInput

Floats = NDArray[np.float64]
Labels = Sequence[object] | NDArray[Any]


class Estimate(NamedTuple):
    """A number with its interval; it unpacks as (mean, low, high)."""

    mean: float
    low: float
    high: float


def bootstrap(
    values: ArrayLike,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    groups: Labels | None = None,
) -> Estimate:
    """Return the mean of `values` [k] and its percentile bootstrap interval.

    `n` resamples of k values with replacement; with `groups` (k labels), whole groups are drawn,
    for values that are not independent. A single value or group has no interval: NaN bounds.
    Raises BadInput for no values, for NaN, or for labels of another length.
    """
    data = _clean(values, "values").ravel()
    weights, member = _resamples(len(data), groups, n, seed)
    sums = weights @ np.bincount(member, weights=data)
    means = sums / (weights @ np.bincount(member))
    return _interval(float(data.mean()), means, weights.shape[1], level)


def interval(
    values: xr.DataArray,
    over: str = "prompt",
    groups: Labels | None = None,
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> xr.DataArray:
    """Return the mean over `over` of every cell with its percentile bootstrap interval.

    As `bootstrap`, for all other dimensions at once; `groups` defaults to the coordinate `group`
    along `over`, where there is one. NaN means "no such cell for this prompt" (a position past its
    end) and is left out; a cell with fewer than two groups left has NaN bounds. Returns the other
    dimensions and `estimate` ("mean", "low", "high"). Raises BadInput for a dimension that is not
    there, infinite values, or labels of another length.
    """
    if over not in values.dims:
        raise BadInput(f"dimension {over!r} is not among {values.dims}; name another with `over`.")
    if not 0 < level < 1:
        raise BadInput(f"level is {level}; it is a fraction such as 0.95.")
    if groups is None and "group" in values.coords and values["group"].dims == (over,):
        groups = values["group"].values
    moved = values.transpose(over, ...)
    data = np.asarray(moved.values, dtype=np.float64).reshape(moved.shape[0], -1)
    if np.isinf(data).any() or not data.size:
        raise BadInput("the values hold infinity, or there are none.")
    weights, member = _resamples(len(data), groups, n, seed)
    out = np.empty((data.shape[1], 3))
    for first in range(0, data.shape[1], 2048):
        part = data[:, first : first + 2048]
        there = np.isfinite(part)
        sums, counts = _by_group(np.where(there, part, 0), member), _by_group(there * 1.0, member)
        held = counts.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            draws = (weights @ sums) / (weights @ counts)
            mean = sums.sum(0) / held
        ends = (1 - level) / 2, (1 + level) / 2
        enough = (counts > 0).sum(0) >= 2
        bounds = np.full((2, part.shape[1]), np.nan)
        if enough.any():
            bounds[:, enough] = np.nanquantile(draws[:, enough], ends, axis=0)
        out[first : first + 2048] = np.stack([mean, *bounds], 1)
    rest = [d for d in moved.dims if d != over]
    kept = {k: c for k, c in moved.coords.items() if over not in c.dims}
    shape = [moved.sizes[d] for d in rest]
    return xr.DataArray(
        out.reshape(*shape, 3), dims=[*rest, "estimate"],
        coords={**kept, "estimate": ["mean", "low", "high"]}, name=values.name,
        attrs={**values.attrs, "interval_level": level, "interval_groups": weights.shape[1]},
    )  # fmt: skip


def pearson(a: ArrayLike, b: ArrayLike) -> float:
    """Return Pearson's r between `a` and `b`, flattened; DataArrays are aligned by dimension name.

    Raises BadInput where r does not exist: unequal shapes, fewer than two values, NaN, or a
    constant input.
    """
    x, y = _pair(a, b)
    return float(_scipy.pearsonr(x.ravel(), y.ravel()).statistic)


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Return Spearman's rank correlation (ties get their mean rank); raises as `pearson` does."""
    x, y = _pair(a, b)
    return float(_scipy.spearmanr(x.ravel(), y.ravel()).statistic)


def pearson_interval(
    a: ArrayLike,
    b: ArrayLike,
    *,
    groups: Labels | None = None,
    average: bool = False,
    over: str = "prompt",
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Return Pearson's r between two results over prompts, with a bootstrap over the prompts.

    `a` and `b` [prompts, ...] are flattened and pooled; with `average=True` they are averaged over
    prompts first and the mean maps are correlated. Each of the `n` resamples draws prompts (or
    whole `groups`, one label a prompt) with replacement: cells of one prompt stay together,
    because they are not independent. DataArrays may have the dimension `over` anywhere.
    Resamples in which a side is constant are left out. Raises as `pearson` does.
    """
    if isinstance(a, xr.DataArray) and isinstance(b, xr.DataArray):
        if over not in a.dims:
            raise BadInput(f"dimension {over!r} is not among {a.dims}; name another with `over`.")
        a = a.transpose(over, ...)
    x, y = _pair(a, b)
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    weights, member = _resamples(len(x), groups, n, seed)
    # Correlation does not change with location; centring keeps the sums below well conditioned.
    x, y = x - x.mean(), y - y.mean()
    centre = pearson(x.mean(0), y.mean(0)) if average else pearson(x, y)
    if average:
        maps = [weights @ _by_group(m, member) for m in (x, y)]
        total = (weights @ np.bincount(member))[:, None]
        draws = _rowwise_pearson(maps[0] / total, maps[1] / total)
    else:
        moments = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y]).sum(2).T
        k, sx, sy, sxx, syy, sxy = (weights @ _by_group(moments, member)).T
        draws = _ratio(sxy / k - sx * sy / k**2, sxx / k - (sx / k) ** 2, syy / k - (sy / k) ** 2)
    return _interval(centre, draws, weights.shape[1], level)


def _rowwise_pearson(x: Floats, y: Floats) -> Floats:
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    return _ratio((x * y).mean(1), (x**2).mean(1), (y**2).mean(1))


def _ratio(covariance: Floats, x: Floats, y: Floats) -> Floats:
    """Return r from (co)variances, without the resamples whose variance is only rounding."""
    real = (x > 1e-12 * x.max()) & (y > 1e-12 * y.max())
    return cast("Floats", covariance[real] / np.sqrt(x[real] * y[real]))


def _by_group(rows: Floats, member: NDArray[np.intp]) -> Floats:
    """Sum rows [k, m] within their group: [groups, m]."""
    out = np.zeros((int(member.max()) + 1, rows.shape[1]))
    np.add.at(out, member, rows)
    return out


def _resamples(k: int, groups: Labels | None, n: int, seed: int) -> tuple[Floats, NDArray[np.intp]]:
    """Return how often each group is drawn, [n, groups], and the group of each of k items."""
    if groups is None:
        member = np.arange(k, dtype=np.intp)
    else:
        if len(groups) != k:
            raise BadInput(f"{len(groups)} group labels for {k} values: give one a value.")
        member = np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.intp)
    count = int(member.max()) + 1
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=n)
    return draws.astype(np.float64), member


def _interval(centre: float, draws: Floats, groups: int, level: float) -> Estimate:
    if not 0 < level < 1:
        raise BadInput(f"level is {level}; it is a fraction such as 0.95.")
    if groups < 2 or len(draws) == 0:
        return Estimate(centre, float("nan"), float("nan"))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(centre, float(low), float(high))


def _clean(values: ArrayLike, what: str) -> Floats:
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise BadInput(f"{what} is empty.")
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise BadInput(
            f"{what} holds {bad} NaN or infinite of {array.size} values; leave them out."
        )
    return array


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    if isinstance(a, xr.DataArray) and isinstance(b, xr.DataArray):
        if set(a.dims) != set(b.dims):
            raise BadInput(f"the two results have different dimensions: {a.dims} and {b.dims}.")
        try:
            xr.align(a, b, join="exact")
        except ValueError as error:
            raise BadInput(f"the two results are labelled differently: {error}") from None
        b = b.transpose(*a.dims)
    x, y = _clean(a, "the first input"), _clean(b, "the second input")
    if x.shape != y.shape:
        raise BadInput(f"a correlation needs equal shapes, got {x.shape} and {y.shape}.")
    if x.size < 2:
        raise BadInput("a correlation needs at least two values.")
    for which, side in (("first", x), ("second", y)):
        if np.ptp(side) == 0:
            raise BadInput(
                f"the {which} input is constant ({side.flat[0]}), so it correlates with nothing."
            )
    return x, y


def auc(scores: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Area under the ROC curve along the last axis: the chance that a true one outscores a false.

    Mann-Whitney's U over the number of pairs, ties counting half. `scores` [..., n], `labels` [n],
    true or false. Returns [...], a single number for scores [n]. Raises BadInput for other shapes,
    NaN or infinity, or a missing class.
    """
    s, t = np.asarray(scores, float), np.asarray(labels).astype(bool)
    if t.ndim != 1 or s.shape[-1:] != t.shape:
        many = s.shape[-1] if s.ndim else 1
        raise BadInput(f"{many} scores for {t.size} labels: one is needed each")
    if not np.isfinite(s).all():
        raise BadInput("scores hold NaN or infinity")
    n, m = int(t.sum()), int((~t).sum())
    if not n or not m:
        raise BadInput("both classes are needed to tell them apart")
    above = _scipy.rankdata(s, axis=-1)[..., t].sum(-1) - n * (n + 1) / 2
    return np.asarray(above / (n * m))
