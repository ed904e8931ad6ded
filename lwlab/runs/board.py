"""Where a sweep stands: rows done, running and failed, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lwlab.runs.rows import Row


@dataclass(frozen=True)
class State:
    """A sweep at one moment; `running` maps the rows under way to the section each is in.

    `cached` of the `done` rows were there before; `failed` of them did not end well. `left` is an
    estimate in seconds, None before there is anything to estimate from. `last` is the row that has
    just ended, if that is why this is told.
    """

    rows: int
    done: int
    cached: int
    failed: int
    running: dict[str, str]
    left: float | None
    last: Row | None = None


#: Called whenever a row ends, and about once a second.
Watcher = Callable[[State], None]


@dataclass
class Board:
    """Keeps the count of one sweep and tells a watcher."""

    rows: int
    workers: int
    expected: float  # seconds a row takes, until rows have been seen
    watcher: Watcher | None = None
    done: dict[str, Row] = field(default_factory=dict)
    _at: dict[str, tuple[float, str]] = field(default_factory=dict)

    def hear(self, event: tuple[float, Mapping[str, Any]]) -> None:
        """Take a worker's message: which row is at which cell (comes in the client's thread)."""
        message = event[1]
        key = message["key"]
        if key in self.done:
            return
        began, _ = self._at.get(key, (time.monotonic(), ""))
        where = message["section"] or "starting"
        if message["cells"]:
            where += f" ({message['cell'] + 1}/{message['cells']})"
        else:
            began = time.monotonic()  # begins, perhaps again
        self._at[key] = began, where

    def end(self, row: Row) -> None:
        """Count a row that has ended, and tell."""
        self.done[row.key] = row
        self._at.pop(row.key, None)
        self.tell(row)

    def only(self, keys: set[str]) -> None:
        """Forget that rows were under way which are not among `keys`: their worker is gone."""
        for key in set(self._at) - keys:
            self.drop(key)

    def drop(self, key: str) -> None:
        """Forget that a row was under way: another sweep runs it."""
        self._at.pop(key, None)

    def tell(self, last: Row | None = None) -> None:
        """Tell the watcher how things stand."""
        if self.watcher:
            self.watcher(self.state(last))

    def state(self, last: Row | None = None) -> State:
        """Return how things stand."""
        ended = list(self.done.values())
        at = dict(self._at)
        return State(
            rows=self.rows, done=len(ended), cached=sum(r.cached for r in ended),
            failed=sum(not r.ok for r in ended), running={k: where for k, (_, where) in at.items()},
            left=self._left([began for began, _ in at.values()]), last=last,
        )  # fmt: skip

    def _left(self, began: list[float]) -> float | None:
        mine = [r.seconds for r in self.done.values() if not r.cached and r.seconds]
        each = sum(mine) / len(mine) if mine else self.expected
        if not each:
            return None
        now = time.monotonic()
        spent = sum(min(now - t, each) for t in began)
        return max(0.0, (self.rows - len(self.done)) * each - spent) / self.workers
