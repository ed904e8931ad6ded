"""A map of results whose cells can be tried: a click runs the exact patch there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import traitlets as t
import xarray as xr

from lwlab.charts import labels as lab
from lwlab.charts.maps import map_dims
from lwlab.errors import BadInput

from ._base import front_end
from ._heatmap import HeatMap, Pick
from ._live import Job, Live
from ._tables import place_of, table, words

if TYPE_CHECKING:
    from lwlab.models.model import Model
    from lwlab.tasks.base import Task

Results = xr.DataArray | xr.Dataset | Mapping[str, xr.DataArray]


class LayerMap(HeatMap, Live):
    """Results over layers and positions (or heads) on one colour scale, tried by clicking.

    With a model and a task, a click or Enter patches that cell exactly (clean values into the
    corrupt prompts: `lw.patch`) in the widget's thread; `table` then holds the top tokens of the
    first prompt before and after, `measured` the metric, `answer` both in words. Dragging, or
    Shift and arrows, marks `region` ({"rows": [first, last], "columns": [first, last]}, or {}),
    whose values are `selected()`. Other answers to a click: `on_pick(call)`.
    """

    _esm, _css = front_end("heatmap", "layermap")
    region = t.Dict().tag(sync=True)
    table = t.Dict().tag(sync=True)

    def __init__(
        self,
        result: Results,
        model: Model | None = None,
        task: Task | None = None,
        *,
        site: str | None = None,
        k: int = 8,
        **options: Any,
    ) -> None:
        """Show `result`: one array, one with a third dimension, or arrays by name.

        site: what a click patches; by default the result's component, else "resid_pre", or
        "head_out" where the columns are heads. k: top tokens shown. options: as in `HeatMap`.
        Raises BadInput when only one of model and task is given, when the rows are not the
        model's layers, or the columns neither positions nor heads.
        """
        if (model is None) != (task is None):
            raise BadInput("a click runs a patch with both model= and task=; one is missing")
        self.model, self.task, self.k = model, task, k
        self.measured: dict[str, float] = {}
        self._site = site
        self._old: Any = None  # logits of the corrupt prompts, unpatched: the same for every click
        self._shown: xr.DataArray | None = None
        super().__init__(_joined(result), **options)
        if model is not None:
            self._check()
            self._callbacks.append(self._try)
            self.listening = True

    def update(self, result: Results) -> LayerMap:
        """Show other results instead; the region is forgotten where it lies outside."""
        joined = _joined(result)
        super().update(joined)
        x, y, over = (self._dims[name] for name in ("x", "y", "maps"))
        self._shown = map_dims(lab.as_array(joined, "LayerMap"), x, y, over, "LayerMap")[3]
        n, m = self._shown.shape[-2:]
        if self.region and (self.region["rows"][1] >= n or self.region["columns"][1] >= m):
            self.region = {}
        return self

    def brush(self, rows: tuple[int, int], columns: tuple[int, int]) -> None:
        """Mark a region by its first and last indices, as dragging does.

        Raises BadInput outside the map.
        """
        ends = (*rows, *columns)
        n, m = len(self._rows), len(self._columns)
        inside = 0 <= rows[0] <= rows[1] < n and 0 <= columns[0] <= columns[1] < m
        if not inside or not all(isinstance(e, int | np.integer) for e in ends):
            raise BadInput(f"rows {rows}, columns {columns} is no region of the {n} x {m} map")
        self.region = {"rows": list(map(int, rows)), "columns": list(map(int, columns))}

    def selected(self) -> xr.DataArray:
        """Return the values inside the region, labelled as the result is; BadInput without one."""
        if not self.region or self._shown is None:
            raise BadInput("no region is marked: drag over the map, or call brush()")
        y, x = self._shown.dims[-2:]
        (a, b), (c, d) = self.region["rows"], self.region["columns"]
        return self._shown.isel({y: slice(a, b + 1), x: slice(c, d + 1)})

    def _check(self) -> None:
        assert self.model is not None
        rows, columns = self._rows, self._columns
        if rows.dim != "layer" or columns.dim not in ("position", "head"):
            raise BadInput(
                f"a click patches a layer at a position or head; this map has {rows.dim} by "
                f"{columns.dim}: give x and y, or leave model and task out"
            )
        self.model.anatomy.require(self.site_of(""))
        self.model.anatomy.layers([int(v) for v in rows.values])

    def site_of(self, name: str) -> str:
        """Return what a click patches while the map called `name` is shown."""
        from lwlab.models.sites import SITES

        if self._site is not None:
            return self._site
        if name in SITES:
            return name
        if self._shown is not None:
            for key in ("component", "site"):
                if key in self._shown.coords and self._shown[key].ndim == 0:
                    return str(self._shown[key].item())
            if str(self._shown.name) in SITES:
                return str(self._shown.name)
        return "head_out" if self._columns.dim == "head" else "resid_pre"

    def _try(self, pick: Pick) -> None:
        self.begin(lambda job: self._patch(job, pick))

    def _place(self, column: Any) -> int:
        assert self.task is not None
        if isinstance(column, int | np.integer):
            return int(column)
        if column not in self.task.positions:
            raise BadInput(f"the task has no position called {column!r}")
        at = sorted(set(self.task.positions[column].tolist()))
        if len(at) > 1:
            raise BadInput(f"position {column!r} differs between prompts ({at}): one is needed")
        return int(at[0])

    def _patch(self, job: Job, pick: Pick) -> None:
        import torch

        from lwlab.tracing import cache, patch

        model, task = self.model, self.task
        assert model is not None
        assert task is not None
        layer, site = int(pick["layer"]), self.site_of(pick.map)
        by_head = self._columns.dim == "head"
        at = None if by_head else self._place(pick["position"])
        where = f"{site}, {place_of(self._rows, pick.row)}, {place_of(self._columns, pick.column)}"
        job.tell(0.0, f"reading the clean run at {where}…")
        clean = cache(model, list(task.clean), site, [layer], at)[site].isel(layer=0)
        address = f"{site}.{layer}"
        if by_head:
            clean, address = clean.isel(head=int(pick["head"])), f"{address}.{int(pick['head'])}"
        job.tell(0.5, f"patching {len(task)} corrupt prompts at {where}…")
        donor = torch.as_tensor(clean.values)
        first = self._old is None
        run = patch(model, list(task.corrupt), {address: donor}, positions=at, compare=first)
        if first:
            self._old = torch.as_tensor(run["base_logits"].values)
        job.check()
        old, new = self._old, torch.as_tensor(run["logits"].values)
        before, after = float(task.metric(old).mean()), float(task.metric(new).mean())
        told = [
            (z[0].softmax(-1).topk(min(self.k, z.shape[-1])), z[0].softmax(-1)) for z in (old, new)
        ]
        names = [words(model, top.indices) for top, _ in told]
        measured = {"before": before, "after": after, "change": after - before}
        lines = [
            (names[0][i], f"{told[0][0].values[i]:.3f}", names[1][i], f"{told[1][0].values[i]:.3f}")
            for i in range(len(names[0]))
        ]
        metric = task.metric.name
        said = (
            f"exact patch at {where} — {metric} {before:.3f} → {after:.3f} "
            f"({after - before:+.3f}), mean over {len(task)} prompts; "
            f"first prompt “{names[0][0]}” → “{names[1][0]}”"
        )
        with self._turn:
            job.check()
            self.measured = measured
            job.show(
                answer=said,
                table=table(
                    "Top tokens of the first prompt",
                    ("corrupt", "p", "patched", "p"), lines,
                ),
            )  # fmt: skip

    def static_text(self) -> str:
        """Return the size, the extremes, the last answer and the region in words."""
        if not self.region:
            return super().static_text()
        (a, b), (c, d) = self.region["rows"], self.region["columns"]
        names = self._rows.labels, self._columns.labels
        mean = float(cast("Any", self.selected().mean(skipna=True)))
        return (
            f"{super().static_text()} Region: {self._rows.name.lower()} {names[0][a]} to "
            f"{names[0][b]}, {self._columns.name.lower()} {names[1][c]} to {names[1][d]}, "
            f"mean {mean:.3g}."
        )


def _joined(result: Results) -> xr.DataArray | xr.Dataset:
    """Results by name as one array with the dimension `technique`."""
    if not isinstance(result, Mapping) or isinstance(result, xr.Dataset):
        return result
    arrays = {str(k): lab.as_array(v, "LayerMap") for k, v in result.items()}
    if not arrays:
        raise BadInput("no result to show")
    first = next(iter(arrays.values()))
    for name, da in arrays.items():
        if dict(da.sizes) != dict(first.sizes):
            raise BadInput(
                f"results side by side need one shape: {name!r} has {dict(da.sizes)}, the first "
                f"{dict(first.sizes)}"
            )
    if len(arrays) == 1:
        return first
    bare = [da.drop_vars("technique", errors="ignore") for da in arrays.values()]
    out = xr.concat(bare, "technique", join="override", coords="minimal", compat="override")
    attrs = {k: v for k, v in first.attrs.items() if k != "technique"}
    return out.assign_coords(technique=list(arrays)).assign_attrs(attrs)
