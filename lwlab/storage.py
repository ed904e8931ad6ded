"""Results on disk: netCDF or zarr, written atomically, with nothing lost on the way."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lwlab.errors import BadInput

Result = xr.DataArray | xr.Dataset

# One text variable holds every attribute as JSON: HDF5 caps an attribute at 64 kB and has no None,
# bool, dict or mixed list; a variable has neither limit.
_RECORD = "lwlab_record"
_UNNAMED = "lwlab_data"


def plain(value: object, where: str) -> Any:
    """Turn an attribute into what JSON holds; raise BadInput with its name if it cannot be."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.generic):
        return plain(value.item(), where)
    if isinstance(value, Mapping):
        return {str(k): plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if hasattr(value, "tolist"):  # numpy arrays and torch tensors
        return plain(value.tolist(), where)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise BadInput(
        f"attribute {where!r} is a {type(value).__name__}; provenance holds text, numbers, bools, "
        "None, and lists or dicts of these."
    )


def _suffix(path: Path) -> str:
    if path.suffix not in {".nc", ".zarr"}:
        raise BadInput(
            f"cannot tell the format of {str(path)!r}: results are saved as .nc (netCDF) "
            "or .zarr (needs the package zarr)."
        )
    if path.suffix == ".zarr":
        try:
            import zarr  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
        except ImportError:
            raise BadInput(
                f"{str(path)!r} asks for zarr, which is not installed: save as .nc, "
                "or install it with `pip install zarr`."
            ) from None
    return path.suffix


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a fresh path beside `path` that takes its place only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        fresh = work / path.name
        yield fresh
        if fresh.is_dir() and path.exists():  # a folder cannot be replaced in one step
            os.replace(path, work / "old")
        os.replace(fresh, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def save(result: Result, path: str | os.PathLike[str]) -> Path:
    """Save a result as netCDF (`.nc`) or zarr (`.zarr`), atomically, and return the path.

    Values, NaN, dimensions, coordinates (texts included), names and every attribute survive the
    round trip through `lw.open`; other netCDF readers see the data and coordinates too. Raises
    BadInput for an unknown suffix, for anything that is not a result, and for what the format
    cannot hold (a multi-index, objects that are not text).
    """
    path = Path(path)
    suffix = _suffix(path)
    if not isinstance(result, xr.DataArray | xr.Dataset):
        raise BadInput(
            f"save takes an xarray DataArray or Dataset, got a {type(result).__name__}; "
            "lw.results.label makes one of a tensor."
        )
    record: dict[str, Any] = {"kind": type(result).__name__, "dtype": {}, "attrs": {}}
    if isinstance(result, xr.DataArray):
        record["name"] = result.name
        record["attrs"][""] = {}
        data = result.rename(_UNNAMED).to_dataset()
    else:
        record["attrs"][""] = {str(k): plain(v, str(k)) for k, v in result.attrs.items()}
        data = result.copy()
    data.attrs = {}
    for key, variable in data.variables.items():
        name = str(key)
        if "/" in name:
            raise BadInput(f"a variable is named {name!r}: netCDF reads / as a group; rename it.")
        if type(data.indexes.get(key)).__name__ == "MultiIndex":
            raise BadInput(f"{name!r} is a multi-index; save result.reset_index({name!r}).")
        record["attrs"][name] = {str(k): plain(v, str(k)) for k, v in variable.attrs.items()}
        record["dtype"][name] = _storable(variable, name)
    for key in list(data.variables):
        stored = data[key].variable
        stored.attrs, stored.encoding = {}, {}
        if record["dtype"][str(key)] == "float16":  # not a netCDF type
            data[key] = data[key].astype("float32")
    data[_RECORD] = json.dumps(record, ensure_ascii=False)
    encoding = {k: {"_FillValue": None} for k, v in data.variables.items() if v.dtype.kind == "f"}
    with _replacing(path) as fresh:
        if suffix == ".nc":
            data.to_netcdf(fresh, engine="h5netcdf", encoding=encoding)
        else:
            data.to_zarr(fresh, zarr_format=2, consolidated=False)  # format 3 has no text type yet
    return path


def _storable(variable: xr.Variable, name: str) -> str:
    """Return the dtype to restore on opening; raise BadInput for objects that are not text."""
    kind = variable.dtype.kind
    if kind == "O" or kind == "T":
        others = {type(v).__name__ for v in variable.values.ravel() if not isinstance(v, str)}
        if others:
            raise BadInput(f"{name!r} holds {', '.join(sorted(others))} where text was expected.")
        return "str"
    if kind == "U":
        return "str"
    if kind not in "biufMm":
        raise BadInput(f"{name!r} has dtype {variable.dtype}, which netCDF cannot hold.")
    return str(variable.dtype)


def open(path: str | os.PathLike[str]) -> Result:
    """Open what `lw.save` wrote, wholly in memory; any other netCDF file opens as a Dataset.

    Raises BadInput when there is no such file, its suffix is neither .nc nor .zarr, or it is
    damaged.
    """
    path = Path(path)
    suffix = _suffix(path)
    if not path.exists():
        raise BadInput(f"there is no result at {str(path)!r}.")
    try:
        if suffix == ".nc":
            data = xr.load_dataset(path, engine="h5netcdf")
        else:
            with xr.open_zarr(path, consolidated=False) as stored:
                data = stored.load()
    except (OSError, ValueError) as error:
        raise BadInput(f"{str(path)!r} cannot be read as {suffix[1:]}: {error}") from error
    if _RECORD not in data:
        return data
    record = json.loads(str(data[_RECORD].item()))
    data = data.drop_vars(_RECORD)
    for name, dtype in record["dtype"].items():
        if str(data[name].dtype) != dtype:
            data[name] = data[name].astype(dtype)
    for key, variable in data.variables.items():
        variable.encoding = {}
        variable.attrs = record["attrs"].get(str(key), {})
    data.attrs = record["attrs"][""]
    data.encoding = {}
    if record["kind"] == "Dataset":
        return data
    array = data[_UNNAMED].rename(record["name"])
    array.attrs = record["attrs"][_UNNAMED]
    return array
