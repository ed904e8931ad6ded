"""One row of a sweep: its key, its folder, and what a Dask worker does with it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lwlab import __version__
from lwlab.errors import BadInput, LwlabError
from lwlab.notebook import record
from lwlab.paths import write_atomic
from lwlab.runs.run import NotebookFailed, execute

RECORD = "run.json"
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Row:
    """One row that has ended; status is 'ok', 'failed', 'timeout', 'memory' or 'dead'.

    `parameters` are all the notebook's, with the values in effect; `cached` is True if the row was
    done before this sweep began.
    """

    key: str
    status: str
    parameters: dict[str, Any]
    seconds: float
    peak_memory_mb: float
    claims: list[dict[str, Any]]
    error: str
    folder: Path
    cached: bool = False

    @property
    def ok(self) -> bool:
        """True if the notebook ran to its end."""
        return self.status == "ok"


@dataclass(frozen=True)
class Task:
    """What a worker is sent for one row: names and numbers only, all files lie in `folder`."""

    key: str
    id: str
    source: str
    notebook: str
    given: dict[str, Any]
    values: dict[str, Any]
    model: str
    checksum: str
    folder: str
    timeout: float | None
    memory_mb: float | None
    topic: str
    again: bool = False
    wait: bool = False

    @property
    def place(self) -> Path:
        """The row's own folder."""
        return Path(self.folder) / "rows" / self.key

    def patient(self) -> Task:
        """Return the task in the form that waits for another sweep's run of the same row."""
        return replace(self, wait=True)


def row_key(source: str, values: Mapping[str, Any], checksum: str) -> str:
    """Return 16 hexadecimal digits that name a row.

    They change with the notebook's content (`source`, its hash), the value of any parameter,
    the version of lwlab, and the model's checksum; with nothing else.
    """
    parts = [source, dict(values), __version__, checksum]
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def finished(folder: Path, key: str) -> dict[str, Any] | None:
    """Return the record of a row that ended, well or not; None if it did not or is damaged."""
    try:
        found = json.loads((folder / "rows" / key / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and {"status", "parameters", "claims"} <= set(found)
    return found if whole else None


def read_row(folder: Path, key: str, found: Mapping[str, Any], *, cached: bool = False) -> Row:
    """Return a record as a `Row`."""
    failure = found.get("failure") or {}
    return Row(
        key=key, status=found["status"], parameters=dict(found["parameters"]),
        seconds=found.get("seconds", 0.0), peak_memory_mb=found.get("peak_memory_mb", 0.0),
        claims=list(found["claims"]), folder=folder / "rows" / key, cached=cached,
        error=f"{failure['name']}: {failure['message']}" if failure else "",
    )  # fmt: skip


def work(task: Task) -> dict[str, Any]:
    """Execute one row; runs on a worker.

    Returns
    -------
    dict with `state`: 'done' (and `record`, `cached`), 'busy' (another sweep is running this row)
    or 'full' (the disk is; and `message`). What goes wrong in the notebook is in the record.
    """
    try:
        with _held(task) as mine:
            if not mine:
                return {"state": "busy"}
            there = finished(Path(task.folder), task.key)
            if there is not None and there["status"] == "ok" and not task.again:
                return {"state": "done", "record": there, "cached": True}
            return {"state": "done", "record": _run(task), "cached": False}
    except OSError as e:
        if e.errno not in _FULL:
            raise
        # half a notebook is of no use, and its space is needed
        shutil.rmtree(task.place, ignore_errors=True)
        return {"state": "full", "message": str(e)}


def _run(task: Task) -> dict[str, Any]:
    (task.place / RECORD).unlink(missing_ok=True)
    say = _reporter(task)
    say(0, 0, "")
    try:
        _same_model(task)
        execute(
            task.notebook, task.given, task.place, timeout=task.timeout,
            memory_mb=task.memory_mb or _allowance(), progress=say, html=False, pictures=False,
        )  # fmt: skip
    except NotebookFailed:
        pass  # its record is written
    except LwlabError as e:
        write_failure(task, "failed", type(e).__name__, str(e))
    found = finished(Path(task.folder), task.key)
    assert found is not None
    return found


def write_failure(task: Task, status: str, name: str, message: str) -> dict[str, Any]:
    """Write the record of a row that ended outside its notebook, and return it."""
    content = {
        "id": task.id, "status": status,
        **record.facts({"model": task.model, **task.values}, 0.0, 0.0),
        "parameters": task.values, "source_hash": task.source,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "failure": {"name": name, "message": message}, "claims": [],
    }  # fmt: skip
    write_atomic(task.place / RECORD, json.dumps(content, indent=1, default=str) + "\n")
    return content


def _allowance() -> float | None:
    """Return the megabytes this worker was started with (`--memory-limit`), if it says so.

    Dask watches the worker only; what needs the memory is the kernel beside it.
    """
    from distributed import get_worker

    try:
        limit = get_worker().memory_manager.memory_limit
    except (ValueError, AttributeError):
        return None
    return limit / 2**20 if limit else None


def _same_model(task: Task) -> None:
    if task.checksum and (here := record.checksum(task.model)) != task.checksum:
        raise BadInput(
            f"model {task.model!r} has checksum {here or 'none: it is not there'} on "
            f"this worker and {task.checksum} where the sweep was started; give all workers one "
            "LWLAB_CACHE (and HF_HOME)."
        )


@contextlib.contextmanager
def _held(task: Task) -> Iterator[bool]:
    """Hold the row's lock; False if another process holds it and the task does not wait."""
    with lock(Path(task.folder), task.key, timeout=-1 if task.wait else 0) as mine:
        yield mine


@contextlib.contextmanager
def lock(folder: Path, name: str, timeout: float) -> Iterator[bool]:
    """Hold a lock of a sweep's folder; yields False if it is not to be had within `timeout`.

    A negative timeout waits for ever. The system drops the lock of a process that dies.
    """
    from filelock import FileLock, Timeout

    path = folder / ".locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(path)
    try:
        held.acquire(timeout=timeout)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        held.release()


def _reporter(task: Task) -> Any:
    """Return a callback that tells the sweep's scheduler which cell a row is at."""
    from distributed import get_worker

    try:
        worker = get_worker()
    except ValueError:  # called outside a cluster
        return lambda *_: None

    def say(cell: int, cells: int, section: str) -> None:
        message = {"key": task.key, "cell": cell, "cells": cells, "section": section}
        worker.log_event(task.topic, message)

    return say


def probe(folder: str, token: str) -> dict[str, Any]:
    """Say what a worker has: its lwlab, and whether it sees and may write the sweep's folder."""
    place = Path(folder)
    sees = (place / token).is_file()
    writes = False
    if sees:
        with contextlib.suppress(OSError):
            write_atomic(place / f"{token}.{os.getpid()}", "")
            (place / f"{token}.{os.getpid()}").unlink()
            writes = True
    return {"lwlab": __version__, "sees": sees, "writes": writes}
