"""The reduction of a block of scores on the CPU, in Numba (the ideas are those of lens/cpu.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lwlab_kernels._numba import (
    FAST,
    INF_KEY,
    SAFE,
    as_float,
    exp32,
    extremes,
    float_bits,
    jit,
    spread,
)

if TYPE_CHECKING:
    import torch

    from lwlab_kernels.attention.blocks import Out

_LOWEST = np.float32(-87.0)


def reduce(z: torch.Tensor, first: int, per: int, start: int, lo: int, out: Out) -> None:
    """Fill `out.rows`, add to `out.column` (see `blocks.Reduce`)."""
    import torch

    bits = z.view(torch.int32).numpy()
    others = (t.numpy() for t in (out.bounds, out.ends, out.rows, out.column))
    spread(_heads, len(z), z.numpy(), bits, first, per, start, lo, *others)


@jit(**FAST)
def _exponentials(z: Any, top: Any, first: Any) -> Any:
    """Put e = e^(z - top) in z; sum e, sum e (z - top), sum e |j|, j counting from `first`."""
    s, a, away = np.float32(0), np.float32(0), np.float32(0)
    for i in range(len(z)):
        d = max(z[i] - top, _LOWEST)
        e = exp32(d)
        z[i] = e
        s += e
        a += e * d
        away += e * abs(np.float32(first + np.int32(i)))
    return s, a, away


@jit(**SAFE)
def _plain(z: Any, top: Any, first: Any) -> Any:
    """The same for rows with -inf: keys of probability 0."""
    s, a, away = 0.0, 0.0, 0.0
    for i in range(len(z)):
        if z[i] == -np.inf:
            z[i] = 0
            continue
        d = np.float64(z[i]) - top
        e = np.exp(d)
        z[i] = e
        s += e
        a += e * d
        away += e * abs(first + i)
    return s, a, away


@jit(**FAST)
def _add(column: Any, e: Any, f: Any) -> None:
    for j in range(len(e)):
        column[j] += f * e[j]


@jit(**SAFE)
def _heads(
    begin: Any, end: Any, z: Any, bits: Any, first: Any, per: Any, start: Any, left: Any,
    bounds: Any, ends: Any, rows: Any, column: Any,
) -> None:  # fmt: skip
    """Heads begin..end of the block, query by query."""
    queries, width = z.shape[1:]
    part = np.zeros(width, np.float32)
    offset = column.shape[1] - rows.shape[2]
    for h in range(begin, end):
        b = (first + h) // per
        part[:] = 0
        for i in range(queries):
            lo, hi = bounds[0, b, start + i] - left, bounds[1, b, start + i] - left
            at = start + i + offset - left
            stats = rows[:, first + h, start + i]
            stats[:] = np.nan
            if hi <= lo:
                continue
            high, low = extremes(bits[h, i, lo:hi])
            if high >= INF_KEY or low < -INF_KEY:
                part[lo:hi] = np.nan
                continue
            if high == -INF_KEY:
                continue
            row = z[h, i, lo:hi]
            top = as_float(float_bits(high))
            if low > -INF_KEY:
                s, a, away = _exponentials(row, top, np.int32(lo - at))
            else:
                s, a, away = _plain(row, np.float64(top), lo - at)
            sink = 0.0
            for j in range(lo, min(ends[b] - left, hi)):
                sink += z[h, i, j]
            stats[0] = max(np.log(np.float64(s)) - np.float64(a) / s, 0.0)
            stats[1] = sink / s
            stats[2] = away / s
            _add(part[lo:hi], row, np.float32(1.0 / s))
        for j in range(width):
            column[first + h, left + j] += part[j]
