"""Labelled results: make them, say where they come from, save them, open them, chart them.

A result is an `xarray.DataArray` or `xarray.Dataset` whose attributes are its provenance. Importing
this module registers the accessor `.lw` on both.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import numpy as np
import xarray as xr

import lwlab
from lwlab.errors import BadInput, suggest
from lwlab.storage import Result, open, plain, save

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Lab", "label", "open", "provenance", "save"]

_R = TypeVar("_R", xr.DataArray, xr.Dataset)


def _array(data: object) -> np.ndarray[Any, Any]:
    """Return `data` as a numpy array; tensors are detached, half and bfloat16 become float32."""
    if hasattr(data, "detach"):
        tensor = data.detach().cpu()
        if tensor.is_floating_point() and tensor.element_size() < 4:
            tensor = tensor.float()
        return np.asarray(tensor.numpy())
    return np.asarray(data)


def label(
    data: object,
    dims: Sequence[str] | str,
    coords: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    **attrs: object,
) -> xr.DataArray:
    """Give `data` its labels: a DataArray with named dimensions, coordinates and provenance.

    `data` is a tensor or anything numpy takes; `dims` names each axis; a coordinate is a list of
    the length of the dimension it is named after, or `(dims, values)` for any other, as in
    `{"token_str": (("prompt", "position"), strings)}`. `attrs` are kept beside `lwlab_version`.
    Raises BadInput when the names do not fit the shape or an attribute is not plain data.
    """
    array = _array(data)
    dims = (dims,) if isinstance(dims, str) else tuple(dims)
    if array.ndim != len(dims):
        raise BadInput(
            f"data of shape {array.shape} has {array.ndim} axes and dims names {len(dims)}: {dims}."
        )
    sizes = dict(zip(dims, array.shape))
    given: dict[Hashable, Any] = {}
    for key, value in (coords or {}).items():
        if isinstance(value, xr.DataArray):
            given[key] = value
            continue
        is_pair = isinstance(value, tuple) and len(value) == 2
        if not is_pair and key not in sizes:
            raise BadInput(
                f"coordinate {key!r} is no dimension of {dims}: give it as (dims, values)."
            )
        over, values = value if is_pair else (key, value)
        over = (over,) if isinstance(over, str) else tuple(over)
        values = _array(values)
        expected = tuple(sizes.get(d, -1) for d in over)
        if values.shape != expected:
            wanted = dict(zip(over, expected))
            raise BadInput(f"coordinate {key!r} has shape {values.shape}; the data wants {wanted}.")
        given[key] = (over, values)
    kept = {k: plain(v, k) for k, v in attrs.items()}
    return xr.DataArray(array, dims=dims, coords=given, name=name, attrs=provenance() | kept)


def provenance(model: object = None, task: object = None, **extra: object) -> dict[str, Any]:
    """Return the attributes that say where a number comes from.

    `model` gives `model` and `model_checksum`; `task` gives `task`, `n`, `seed` and what the
    task's own `attrs` say (template, corruption). `extra` (technique, paper, ...) comes last and
    wins. A model or task may also be a bare name. Always holds `lwlab_version`.
    """
    out: dict[str, Any] = {"lwlab_version": lwlab.__version__}
    if model is not None:
        out["model"] = model if isinstance(model, str) else getattr(model, "name", str(model))
        checksum = getattr(model, "checksum", None)
        if checksum is not None:
            out["model_checksum"] = checksum
    if task is not None:
        out["task"] = task if isinstance(task, str) else getattr(task, "name", str(task))
        if not isinstance(task, str):
            out["n"] = len(cast("Sequence[object]", task))
            out["seed"] = getattr(task, "seed", None)
            out.update(getattr(task, "attrs", {}))
    return {k: plain(v, k) for k, v in (out | extra).items()}


class Lab(Generic[_R]):
    """What a result can do by itself: `result.lw.heatmap()`, `.profile()`, `.describe()`, ..."""

    def __init__(self, result: _R) -> None:
        self._result: _R = result

    def _pick(self, variable: str | None) -> Result:
        """Return the result, or one variable of it with the provenance of the whole."""
        if variable is None:
            return self._result
        names = [str(k) for k in getattr(self._result, "data_vars", [])]
        if variable not in names:
            raise BadInput(f"no variable {variable!r} in this result{suggest(variable, names)}")
        array: xr.DataArray = self._result[variable]
        return array.assign_attrs({**self._result.attrs, **array.attrs})

    def _draw(self, chart: str, variable: str | None, *args: Any, **options: Any) -> Any:
        from lwlab import charts

        return getattr(charts, chart)(self._pick(variable), *args, **options)

    def heatmap(self, *args: Any, variable: str | None = None, **options: Any) -> Any:
        """Draw two dimensions as a heat map (see `lw.charts.heatmap`)."""
        return self._draw("heatmap", variable, *args, **options)

    def profile(self, *args: Any, variable: str | None = None, **options: Any) -> Any:
        """Draw one dimension, usually layers, as lines (see `lw.charts.profile`)."""
        return self._draw("profile", variable, *args, **options)

    def scatter(self, other: xr.DataArray, variable: str | None = None, **options: Any) -> Any:
        """Draw this (x) against `other` (y), cell by cell (see `lw.charts.scatter`)."""
        return self._draw("scatter", variable, other, **options)

    def head_grid(self, variable: str | None = None, **options: Any) -> Any:
        """Draw layers by heads as a grid (see `lw.charts.head_grid`)."""
        return self._draw("head_grid", variable, **options)

    def to_frame(self) -> pd.DataFrame:
        """Return a tidy table: one row a cell, one column a coordinate, one a variable."""
        result: Any = self._result
        if isinstance(result, xr.DataArray):
            result = result.rename(result.name or "value").to_dataset()
        return cast("pd.DataFrame", result.to_dataframe().reset_index())

    def interval(
        self, over: str = "prompt", *, n: int = 2000, seed: int = 0, level: float = 0.95
    ) -> _R:
        """Return the mean over `over` with its bootstrap interval, along a dimension `estimate`.

        See `lwlab.stats.interval`; the coordinate `group` says which prompts belong together. Of a
        Dataset, every variable that has the dimension.
        """
        from lwlab.stats import interval

        result: Any = self._result
        options: dict[str, Any] = {"n": n, "seed": seed, "level": level}
        if isinstance(result, xr.DataArray):
            one: Any = interval(result, over, **options)
            return cast("_R", one)
        found = {k: interval(v, over, **options) for k, v in result.items() if over in v.dims}
        if not found:
            raise BadInput(f"no variable of this result has the dimension {over!r}")
        joined: Any = xr.Dataset(found, attrs=result.attrs)
        return cast("_R", joined)

    def describe(self) -> str:
        """Say in a few lines what this is and where it comes from."""
        result = self._result
        variables = ", ".join(str(k) for k in getattr(result, "data_vars", []))
        name = getattr(result, "name", None) or variables
        shape = " x ".join(f"{d} {s}" for d, s in result.sizes.items()) or "a single number"
        lines = [f"{name or 'result'}: {shape}"]
        lines += [f"  {k}: {v}" for k, v in result.attrs.items()]
        return "\n".join(lines)


def _register() -> None:
    with warnings.catch_warnings():
        # Running this module again (autoreload) replaces its own accessor: nothing to warn of.
        mine = getattr(getattr(xr.DataArray, "lw", None), "__module__", __name__) == __name__
        if mine:
            warnings.simplefilter("ignore", xr.core.extensions.AccessorRegistrationWarning)
        register: Any = xr  # these two functions of xarray are untyped
        register.register_dataarray_accessor("lw")(Lab)
        register.register_dataset_accessor("lw")(Lab)


_register()
