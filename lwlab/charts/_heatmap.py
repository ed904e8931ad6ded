"""Maps: two dimensions of a labelled result as coloured cells."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lwlab.charts import labels as lab
from lwlab.charts._altair import altair
from lwlab.charts.labels import Axis
from lwlab.charts.maps import check_rows, describe_map, map_dims, short, table
from lwlab.charts.palette import MISSING, MISSING_STROKE, Domain, colour_domain, stops_for, ticks
from lwlab.errors import BadInput

if TYPE_CHECKING:
    import altair as alt
    import xarray as xr

    MapChart: TypeAlias = alt.Chart | alt.LayerChart | alt.FacetChart


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
    across, up = lab.axis_of(da, x, tokens), lab.axis_of(da, y, tokens if y == "query" else None)
    panels = None if facet is None else lab.axis_of(da, facet)
    values = da.values.astype(float)
    domain, stops = (domain, stops_for(domain)) if domain else colour_domain(values)
    if not domain[0] < domain[1]:
        raise BadInput(f"domain must rise from low to high, got {domain}.")

    heading = lab.title_of(da) if title is None else title
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
            title=None if lab.value_title(da) == heading else wrap(lab.value_title(da), 22),
            values=ticks(domain),
            format=".6~g",
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
    data = table(_rows(values, up, across, panels))
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
    return chart.properties(
        title=alt.Title(heading, subtitle=[s for s in (text, note) if s]),
        description=describe_map(
            heading, values if panels else values[None], up, across, panels.labels if panels else ()
        ),
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
    wide = {1: 480, 2: 320}.get(panels, 216)
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
    names = {str(v): f"{panels.name} {label}" for v, label in zip(panels.values, panels.labels)}
    return alt.Header(title=None, labelExpr=lab.lookup(names))


def _missing_note(values: npt.NDArray[np.floating]) -> str:
    count = int((~np.isfinite(values)).sum())
    return f"struck grey: no value ({count} of {values.size} cells)" if count else ""
