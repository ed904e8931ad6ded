"""The table of a sweep: one line a claim and row, with the row's parameters and costs beside it."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwlab.errors import BadInput
from lwlab.paths import write_atomic
from lwlab.runs import rows

if TYPE_CHECKING:
    import pandas as pd

NAME = "results.parquet"
#: Columns by type. `measured` is a number: truth values are 0 and 1.
_TEXT = "string"
_OF_CLAIM = {
    "claim": _TEXT, "measured": "float64", "verdict": _TEXT, "expected": _TEXT, "kind": _TEXT,
    "low": "float64", "high": "float64", "unit": _TEXT, "pinned": _TEXT, "changed": "boolean",
    "samples": "Int64",
}  # fmt: skip
_OF_ROW = {
    "status": _TEXT, "error": _TEXT, "seconds": "float64", "peak_memory_mb": "float64",
    "model_checksum": _TEXT, "lwlab_version": _TEXT, "source_hash": _TEXT, "started": _TEXT,
    "key": _TEXT, "notebook": _TEXT,
}  # fmt: skip
RESERVED = {"id", *_OF_CLAIM, *_OF_ROW}


def read(folder: str | Path) -> pd.DataFrame:
    """Return the table of a sweep's folder.

    Columns: `id`; the parameters by name (`param_<name>` where a name below is taken); the claim
    (`claim`, `measured`, `verdict`, `expected`, `kind`, `low` and `high` of its interval, `unit`,
    `pinned`, `changed`, `samples`); the row (`status`, `error`, `seconds`, `peak_memory_mb`,
    `model_checksum`, `lwlab_version`, `source_hash`, `started`, `key`, `notebook`). A row without a
    claim, such as one that failed early, is one line without a claim.

    Raises
    ------
    BadInput
        If there is no table, or it is damaged; the finished rows beside it are whole then.
    """
    import pandas as pd

    path = Path(folder)
    path = path / NAME if path.is_dir() else path
    if not path.is_file():
        raise BadInput(f"there is no table {path}; `lwlab sweep` writes one.")
    try:
        return pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as e:
        kept = len(_records(path.parent))
        raise BadInput(
            f"{path} is damaged: {(str(e).splitlines() or [''])[0][:120]}. Delete it and sweep "
            f"again: it is written anew from the {kept} finished rows kept beside it, which are "
            "not run again."
        ) from None


def write(folder: Path) -> Path:
    """Write the table anew from the records of all rows in `folder`, and return its path.

    Two sweeps may do so at once: each reads all records while it holds the folder's lock. Of rows
    with the same notebook and parameters the latest counts.
    """
    with rows.lock(folder, "table", timeout=-1):
        buffer = io.BytesIO()
        frame(_records(folder)).to_parquet(buffer, engine="pyarrow", index=False)
        write_atomic(folder / NAME, buffer.getvalue())
    return folder / NAME


def frame(records: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Lay the records of rows, by key, out as a table."""
    import pandas as pd

    lines = [line for key, r in records.items() for line in _lines(key, r)]
    names = dict.fromkeys(name for r in records.values() for name in r["parameters"])
    params = [_column(name) for name in names]
    columns: dict[str, Any] = {"id": _typed([line["id"] for line in lines], _TEXT)}
    for name in params:
        columns[name] = _free([line.get(name) for line in lines])
    for name, kind in (_OF_CLAIM | _OF_ROW).items():
        columns[name] = _typed([line.get(name) for line in lines], kind)
    return pd.DataFrame(columns)


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """Return one line a row: its parameters and costs, and one column a claim (as measured)."""
    left = [c for c in table.columns if c not in _OF_CLAIM]
    claims = table.dropna(subset=["claim"]).pivot(index="key", columns="claim", values="measured")
    return table[left].drop_duplicates("key").join(claims, on="key").reset_index(drop=True)


def _records(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the records of a folder's rows by key, in order of start, without superseded ones."""
    found: dict[str, dict[str, Any]] = {}
    for path in (folder / "rows").glob(f"*/{rows.RECORD}"):
        record = rows.finished(folder, path.parent.name)
        if record is not None:
            found[path.parent.name] = record
    latest: dict[str, str] = {}
    ordered = sorted(found, key=lambda k: (str(found[k].get("started", "")), k))
    for key in ordered:
        about = [found[key].get("id"), found[key]["parameters"]]
        latest[json.dumps(about, sort_keys=True, default=str)] = key
    kept = set(latest.values())
    return {key: found[key] for key in ordered if key in kept}


def _lines(key: str, record: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    failure = record.get("failure") or {}
    base = {_column(name): value for name, value in record["parameters"].items()}
    base |= {name: record.get(name) for name in _OF_ROW if name in record}
    base |= {
        "id": record.get("id"), "key": key,
        "error": f"{failure['name']}: {failure['message']}" if failure else None,
        "lwlab_version": record.get("versions", {}).get("lwlab"),
    }  # fmt: skip
    if record.get("notebook"):
        base["notebook"] = f"rows/{key}/{record['notebook']}"
    for claim in record["claims"]:
        low, high = claim["interval"] or (None, None)
        yield base | {
            "claim": claim["id"], "measured": float(claim["measured"]),
            "verdict": claim["verdict"], "expected": claim["expect"], "kind": claim["kind"],
            "low": None if low is None else float(low),
            "high": None if high is None else float(high), "unit": claim["unit"],
            "pinned": claim["pinned"], "changed": claim["changed"], "samples": claim["n"],
        }  # fmt: skip
    if not record["claims"]:
        yield base


def _column(name: str) -> str:
    return f"param_{name}" if name in RESERVED else name


def _typed(values: Sequence[Any], kind: str) -> Any:
    import pandas as pd

    if kind == "float64":
        return pd.Series([math.nan if v is None else float(v) for v in values], dtype=kind)
    return pd.Series([pd.NA if v is None else v for v in values], dtype=kind)


def _free(values: Sequence[Any]) -> Any:
    """Return a parameter's values as the narrowest type that holds all; lists become JSON."""
    kinds = {type(v) for v in values if v is not None}
    if kinds == {bool}:
        return _typed(values, "boolean")
    if kinds == {int} and all(abs(v) < 2**63 for v in values if v is not None):
        return _typed(values, "Int64")
    if kinds and kinds <= {int, float}:
        return _typed(values, "float64")
    if kinds <= {str}:
        return _typed(values, _TEXT)
    return _typed([None if v is None else json.dumps(v, default=str) for v in values], _TEXT)
