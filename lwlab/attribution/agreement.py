"""How well one attribution map predicts another: correlations with intervals over prompts."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from lwlab import stats
from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.results import label

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
    score = _score(maps)
    others = [str(m) for m in score.technique.values if m != reference]
    truth = _pick(score, reference)
    out = np.zeros((3, len(KINDS), len(others), score.sizes["component"]))
    for i, kind in enumerate(KINDS):
        for j, technique in enumerate(others):
            for k, component in enumerate(score.component.values):
                a, b = (
                    _cells(x, kind).sel(component=component)
                    for x in (truth, _pick(score, technique))
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
    n: int = 2000,
    seed: int = 0,
) -> xr.Dataset:
    """Return r(better) - r(than), both with the reference, with a paired bootstrap over prompts.

    The two correlations of a resample are taken on the same prompts, so the interval is of their
    difference. Returns `r`, `low`, `high` (component). Raises as `agreement` does.
    """
    if kind not in KINDS:
        raise UnknownName(f"no kind {kind!r}{suggest(kind, KINDS)}")
    score = _score(maps)
    three = [_cells(_pick(score, m), kind) for m in (reference, better, than)]
    groups = np.unique(score.group.values, return_inverse=True)[1]
    draws = np.random.default_rng(seed).integers(groups.max() + 1, size=(n, groups.max() + 1))
    samples = [np.concatenate([np.flatnonzero(groups == g) for g in draw]) for draw in draws]
    rows = []
    for component in score.component.values:
        maps_ = [m.sel(component=component).values.reshape(len(groups), -1) for m in three]
        spread = [_difference(maps_, prompts, kind) for prompts in samples]
        whole = _difference(maps_, np.arange(len(groups)), kind)
        rows.append([whole, *np.quantile(spread, [0.025, 0.975])])
    coords = {"component": score.component.values}
    arrays = {
        k: label(v, ("component",), coords).drop_attrs()
        for k, v in zip(("r", "low", "high"), np.array(rows).T)
    }
    return xr.Dataset(arrays, attrs={**maps.attrs, "better": better, "than": than, "kind": kind})


def _difference(maps: list[np.ndarray], prompts: np.ndarray, kind: Kind) -> float:
    cells = [m[prompts].ravel() if kind == "pooled" else m[prompts].mean(0) for m in maps]
    truth, better, than = cells
    return stats.pearson(truth, better) - stats.pearson(truth, than)


def _score(maps: xr.Dataset | xr.DataArray) -> xr.DataArray:
    score = maps["score"].assign_attrs(maps.attrs) if isinstance(maps, xr.Dataset) else maps
    missing = {"technique", "component", "prompt", "layer", "position"} - set(score.dims)
    if missing or "group" not in score.coords:
        raise BadInput(
            f"these maps lack {sorted(missing) or 'the coordinate group'}; give what relp.study "
            "returns, before any mean over prompts"
        )
    return score.transpose("technique", "component", "prompt", "layer", "position")


def _pick(score: xr.DataArray, technique: str) -> xr.DataArray:
    known = [str(m) for m in score.technique.values]
    if technique not in known:
        raise UnknownName(f"these maps have no technique {technique!r}{suggest(technique, known)}")
    return score.sel(technique=technique, drop=True)


def _cells(score: xr.DataArray, kind: Kind) -> xr.DataArray:
    first = int(score.attrs.get("first_position", 0))
    return score if kind == "mean" else score.isel(position=slice(first, None))
