"""How much memory a call takes at its peak, beyond what the process holds already."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lwlab.bench.protocol import Absent

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_mb(run: Callable[[], Any]) -> float:
    """Return by how many MB (10^6 bytes) `run()` raises the process's resident memory at its peak.

    Freed memory is given back to the system first, and the kernel's high-water mark is reset, so
    that nothing that ran before hides the call's own peak. Call `run` once before, if it compiles
    or loads something the first time. Raises Absent where the system has no such mark (not Linux).
    """
    if not _CLEAR.exists():
        raise Absent("peak memory is read from Linux's /proc, which this system does not have")
    gc.collect()
    trim()
    _CLEAR.write_text("5")
    before = _read("VmRSS")
    result = run()
    peak = _read("VmHWM")
    del result
    return max(0.0, (peak - before) * 1024 / 1e6)


def trim() -> None:
    """Ask the C library to give freed memory back to the system."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


def _read(key: str) -> float:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(key + ":"):
            return float(line.split()[1])
    raise Absent(f"{_STATUS} has no {key}")
