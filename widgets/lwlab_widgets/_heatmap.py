"""A map that answers: hover reads a cell, a click or Enter calls Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import traitlets as t

from lwlab.charts import labels as lab
from lwlab.charts.maps import describe_map, map_dims
from lwlab.charts.palette import Domain, colour_domain, stops_for
from lwlab.errors import BadInput, UnknownName, suggest

from ._base import LabWidget, front_end
from ._picture import draw_maps, svg_to_png

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Pick:
    """A picked cell: indices, the map shown, its value, and its coordinates by dimension name."""

    row: int
    column: int
    map: str
    value: float
    coords: Mapping[str, Any]

    def __getitem__(self, dim: str) -> Any:
        """Return the coordinate along `dim`, e.g. `pick["layer"]`."""
        return self.coords[dim]


class HeatMap(LabWidget):
    """Named maps over the same rows and columns, one shown at a time, all on one colour scale.

    Front-end state: `shown` (index of the map),
    `picked` ({"row", "column", "n"}; n counts picks), `answer` (text under the map) and `error`;
    all can be read and set from Python, so that a notebook runs headless too: `pick(row, column)`.
    """

    _esm, _css = front_end("heatmap", "plain")
    values = t.Bytes(b"").tag(sync=True)  # float32 [maps, rows, columns]
    maps = t.List(t.Unicode()).tag(sync=True)
    shown = t.Int(0).tag(sync=True)
    row_labels = t.List(t.Unicode()).tag(sync=True)
    column_labels = t.List(t.Unicode()).tag(sync=True)
    row_title = t.Unicode("").tag(sync=True)
    column_title = t.Unicode("").tag(sync=True)
    value_title = t.Unicode("").tag(sync=True)
    domain = t.Tuple(t.Float(), t.Float(), default_value=(0.0, 1.0)).tag(sync=True)
    stops = t.List(t.Unicode()).tag(sync=True)
    lower = t.Bool(False).tag(sync=True)  # the first row lies at the bottom
    picked = t.Dict().tag(sync=True)
    handled = t.Int(0).tag(sync=True)  # the n of the last pick that callbacks have answered
    listening = t.Bool(False).tag(sync=True)
    answer = t.Unicode("").tag(sync=True)

    def __init__(
        self,
        result: xr.DataArray | xr.Dataset,
        x: str | None = None,
        y: str | None = None,
        *,
        maps: str | None = None,
        tokens: Sequence[str] | None = None,
        domain: Domain | None = None,
        title: str | None = None,
        subtitle: str | None = None,
    ) -> None:
        """Show two dimensions of `result` as rows and columns, a third (or variables) as maps.

        `x`, `y` and `tokens` as in `lw.charts.heatmap`; `maps` names the dimension to switch over.
        Without `domain` the scale spans all maps, and again at each `update`. Raises as `heatmap`
        does, except that a map may have any size.
        """
        super().__init__()
        self._callbacks: list[Callable[[Pick], Any]] = []
        self._dims = {"x": x, "y": y, "maps": maps}
        self._tokens, self._domain = tokens, domain
        self._titles = title, subtitle
        self.update(result)
        self.observe(self._answer, "picked")

    @classmethod
    def from_result(cls, result: xr.DataArray | xr.Dataset, **options: Any) -> HeatMap:
        """Return `HeatMap(result, **options)`."""
        return cls(result, **options)

    def update(self, result: xr.DataArray | xr.Dataset) -> HeatMap:
        """Show `result` instead, with the options given at the start; the pick and answer stay."""
        da = lab.as_array(result, "HeatMap")
        lab.require_dims(da, "HeatMap", **self._dims)
        x, y, over, da = map_dims(
            da, self._dims["x"], self._dims["y"], self._dims["maps"], "HeatMap"
        )
        rows = lab.axis_of(da, y, self._tokens if y == "query" else None)
        columns = lab.axis_of(da, x, self._tokens)
        grid = da.values.astype(np.float32).reshape(-1, len(rows), len(columns))
        domain, stops = colour_domain(grid)
        if self._domain is not None:
            domain, stops = self._domain, stops_for(self._domain)
        names = list(lab.axis_of(da, over).labels) if over else [""]
        if not domain[0] < domain[1]:
            raise BadInput(f"domain must rise from low to high, got {domain}.")
        self._rows, self._columns = rows, columns
        lost = self.picked and not self._inside(self.picked)
        with self.hold_sync():
            self.values = grid.tobytes()
            self.maps, self.shown = names, min(self.shown, len(names) - 1)
            self.row_labels, self.column_labels = list(rows.labels), list(columns.labels)
            self.row_title, self.column_title = rows.title, columns.title
            self.value_title = lab.value_title(da)
            self.domain, self.stops, self.lower = domain, list(stops), y == "layer"
            self.title = lab.title_of(da) if self._titles[0] is None else self._titles[0]
            own = self._titles[1]
            self.subtitle = lab.subtitle_of(da) if own is None else own
            if lost:
                self.picked = {}
        return self

    def show(self, name: str) -> None:
        """Show the map called `name`."""
        if name not in self.maps:
            raise UnknownName(f"no map {name!r}{suggest(name, self.maps)}")
        self.shown = self.maps.index(name)

    def array(self) -> npt.NDArray[np.float32]:
        """Return the values as float32 [maps, rows, columns]."""
        return np.frombuffer(self.values, np.float32).reshape(
            -1, len(self.row_labels), len(self.column_labels)
        )

    def on_pick(self, call: Callable[[Pick], Any]) -> HeatMap:
        """Call `call(pick)` for each picked cell; text it returns is shown under the map.

        An exception is shown in the widget and kept in `failure`. Returns the widget.
        """
        self._callbacks.append(call)
        self.listening = True
        return self

    def pick(self, row: int, column: int) -> None:
        """Pick a cell by its indices, as a click does. Raises BadInput outside the map."""
        if not self._inside({"row": row, "column": column}):
            size = f"{len(self._rows)} x {len(self._columns)}"
            raise BadInput(f"cell ({row}, {column}) lies outside the {size} map.")
        self.picked = {"row": row, "column": column, "n": self.picked.get("n", 0) + 1}

    def _inside(self, place: Mapping[str, int]) -> bool:
        row, column = place.get("row", -1), place.get("column", -1)
        return 0 <= row < len(self._rows) and 0 <= column < len(self._columns)

    def _answer(self, change: Any) -> None:
        place, n = change["new"], change["new"].get("n", 0)
        if not self._inside(place):
            return
        row, column = place["row"], place["column"]
        value = float(self.array()[self.shown, row, column])
        axes = ((self._rows, row), (self._columns, column))
        pick = Pick(
            row, column, self.maps[self.shown], value, {a.dim: a.values[k] for a, k in axes}
        )
        for call in list(self._callbacks):
            said = self.guard(call, pick)
            if self.error:
                break
            if isinstance(said, str):
                self.answer = said
        self.handled = n

    def static_text(self) -> str:
        """Return the size, the extremes and the last answer in words."""
        return describe_map(
            self.title, self.array().astype(float), self._rows, self._columns, self.maps
        ) + (f" {self.answer}" if self.answer else "")

    def static_png(self) -> bytes:
        """Return all maps (the first six) side by side, the picked cell outlined."""
        shown = list(zip(self.maps, self.array().astype(float)))[:6]
        place = (self.picked["row"], self.picked["column"]) if self.picked else None
        return svg_to_png(
            draw_maps(
                shown,
                rows=self.row_labels, columns=self.column_labels,
                row_title=self.row_title, column_title=self.column_title,
                value_title=self.value_title, title=self.title, subtitle=self.subtitle,
                domain=self.domain, stops=tuple(self.stops), lower=self.lower, picked=place,
            )
        )  # fmt: skip
