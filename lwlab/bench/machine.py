"""What a benchmark ran on: processor, versions, and the rates this process really gets."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from lwlab.bench.protocol import Way

PACKAGES = ("torch", "numpy", "numba", "triton", "nnsight", "transformers", "xarray", "lwlab")


def versions(*more: str) -> dict[str, str]:
    """Return the versions of Python and of the installed packages that matter, and `more`."""
    out = {"python": platform.python_version()}
    for name in (*PACKAGES, *more):
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def describe() -> dict[str, Any]:
    """Return processor, cores, memory, threads, load and system."""
    import psutil  # type: ignore[import-untyped,unused-ignore]
    import torch

    out = {
        "processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(), "load": [round(x, 2) for x in os.getloadavg()],
    }  # fmt: skip
    if torch.cuda.is_available():
        out["gpu"] = torch.cuda.get_device_name()
    return out


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gemm(m: int, k: int, n: int, times: int = 1) -> Way:
    """Return the bare float32 matrix product [m, k] @ [k, n], `times` over, as a limit."""
    import torch

    gen = torch.Generator().manual_seed(0)
    a, b = torch.randn(m, k, generator=gen), torch.randn(n, k, generator=gen).T
    out = torch.empty(m, n)

    def run() -> None:
        for _ in range(times):
            torch.mm(a, b, out=out)

    return Way(run, limit=True, note=f"matrix product {m} x {k} x {n}, {times} times")


def read(nbytes: int) -> Way:
    """Return the reading of `nbytes` bytes of memory (a float32 sum) as a limit."""
    import torch

    data = torch.ones(max(1, nbytes // 4))
    return Way(lambda: data.sum(), limit=True, note=f"sum over {nbytes / 1e6:.1f} MB")


def rates(rounds: int = 5) -> dict[str, float]:
    """Return what one process gets now: GFLOP/s of matrix products and GB/s of reading."""

    def per_second(run: Callable[[], Any], work: float) -> float:
        taken = []
        for _ in range(rounds + 1):
            begin = time.process_time()
            run()
            taken.append(time.process_time() - begin)
        return round(work / statistics.median(taken[1:]) / 1e9, 1)

    out = {"read 256 MB, GB/s": per_second(read(2**28).run, 2.0**28)}
    for m, k, n, times in ((512, 576, 1536, 8), (14, 576, 1536, 64), (240, 576, 49152, 1)):
        run = gemm(m, k, n, times).run
        out[f"matrix product {m}x{k}x{n}, GFLOP/s"] = per_second(run, 2.0 * m * k * n * times)
    return out
