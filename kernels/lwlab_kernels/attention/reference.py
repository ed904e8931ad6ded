"""The definition of attention statistics, in plain torch, some queries' patterns at a time."""

from __future__ import annotations

import torch

from lwlab_kernels.attention import AttnStats
from lwlab_kernels.attention.visible import Visible
from lwlab_kernels.choose import Backend


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    scale: float,
    see: Visible,
    bias: torch.Tensor | None,
    softcap: float | None,
    sink: int,
    memory: int,
    backend: Backend,
) -> AttnStats:
    """Statistics by their formulas; `memory` only bounds the queries taken at once."""
    given = [t.dtype for t in (q, k, bias) if t is not None]
    dtype = torch.float64 if torch.float64 in given else torch.float32
    B, H, T, _ = q.shape
    S = k.shape[2]
    key = k.to(dtype).repeat_interleave(H // max(1, k.shape[1]), 1).mT
    step = max(1, memory // max(1, B * H * S * dtype.itemsize))
    j = torch.arange(S, device=q.device)
    in_sink = (j >= see.first[:, None]) & (j < see.first[:, None] + sink)
    rows = torch.zeros(3, B, H, T, dtype=dtype, device=q.device)
    column = torch.zeros(B, H, S, dtype=dtype, device=q.device)
    for start in range(0, T, step):
        here = slice(start, min(start + step, T))
        seen = see.rows(here, S)[:, None]
        z = q[:, :, here].to(dtype) @ key * scale
        z = z if softcap is None else softcap * torch.tanh(z / softcap)
        z = z if bias is None else z + bias[:, :, here].to(dtype)
        z = z.masked_fill(~seen, -torch.inf)
        nothing = (z == -torch.inf).all(-1, keepdim=True)
        wrong = (z.isnan() | (z == torch.inf)).any(-1, keepdim=True)
        A = z.masked_fill(nothing, 0).softmax(-1).masked_fill(wrong, torch.nan)
        A = torch.where(seen & ~nothing, A, 0)
        away = (torch.arange(S - T, S, device=q.device)[here, None] - j).abs()
        found = torch.stack([
            -torch.where(A == 0, 0, A * A.log()).sum(-1).clamp(max=0),
            torch.where(in_sink[:, None, None], A, 0).sum(-1),
            (A * away).sum(-1),
        ])  # fmt: skip
        rows[..., here] = found.masked_fill(nothing[..., 0], torch.nan)
        column += A.sum(-2)
    return AttnStats(rows[0], rows[1], rows[2], column, backend)
