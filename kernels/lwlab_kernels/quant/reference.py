"""The definition, in torch: float32 arithmetic, float64 where `w` is (the tests' oracle)."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def levels(w: torch.Tensor, bits: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scale and offset [..., 1] of groups [..., group]: float16 values in w's type.

    NaN for a group that cannot be stored; symmetric, the offset is None.
    """
    if symmetric and bits == 1:
        scale = _stored(w.abs().mean(-1, keepdim=True, dtype=torch.float64).to(w.dtype))
        return torch.where(w.isfinite().all(-1, keepdim=True), scale, torch.nan), None
    if symmetric:
        return _stored(w.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)), None
    least = w.amin(-1, keepdim=True)
    scale = _stored((w.amax(-1, keepdim=True) - least) / (2**bits - 1))
    offset = _stored(least)
    return scale + 0 * offset, offset + 0 * scale  # one NaN spoils both


def codes(
    w: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None, bits: int
) -> tuple[torch.Tensor, int]:
    """Codes q of `w` on a grid, w' = scale q (+ offset), and the lowest code there is."""
    if offset is None and bits == 1:
        return torch.where(w >= 0, 1.0, -1.0).to(w.dtype), -1
    low, top = (
        (0, 2**bits - 1) if offset is not None else (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
    )
    inverse = torch.where(scale > 0, 1 / scale, 0 * scale)
    return ((w if offset is None else w - offset) * inverse).clamp(low, top).round(), low


def values(q: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
    """w' of codes."""
    return q * scale if offset is None else q * scale + offset


def fake_quant(
    w: torch.Tensor, bits: int, group: int, symmetric: bool, out: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """W' in w's type (in `out`, if given), and the float16 scale and offset [rows, groups]."""
    x = groups(w, group)
    scale, offset = levels(x, bits, symmetric)
    q, _ = codes(x, scale, offset, bits)
    y = values(q, scale, offset).reshape(w.shape).to(w.dtype)
    y = y if out is None else out.copy_(y)
    return y, scale.squeeze(-1).half(), None if offset is None else offset.squeeze(-1).half()


def error_table(
    w: torch.Tensor,
    bits: Sequence[int],
    group: int,
    symmetric: bool,
    weight: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted squared errors [rows, bits] and norms [rows], float64."""
    x = groups(w, group)
    c = None if weight is None else weight.to(x.dtype).view(-1, group)

    def total(e: torch.Tensor) -> torch.Tensor:
        squares = e.square() if c is None else e.square() * c
        return squares.sum(-1).sum(-1, dtype=torch.float64)

    out = torch.zeros(len(w), len(bits), dtype=torch.float64, device=w.device)
    for i, b in enumerate(bits):
        scale, offset = levels(x, b, symmetric)
        out[:, i] = total(x - values(codes(x, scale, offset, b)[0], scale, offset))
    norm = total(x)
    return out, torch.where(norm.isfinite(), norm, torch.nan)


def groups(w: torch.Tensor, group: int) -> torch.Tensor:
    """[rows, columns] -> [rows, groups, group], float32 where it was half or bfloat16."""
    x = w.float() if w.element_size() < 4 else w
    return x.reshape(len(w), w.shape[1] // group, group)


def _stored(x: torch.Tensor) -> torch.Tensor:
    """`x` as float16 keeps it, NaN where it cannot."""
    kept = x.half().to(x.dtype)
    return torch.where(kept.isfinite(), kept, torch.nan)
