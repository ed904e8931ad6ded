"""Triton: a tile of rows times one group stays in registers while every width is tried on it."""

# mypy: disable-error-code="no-untyped-def"
# (an annotation of a kernel's argument means something else to triton)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

# Adding and taking away 1.5 * 2^23 rounds |x| < 2^22 to the nearest integer, ties to even.
_MAGIC: Any = tl.constexpr(12582912.0)
_TILE = 8192  # elements of a tile, to stay in registers where a group is a whole row


@triton.jit
def _levels(x, here, group, bits, SYMMETRIC: tl.constexpr):
    """Scale (NaN where there is none), 1 / scale or 0, offset, lowest and highest code, [rows]."""
    top = tl.where(SYMMETRIC, (1 << tl.maximum(bits - 1, 1)) - 1, (1 << bits) - 1).to(tl.float32)
    size = tl.max(tl.where(here, tl.abs(x), 0.0), 1)
    # A comparison with NaN is false, and tl.max drops NaN: count what is finite instead.
    wrong = tl.sum(tl.where(here & ~(tl.abs(x) < float("inf")), 1, 0), 1) > 0
    if SYMMETRIC:
        z = size * 0.0
        low = -top
        mean = tl.sum(tl.where(here, tl.abs(x), 0.0).to(tl.float64), 1) / group
        s = tl.where(bits == 1, mean.to(tl.float32), tl.div_rn(size, top))
    else:
        least = tl.min(tl.where(here, x, float("inf")), 1)
        most = tl.max(tl.where(here, x, float("-inf")), 1)
        z = least.to(tl.float16).to(tl.float32)
        low = top * 0.0
        s = tl.div_rn(most - least, top)
    s = s.to(tl.float16).to(tl.float32)
    wrong = wrong | (s == float("inf")) | (tl.abs(z) == float("inf"))
    inverse = tl.where(s > 0, tl.div_rn(s * 0.0 + 1.0, tl.where(s > 0, s, 1.0)), 0.0)
    return tl.where(wrong, float("nan"), s), inverse, z, low, top


@triton.jit
def _rounded(x, s, inverse, z, low, top, bits, SYMMETRIC: tl.constexpr):
    """W' - z of a tile [rows, group]."""
    q = (x - z[:, None]) * inverse[:, None]
    q = tl.minimum(tl.maximum(q, low), top)
    q = (q + _MAGIC) - _MAGIC
    if SYMMETRIC:
        q = tl.where(bits == 1, tl.where(x >= 0, 1.0, -1.0), q)
    return s[:, None] * q


@triton.jit
def _table(
    w_ptr, c_ptr, bits_ptr, error_ptr, norm_ptr, rows, columns, group, n,
    ROWS: tl.constexpr, GROUP: tl.constexpr, N: tl.constexpr,
    SYMMETRIC: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    j = tl.arange(0, GROUP)
    slot = tl.arange(0, N)
    total = tl.zeros((ROWS, N), dtype=tl.float64)
    norm = tl.zeros((ROWS,), dtype=tl.float64)
    here = (r < rows)[:, None] & (j < group)[None, :]
    for start in range(0, columns, group):
        at = r.to(tl.int64)[:, None] * columns + (start + j)[None, :]
        x = tl.load(w_ptr + at, mask=here, other=0.0).to(tl.float32)
        if WEIGHTED:
            c = tl.load(c_ptr + start + j, mask=j < group, other=0.0)[None, :]
        else:
            c = 1.0
        norm += tl.sum(tl.where(here, c * (x * x), 0.0), 1).to(tl.float64)
        for b in range(n):
            bits = tl.load(bits_ptr + b)
            s, inverse, z, low, top = _levels(x, here, group, bits, SYMMETRIC)
            e = (x - z[:, None]) - _rounded(x, s, inverse, z, low, top, bits, SYMMETRIC)
            e = tl.sum(tl.where(here, c * (e * e), 0.0), 1).to(tl.float64)
            total += tl.where(slot[None, :] == b, e[:, None], 0.0)
    where = r.to(tl.int64)[:, None] * n + slot[None, :]
    tl.store(error_ptr + where, total, mask=(r < rows)[:, None] & (slot < n)[None, :])
    tl.store(norm_ptr + r, norm, mask=r < rows)


@triton.jit
def _fake(
    w_ptr, out_ptr, s_ptr, z_ptr, rows, columns, group, groups, bits,
    ROWS: tl.constexpr, GROUP: tl.constexpr, SYMMETRIC: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    g = tl.program_id(1)
    j = tl.arange(0, GROUP)
    here = (r < rows)[:, None] & (j < group)[None, :]
    at = r.to(tl.int64)[:, None] * columns + (g * group + j)[None, :]
    x = tl.load(w_ptr + at, mask=here, other=0.0).to(tl.float32)
    s, inverse, z, low, top = _levels(x, here, group, bits, SYMMETRIC)
    y = _rounded(x, s, inverse, z, low, top, bits, SYMMETRIC) + z[:, None]
    tl.store(out_ptr + at, y, mask=here)
    k = r.to(tl.int64) * groups + g
    tl.store(s_ptr + k, s, mask=r < rows)
    tl.store(z_ptr + k, tl.where(s == s, z, float("nan")), mask=r < rows)


def fake_quant(
    w: torch.Tensor, bits: int, group: int, symmetric: bool, out: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """See `reference.fake_quant`."""
    x = w.contiguous()
    groups = x.shape[1] // group
    y = torch.empty(x.shape, device=x.device)
    scale, offset = (torch.empty(len(x), groups, device=x.device) for _ in range(2))
    tile = triton.next_power_of_2(group)
    height = _height(tile)
    _fake[(triton.cdiv(len(x), height), groups)](
        x, y, scale, offset, *x.shape, group, groups, bits,
        ROWS=height, GROUP=tile, SYMMETRIC=symmetric,
    )  # fmt: skip
    y = y.to(w.dtype) if out is None else out.copy_(y)
    return y, scale.half(), None if symmetric else offset.half()


def error_table(
    w: torch.Tensor,
    bits: Sequence[int],
    group: int,
    symmetric: bool,
    weight: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.error_table`."""
    x = w.contiguous()
    error = torch.empty(len(x), len(bits), dtype=torch.float64, device=x.device)
    norm = torch.empty(len(x), dtype=torch.float64, device=x.device)
    wanted = torch.tensor(bits, dtype=torch.int32, device=x.device)
    c = norm if weight is None else weight.float().contiguous()
    tile = triton.next_power_of_2(group)
    height = _height(tile)
    _table[(triton.cdiv(len(x), height),)](
        x, c, wanted, error, norm, *x.shape, group, len(bits),
        ROWS=height, GROUP=tile, N=triton.next_power_of_2(len(bits)),
        SYMMETRIC=symmetric, WEIGHTED=weight is not None,
    )  # fmt: skip
    return error, torch.where(norm.isfinite(), norm, torch.nan)


def _height(tile: int) -> int:
    return max(1, min(16, _TILE // tile))
