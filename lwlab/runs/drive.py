"""The driver of a sweep: sends rows to Dask workers and takes them back, whatever happens there."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from lwlab.errors import RunError
from lwlab.runs import rows, table
from lwlab.runs.board import Board
from lwlab.runs.rows import Task

_TABLE_EVERY = 20.0  # seconds between two writings of the table while rows come in
_LONELY = 60.0  # seconds without any worker until a sweep is given up


class SweepStopped(RunError):
    """A sweep that could not go on (full disk, lost scheduler); its finished rows are kept."""


class Drive:
    """Sends rows to the workers and takes them back until none is left."""

    def __init__(self, client: Any, board: Board, folder: Path, topic: str) -> None:
        self.client, self.board, self.folder, self.topic = client, board, folder, topic
        self.open: dict[str, tuple[Task, Any]] = {}
        self.ended: SimpleQueue[Any] = SimpleQueue()
        self.busy: list[Task] = []
        client.subscribe_topic(topic, board.hear)

    def run(self, tasks: Iterable[Task]) -> None:
        """Run `tasks`; rows that another sweep holds come last."""
        try:
            for task in tasks:
                self._send(task)
            self._take()
            for task in self.busy:
                self._send(task.patient())
            self._take()
        finally:
            # forgetting the futures cancels what has not begun
            self.client.cancel([f for _, f in self.open.values()], force=True)
            self.open.clear()

    def _send(self, task: Task) -> None:
        key = f"{task.topic}-{task.key}{'-patient' if task.wait else ''}"
        future = self.client.submit(rows.work, task, key=key, pure=False, retries=0)
        self.open[key] = task, future
        future.add_done_callback(self.ended.put)

    def _take(self) -> None:
        wrote = seen = time.monotonic()
        while self.open:
            try:
                future = self.ended.get(timeout=1.0)
            except Empty:
                if self._look():
                    seen = time.monotonic()
                self.board.tell()
                if time.monotonic() - seen > _LONELY:
                    raise self._stopped(f"no worker for {_LONELY:.0f} s") from None
                continue
            if future.key in self.open:
                self._end(*self.open.pop(future.key))
            if time.monotonic() - wrote > _TABLE_EVERY:
                self._write()
                wrote = time.monotonic()

    def _look(self) -> int:
        """Return the number of workers, and forget the rows that were on one that is gone."""
        try:
            at = self.client.processing()
        except (OSError, RuntimeError, ValueError) as e:
            raise self._stopped(f"the scheduler was lost ({type(e).__name__})") from None
        mine = f"{self.topic}-"  # a scheduler may have other users
        named = [str(key) for keys in at.values() for key in keys]
        self.board.only({k[len(mine) :].partition("-")[0] for k in named if k.startswith(mine)})
        return len(at)

    def _end(self, task: Task, future: Any) -> None:
        from distributed.scheduler import KilledWorker

        if future.status == "finished":
            told = future.result()
            if told["state"] == "full":
                raise self._stopped(f"the disk of {self.folder} is full ({told['message']})")
            if told["state"] == "busy":
                self.board.drop(task.key)
                self.busy.append(task)
                return
            found, cached = told["record"], told["cached"]
        elif future.status == "error":
            cause, cached = future.exception(), False
            if isinstance(cause, KilledWorker):
                what = "the worker was killed while it ran this row, twice; out of memory?"
                found = self._lost(task, "dead", "KilledWorker", what)
            else:
                found = self._lost(task, "failed", type(cause).__name__, str(cause))
        else:
            raise self._stopped("the scheduler was lost")
        self.board.end(rows.read_row(self.folder, task.key, found, cached=cached))

    def _write(self) -> None:
        try:
            table.write(self.folder)
        except OSError as e:
            raise self._stopped(f"{self.folder} cannot be written ({e})") from e

    def _lost(self, task: Task, status: str, name: str, message: str) -> dict[str, Any]:
        try:
            return rows.write_failure(task, status, name, message)
        except OSError as e:
            raise self._stopped(f"{self.folder} cannot be written ({e})") from e

    def _stopped(self, why: str) -> SweepStopped:
        return SweepStopped(f"{why}. {so_far(self.board, self.folder)}")


def so_far(board: Board, folder: Path) -> str:
    """Say how many rows are finished, and that they are kept."""
    done = sum(r.ok for r in board.done.values())
    return (
        f"{done} of {board.rows} rows are finished and kept in {folder}; the same sweep goes on "
        "from there."
    )
