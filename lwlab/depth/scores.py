"""One number for "how deep": depth scores, and first half against second half, with intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from lwlab.errors import BadInput
from lwlab.results import label
from lwlab.stats import Estimate

Floats = NDArray[np.float64]


class Halves(NamedTuple):
    """Means over the first and the second half of the layers, and second / first."""

    first: Estimate
    second: Estimate
    ratio: Estimate


def layer_weights(effects: xr.Dataset, statistic: Literal["mean", "max"] = "mean") -> xr.DataArray:
    """How much depends on each layer: w (form, prompt, skipped), from `skip_effects`.

    form "layers": w_s = sum over l > s of D[s, l] / max(L - 1 - s, 1), so that early layers do not
    count more for having more layers after them; form "logits": w_s = O[s], where the effects
    hold an output effect. arXiv:2505.13898.
    """
    d = effects["effect"].sel(statistic=statistic)
    later = d.layer > d.skipped
    w = d.where(later, 0.0).sum("layer") / later.sum("layer").clip(min=1)
    forms = {"layers": w}
    if "output_effect" in effects:
        forms["logits"] = effects["output_effect"].sel(statistic=statistic)
    out = xr.concat(list(forms.values()), "form", coords="minimal", compat="override")
    out = out.assign_coords(form=list(forms)).drop_vars("statistic")
    out.attrs = dict(effects.attrs) | {"long_name": "effect of skipping the layer"}
    return out.rename("weight").transpose("form", "prompt", "skipped")


def depth_score(
    effects: xr.Dataset,
    *,
    statistic: Literal["mean", "max"] = "mean",
    over: Literal["mean", "max"] = "mean",
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> xr.Dataset:
    """Centre of mass of the layers by effect: score = sum_s s w_s / sum_s w_s.

    w as in `layer_weights`, by `statistic` over positions, then the mean or maximum `over` prompts.
    A score is a layer number; if all layers mattered equally it would be `uniform`, the mean of the
    layers skipped. Returns `score`, `low`, `high` (form), with percentile bootstraps over prompts
    (NaN for one prompt). arXiv:2505.13898. Raises BadInput where no layer has an effect.
    """
    w = layer_weights(effects, statistic)
    s = w.skipped.values.astype(float)
    reduce = np.mean if over == "mean" else np.max

    def of(rows: Floats) -> float:
        total = reduce(rows, axis=0)
        if not total.sum() > 0:
            raise BadInput("no layer has any effect here, so there is no depth score")
        return float((s * total).sum() / total.sum())

    found = [
        resample(w.sel(form=f).values.astype(float), of, n, seed, level) for f in w.form.values
    ]
    coords = {"form": list(w.form.values)}
    arrays = {
        name: label([e[k] for e in found], ("form",), coords).drop_attrs()
        for k, name in enumerate(("score", "low", "high"))
    }
    attrs = dict(effects.attrs) | {"technique": "depth score", "statistic": statistic, "over": over}
    return xr.Dataset(arrays, attrs=attrs | {"uniform": float(s.mean()), "n": w.sizes["prompt"]})


def halves(
    values: xr.DataArray, *, dim: str = "layer", n_layers: int | None = None,
    skip_last: bool = False, n: int = 2000, seed: int = 0, level: float = 0.95,
) -> Halves:  # fmt: skip
    """Compare the layers 1..L/2 - 1 with L/2..L - 1; layer 0, which sets the scale, stays out.

    `values` (prompt, `dim`), any other dimension averaged first. `skip_last` leaves out layer
    L - 1, which no layer follows. Intervals are bootstraps over prompts, the same draws for both.
    Raises BadInput where a half holds no layer.
    """
    depth = n_layers or values.sizes[dim]
    other = [d for d in values.dims if d not in ("prompt", dim)]
    rows = values.mean(other).transpose("prompt", dim)
    at = rows[dim].values
    stop = depth - 1 if skip_last else depth
    masks = ((at >= 1) & (at < depth // 2), (at >= depth // 2) & (at < stop))
    if not all(m.any() for m in masks):
        raise BadInput(f"{dim} {at.tolist()} leaves a half of {depth} layers empty")
    pair = np.stack([rows.values[:, m].mean(1) for m in masks], 1).astype(float)
    pick: list[Callable[[Floats], float]] = [
        lambda r: float(r[:, 0].mean()),
        lambda r: float(r[:, 1].mean()),
        lambda r: float(r[:, 1].mean() / r[:, 0].mean()),
    ]
    return Halves(*(resample(pair, f, n, seed, level) for f in pick))


def resample(
    rows: Floats, statistic: Callable[[Floats], float], n: int, seed: int, level: float
) -> Estimate:
    """Percentile bootstrap of any statistic of rows [prompts, ...]; NaN bounds for one prompt.

    `lw.stats.bootstrap` is the same for a plain mean; scores and ratios are not means.
    """
    centre = statistic(rows)
    if len(rows) < 2:
        return Estimate(centre, float("nan"), float("nan"))
    draws = np.random.default_rng(seed).integers(0, len(rows), (n, len(rows)))
    low, high = np.quantile([statistic(rows[i]) for i in draws], [(1 - level) / 2, (1 + level) / 2])
    return Estimate(centre, float(low), float(high))


def row_means(effects: xr.Dataset, statistic: Literal["mean", "max"] = "max") -> xr.DataArray:
    """Mean over the later layers l > s of D[s, l], (prompt, skipped); NaN where none follows."""
    d = effects["effect"].sel(statistic=statistic)
    out = d.where(d.layer > d.skipped).mean("layer")
    out.attrs = dict(effects.attrs) | {"long_name": "mean relative change of later layers"}
    return out


def future_share(current: xr.Dataset, future: xr.Dataset) -> xr.DataArray:
    """Share of a layer's effect that reaches later tokens: mean future row / mean current row.

    Rows as in `row_means`, by the mean over positions (a maximum grows with their number, and the
    two modes read different numbers of them). A small stream makes every early write large: both
    rows carry that, so it cancels. (prompt, skipped) for the layers skipped in both, NaN for the
    last one.
    """
    rows = xr.align(row_means(future, "mean"), row_means(current, "mean"), join="inner")
    out = rows[0] / rows[1]
    out.attrs = dict(future.attrs) | {"long_name": "share of the effect that reaches later tokens"}
    return out.rename("share")
