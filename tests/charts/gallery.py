"""One chart of every kind, from synthetic results shaped like the laboratory's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from lwlab import charts

TOKENS = ["When", " Mary", " and", " John", " went", " to", " the", " store", ",", " John", " gave",
          " a", " drink", " to"]  # fmt: skip
PROVENANCE = {"model": "smollm2-135m", "task": "ioi", "n": 8, "seed": 0}


def effect(layers: int = 30, positions: int = 14, seed: int = 0) -> xr.DataArray:
    """An exact-patching-like map: the S2 name early, the last position late, nothing before S2."""
    rng = np.random.default_rng(seed)
    layer, position = np.arange(layers)[:, None], np.arange(positions)[None]
    values = 1 / (1 + np.exp((layer - 17) / 2)) * (position == 9)
    values = values + 1 / (1 + np.exp(-(layer - 20) / 2)) * (position == positions - 1)
    values = values - 0.25 * np.exp(-((layer - 16) ** 2) / 8) * (position == 10)
    values = values + 0.02 * rng.standard_normal((layers, positions)) * (position >= 9)
    tokens = (TOKENS * (positions // len(TOKENS) + 1))[:positions]
    return xr.DataArray(
        values,
        dims=("layer", "position"),
        coords={
            "layer": np.arange(layers),
            "position": np.arange(positions),
            "token_str": ("position", tokens),
        },
        name="effect",
        attrs={"long_name": "recovered logit difference", **PROVENANCE},
    )


def estimates(components: bool = False) -> xr.DataArray:
    """Exact, AtP-like and RelP-like maps stacked along `estimate` (and `component`)."""
    rng = np.random.default_rng(1)
    exact = effect()
    active = (exact.position >= 9).broadcast_like(exact).transpose(*exact.dims)
    atp = exact * 0.6 + 0.12 * active * rng.standard_normal(exact.shape)
    relp = exact * 0.95 + 0.03 * active * rng.standard_normal(exact.shape)
    names = ["exact", "AtP", "RelP"]
    out = xr.concat([exact, atp, relp], dim=xr.Variable("estimate", names))
    if components:
        parts = [out, out * 0.5, out * rng.uniform(0.3, 1.2, out.shape)]
        out = xr.concat(parts, dim=xr.Variable("component", ["resid_pre", "attn_out", "mlp_out"]))
    return out.rename("effect").assign_attrs(exact.attrs)


def _heads(seed: int = 2) -> xr.DataArray:
    rng = np.random.default_rng(seed)
    score = rng.gamma(0.25, 0.15, (30, 9)).clip(0, 1)
    score[11, 3], score[17, 7], score[18, 1] = 0.91, 0.78, 0.66
    return xr.DataArray(
        score,
        dims=("layer", "head"),
        coords={"layer": np.arange(30), "head": np.arange(9)},
        name="induction_score",
        attrs={"long_name": "induction score", "units": "attention probability", **PROVENANCE},
    )


def _attention() -> xr.DataArray:
    rng = np.random.default_rng(3)
    pattern = np.tril(rng.gamma(0.4, 1.0, (14, 14)) + 4 * np.eye(14, k=-5) + 0.01)
    pattern[:, 0] += 2
    pattern /= pattern.sum(1, keepdims=True)
    pattern[np.triu_indices(14, 1)] = np.nan  # the causal mask: no value, not zero
    coords = {"query_token_str": ("query", TOKENS), "key_token_str": ("key", TOKENS)}
    return xr.DataArray(
        pattern, dims=("query", "key"), coords=coords, name="attention",
        attrs={"long_name": "attention probability", "title": "Head 11.3 attends to what followed"},
    )  # fmt: skip


def _kl() -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    layer = np.arange(30)
    mean = np.stack([9 * np.exp(-layer / 14) + 0.02, 6 * np.exp(-layer / 8) + 0.01])
    mean = xr.DataArray(
        mean,
        dims=("lens", "layer"),
        coords={"layer": layer, "lens": ["logit lens", "tuned lens"]},
        name="kl",
        attrs={"long_name": "KL to the final layer", "units": "nats", **PROVENANCE},
    )
    return mean, mean * 0.8, mean * 1.25


def _writes() -> xr.Dataset:
    layer = np.arange(30)
    wave = 0.2 * np.sin(layer / 4)
    cosine = {
        "attention": ("layer", wave + layer / 80),
        "mlp": ("layer", -wave),
        "layer_total": ("layer", np.where(layer == 12, np.nan, wave / 2 - 0.1)),
    }
    return xr.Dataset(cosine, coords={"layer": layer}, attrs={
        "long_name": "cosine of the write with the stream", **PROVENANCE})  # fmt: skip


def gallery() -> dict[str, Callable[[], Any]]:
    """Return name -> a function that builds the chart."""
    three, all_parts = estimates(), estimates(components=True)
    return {
        "heatmap": lambda: charts.heatmap(effect()),
        "heatmap_estimates": lambda: charts.heatmap(three),
        "heatmap_missing": lambda: charts.heatmap(
            three.isel(estimate=[0, 1]).where((three.position >= 9) | (three.layer % 7 > 0))
        ),
        "heatmap_long": lambda: charts.heatmap(effect(30, 128)),
        "heatmap_attention": lambda: charts.heatmap(_attention(), width=360, height=360),
        "head_grid": lambda: charts.head_grid(_heads()),
        "profile": lambda: charts.profile(_kl()[0].sel(lens="logit lens")),
        "profile_band_log": lambda: charts.profile(
            _kl()[0], low=_kl()[1], high=_kl()[2], log=True, interval="95% bootstrap, 10 texts"
        ),
        "profile_series": lambda: charts.profile(_writes()),
        "scatter": lambda: charts.scatter(three.sel(estimate="exact"), three.sel(estimate="RelP")),
        "scatter_color": lambda: charts.scatter(
            all_parts.sel(estimate="exact"), all_parts.sel(estimate="AtP"), color="component"
        ),
        "scatter_facet": lambda: charts.scatter(
            all_parts.sel(estimate="exact"), all_parts.sel(estimate="RelP"), facet="component"
        ),
        "beside": lambda: charts.beside(
            charts.heatmap(three.sel(estimate="exact")), charts.head_grid(_heads())
        ),
    }
