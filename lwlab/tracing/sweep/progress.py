"""How far a sweep is: a bar, or a function of the user's."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any


class Meter:
    """Counts operations done of all that chunks announce; `tick` is called as work is done."""

    def __init__(self, progress: bool | Callable[[float, float], None] | None, chunks: int) -> None:
        """`progress`: True for a bar, or f(done, total) with both in 1e9 operations."""
        self.show, self.chunks, self.seen = progress, chunks, 0
        self.done = self.total = 0
        self.bar: Any = None

    def __enter__(self) -> Meter:
        if self.show is True:
            from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]

            self.bar = tqdm(total=0, unit="FLOP", unit_scale=True, desc="sweep")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self.bar is not None:
            self.bar.close()

    def chunk(self, flops: int) -> None:
        """Announce the work of the next chunk; chunks to come are taken to be like it."""
        self.seen += 1
        self.total += flops
        if self.bar is not None:
            self.bar.total = self._expected()
            self.bar.refresh()

    def _expected(self) -> float:
        return self.total * self.chunks / max(self.seen, 1)

    def tick(self, flops: int, _cells: int) -> None:
        """Some operations are done."""
        self.done += flops
        if self.bar is not None:
            self.bar.update(flops)
        elif callable(self.show):
            self.show(self.done / 1e9, self._expected() / 1e9)
