"""Execute one notebook with papermill in a fresh kernel of this very interpreter."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lwlab._quick import quick_imports

#: Called before each cell with its index, the number of cells, and the section it stands in.
Progress = Callable[[int, int, str], None]

_GRACE = 5.0  # seconds an interrupted cell has to stop before its kernel is killed


@dataclass(frozen=True)
class Failure:
    """What stopped a run; `cell` is the index in the executed notebook, None outside any cell."""

    name: str
    message: str
    cell: int | None = None
    source: str = ""
    traceback: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a run went: status is 'ok', 'failed', 'timeout', 'memory', 'dead' or 'interrupted'."""

    status: str
    seconds: float
    peak_memory_mb: float
    failure: Failure | None = None


def run_notebook(
    nb: Any,
    output: Path,
    *,
    parameters: Mapping[str, Any] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
    memory_mb: float | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Execute `nb` and write it to `output` after every cell, so that a partial run is kept.

    Parameters
    ----------
    nb : notebook without outputs (an nbformat node).
    parameters : checked values, injected after the parameters cell.
    cwd : working directory of the kernel.
    timeout : seconds for the whole run, the kernel's start included; at the limit the running cell
        is interrupted (its traceback is kept), and killed if it does not stop.
    memory_mb : megabytes (2**20 bytes) the kernel may hold, looked at ten times a second; it is
        killed above them, so that it cannot take the machine's other work with it.
    progress : see `Progress`.

    Returns
    -------
    Outcome
        Never raises for what happens in the notebook; Ctrl-C gives the status 'interrupted'.
    """
    quick_imports()
    import nbformat
    import papermill

    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(nbformat.writes(nb), encoding="utf-8")
    place = _Place(progress)
    failure: Failure | None = None
    status = "ok"
    start = time.perf_counter()
    with _Watch(timeout, memory_mb) as watch:
        try:
            _started(place, watch, lambda: papermill.execute_notebook(
                _literal(output), _literal(output), parameters=dict(parameters or {}),
                kernel_name="python3", language="python", progress_bar=False, log_output=False,
                start_timeout=120, store_widget_state=False,
                kernel_manager_class=watch.manager_class(),
                resources={"metadata": {"path": str(cwd or Path.cwd())}},
                on_notebook_start=place.begin, on_cell_start=place.enter,
            ))  # fmt: skip
        except papermill.PapermillExecutionError as e:
            # papermill put one note on top of the notebook and one above the failing cell
            traceback = "\n".join(e.traceback)
            failure = Failure(e.ename, e.evalue, e.cell_index + 2, e.source, traceback)
            status = "failed"
        except RuntimeError as e:  # nbclient: the kernel died, or did not start
            failure = place.failure("DeadKernel", str(e))
            status = "dead"
        except KeyboardInterrupt:
            failure = place.failure("KeyboardInterrupt", "stopped from outside")
            status = "interrupted"
    if watch.expired and status != "ok":
        failure = replace(
            failure or place.failure("", ""), name="Timeout",
            message=f"still running at the limit of {timeout:g} s",
        )  # fmt: skip
        status = "timeout"
    if watch.crowded and status != "ok":
        failure = replace(
            failure or place.failure("", ""), name="MemoryLimit",
            message=f"held {watch.peak / 2**20:.0f} MB, over the limit of {memory_mb:.0f} MB",
        )  # fmt: skip
        status = "memory"
    seconds = time.perf_counter() - start
    return Outcome(status, round(seconds, 2), round(watch.peak / 2**20, 1), failure)


def _started(place: _Place, watch: _Watch, run: Callable[[], Any]) -> None:
    """Run; again where the kernel died before it was asked anything, at most three times.

    Jupyter looks for free ports, and the kernel takes them a moment later: when many kernels start
    at once, another may have been faster.
    """
    for left in (2, 1, 0):
        try:
            run()
            return
        except RuntimeError:
            if not left or place.index is not None or watch.expired or watch.crowded:
                raise


def _literal(path: Path) -> str:
    """Papermill formats paths with the parameters: double the braces of a plain one."""
    return str(path).replace("{", "{{").replace("}", "}}")


class _Place:
    """Where a run is: passed to nbclient's hooks, which call with keyword arguments."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.cells: list[Any] = []
        self.index: int | None = None
        self.section = ""

    def begin(self, notebook: Any) -> None:
        self.cells = notebook.cells

    def enter(self, cell: Any, cell_index: int) -> None:
        self.index = cell_index
        if cell.cell_type == "markdown":
            titles = [t for t in cell.source.splitlines() if t.startswith("#")]
            self.section = titles[-1].lstrip("# ") if titles else self.section
        if self.progress:
            self.progress(cell_index, len(self.cells), self.section)

    def failure(self, name: str, message: str) -> Failure:
        source = self.cells[self.index].source if self.index is not None else ""
        return Failure(name, message, self.index, source)


class _Watch(threading.Thread):
    """Follows a kernel process: its peak memory, and the run's limits."""

    def __init__(self, timeout: float | None, memory_mb: float | None = None) -> None:
        super().__init__(name="lwlab-run-watch", daemon=True)
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.most = None if memory_mb is None else memory_mb * 2**20
        self.expired = False
        self.crowded = False
        self.peak = 0
        self.manager: Any = None
        self._over = threading.Event()

    def __enter__(self) -> _Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def manager_class(self) -> type:
        """Return a kernel manager class that starts this interpreter and reports to this watch.

        A kernelspec named python3 in a user's folder may start another environment, so the
        installed ones are not asked.
        """
        from jupyter_client.kernelspec import KernelSpec
        from jupyter_client.manager import AsyncKernelManager

        watch = self

        class ThisInterpreter(AsyncKernelManager):
            def __init__(self, **kw: Any) -> None:
                super().__init__(**kw)
                watch.manager = self

            @property
            def kernel_spec(self) -> Any:
                # log level 50: ipykernel warns about every kernel on the loopback interface
                kernel = "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=50"
                argv = [sys.executable, *kernel]
                return KernelSpec(argv=argv, display_name="lwlab", language="python")

        return ThisInterpreter

    def run(self) -> None:
        import psutil  # type: ignore[import-untyped]

        while not self._over.wait(0.1):
            pid = getattr(getattr(self.manager, "provisioner", None), "pid", None)
            late = self.deadline is not None and time.monotonic() > self.deadline
            if pid is None:
                continue
            with contextlib.suppress(psutil.Error, OSError):
                process = psutil.Process(pid)
                self.peak = max(self.peak, _peak_bytes(process))
                if self.most is not None and self.peak > self.most:
                    self.crowded = True
                    process.kill()
                elif late and not self.expired:
                    self.expired = True
                    self.deadline = time.monotonic() + _GRACE
                    process.send_signal(signal.SIGINT) if os.name == "posix" else process.kill()
                elif late:
                    process.kill()


def _peak_bytes(process: Any) -> int:
    """Return the most memory a process ever held: what Linux counted, else what it holds now."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(process.memory_info().rss)
