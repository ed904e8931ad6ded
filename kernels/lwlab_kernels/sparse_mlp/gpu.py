# mypy: disable-error-code="no-untyped-def"
# (an annotation of a kernel's argument means something else to triton)
"""Triton: one launch finds the neurons and their values, one adds up their rows of W_down."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_NEURONS, _WIDTH = 16, 64
_CODES = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}


@triton.jit
def _act(g, CODE: tl.constexpr):
    if CODE == 0:
        return g / (1.0 + tl.exp(-g))
    elif CODE == 1:
        return 0.5 * g * (1.0 + tl.erf(g * 0.7071067811865476))
    elif CODE == 2:
        # tanh x = 1 - 2 / (e^2x + 1), which has the right limits
        e = tl.exp(1.5957691216057308 * (g + 0.044715 * g * g * g))
        return 0.5 * g * (2.0 - 2.0 / (e + 1.0))
    else:
        return tl.where(g < 0, 0.0, g)


@triton.jit
def _dot(w_ptr, x_ptr, rows, keep, d, NEURONS: tl.constexpr, WIDTH: tl.constexpr):
    total = tl.zeros((NEURONS,), dtype=tl.float32)
    for start in range(0, d, WIDTH):
        j = start + tl.arange(0, WIDTH)
        x = tl.load(x_ptr + j, mask=j < d, other=0.0).to(tl.float32)
        at = rows.to(tl.int64)[:, None] * d + j[None, :]
        here = keep[:, None] & (j < d)[None, :]
        w = tl.load(w_ptr + at, mask=here, other=0.0).to(tl.float32)
        total += tl.sum(tl.where(here, w * x[None, :], 0.0), 1)
    return total


@triton.jit
def _hidden(
    x_ptr, gate_ptr, up_ptr, idx_ptr, limit_ptr, rows_ptr, h_ptr, d, k,
    GIVEN: tl.constexpr, CODE: tl.constexpr, NEURONS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * NEURONS + tl.arange(0, NEURONS)
    if GIVEN:
        rows = tl.load(idx_ptr + t * k + i, mask=i < k, other=-1)
        keep = rows >= 0
    else:
        rows = tl.where(i < k, i, -1).to(tl.int64)
        keep = i < k
    x_ptr += t * d
    a = _act(_dot(gate_ptr, x_ptr, rows, keep, d, NEURONS, WIDTH), CODE)
    if not GIVEN:
        limit = tl.load(limit_ptr + i, mask=i < k, other=0.0)
        keep = keep & ~(tl.abs(a) < limit)
    h = a * _dot(up_ptr, x_ptr, rows, keep, d, NEURONS, WIDTH)
    tl.store(rows_ptr + t * k + i, tl.where(keep, rows, -1), mask=i < k)
    tl.store(h_ptr + t * k + i, tl.where(keep, h, 0.0), mask=i < k)


@triton.jit
def _down(
    h_ptr, rows_ptr, down_ptr, y_ptr, k, d, NEURONS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), dtype=tl.float32)
    for start in range(0, k, NEURONS):
        i = start + tl.arange(0, NEURONS)
        rows = tl.load(rows_ptr + t * k + i, mask=i < k, other=-1)
        h = tl.load(h_ptr + t * k + i, mask=i < k, other=0.0)
        here = (rows >= 0)[:, None] & (j < d)[None, :]
        w = tl.load(down_ptr + rows[:, None] * d + j[None, :], mask=here, other=0.0)
        total += tl.sum(tl.where(here, h[:, None] * w.to(tl.float32), 0.0), 0)
    tl.store(y_ptr + t * d + j, total, mask=j < d)


def run(
    x: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    down_t: torch.Tensor,
    idx: torch.Tensor | None,
    threshold: torch.Tensor | None,
    act: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.run`."""
    x, gate, up, down_t = (t.contiguous() for t in (x, gate, up, down_t))
    k = len(gate) if idx is None else idx.shape[1]
    y = torch.zeros(len(x), down_t.shape[1], device=x.device)
    rows = torch.full((len(x), k), -1, dtype=torch.int64, device=x.device)
    if k and len(x):
        h = torch.empty(len(x), k, device=x.device)
        given = rows if idx is None else idx.long().contiguous()
        limit = h if threshold is None else threshold.contiguous()
        _hidden[(len(x), triton.cdiv(k, _NEURONS))](
            x, gate, up, given, limit, rows, h, x.shape[1], k,
            GIVEN=idx is not None, CODE=_CODES[act], NEURONS=_NEURONS, WIDTH=_WIDTH,
        )  # fmt: skip
        _down[(len(x), triton.cdiv(y.shape[1], _WIDTH))](
            h, rows, down_t, y, k, y.shape[1], NEURONS=_NEURONS, WIDTH=_WIDTH
        )
    return y, (rows >= 0).sum(1)
