"""Scatter of one result against another, with the identity line and Pearson's r."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lwlab.charts import labels as lab
from lwlab.charts._altair import altair
from lwlab.charts.maps import check_rows, short, table
from lwlab.charts.palette import CATEGORIES
from lwlab.errors import BadInput, UnknownName, suggest

if TYPE_CHECKING:
    import altair as alt
    import xarray as xr

_SHAPES = (
    "circle", "square", "triangle-up", "diamond",
    "cross", "triangle-down", "triangle-right", "triangle-left",
)  # fmt: skip


def scatter(
    x: xr.DataArray,
    y: xr.DataArray,
    *,
    color: str | None = None,
    facet: str | None = None,
    identity: bool = True,
    columns: int = 3,
    title: str | None = None,
    subtitle: str | None = None,
    size: int | None = None,
) -> alt.LayerChart | alt.FacetChart:
    """Draw each value of `y` against the value of `x` with the same labels.

    Pearson's r over all finite pairs, with their number, stands in the subtitle; with `color` or
    `facet` (a dimension or coordinate, e.g. "component") each group's own r stands beside its name.
    `identity` draws y = x and gives both axes one range. `size` is the side of a panel in pixels.

    Raises BadInput where labels of `x` and `y` differ, for more than 5000 points or eight colours,
    or fewer than two finite pairs; UnknownName for an unknown `color` or `facet`.
    """
    import xarray as xr

    a, b = lab.as_array(x, "scatter"), lab.as_array(y, "scatter")
    title_x, title_y = _titles(a, b)
    for d in set(a.dims) & set(b.dims):
        if a[d].size != b[d].size or set(a[d].values.tolist()) != set(b[d].values.tolist()):
            raise BadInput(
                f"scatter needs the same {d} labels on both; "
                f"x has {a[d].size}: {_some(a[d])}, y has {b[d].size}: {_some(b[d])}."
            )
        if d in b.indexes:
            b = b.sel({d: a[d].values})  # pair by label, whatever the order
    a, b = xr.broadcast(a, b)
    b = b.transpose(*a.dims)
    check_rows(a, "scatter", str(a.dims[-1]))
    flat_x, flat_y = a.values.ravel().astype(float), b.values.ravel().astype(float)
    keep = np.isfinite(flat_x) & np.isfinite(flat_y)
    if keep.sum() < 2:
        raise BadInput(f"scatter needs two pairs of finite values, got {int(keep.sum())}.")
    groups = {
        name: _along(a, name, "color" if name == color else "facet")
        for name in (color, facet)
        if name is not None
    }
    named = {n: _with_r(flat_x, flat_y, g, keep) for n, g in groups.items()}
    if color is not None and len(named[color]) > len(CATEGORIES):
        raise BadInput(f"color={color!r} has {len(named[color])} values; 8 can be told apart.")

    alt = altair()
    where = [lab.axis_of(a, str(d)) for d in a.dims if a.sizes[d] > 1]
    places = np.unravel_index(np.arange(a.size), [a.sizes[ax.dim] for ax in where])
    rows = [
        {
            "value_x": short(flat_x[i]),
            "value_y": short(flat_y[i]),
            **{ax.dim: ax.values[places[k][i]] for k, ax in enumerate(where)},
            **{n: str(g[i]) for n, g in groups.items()},
        }
        for i in np.flatnonzero(keep)
    ]
    side = size or (320 if facet is None else 200)
    ends = _ends(flat_x[keep], flat_y[keep]) if identity else None
    scale = alt.Scale(domain=list(ends), nice=False) if ends else alt.Scale(zero=False, nice=True)
    points = alt.Chart().mark_point(filled=True, size=30, opacity=0.65, strokeWidth=0)
    encoding: dict[str, Any] = {
        "x": alt.X("value_x:Q", scale=scale, axis=alt.Axis(title=title_x, tickCount=6)),
        "y": alt.Y("value_y:Q", scale=scale, axis=alt.Axis(title=title_y, tickCount=6)),
        "tooltip": [
            *(alt.Tooltip(f"{ax.dim}:N", title=ax.name) for ax in where),
            *(alt.Tooltip(f"{ax.dim}_token:N", title="token") for ax in where if ax.tokens),
            alt.Tooltip("value_x:Q", title=title_x, format=".4g"),
            alt.Tooltip("value_y:Q", title=title_y, format=".4g"),
        ],
    }
    if color is None or color == facet:  # panels already tell the groups apart
        points = points.encode(**encoding, color=alt.value(CATEGORIES[0]))
    else:
        domain, look = list(named[color]), {}
        legend = alt.Legend(
            title=None, symbolOpacity=1, symbolSize=80, labelExpr=lab.lookup(named[color])
        )
        for channel, values in ((alt.Color, CATEGORIES), (alt.Shape, _SHAPES)):
            span = alt.Scale(domain=domain, range=list(values[: len(domain)]))
            look[channel.__name__.lower()] = channel(f"{color}:N", legend=legend, scale=span)
        points = points.encode(**encoding, **look)
    points = lab.add_tokens(points, where)
    layers = [points]
    if ends:
        line = alt.Chart().transform_aggregate(n="count()").transform_calculate(
            lo=str(ends[0]), hi=str(ends[1])
        )  # fmt: skip
        layers.insert(
            0,
            line.mark_rule(color="#777", strokeDash=[5, 4]).encode(
                x=alt.X("lo:Q"), x2="hi:Q", y=alt.Y("lo:Q"), y2="hi:Q"
            ),
        )
    chart: Any = alt.layer(*layers, data=table(rows)).properties(width=side, height=side)
    if facet is not None:
        header = alt.Header(title=None, labelExpr=lab.lookup(named[facet]))
        chart = chart.facet(
            alt.Facet(f"{facet}:N", sort=list(named[facet]), header=header), columns=columns
        )
    overall = f"{_r_text(flat_x[keep], flat_y[keep])}, n = {int(keep.sum())} points"
    overall += " · dashed: y = x" if ends else ""
    text = lab.subtitle_of(b) if subtitle is None else subtitle
    heading = _heading(a, b, title_x, title_y) if title is None else title
    return chart.properties(
        title=alt.Title(heading, subtitle=[s for s in (overall, text) if s]),
        description=f"Scatter {heading!r}: {overall}.",
    )


def _pearson(x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> float:
    """Return Pearson's r of two flat arrays; NaN where either does not vary."""
    if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def _r_text(x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> str:
    r = _pearson(x, y)
    return f"Pearson r = {r:.3f}" if np.isfinite(r) else "Pearson r undefined (no variation)"


def _with_r(
    x: npt.NDArray[np.floating],
    y: npt.NDArray[np.floating],
    groups: npt.NDArray[np.str_],
    keep: npt.NDArray[np.bool_],
) -> dict[str, str]:
    """Return group -> its name with its own r, in order of appearance."""
    out = {}
    for g in dict.fromkeys(groups[keep].tolist()):
        mine = (groups == g) & keep
        r = _pearson(x[mine], y[mine])
        out[g] = f"{g} (r = {r:.3f})" if np.isfinite(r) else f"{g} (r undefined)"
    return out


def _along(da: xr.DataArray, name: str, argument: str) -> npt.NDArray[np.str_]:
    """Return the values of a dimension or coordinate, one for each point of the flattened `da`."""
    if name not in da.dims and name not in da.coords:
        known = [*map(str, da.dims), *map(str, da.coords)]
        raise UnknownName(f"scatter: {argument}={name!r} is unknown{suggest(name, known)}")
    if name not in da.coords:
        da = da.assign_coords({name: np.arange(da.sizes[name])})
    full = da.coords[name].broadcast_like(da).transpose(*da.dims)
    return full.values.ravel().astype(str)


def _titles(x: xr.DataArray, y: xr.DataArray) -> tuple[str, str]:
    """Name the axes; where both have one name, add the scalar coordinates that tell them apart."""
    pairs = [(lab.value_title(a), _own(a, b)) for a, b in ((x, y), (y, x))]
    titles = [f"{text}: {own}" if own else text for text, own in pairs]
    return titles[0], titles[1]


def _some(labels: xr.DataArray) -> str:
    shown = ", ".join(map(str, labels.values[:4].tolist()))
    return shown + (" ..." if labels.size > 4 else "")


def _own(one: xr.DataArray, other: xr.DataArray) -> str:
    """Return the scalar coordinates of `one` that `other` does not share, e.g. "RelP"."""
    return ", ".join(
        str(c.item())
        for k, c in one.coords.items()
        if c.ndim == 0 and not (k in other.coords and other.coords[k].equals(c))
    )


def _heading(x: xr.DataArray, y: xr.DataArray, title_x: str, title_y: str) -> str:
    own_x, own_y = _own(x, y), _own(y, x)
    if own_x and own_y and lab.value_title(x) == lab.value_title(y):
        return f"{lab.value_title(y)}: {own_y} against {own_x}"
    return f"{title_y} against {title_x}"


def _ends(x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> tuple[float, float]:
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    pad = 0.04 * (high - low) or 0.5
    return low - pad, high + pad
