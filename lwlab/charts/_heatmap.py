"""Maps: two dimensions of a labelled result as coloured cells."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lwlab.charts import labels as lab
from lwlab.charts._altair import altair
from lwlab.charts.labels import Axis
from lwlab.charts.palette import MISSING, MISSING_STROKE, Domain, colour_domain, stops_for, ticks
from lwlab.errors import BadInput

if TYPE_CHECKING:
    import altair as alt
    import xarray as xr

    MapChart: TypeAlias = alt.Chart | alt.LayerChart | alt.FacetChart

MAX_ROWS = 5_000  # what a notebook can hold and a reader can see; larger data are aggregated first
_ACROSS = ("position", "head", "kv_head")  # dimensions that lie along x unless told otherwise


def heatmap(
    result: xr.DataArray | xr.Dataset,
    x: str | None = None,
    y: str | None = None,
    *,
    facet: str | None = None,
    tokens: Sequence[str] | None = None,
    domain: Domain | None = None,
    columns: int = 3,
    origin: str | None = None,
    title: str | None = None,
    subtitle: str | None = None,
    width: int | None = None,
    height: int | None = None,
) -> MapChart:
    """Draw two dimensions of `result` as coloured cells, a third as panels on one colour scale.

    `x` defaults to position (or head, or the last dimension), `y` to layer, `facet` to the one
    dimension left. `tokens` names the positions where the result carries no `token_str` (an average
    over prompts loses it). Both signs: blue - white - orange, white at zero; else cividis; `domain`
    sets the ends, and values beyond them take the end colours. Cells without a finite value are
    grey and struck through. `origin` "lower" puts the first row at the bottom (the default for
    layers), "upper" at the top. `width` and `height` are pixels of one panel.

    Raises BadInput for several prompts (average or select), more than 5000 cells, fewer than two
    dimensions or an unlabelled input; UnknownName for a dimension the result lacks.
    """
    da = lab.as_array(result, "heatmap")
    lab.require_dims(da, "heatmap", x=x, y=y, facet=facet)
    x, y, facet, da = map_dims(da, x, y, facet, "heatmap")
    check_rows(da, "heatmap", x)
    across, up = lab.axis_of(da, x, tokens), lab.axis_of(da, y)
    panels = None if facet is None else lab.axis_of(da, facet)
    values = da.values.astype(float)
    domain, stops = (domain, stops_for(domain)) if domain else colour_domain(values)
    if not domain[0] < domain[1]:
        raise BadInput(f"domain must rise from low to high, got {domain}.")

    alt = altair()
    missing = not np.isfinite(values).all()
    step_x, step_y = _steps(
        len(across), len(up), 1 if panels is None else min(len(panels), columns)
    )
    size = {"width": width or len(across) * step_x, "height": height or len(up) * step_y}
    origin = origin or ("lower" if y == "layer" else "upper")
    order = list(up.values)[::-1] if origin == "lower" else list(up.values)
    place = {
        "x": alt.X(f"{x}:O", sort=list(across.values), axis=_axis(across, size["width"])),
        "y": alt.Y(f"{y}:O", sort=order, axis=_axis(up, size["height"], upright=True)),
    }
    colour = alt.Color(
        "value:Q",
        scale=alt.Scale(
            domain=[float(v) for v in np.linspace(*domain, len(stops))],
            range=list(stops),
            clamp=True,
        ),
        legend=alt.Legend(
            title=lab.value_title(da),
            values=ticks(domain),
            gradientLength=min(180, max(80, size["height"])),
        ),
    )
    edge = 0.5 if min(size["width"] / len(across), size["height"] / len(up)) >= 9 else 0
    tips = [alt.Tooltip(f"{a.dim}:N", title=a.name) for a in (up, across)]
    tips += [alt.Tooltip(f"{a.dim}_token:N", title="token") for a in (up, across) if a.tokens]
    tips += [alt.Tooltip("value:Q", title=lab.value_title(da), format=".4g")]
    cells = (
        alt.Chart()
        .mark_rect(invalid=None, stroke="white", strokeWidth=edge)
        .encode(
            **place,
            color=alt.condition("isValid(datum.value)", colour, alt.value(MISSING)),
            tooltip=tips,
        )
        .properties(**size)
    )
    cells = lab.add_tokens(cells, (up, across))
    data = alt.Data(values=_rows(values, up, across, panels))
    chart: Any = cells
    if missing:
        stroke = min(size["width"] / len(across), size["height"] / len(up)) * 0.75
        hatch = (
            alt.Chart()
            .mark_point(shape="M-1,1L1,-1", stroke=MISSING_STROKE, strokeWidth=1, size=stroke**2)
            .encode(**place)
            .transform_filter("!isValid(datum.value)")
        )
        chart = alt.layer(cells, hatch)
    chart.data = data
    if panels is not None:
        header = alt.Facet(f"{facet}:N", sort=list(panels.values), header=_header(panels))
        chart = chart.facet(header, columns=columns)
    note = _missing_note(values)
    text = lab.subtitle_of(da) if subtitle is None else subtitle
    heading = lab.title_of(da) if title is None else title
    return chart.properties(
        title=alt.Title(heading, subtitle=[s for s in (text, note) if s]),
        description=_describe(heading, values, up, across, panels),
    )


def head_grid(
    result: xr.DataArray | xr.Dataset, *, facet: str | None = None, **options: Any
) -> MapChart:
    """Draw a score of every attention head: layers up, heads across (`heatmap`'s options apply).

    Raises BadInput where the result has no `layer` or no `head` (or `kv_head`) dimension.
    """
    da = lab.as_array(result, "head_grid")
    head = next((d for d in ("head", "kv_head") if d in da.dims), None)
    if head is None or "layer" not in da.dims:
        raise BadInput(f"head_grid needs dimensions layer and head, got {tuple(da.dims)}.")
    if "height" not in options and "width" not in options:
        panels = da.size // (da.sizes["layer"] * da.sizes[head])
        step = 18 if panels == 1 else 14
        options |= {"width": da.sizes[head] * step, "height": da.sizes["layer"] * min(step, 14)}
    return heatmap(da, x=head, y="layer", facet=facet, **options)


def map_dims(
    da: xr.DataArray, x: str | None, y: str | None, facet: str | None, what: str
) -> tuple[str, str, str | None, xr.DataArray]:
    """Settle which dimensions are x, y and panels; return them and `da` in order (panels, y, x)."""
    da = lab.squeeze(da, (x, y, facet))
    free = [str(d) for d in da.dims if d not in (x, y, facet)]
    several = [d for d in free if d == "prompt"]
    free = [d for d in free if d != "prompt"]
    if x is None and free:
        x = next((d for d in _ACROSS if d in free), free[-1])
        free.remove(x)
    if y is None and free:
        y = "layer" if "layer" in free else free[-1]
        free.remove(y)
    if several and (x is None or y is None):
        raise BadInput(
            f"{what} needs two dimensions besides prompt, got {dict(da.sizes)}; "
            f'to see single prompts name the axis: y="prompt".'
        )
    if x is None or y is None:
        raise BadInput(f"{what} needs two dimensions longer than one, got {dict(da.sizes)}.")
    if facet is None and free and not several:
        facet = free.pop()
    if several or free:
        raise lab.too_many(da, what, free + several)
    return x, y, facet, da.transpose(*([facet] if facet else []), y, x)


def check_rows(da: xr.DataArray, what: str, dim: str) -> None:
    """Raise BadInput for more values than a chart may carry, naming an aggregation that fits."""
    if da.size <= MAX_ROWS:
        return
    k = int(np.ceil(da.size / MAX_ROWS))
    raise BadInput(
        f"{what} of {' x '.join(str(s) for s in da.shape)} = {da.size} values; a chart holds "
        f'{MAX_ROWS}. Aggregate first, e.g. .coarsen({dim}={k}, boundary="trim").mean(), '
        "or use lw.widgets.HeatMap, which draws any size."
    )


def short(value: float) -> float | None:
    """Return `value` in five digits (a saved notebook stays small), or None if not finite."""
    return float(f"{value:.5g}") if np.isfinite(value) else None


def _rows(
    values: npt.NDArray[np.floating], up: Axis, across: Axis, panels: Axis | None
) -> list[dict[str, Any]]:
    grid = values if panels is not None else values[None]
    return [
        {
            up.dim: up.values[i],
            across.dim: across.values[j],
            "value": short(float(grid[k, i, j])),
            **({panels.dim: panels.values[k]} if panels is not None else {}),
        }
        for k, i, j in np.ndindex(*grid.shape)
    ]


def _steps(columns: int, rows: int, panels: int) -> tuple[int, int]:
    """Choose cell sizes in pixels so that one to three panels fill a notebook's width."""
    wide = {1: 480, 2: 330}.get(panels, 240)
    return (
        int(np.clip(wide // columns, 3, 30)),
        int(np.clip(360 // rows, 8, 26 if rows > 3 else 36)),
    )


def _axis(axis: Axis, pixels: int, upright: bool = False) -> Any:
    """Print every label where there is room, else every second, fifth, tenth ..."""
    alt = altair()
    plain = axis.tokens is None
    long = max(len(s) for s in axis.labels) > 3
    room = 13 if upright or long else 7 * max(len(s) for s in axis.labels) + 4
    every = next(k for k in (1, 2, 5, 10, 20, 50, 100, 1000) if pixels / len(axis) * k >= room)
    options: dict[str, Any] = {
        "title": axis.title, "ticks": False, "domain": False, "labelPadding": 4,
        "labelOverlap": False, "values": list(axis.values[::every]),
        "labelAngle": 0 if upright or not long else -50,
    }  # fmt: skip
    if not plain:
        options["labelExpr"] = lab.lookup(dict(zip(map(str, axis.values), axis.labels)))
    return alt.Axis(**options)


def _header(panels: Axis) -> Any:
    alt = altair()
    if all(isinstance(v, str) for v in panels.values):
        return alt.Header(title=None)
    return alt.Header(title=None, labelExpr=f"{json.dumps(panels.title + ' ')} + datum.label")


def _missing_note(values: npt.NDArray[np.floating]) -> str:
    count = int((~np.isfinite(values)).sum())
    return f"struck grey: no value ({count} of {values.size} cells)" if count else ""


def _describe(
    heading: str, values: npt.NDArray[np.floating], up: Axis, across: Axis, panels: Axis | None
) -> str:
    """Say in words what the map shows, for screen readers and text-only viewers."""
    grid = values if panels is not None else values[None]
    text = f"Heat map {heading!r}: {len(up)} {up.dim} by {len(across)} {across.dim}"
    if panels is not None:
        text += f", panels {', '.join(panels.labels)}"
    if np.isfinite(grid).any():
        for word, at in (("largest", np.nanargmax), ("smallest", np.nanargmin)):
            clean = np.where(np.isfinite(grid), grid, np.nan)
            k, i, j = np.unravel_index(int(at(clean)), grid.shape)
            where = f"{up.dim} {up.labels[i].strip()}, {across.dim} {across.labels[j].strip()}"
            where += f" ({panels.labels[k]})" if panels is not None else ""
            text += f"; {word} {grid[k, i, j]:.3g} at {where}"
    return text + "."
