"""What charts and widgets of maps share: which dimension goes where, how many cells, in words."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lwlab.charts import labels as lab
from lwlab.charts._altair import altair
from lwlab.charts.labels import Axis
from lwlab.errors import BadInput

if TYPE_CHECKING:
    import xarray as xr

MAX_ROWS = 5_000  # what a notebook can hold and a reader can see; larger data are aggregated first
# Dimensions that lie along x, and along y, unless told otherwise.
_ACROSS, _UP = ("position", "key", "head", "kv_head"), ("layer", "query")


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
        y = next((d for d in _UP if d in free), free[-1])
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
    words = [str(n) for n, c in da.coords.items() if dim in c.dims and c.dtype.kind not in "fiub"]
    drop = f".drop_vars({words})" if words else ""  # strings have no mean
    other = ", or use lw.widgets.HeatMap, which draws any size" if what == "heatmap" else ""
    raise BadInput(
        f"{what} of {' x '.join(str(s) for s in da.shape)} = {da.size} values; a chart holds "
        f"{MAX_ROWS}. Aggregate first, e.g. "
        f'result{drop}.coarsen({dim}={k}, boundary="trim").mean(){other}.'
    )


def short(value: float) -> float | None:
    """Return `value` in five digits (a saved notebook stays small), or None if not finite."""
    return float(f"{value:.5g}") if np.isfinite(value) else None


def table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return `rows` as CSV for Altair: a tenth of what a notebook makes of a list of objects."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)  # None is written as nothing, which Vega reads as null
    kinds = {
        name: "string" if any(isinstance(row[name], str) for row in rows) else "number"
        for name in rows[0]
    }
    alt = altair()
    return alt.InlineData(text.getvalue(), format=alt.DataFormat(type="csv", parse=kinds))


def describe_map(
    heading: str,
    grid: npt.NDArray[np.floating],
    up: Axis,
    across: Axis,
    panels: Sequence[str] = (),
) -> str:
    """Say what maps `grid` [panels, rows, columns] show, for screen readers and text viewers."""
    text = f"Heat map {heading!r}: {len(up)} {up.dim} by {len(across)} {across.dim}"
    several = len(grid) > 1
    if several:
        text += f", panels {', '.join(panels)}"
    if np.isfinite(grid).any():
        clean = np.where(np.isfinite(grid), grid, np.nan)
        for word, find in (("largest", np.nanargmax), ("smallest", np.nanargmin)):
            k, i, j = map(int, np.unravel_index(int(find(clean)), grid.shape))
            text += f"; {word} {grid[k, i, j]:.3g} at {up.dim} {up.labels[i]}"
            text += f", {across.dim} {across.labels[j]}" + (f" ({panels[k]})" if several else "")
    return text + "."
