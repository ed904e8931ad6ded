"""Instruments that run the model: off the kernel's thread, the last question wins."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import traitlets as t

from ._base import LabWidget, said


class Cancelled(Exception):
    """Raised inside a computation that nobody waits for any more."""


class Job:
    """One computation of a widget, as it sees itself: still wanted? how far? what to show?"""

    def __init__(self, widget: Live, n: int) -> None:
        self._widget, self.n, self.stopped = widget, n, False

    def check(self) -> None:
        """Raise Cancelled if a newer question was asked or the user cancelled."""
        if self.stopped:
            raise Cancelled

    def tell(self, fraction: float, status: str = "") -> None:
        """Show how far this is: 0 to 1, negative where unknown. Raises Cancelled when stale."""
        self.show(progress=fraction, status=status)

    def show(self, **traits: Any) -> None:
        """Set traits of the widget in one message. Raises Cancelled when stale."""
        # With the lock, a newer question cannot come between the check and the message.
        with self._widget._turn:
            self.check()
            with self._widget.hold_sync():
                for name, value in traits.items():
                    setattr(self._widget, name, value)


class Live(LabWidget):
    """A widget whose computations run in a thread of their own, one at a time.

    `begin(work)` returns at once: `busy` is true until `work(job)` has ended. A newer `begin` makes
    the running one stale: what it would still show is dropped, and its next `job.check()` ends it.
    The front end's Cancel counts `cancel` up. Exceptions become the visible `error`. `wait()` is
    for scripts and tests. Two widgets on one model take turns: tracers hold the module's lock.
    """

    busy = t.Bool(False).tag(sync=True)
    progress = t.Float(-1.0).tag(sync=True)
    status = t.Unicode("").tag(sync=True)
    cancel = t.Int(0).tag(sync=True)

    def __init__(self, **traits: Any) -> None:
        self._turn = threading.RLock()
        self._wake = threading.Condition(self._turn)
        self._next: tuple[Job, Callable[[Job], Any]] | None = None
        self._current: Job | None = None
        self._worker: threading.Thread | None = None
        self._closed = False
        self._count = 0
        super().__init__(**traits)
        self.observe(lambda _: self.stop(), "cancel")

    def begin(self, work: Callable[[Job], Any]) -> Job:
        """Run `work(job)` in the widget's thread, in place of what runs or waits there."""
        with self._turn:
            self._count += 1
            job = Job(self, self._count)
            if self._closed:
                job.stopped, self.error = True, "this instrument is closed; make a new one"
                return job
            if self._current is not None:
                self._current.stopped = True
            self._next = (job, work)
            with self.hold_sync():
                self.busy, self.progress, self.status, self.error = True, -1.0, "", ""
            if self._worker is None or not self._worker.is_alive():
                self._worker = threading.Thread(target=self._work, daemon=True)
                self._worker.start()
            self._wake.notify_all()
        return job

    def stop(self) -> None:
        """Make what runs and what waits stale; nothing of it will be shown."""
        with self._turn:
            self._next = None
            if self._current is not None:
                self._current.stopped = True
                self.status = "stopping after this step"
            else:
                self.busy = False

    def wait(self, timeout: float = 120.0) -> bool:
        """Wait until nothing runs; return whether that came to pass within `timeout` seconds."""
        end = time.monotonic() + timeout
        with self._wake:
            while self._next is not None or self._current is not None:
                left = end - time.monotonic()
                if left <= 0 or not self._wake.wait(left):
                    return False
        return True

    def close(self) -> None:
        """Stop, and leave the page."""
        if not hasattr(self, "_turn"):
            return  # its arguments were refused before it began
        with self._turn:
            self._closed = True
            self.stop()
            self._wake.notify_all()
        super().close()

    def _work(self) -> None:
        while True:
            with self._wake:
                # A thread that waited in vain ends: hundreds of widgets must not keep hundreds.
                while self._next is None:
                    woken = not self._closed and self._wake.wait(5.0)
                    if not woken and self._next is None:
                        self._worker = None
                        return
                job, work = self._next
                self._next, self._current = None, job
            failed = ""
            try:
                work(job)
            except Cancelled:
                pass
            except Exception as e:
                if not job.stopped:
                    self.failure = traceback.format_exc()
                    failed = said(e)
            with self._wake:
                self._current = None
                if self._next is None and not self._closed:
                    with self.hold_sync():
                        self.busy, self.progress, self.status = False, -1.0, ""
                        if failed:
                            self.error = failed
                self._wake.notify_all()
