"""Numba: a group is read once, into the cache's first level, and rounded at every width there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lwlab_kernels._numba import FAST, array, jit, rint, spread

# `arcp` would turn a division by q_max into a product, and the scale into its neighbour.
_EXACT: dict[str, Any] = {**FAST, "fastmath": FAST["fastmath"] - {"arcp"}}
_INLINE: dict[str, Any] = {**_EXACT, "cache": False, "inline": "always"}

# Bits of +infinity; a float32 whose bits less the sign reach it is not finite. Compared as
# integers, because compiled arithmetic here is told that there is neither NaN nor infinity.
_INF = np.int32(0x7F800000)
_SIGN = np.int32(0x7FFFFFFF)
_HALF_MAX = np.float32(65504)
_NORMAL = np.float32(2.0**-14)
# Exponents as they stand in a float32's bits: the least of a normal float16; ten places down (the
# mantissa of a float16); and of the inverse of the least, ten places up.
_LEAST, _TEN, _INVERSE = np.int32(113 << 23), np.int32(10 << 23), np.int32(151 << 23)
_ZERO, _QUARTER, _ONE = np.float32(0), np.float32(0.25), np.float32(1)


@jit(**_INLINE)
def _half(x: Any) -> Any:
    """The float16 next to a finite float32 `x`, as float32; 65536 or more where there is none."""
    exponent = max(np.float32(x).view(np.int32) & _INF, _LEAST)
    step = np.int32(exponent - _TEN).view(np.float32)
    return rint(x * np.int32(_INVERSE - (exponent - _LEAST)).view(np.float32)) * step


@jit(**_INLINE)
def _measure(w: Any, raw: Any, k: Any, symmetric: bool, need_mean: bool) -> Any:
    """(finite, lowest, highest, mean|w|, norm) of a group; symmetric: lowest 0, highest max|w|."""
    worst, least, most, norm = np.int32(0), _SIGN, np.int32(~_SIGN), _ZERO
    low = high = _ZERO
    if symmetric:
        for j in range(len(w)):
            worst = max(worst, raw[j] & _SIGN)
            norm += w[j] * w[j] if k is None else k[j] * (w[j] * w[j])
        high = np.int32(worst).view(np.float32)
    else:
        for j in range(len(w)):  # these integers are in the order of the floats
            key = np.int32(raw[j] ^ ((raw[j] >> np.int32(31)) & _SIGN))
            least, most = min(least, key), max(most, key)
            norm += w[j] * w[j] if k is None else k[j] * (w[j] * w[j])
        worst = max(most, np.int32(~least))
        low = np.int32(least ^ ((least >> np.int32(31)) & _SIGN)).view(np.float32)
        high = np.int32(most ^ ((most >> np.int32(31)) & _SIGN)).view(np.float32)
    mean = np.float64(0)
    if need_mean:  # in float64, so that the order of summing cannot move the float16 scale
        for j in range(len(w)):
            mean += np.float64(abs(w[j]))
    return worst < _INF, low, high, np.float32(mean / len(w)), norm


@jit(**_INLINE)
def _levels(bits: int, symmetric: bool, low: Any, high: Any, mean: Any) -> Any:
    """(storable, scale, 1 / scale or 0, offset, lowest code, highest code, codes may leave them).

    Rounding s to a normal float16 moves w / s by 2^-11 of itself, not enough for 127 or 255 to
    become 128 or 256; only a subnormal s, or a z rounded by much of a step, makes clamping needed.
    """
    offset, first, last = _ZERO, _ZERO, np.float32((1 << bits) - 1)
    if symmetric and bits == 1:
        scale = _half(mean)
    elif symmetric:
        last = np.float32((1 << (bits - 1)) - 1)
        first = -last
        scale = _half(high / last)
    else:
        scale, offset = _half((high - low) / last), _half(low)
    inverse = _ONE / scale if scale > _ZERO else _ZERO
    leaves = scale < _NORMAL or (not symmetric and abs(offset - low) > _QUARTER * scale)
    fits = scale <= _HALF_MAX and abs(offset) <= _HALF_MAX
    return fits, scale, inverse, offset, first, last, leaves


@jit(**_INLINE)
def _one(x: Any, k: Any, binary: bool, levels: Any) -> Any:
    """Weighted squared error of one group: two levels +-s, or codes that must be clamped."""
    _, s, inverse, z, first, last, _ = levels
    total = _ZERO
    if binary:
        for j in range(len(x)):
            e = abs(x[j]) - s
            total += e * e if k is None else k[j] * (e * e)
    else:
        for j in range(len(x)):
            d = x[j] - z
            e = d - s * rint(min(max(d * inverse, first), last))
            total += e * e if k is None else k[j] * (e * e)
    return total


@jit(**_INLINE)
def _four(x: Any, k: Any, z: Any, s: Any, inverse: Any) -> Any:
    """Weighted squared errors of one group at four widths.

    Four at once keep the processor busy: one width alone is a chain of dependent steps, and a
    group is too short to hide it.
    """
    a, b, c, d = s[0], s[1], s[2], s[3]
    ia, ib, ic, id_ = inverse[0], inverse[1], inverse[2], inverse[3]
    ta, tb, tc, td = _ZERO, _ZERO, _ZERO, _ZERO
    for j in range(len(x)):
        y = x[j] - z
        h = _ONE if k is None else k[j]
        e = y - a * rint(y * ia)
        ta += h * (e * e)
        e = y - b * rint(y * ib)
        tb += h * (e * e)
        e = y - c * rint(y * ic)
        tc += h * (e * e)
        e = y - d * rint(y * id_)
        td += h * (e * e)
    return ta, tb, tc, td


@jit(**_EXACT)
def _table(
    begin: int, stop: int, w: Any, raw: Any, bits: Any, group: int, symmetric: bool, c: Any,
    error: Any, norm: Any, lost: Any,
) -> None:  # fmt: skip
    need_mean = symmetric and bits.min() == 1
    n = len(bits)
    scale, inverse = np.zeros(n + 4, np.float32), np.zeros(n + 4, np.float32)
    which = np.zeros(n, np.int64)
    for r in range(begin, stop):
        for start in range(0, w.shape[1], group):
            x = w[r, start : start + group]
            k = None if c is None else c[start : start + group]
            finite, low, high, mean, square = _measure(
                x, raw[r, start : start + group], k, symmetric, need_mean
            )
            if not finite:
                lost[r, :] = (
                    True  # NaN is written by the caller: this code is told it does not exist
                )
                break
            norm[r] += square
            m, z = 0, _ZERO
            for b in range(n):
                levels = _levels(bits[b], symmetric, low, high, mean)
                fits, s, i, z, _, _, leaves = levels
                binary = symmetric and bits[b] == 1
                if not fits:
                    lost[r, 1 + b] = True
                elif binary or leaves:
                    error[r, b] += _one(x, k, binary, levels)
                else:
                    scale[m], inverse[m], which[m] = s, i, b
                    m += 1
            for b in range(0, m, 4):
                four = _four(x, k, z, scale[b : b + 4], inverse[b : b + 4])
                error[r, which[b]] += four[0]
                if b + 1 < m:
                    error[r, which[b + 1]] += four[1]
                if b + 2 < m:
                    error[r, which[b + 2]] += four[2]
                if b + 3 < m:
                    error[r, which[b + 3]] += four[3]


@jit(**_EXACT)
def _fake(
    begin: int, stop: int, w: Any, raw: Any, bits: int, group: int, symmetric: bool,
    out: Any, scale: Any, offset: Any,
) -> None:  # fmt: skip
    for r in range(begin, stop):
        for g in range(w.shape[1] // group):
            start = g * group
            x, y = w[r, start : start + group], out[r, start : start + group]
            one = symmetric and bits == 1
            finite, low, high, mean, _ = _measure(
                x, raw[r, start : start + group], None, symmetric, one
            )
            fits, s, inverse, z, first, last, leaves = _levels(bits, symmetric, low, high, mean)
            if not (finite and fits):
                y[:] = np.nan
                scale[r, g] = offset[r, g] = np.nan
                continue
            scale[r, g], offset[r, g] = s, z
            if one:
                for j in range(group):
                    y[j] = s if x[j] >= _ZERO else -s
            elif leaves:
                for j in range(group):
                    y[j] = z + s * rint(min(max((x[j] - z) * inverse, first), last))
            else:
                for j in range(group):
                    y[j] = z + s * rint((x[j] - z) * inverse)


def fake_quant(
    w: torch.Tensor, bits: int, group: int, symmetric: bool, out: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """See `reference.fake_quant`."""
    x = array(w)
    direct = out is not None and out.dtype == torch.float32 and out.is_contiguous()
    y = out if direct and out is not None else torch.empty(w.shape)
    scale, offset = (torch.empty(len(w), w.shape[1] // group) for _ in range(2))
    arrays = y.numpy(), scale.numpy(), offset.numpy()
    spread(_fake, len(x), x, x.view(np.int32), bits, group, symmetric, *arrays)
    y = y.to(w.dtype) if direct or out is None else out.copy_(y)
    return y, scale.half(), None if symmetric else offset.half()


def error_table(
    w: torch.Tensor,
    bits: Sequence[int],
    group: int,
    symmetric: bool,
    weight: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.error_table`."""
    x = array(w)
    c = None if weight is None else array(weight.float())
    error = torch.zeros(len(w), len(bits), dtype=torch.float64)
    norm = torch.zeros(len(w), dtype=torch.float64)
    lost = torch.zeros(len(w), 1 + len(bits), dtype=torch.bool)
    wanted = np.asarray(bits, np.int64)
    out = error.numpy(), norm.numpy(), lost.numpy()
    spread(_table, len(x), x, x.view(np.int32), wanted, group, symmetric, c, *out)
    lost[:, 0] |= ~norm.isfinite()
    return error.masked_fill(lost[:, 1:], torch.nan), norm.masked_fill(lost[:, 0], torch.nan)
