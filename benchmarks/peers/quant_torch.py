"""Rounding weights in torch alone, as well as we can write it: what the kernels are timed against.

Formulas and storage (a float16 scale a group) are those of `lwlab_kernels.quant`, symmetric.
"""

from __future__ import annotations

from typing import Any

import torch


def table(w: torch.Tensor, group: int, c: torch.Tensor) -> torch.Tensor:
    """Weighted squared error of all of w at 1 to 8 bits, [8]: one buffer, steps in place."""
    x = w.view(len(w), -1, group)
    k = c.view(-1, group)
    out, buffer = torch.empty(8), torch.abs(x)
    s = buffer.mean(-1, keepdim=True).half().float()
    out[0] = buffer.sub_(s).square_().mul_(k).sum()
    a = x.abs().amax(-1, keepdim=True)
    for b in range(2, 9):
        s = (a / (2 ** (b - 1) - 1)).half().float()
        torch.mul(x, 1 / s, out=buffer).round_()
        out[b - 1] = buffer.mul_(s).sub_(x).square_().mul_(k).sum()
    return out


def table_blocked(w: torch.Tensor, group: int, c: torch.Tensor, rows: int = 256) -> torch.Tensor:
    """`table` over blocks of rows that stay in the cache: the best torch."""
    return torch.stack([table(part, group, c) for part in w.split(rows)]).sum(0)


def table_plain(w: torch.Tensor, group: int, c: torch.Tensor) -> torch.Tensor:
    """The same as it is usually written: a rounding for each width, no buffer used again."""
    x = w.view(len(w), -1, group)
    errors = [(x.sign() * x.abs().mean(-1, keepdim=True).half().float() - x) ** 2]
    errors += [(fake(w, b, group).view_as(x) - x) ** 2 for b in range(2, 9)]
    return torch.stack([(e * c.view(-1, group)).sum() for e in errors])


def fake(w: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """Round to `bits` and back, an operation at a time."""
    x = w.view(len(w), -1, group)
    top = 2 ** (bits - 1) - 1
    s = (x.abs().amax(-1, keepdim=True) / top).half().float()
    return (torch.round(x * (1 / s)).clamp(-top, top) * s).view_as(w)


def fake_in_place(w: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """The same with one buffer."""
    x = w.view(len(w), -1, group)
    top = 2 ** (bits - 1) - 1
    s = (x.abs().amax(-1, keepdim=True) / top).half().float()
    return torch.mul(x, 1 / s).round_().clamp_(-top, top).mul_(s).view_as(w)


def fake_blocked(
    w: torch.Tensor, bits: int, group: int, out: torch.Tensor, rows: int = 64
) -> torch.Tensor:
    """The same into memory that is there, some rows at a time, which stay in the cache."""
    top = 2 ** (bits - 1) - 1
    for part, to in zip(w.split(rows), out.split(rows)):
        x = part.view(len(part), -1, group)
        s = (x.abs().amax(-1, keepdim=True) / top).half().float()
        torch.mul(x, 1 / s, out=to.view_as(x)).round_().clamp_(-top, top).mul_(s)
    return out


def fake_torchao(w: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """torchao's three steps, with the same range of codes and a float16 scale."""
    from torchao.quantization.quant_primitives import (
        MappingType,
        choose_qparams_affine,
        dequantize_affine,
        quantize_affine,
    )

    block, top = (1, group), 2 ** (bits - 1) - 1
    s, zero = choose_qparams_affine(
        w, MappingType.SYMMETRIC, block, torch.int8, -top, top, eps=0.0, scale_dtype=torch.float16
    )
    s = s.float()
    codes = quantize_affine(w, block, s, zero, torch.int8, -top, top)
    return dequantize_affine(codes, block, s, zero, torch.int8, -top, top)


def gptq(w: torch.Tensor, hessian: torch.Tensor, bits: int, group: int, block: int = 128) -> Any:
    """GPTQ in the layout of the paper, rows of outputs: each column is a strided slice."""
    n, top = w.shape[1], 2 ** (bits - 1) - 1
    h = hessian.clone()
    h.diagonal().add_(0.01 * h.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    u = torch.linalg.cholesky(inverse, upper=True)
    x, out, s = w.clone(), torch.empty_like(w), w.new_empty(len(w))
    for start in range(0, n, block):
        stop = min(start + block, n)
        errors = w.new_empty(len(w), stop - start)
        for j in range(start, stop):
            if j % group == 0:
                s = (x[:, j : j + group].abs().amax(1) / top).half().float()
            q = torch.round(x[:, j] * (1 / s)).clamp_(-top, top) * s
            out[:, j] = q
            e = (x[:, j] - q) / u[j, j]
            errors[:, j - start] = e
            x[:, j + 1 : stop] -= torch.outer(e, u[j, j + 1 : stop])
        x[:, stop:] -= errors @ u[start:stop, stop:]
    return out
