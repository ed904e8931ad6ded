"""The plan of a sweep: what will run, by which engine and why, and what it will cost."""

from __future__ import annotations

import time
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lwlab.models.model import Model

_RATES: WeakKeyDictionary[nn.Module, dict[int, float]] = WeakKeyDictionary()
_TILE = 512


@dataclass(frozen=True)
class Plan:
    """A sweep before it runs.

    `cells`: results asked for; `skipped`: of these, provably zero and not run; `rows`: token rows
    that pass through a layer; `flops`: operations of their matrix products; `naive_flops`: those
    of one whole forward pass a cell; `bytes`: bound on memory beside the model's; `seconds`:
    expected, from a matrix-product rate measured just now on this machine.
    """

    engine: str
    reason: str
    cells: int
    skipped: int
    rows: int
    flops: int
    naive_flops: int
    bytes: int
    seconds: float

    def __repr__(self) -> str:
        saved = self.naive_flops / self.flops if self.flops else float("inf")
        return (
            f"<Plan: {self.cells} cells ({self.skipped} provably zero), engine {self.engine} "
            f"({self.reason}); {self.rows} rows, {self.flops / 1e9:.3g} GFLOP ({saved:.3g} times "
            f"fewer than a forward a cell), at most {self.bytes / 1e6:.3g} MB, about "
            f"{self.seconds:.2g} s>"
        )


def rate(model: Model) -> float:
    """Operations a second of a product of this model's shape, measured once in about 50 ms."""
    known = _RATES.setdefault(model.module, {})
    threads = torch.get_num_threads()
    if threads not in known:
        d = model.d_model or 64
        f = model.d_mlp or 4 * d
        x = torch.randn(_TILE, d, device=model.device, dtype=model.dtype)
        w = torch.randn(f, d, device=model.device, dtype=model.dtype)
        best = float("inf")
        end = time.perf_counter() + 0.05
        while True:
            start = time.perf_counter()
            y = nn.functional.linear(x, w)
            float(y[0, 0])  # waits for the device
            best = min(best, time.perf_counter() - start)
            if time.perf_counter() > end:
                break
        known[threads] = 2 * _TILE * d * f / best
    return known[threads]
