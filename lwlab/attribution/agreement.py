"""How well one attribution map predicts another: correlations with intervals over prompts."""

from __future__ import annotations

from functools import partial
from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import rankdata

from lwlab import stats
from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.results import label

Floats = NDArray[np.float64]
Kind = Literal["mean", "active", "pooled"]
#: mean: maps averaged over prompts; active: the same, at positions where the two runs can differ;
#: pooled: those positions, every prompt's cells for themselves.
KINDS: tuple[Kind, ...] = ("mean", "active", "pooled")


def agreement(
    maps: xr.Dataset | xr.DataArray, reference: str = "exact", *, n: int = 2000, seed: int = 0
) -> xr.Dataset:
    """Return Pearson's r between each technique's scores and the reference's.

    `maps` is what `relp.study` returns: (technique, component, prompt, layer, position). Returns
    `r`, `low` and `high` (kind, technique, component), the 95 % percentile interval from `n`
    resamples of whole groups of prompts. Cells that are zero by construction (shared prefixes)
    count in "mean" only. Raises UnknownName for a technique that `maps` lacks, BadInput where a map
    is constant.
    """
    score = checked(maps)
    others = [str(m) for m in score.technique.values if m != reference]
    truth = pick(score, reference)
    out = np.zeros((3, len(KINDS), len(others), score.sizes["component"]))
    for i, kind in enumerate(KINDS):
        for j, technique in enumerate(others):
            for k, component in enumerate(score.component.values):
                a, b = (
                    _cells(x, kind).sel(component=component)
                    for x in (truth, pick(score, technique))
                )
                out[:, i, j, k] = stats.pearson_interval(
                    a, b, groups=score.group.values, average=kind != "pooled", n=n, seed=seed
                )
    coords = {"kind": list(KINDS), "technique": others, "component": score.component.values}
    dims = ("kind", "technique", "component")
    arrays = {k: label(v, dims, coords).drop_attrs() for k, v in zip(("r", "low", "high"), out)}
    arrays["r"] = arrays["r"].assign_attrs(long_name=f"Pearson r with {reference}")
    return xr.Dataset(arrays, attrs={**maps.attrs, "reference": reference})


def gain(
    maps: xr.Dataset | xr.DataArray,
    better: str,
    than: str,
    reference: str = "exact",
    *,
    kind: Kind = "mean",
    rank: bool = False,
    drop: int = 0,
    n: int = 2000,
    seed: int = 0,
) -> xr.Dataset:
    """Return r(better) - r(than), both with the reference, with a paired bootstrap over prompts.

    The two correlations of a resample are taken on the same prompts, so the interval is of their
    difference. Two controls, because Pearson's r can hang on one large cell: `rank` takes
    Spearman's r, `drop` leaves out the cells (layer, position) where the mean reference is largest.

    Returns `r`, `low`, `high` (component). Raises as `agreement` does, and BadInput for a `drop`
    that leaves fewer than two cells and for ranks of pooled cells.
    """
    if kind not in KINDS:
        raise UnknownName(f"no kind {kind!r}{suggest(kind, KINDS)}")
    if rank and kind == "pooled":
        raise BadInput("rank=True goes with kind='mean' or 'active': ranks need averaged maps")
    score = checked(maps)
    three = [_cells(pick(score, m), kind) for m in (reference, better, than)]
    groups = np.unique(score.group.values, return_inverse=True)[1]
    count = int(groups.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=n)
    weights = np.concatenate(
        [np.ones((1, len(groups))), drawn[:, groups]]
    )  # first: all as they are
    rows = []
    for component in score.component.values:
        flat = [m.sel(component=component).values.reshape(len(groups), -1) for m in three]
        if not 0 <= drop <= flat[0].shape[1] - 2:
            raise BadInput(f"drop={drop} of {flat[0].shape[1]} cells leaves nothing to correlate")
        keep = np.argsort(-np.abs(flat[0].mean(0)))[drop:]
        truth, x, y = (m[:, keep].astype(float) for m in flat)
        of = _pooled if kind == "pooled" else partial(_of_means, rank=rank)
        difference = of(truth, x, weights) - of(truth, y, weights)
        if not np.isfinite(difference[0]):
            raise BadInput(
                f"{component}: one of the maps is constant, so it correlates with nothing"
            )
        rows.append([difference[0], *np.nanquantile(difference[1:], [0.025, 0.975])])
    coords = {"component": score.component.values}
    arrays = {
        k: label(v, ("component",), coords).drop_attrs()
        for k, v in zip(("r", "low", "high"), np.array(rows).T)
    }
    about = {"better": better, "than": than, "kind": kind, "rank": rank, "drop": drop}
    return xr.Dataset(arrays, attrs={**maps.attrs, **about})


def _of_means(x: Floats, y: Floats, weights: Floats, rank: bool) -> Floats:
    """Correlations of weighted mean maps: x, y [prompts, cells], weights [draws, prompts]."""
    a, b = (weights @ m / weights.sum(1, keepdims=True) for m in (x, y))
    if rank:
        a, b = rankdata(a, axis=1), rankdata(b, axis=1)
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    return _ratio((a * b).sum(1), (a * a).sum(1), (b * b).sum(1))


def _pooled(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Correlations over the cells of all prompts, prompts weighted."""
    x, y = x - x.mean(), y - y.mean()
    moments = [weights @ m.mean(1) / weights.sum(1) for m in (x, y, x * x, y * y, x * y)]
    mx, my, mxx, myy, mxy = moments
    return _ratio(mxy - mx * my, mxx - mx * mx, myy - my * my)


def _ratio(covariance: Floats, x: Floats, y: Floats) -> Floats:
    """r from (co)variances; NaN where a side does not vary."""
    flat = (x <= 0) | (y <= 0)
    out: Floats = np.where(flat, np.nan, covariance / np.sqrt(np.where(flat, 1.0, x * y)))
    return out


def checked(maps: xr.Dataset | xr.DataArray) -> xr.DataArray:
    """Return the scores of a study, dimensions in order; raise BadInput for anything else."""
    score = maps["score"].assign_attrs(maps.attrs) if isinstance(maps, xr.Dataset) else maps
    missing = {"technique", "component", "prompt", "layer", "position"} - set(score.dims)
    if missing or "group" not in score.coords:
        raise BadInput(
            f"these maps lack {sorted(missing) or 'the coordinate group'}; give what relp.study "
            "returns, before any mean over prompts"
        )
    return score.transpose("technique", "component", "prompt", "layer", "position")


def pick(score: xr.DataArray, technique: str) -> xr.DataArray:
    """Return the scores of one technique; raise UnknownName where there are none."""
    known = [str(m) for m in score.technique.values]
    if technique not in known:
        raise UnknownName(f"these maps have no technique {technique!r}{suggest(technique, known)}")
    return score.sel(technique=technique, drop=True)


def _cells(score: xr.DataArray, kind: Kind) -> xr.DataArray:
    first = int(score.attrs.get("first_position", 0))
    return score if kind == "mean" else score.isel(position=slice(first, None))
