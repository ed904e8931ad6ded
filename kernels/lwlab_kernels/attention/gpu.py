"""The reduction of a block of scores on a GPU, in Triton: one program a query of a head."""

# Triton reads annotations as code: its functions have none but constexpr.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from lwlab_kernels.attention.blocks import Out

_TILE = 1024


def reduce(z: torch.Tensor, first: int, per: int, start: int, lo: int, out: Out) -> None:
    """Fill `out.rows`, add to `out.column` (see `blocks.Reduce`)."""
    heads, queries, width = z.shape
    T, S = out.rows.shape[2], out.column.shape[1]
    if not heads * queries:
        return
    _row[(heads, queries)](
        z, out.rows, out.bounds, out.ends, first, per, start, lo, queries, width, T,
        S - T, out.rows.stride(0), out.bounds.stride(0),
        TILE=min(_TILE, max(16, triton.next_power_of_2(width))),
    )  # fmt: skip
    # The kernel left the pattern in z, 0 where nothing is seen.
    out.column[first : first + heads, lo : lo + width] += z.sum(1, dtype=torch.float64)


@triton.jit
def _row(
    z_ptr, rows_ptr, bounds_ptr, ends_ptr, first, per, start, left, queries, width, T,
    offset, rows_stride, bounds_stride, TILE: tl.constexpr,
):  # fmt: skip
    """A query's highest score, its exponentials' sums, and its pattern in place of its scores."""
    h, i = tl.program_id(0), tl.program_id(1)
    b = (first + h) // per
    lo = tl.load(bounds_ptr + b * T + start + i) - left
    hi = tl.load(bounds_ptr + bounds_stride + b * T + start + i) - left
    end = tl.load(ends_ptr + b) - left
    at = start + i + offset - left
    here = z_ptr + (h * queries + i).to(tl.int64) * width
    lane = tl.arange(0, TILE)
    lowest = -float("inf")
    top = tl.full([], lowest, tl.float32)
    wrong = tl.full([], 0, tl.int32)
    for tile in range(0, width, TILE):
        j = tile + lane
        z = tl.load(here + j, mask=(j >= lo) & (j < hi), other=lowest)
        wrong = tl.maximum(wrong, tl.max(((z != z) | (z == float("inf"))).to(tl.int32), 0))
        top = tl.maximum(top, tl.max(tl.where(z == z, z, lowest), 0))
    nothing = top == lowest
    top = tl.where(nothing, 0.0, top)
    s = tl.zeros([TILE], tl.float32)
    a = tl.zeros([TILE], tl.float32)
    away = tl.zeros([TILE], tl.float32)
    sink = tl.zeros([TILE], tl.float32)
    for tile in range(0, width, TILE):
        j = tile + lane
        z = tl.load(here + j, mask=(j >= lo) & (j < hi), other=lowest)
        d = tl.where(z > lowest, z - top, 0.0)
        e = tl.where(z > lowest, tl.exp(d), 0.0)
        s += e
        a += e * d
        away += e * tl.abs((j - at).to(tl.float32))
        sink += tl.where(j < end, e, 0.0)
    # Where nothing is seen the total is 0, and what it would divide is not used.
    lost = nothing | (wrong > 0)
    total = tl.where(lost, 1.0, tl.sum(s, 0))
    for tile in range(0, width, TILE):
        j = tile + lane
        seen = (j >= lo) & (j < hi)
        z = tl.load(here + j, mask=seen, other=lowest)
        p = tl.where(z > lowest, tl.exp(tl.where(z > lowest, z - top, 0.0)), 0.0) / total
        p = tl.where(seen & (wrong > 0), float("nan"), tl.where(nothing, 0.0, p))
        tl.store(here + j, p, mask=j < width)
    out = rows_ptr + ((first + h) * T + start + i).to(tl.int64)
    entropy = tl.maximum(tl.log(total) - tl.sum(a, 0) / total, 0.0)
    nan = float("nan")
    tl.store(out, tl.where(lost, nan, entropy))
    tl.store(out + rows_stride, tl.where(lost, nan, tl.sum(sink, 0) / total))
    tl.store(out + 2 * rows_stride, tl.where(lost, nan, tl.sum(away, 0) / total))
