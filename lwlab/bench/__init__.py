"""Benchmarks: ratios measured side by side in one process, and the tables made from them."""

from __future__ import annotations

from lwlab.bench.compare import difference
from lwlab.bench.machine import gemm, read
from lwlab.bench.memory import peak_mb
from lwlab.bench.protocol import Absent, Case, Timed, Unequal, Way, check, measure

__all__ = [
    "Absent",
    "Case",
    "Timed",
    "Unequal",
    "Way",
    "check",
    "difference",
    "gemm",
    "measure",
    "peak_mb",
    "read",
]
