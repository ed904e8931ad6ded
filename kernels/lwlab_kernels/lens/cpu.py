"""The reduction of a block of logits on the CPU, in Numba.

Two readings of a row. The first works on integers that have the order of the floats, so that it
vectorises without promising the compiler that there are no NaNs: highest and lowest, ranks, top-k.
The second adds exponentials, and only for rows in which the first found nothing but finite numbers;
others go through a plain loop.
"""

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
    float_key,
    jit,
    spread,
)

if TYPE_CHECKING:
    import torch

    from lwlab_kernels.lens.blocks import State

_CHUNK = 256
_LOWEST = np.float32(-87.0)


def reduce(z: torch.Tensor, first: int, columns: int, ref: int, state: State) -> None:
    """Add a block to the sums (see `blocks.Reduce`)."""
    import torch

    sums = (state.m, state.s, state.a, state.b, state.key, state.id, state.count, state.target)
    arrays = [t.numpy() for t in (*sums, state.target_id, state.wrong, state.apart)]
    bits = z.view(torch.int32).numpy()
    layers = len(z) // columns
    spread(_positions, columns, z.numpy(), bits, first, columns, layers, ref, *arrays)


@jit(**FAST)
def _above(b: Any, threshold: Any) -> Any:
    """How many keys are above the threshold."""
    n = np.int32(0)
    for j in range(len(b)):
        n += np.int32(float_key(b[j]) > threshold)
    return n


@jit(**FAST)
def _insert(b: Any, first: Any, keys: Any, ids: Any) -> Any:
    """Put what belongs there among the best: `keys` falls, equal ones in the order they came."""
    k = len(keys)
    for j in range(len(b)):
        new = float_key(b[j])
        if new > keys[k - 1]:
            i = k - 1
            while i > 0 and new > keys[i - 1]:
                keys[i], ids[i] = keys[i - 1], ids[i - 1]
                i -= 1
            keys[i], ids[i] = new, first + j


@jit(**FAST)
def _sums(z: Any, m: Any) -> Any:
    """sum e^d and sum d e^d, d = z - m."""
    s, a = np.float32(0), np.float32(0)
    for j in range(len(z)):
        d = max(z[j] - m, _LOWEST)
        e = exp32(d)
        s += e
        a += e * d
    return s, a


@jit(**FAST)
def _sums_to(z: Any, to: Any, m: Any) -> Any:
    """The same, and sum (z - to) e^d."""
    s, a, b = np.float32(0), np.float32(0), np.float32(0)
    for j in range(len(z)):
        d = max(z[j] - m, _LOWEST)
        e = exp32(d)
        s += e
        a += e * d
        b += e * (z[j] - to[j])
    return s, a, b


@jit(**SAFE)
def _plain(z: Any, to: Any, m: Any) -> Any:
    """The same for rows with -inf: tokens of probability 0; and whether one has only p_ref = 0."""
    s, a, b, apart = 0.0, 0.0, 0.0, 0
    for j in range(len(z)):
        if z[j] == -np.inf:
            continue
        d = np.float64(z[j]) - m
        e = np.exp(d)
        s += e
        a += e * d
        if to[j] == -np.inf:
            apart = 1
        else:
            b += e * (np.float64(z[j]) - to[j])
    return s, a, b, apart


@jit(**SAFE)
def _merge(
    r: Any, top: Any, s_: Any, a_: Any, b_: Any, m: Any, s: Any, a: Any, b: Any
) -> None:  # fmt: skip
    """Add a block's sums, taken from its own highest logit, to those of the row."""
    if top > m[r]:
        if s[r] > 0:
            down = m[r] - top
            f = np.exp(down)
            a[r] = f * (a[r] + s[r] * down)
            s[r] *= f
            b[r] *= f
        m[r] = top
        s[r] += s_
        a[r] += a_
        b[r] += b_
    else:
        down = top - m[r]
        f = np.exp(down)
        s[r] += f * s_
        a[r] += f * (a_ + s_ * down)
        b[r] += f * b_


@jit(**SAFE)
def _positions(
    start: Any, stop: Any, z: Any, bits: Any, first: Any, columns: Any, layers: Any, ref: Any,
    m: Any, s: Any, a: Any, b: Any, key: Any, id_: Any, count: Any, target: Any, target_id: Any,
    wrong: Any, apart: Any,
) -> None:  # fmt: skip
    """All layers of positions start..stop: the reference's row stays in the cache meanwhile."""
    width = z.shape[1]
    n, k = count.shape[1], key.shape[1]
    for c in range(start, stop):
        to = c if ref < 0 else ref * columns + c
        to_high, to_low = extremes(bits[to])
        to_wrong = ref < 0 or to_high >= INF_KEY or to_low < -INF_KEY
        for layer in range(layers):
            r = layer * columns + c
            high, low = np.int32(-(2**31)), np.int32(2**31 - 1)
            for j in range(0, width, _CHUNK):
                chunk = bits[r, j : min(j + _CHUNK, width)]
                chunk_high, chunk_low = extremes(chunk)
                high, low = max(high, chunk_high), min(low, chunk_low)
                if chunk_high > key[r, k - 1]:
                    _insert(chunk, first + j, key[r], id_[r])
            if high >= INF_KEY or low < -INF_KEY:
                wrong[r] = 1
                continue
            if high == -INF_KEY:
                continue
            for i in range(n):
                # Equal logits rank by id: those before the target count from its key on.
                split = min(max(target_id[r, i] - first, 0), width)
                count[r, i] += _above(bits[r, :split], target[r, i] - 1)
                count[r, i] += _above(bits[r, split:], target[r, i])
            top = as_float(float_bits(high))
            b_, far = 0.0, 0
            if low > -INF_KEY and (to_wrong or r == to):
                s_, a_ = _sums(z[r], top)
            elif low > -INF_KEY and to_low > -INF_KEY:
                s_, a_, b_ = _sums_to(z[r], z[to], top)
            else:
                s_, a_, b_, far = _plain(z[r], z[to], np.float64(top))
            if far and ref >= 0:
                apart[r] = 1
            _merge(r, np.float64(top), s_, a_, b_, m, s, a, b)
