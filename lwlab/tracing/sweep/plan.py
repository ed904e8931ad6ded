"""The plan of a sweep: what will run, by which engine and why, and what it will cost."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lwlab.tracing._nnsight import lock
from lwlab.tracing.sweep.adapter import Adapter

_RATES: WeakKeyDictionary[nn.Module, dict[int, float]] = WeakKeyDictionary()
_TILE = 512


@dataclass(frozen=True)
class Plan:
    """A sweep before it runs.

    `cells`: results asked for; `skipped`: of these, provably zero and not run; `rows`: token rows
    that pass through a layer; `flops`: operations of their matrix products; `naive_flops`: those
    of one whole forward pass a cell; `bytes`: bound on memory beside the model's; `seconds`:
    expected, from the rate of one layer, or of
    the unedited run, on this machine just now.
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


def rate(adapter: Adapter) -> float:
    """Operations a second of the packed engine: its products of one layer, timed once.

    Takes about 0.2 s for a model of 135 million weights.
    """
    model = adapter.model
    known = _RATES.setdefault(model.module, {})
    threads = torch.get_num_threads()
    if threads not in known:
        a = model.anatomy
        like: dict[str, Any] = {"device": model.device, "dtype": model.dtype}
        h = torch.randn(_TILE, a.d_model or 1, **like)
        z = torch.randn(_TILE, a.n_heads or 1, a.d_head or 1, **like)
        best = float("inf")
        with lock(model), torch.no_grad():
            for _ in range(3):
                before, start = adapter.flops, time.perf_counter()
                adapter.project(0, adapter.normed(0, h), "qkv")
                y = adapter.after(0, h, z)
                float(y[0, 0])  # waits for the device
                best = min(best, (time.perf_counter() - start) / (adapter.flops - before))
        known[threads] = 1 / best
    return known[threads]
