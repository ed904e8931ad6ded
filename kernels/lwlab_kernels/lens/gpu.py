"""The reduction of a block of logits on a GPU, in Triton: one program a row."""

# Triton reads annotations as code: its functions have none but constexpr.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from lwlab_kernels.lens.blocks import State

_TILE = 1024


def reduce(z: torch.Tensor, first: int, columns: int, ref: int, state: State) -> None:
    """Add a block to the sums (see `blocks.Reduce`)."""
    rows, width = z.shape
    k, n = state.key.shape[1], state.count.shape[1]
    if not rows:
        return
    _row[(rows,)](
        z, z.view(torch.int32), state.m, state.s, state.a, state.b, state.key, state.id,
        state.count, state.target, state.target_id, state.wrong, state.apart,
        first, columns, ref, width, k, n,
        K=triton.next_power_of_2(k), TILE=min(_TILE, max(16, triton.next_power_of_2(width))),
    )  # fmt: skip


@triton.jit
def _keys(bits):
    """int32 in the order of the float32 with these bits; -0 and +0 are equal."""
    sign = bits >> 31
    return ((bits & 0x7FFFFFFF) ^ sign) - sign


@triton.jit
def _row(
    z_ptr, bits_ptr, m_ptr, s_ptr, a_ptr, b_ptr, key_ptr,
    id_ptr, count_ptr, target_ptr, target_id_ptr, wrong_ptr,
    apart_ptr, first, columns, ref, width, k, n,
    K: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """All of a row's block: the highest logit, ranks and top-k, then the exponentials."""
    row = tl.program_id(0)
    here = row.to(tl.int64) * width
    to = tl.where(ref < 0, row, ref * columns + row % columns).to(tl.int64) * width
    lane = tl.arange(0, TILE)
    place = tl.arange(0, K)
    best = tl.load(key_ptr + row * k + place, mask=place < k, other=2147483647).to(tl.int64)
    best_id = tl.load(id_ptr + row * k + place, mask=place < k, other=0).to(tl.int64)
    # Higher keys first, then lower ids: one integer holds both, and no two are equal.
    best = best * 4294967296 - best_id
    high = tl.full([], -2147483647, tl.int32)
    for start in range(0, width, TILE):
        j = start + lane
        key = _keys(tl.load(bits_ptr + here + j, mask=j < width, other=0))
        high = tl.maximum(high, tl.max(tl.where(j < width, key, -2147483647), 0))
        # A NaN with its sign bit set is below -inf.
        bad = tl.max(((key > 2139095039) | (key < -2139095040)).to(tl.int32), 0)
        if bad > 0:
            tl.store(wrong_ptr + row, 1)
        both = key.to(tl.int64) * 4294967296 - (first + j).to(tl.int64)
        both = tl.where(j < width, both, -9223372036854775807)
        new = tl.max(both, 0)
        while new > tl.min(best, 0):
            best = tl.where(best == tl.min(best, 0), new, best)
            both = tl.where(both == new, -9223372036854775807, both)
            new = tl.max(both, 0)
    # both = key 2^32 - id with 0 <= id < 2^31 (-1 where empty): take them apart again.
    best_key = (best + 2147483648) >> 32
    tl.store(key_ptr + row * k + place, best_key.to(tl.int32), mask=place < k)
    tl.store(id_ptr + row * k + place, (best_key * 4294967296 - best).to(tl.int32), mask=place < k)
    for i in range(0, n):
        goal = tl.load(target_ptr + row * n + i)
        goal_id = tl.load(target_id_ptr + row * n + i)
        found = tl.load(count_ptr + row * n + i)
        for start in range(0, width, TILE):
            j = start + lane
            key = _keys(tl.load(bits_ptr + here + j, mask=j < width, other=0))
            before = (key > goal) | ((key == goal) & (first + j < goal_id))
            found += tl.sum((before & (j < width)).to(tl.int32), 0)
        tl.store(count_ptr + row * n + i, found)
    lowest = -float("inf")
    old = tl.load(m_ptr + row)
    high_bits = tl.where(high >= 0, high, (-high) | -2147483648)
    top = high_bits.to(tl.int32).to(tl.float32, bitcast=True)
    if top > lowest:
        s = tl.zeros([TILE], tl.float32)
        a = tl.zeros([TILE], tl.float32)
        b = tl.zeros([TILE], tl.float32)
        for start in range(0, width, TILE):
            j = start + lane
            z = tl.load(z_ptr + here + j, mask=j < width, other=lowest)
            live = z > lowest
            d = tl.where(live, z - top, 0.0)
            e = tl.where(live, tl.exp(d), 0.0)
            s += e
            a += e * d
            if ref >= 0:
                r = tl.load(z_ptr + to + j, mask=j < width, other=0.0)
                apart = tl.max((live & (r == lowest)).to(tl.int32), 0)
                if apart > 0:
                    tl.store(apart_ptr + row, 1)
                b += e * tl.where(live & (r > lowest), z - r, 0.0)
        # From float32 within the block to float64 across blocks.
        top64 = top.to(tl.float64)
        m = tl.maximum(old, top64)
        down_old = tl.where(old > lowest, old - m, 0.0)
        down = top64 - m
        f_old = tl.where(old > lowest, tl.exp(down_old), 0.0)
        f = tl.exp(down)
        s_old = tl.load(s_ptr + row)
        s_new = tl.sum(s.to(tl.float64), 0)
        a_new = tl.sum(a.to(tl.float64), 0)
        b_new = tl.sum(b.to(tl.float64), 0)
        a_old = tl.load(a_ptr + row) + s_old * down_old
        tl.store(a_ptr + row, f_old * a_old + f * (a_new + s_new * down))
        tl.store(s_ptr + row, f_old * s_old + f * s_new)
        tl.store(b_ptr + row, f_old * tl.load(b_ptr + row) + f * b_new)
        tl.store(m_ptr + row, m)
