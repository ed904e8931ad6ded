"""Layer profiles: one value a layer, as lines with optional interval bands."""

from __future__ import annotations

from collections.abc import Sequence
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
    x, series, da = _plan(da, x, series)
    check_rows(da, "profile", x)
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
    scale, marks = _value_scale(log, grid, edges)
    at, up = _along(along), alt.Y("value:Q", scale=scale).axis(title=lab.value_title(da), **marks)
    colour, dash, shape = _looks(lines, names)
    tips = [alt.Tooltip(f"{x}:N", title=along.title), alt.Tooltip("value:Q", format=".4g")]
    tips += [alt.Tooltip("series:N")] if lines else []
    tips += [alt.Tooltip(f"{e}:Q", format=".4g") for e in ("low", "high")] if band else []
    base = alt.Chart(table(rows)).encode(x=at, color=colour)
    layers: list[Any] = []
    if band:
        # Each layer's y carries the scale: Vega-Lite merges them, and a logarithm must agree.
        edge = alt.Y("low:Q", scale=scale)
        layers.append(base.mark_area(opacity=0.2).encode(y=edge, y2="high:Q"))
    if not log and (grid < 0).any() and (grid > 0).any():
        zero = alt.Chart(alt.Data(values=[{"zero": 0}]))
        layers.append(zero.mark_rule(color="#999", strokeWidth=1).encode(y="zero:Q"))
    points = base.mark_point(filled=True, size=34, opacity=1)
    layers += [
        base.mark_line(strokeWidth=2).encode(y=up, strokeDash=dash),
        points.encode(y=up, shape=shape, tooltip=tips),
    ]
    text = lab.subtitle_of(da) if subtitle is None else subtitle
    heading = lab.title_of(da) if title is None else title
    notes = [s for s in (text, f"band: {interval}" if band else "") if s]
    return alt.layer(*layers).properties(
        width=width,
        height=height,
        title=alt.Title(heading, subtitle=notes),
        description=_describe(heading, names, grid, along),
    )


def _plan(
    da: xr.DataArray, x: str | None, series: str | None
) -> tuple[str, str | None, xr.DataArray]:
    """Settle which dimension lies along x and which are lines; return `da` as (series, x)."""
    da = lab.squeeze(da, (x, series))
    free = [str(d) for d in da.dims if d not in (x, series)]
    if x is None and free:
        x = next((d for d in ("layer", "position") if d in free), free[-1])
        free.remove(x)
    if x is None:
        raise BadInput(f"profile needs a dimension longer than one, got {dict(da.sizes)}.")
    if series is None and (kinds := [d for d in free if d != "prompt"]):
        series = kinds[-1]
        free.remove(series)
    if free:
        raise lab.too_many(da, "profile", free)
    if series is not None and da.sizes[series] > len(CATEGORIES):
        raise BadInput(
            f"profile of {da.sizes[series]} series ({series}); 8 can be told apart. "
            f"Select some, .isel({series}=[0, 1]), or draw heatmap(result)."
        )
    return x, series, da.transpose(*([series] if series else []), x)


def _along(axis: lab.Axis) -> Any:
    """Return the x channel: a number line for layers and positions, else the names in order."""
    alt = altair()
    if not all(isinstance(v, int | float) for v in axis.values):
        slant = -40 if max(map(len, axis.labels)) > 4 else 0
        return alt.X(f"{axis.dim}:O", sort=list(axis.values)).axis(
            title=axis.title, grid=False, labelAngle=slant
        )
    whole = all(isinstance(v, int) for v in axis.values)
    steps = {"format": "d", "tickMinStep": 1} if whole else {}
    # Vega-Lite 5.6 would stack an area along x where y is logarithmic, hence stack=None.
    line = alt.Scale(zero=False, nice=False, padding=8)
    return alt.X(f"{axis.dim}:Q", scale=line, stack=None).axis(
        title=axis.title, grid=False, **steps
    )


def _looks(lines: lab.Axis | None, names: tuple[str, ...]) -> tuple[Any, Any, Any]:
    """Return the colour, dash and shape channels, and one legend where there are several lines."""
    alt = altair()
    legend = None
    if lines is not None:
        # Names such as "attention" say what they are; numbers need the dimension's title.
        bare = all(isinstance(v, str) for v in lines.values)
        legend = alt.Legend(
            title=None if bare else lines.title,
            symbolSize=80, symbolOpacity=1, symbolStrokeWidth=0,
        )  # fmt: skip

    def span(values: Sequence[Any]) -> Any:
        return alt.Scale(domain=list(names), range=list(values[: len(names)]))

    return (
        alt.Color("series:N", scale=span(CATEGORIES), legend=legend),
        alt.StrokeDash("series:N", scale=span(_DASHES), legend=None),
        alt.Shape("series:N", scale=span(_SHAPES), legend=legend),
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


def _describe(heading: str, names: tuple[str, ...], grid: Any, along: lab.Axis) -> str:
    text = f"Line chart {heading!r} over {len(along)} {along.dim}"
    for name, line in zip(names, grid, strict=True):
        if np.isfinite(line).any():
            top = int(np.nanargmax(line))
            text += f"; {name}: {line[0]:.3g} to {line[-1]:.3g}, largest {line[top]:.3g} "
            text += f"at {along.labels[top].strip()}"
    return text + "."
