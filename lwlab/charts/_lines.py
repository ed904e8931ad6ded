"""Layer profiles: one value a layer, as lines with optional interval bands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lwlab.charts import labels as lab
from lwlab.charts._altair import altair
from lwlab.charts.maps import check_rows, short, table
from lwlab.charts.palette import CATEGORIES
from lwlab.errors import BadInput

if TYPE_CHECKING:
    import altair as alt
    import xarray as xr

_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [1, 3], [10, 4], [4, 1], [6, 2, 1, 2])
_SHAPES = (
    "circle", "square", "triangle-up", "diamond",
    "cross", "triangle-down", "triangle-right", "triangle-left",
)  # fmt: skip


def profile(
    result: xr.DataArray | xr.Dataset,
    x: str | None = None,
    *,
    series: str | None = None,
    low: xr.DataArray | xr.Dataset | None = None,
    high: xr.DataArray | xr.Dataset | None = None,
    interval: str = "95% interval",
    log: bool = False,
    title: str | None = None,
    subtitle: str | None = None,
    width: int = 460,
    height: int = 240,
) -> alt.LayerChart:
    """Draw `result` along `x` (default: layer), one line for each value of the `series` dimension.

    A Dataset's variables are series. `low` and `high`, of the same dimensions, are drawn as a band
    named by `interval`. `log` needs positive values. A missing value leaves a gap. Series differ in
    colour, dash and point shape, so they stay apart in grey print. Sizes are pixels.

    Raises BadInput for several prompts (average, or give their interval), more than eight series,
    a lone `low` or `high`, or a logarithm of values that are not positive.
    """
    da = lab.as_array(result, "profile")
    lab.require_dims(da, "profile", x=x, series=series)
    da = lab.squeeze(da, (x, series))
    free = [str(d) for d in da.dims if d not in (x, series)]
    if x is None and free:
        x = next((d for d in ("layer", "position") if d in free), free[-1])
        free.remove(x)
    if x is None:
        raise BadInput(f"profile needs a dimension longer than one, got {dict(da.sizes)}.")
    if series is None and free and free != ["prompt"]:
        series = next((d for d in free[::-1] if d != "prompt"), None)
        free.remove(str(series))
    if free:
        raise lab.too_many(da, "profile", free)
    if series is not None and da.sizes[series] > len(CATEGORIES):
        raise BadInput(
            f"profile of {da.sizes[series]} series ({series}); 8 can be told apart. "
            f"Select some, .isel({series}=[0, 1]), or draw heatmap(result)."
        )
    check_rows(da, "profile", x)
    da = da.transpose(*([series] if series else []), x)
    if not np.isfinite(da.values).any():
        raise BadInput("profile has no finite value to draw.")
    band = _band(da, low, high)
    _check_log(log, da, band)

    alt = altair()
    along = lab.axis_of(da, x)
    lines = lab.axis_of(da, series) if series else None
    names = lines.labels if lines else (lab.value_title(da),)
    grid = np.atleast_2d(da.values.astype(float))
    edges = [np.atleast_2d(b.values.astype(float)) for b in band]
    rows = [
        {
            x: along.values[j],
            "series": names[i],
            "value": short(float(grid[i, j])),
            **{e: short(float(v[i, j])) for e, v in zip(("low", "high"), edges)},
        }
        for i, j in np.ndindex(*grid.shape)
    ]
    numeric = all(isinstance(v, int | float) for v in along.values)
    scale, marks = _value_scale(log, grid, edges)
    at = alt.X(
        f"{x}:{'Q' if numeric else 'O'}",
        sort=None if numeric else list(along.values),
        # Vega-Lite 5.6 would stack an area along x where y is logarithmic.
        stack=None if numeric else alt.Undefined,
        scale=alt.Scale(zero=False, nice=False, padding=8) if numeric else alt.Undefined,
        axis=alt.Axis(title=along.title, grid=False, **_marks(along)),
    )
    many = len(names) > 1
    domain, count = list(names), len(names)
    # Names such as "attention" say what they are; numbers need the dimension's title.
    bare = lines is None or all(isinstance(v, str) for v in lines.values)
    legend = alt.Legend(
        title=None if bare or lines is None else lines.title,
        symbolSize=80,
        symbolOpacity=1,
        symbolStrokeWidth=0,
    )
    legend = legend if many else None
    look = {
        "color": alt.Color(
            "series:N",
            scale=alt.Scale(domain=domain, range=list(CATEGORIES[:count])),
            legend=legend,
        )
    }
    dash = alt.StrokeDash(
        "series:N", scale=alt.Scale(domain=domain, range=list(_DASHES[:count])), legend=None
    )
    shape = alt.Shape(
        "series:N", scale=alt.Scale(domain=domain, range=list(_SHAPES[:count])), legend=legend
    )
    up = alt.Y("value:Q", scale=scale, axis=alt.Axis(title=lab.value_title(da), **marks))
    tips = [alt.Tooltip(f"{x}:N", title=along.title), alt.Tooltip("value:Q", format=".4g")]
    tips += [alt.Tooltip("series:N")] if many else []
    tips += [alt.Tooltip(f"{e}:Q", format=".4g") for e in ("low", "high")] if band else []
    base = alt.Chart(table(rows))
    layers: list[Any] = []
    if band:
        # The scale sits on every layer's y: Vega-Lite merges them, and a log scale must agree.
        layers.append(
            base.mark_area(opacity=0.2).encode(
                x=at, y=alt.Y("low:Q", scale=scale), y2="high:Q", **look
            )
        )
    if not log and (grid < 0).any() and (grid > 0).any():
        zero = alt.Chart(alt.Data(values=[{"zero": 0}]))
        layers.append(zero.mark_rule(color="#999", strokeWidth=1).encode(y="zero:Q"))
    layers.append(base.mark_line(strokeWidth=2).encode(x=at, y=up, strokeDash=dash, **look))
    layers.append(
        base.mark_point(filled=True, size=34, opacity=1).encode(
            x=at, y=up, shape=shape, tooltip=tips, **look
        )
    )
    text = lab.subtitle_of(da) if subtitle is None else subtitle
    heading = lab.title_of(da) if title is None else title
    notes = [s for s in (text, f"band: {interval}" if band else "") if s]
    return alt.layer(*layers).properties(
        width=width,
        height=height,
        title=alt.Title(heading, subtitle=notes),
        description=_describe(heading, names, grid, along),
    )


def _band(
    da: xr.DataArray, low: xr.DataArray | xr.Dataset | None, high: xr.DataArray | xr.Dataset | None
) -> tuple[xr.DataArray, ...]:
    if low is None and high is None:
        return ()
    if low is None or high is None:
        raise BadInput("profile needs both low and high, or neither.")
    edges = []
    for name, edge in (("low", low), ("high", high)):
        found = lab.squeeze(lab.as_array(edge, f"profile's {name}"), tuple(map(str, da.dims)))
        if set(found.dims) != set(da.dims) or dict(found.sizes) != dict(da.sizes):
            raise BadInput(f"{name} has sizes {dict(found.sizes)}, the values {dict(da.sizes)}.")
        edges.append(found.transpose(*da.dims))
    return tuple(edges)


def _value_scale(log: bool, grid: Any, edges: list[Any]) -> tuple[Any, dict[str, Any]]:
    """Return the value scale and tick marks: from zero where the values come near it."""
    alt = altair()
    everything = np.concatenate([grid.ravel(), *(e.ravel() for e in edges)])
    everything = everything[np.isfinite(everything)]
    low, high = float(everything.min()), float(everything.max())
    if not log:
        return alt.Scale(zero=low >= 0 and low <= 0.5 * high, nice=True), {}
    low, high = low / 1.2, high * 1.2
    steps = (1, 2, 5) if high / low < 1000 else (1,)
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    values = [float(f"{k}e{d}") for d in decades for k in steps]
    shown = [v for v in values if low <= v <= high]
    return alt.Scale(type="log", domain=[short(low), short(high)], nice=False), {"values": shown}


def _check_log(log: bool, da: xr.DataArray, band: tuple[xr.DataArray, ...]) -> None:
    bad = sum(int((part.values <= 0).sum()) for part in (da, *band)) if log else 0
    if bad:
        raise BadInput(f"log=True needs positive values; {bad} here are zero or negative.")


def _marks(along: lab.Axis) -> dict[str, Any]:
    """Mark whole numbers where the axis counts things; slant names where they are long."""
    if all(isinstance(v, int) for v in along.values):
        return {"format": "d", "tickMinStep": 1}
    return {"labelAngle": -40 if max(map(len, along.labels)) > 4 else 0}


def _describe(heading: str, names: tuple[str, ...], grid: Any, along: lab.Axis) -> str:
    text = f"Line chart {heading!r} over {len(along)} {along.dim}"
    for name, line in zip(names, grid, strict=True):
        if np.isfinite(line).any():
            top = int(np.nanargmax(line))
            text += f"; {name}: {line[0]:.3g} to {line[-1]:.3g}, largest {line[top]:.3g} "
            text += f"at {along.labels[top].strip()}"
    return text + "."
