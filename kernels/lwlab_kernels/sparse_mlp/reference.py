"""The definition, in torch: the dense MLP with everything else masked."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


def run(
    x: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    down_t: torch.Tensor,
    idx: torch.Tensor | None,
    threshold: torch.Tensor | None,
    act: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y [tokens, d_out] and the neurons used [tokens], for idx [tokens, k] or threshold [n]."""
    kind = torch.float64 if torch.float64 in (x.dtype, gate.dtype, up.dtype) else torch.float32
    kind = torch.promote_types(kind, down_t.dtype)
    x, gate, up, down_t = (t.to(kind) for t in (x, gate, up, down_t))
    a = ACTIVATIONS[act](x @ gate.T)
    if idx is None:
        assert threshold is not None
        times = (~(a.abs() < threshold)).to(kind)
    else:
        times = torch.zeros(len(x), len(gate) + 1, dtype=kind, device=x.device)
        times.scatter_add_(1, idx.long() % (len(gate) + 1), torch.ones_like(idx, dtype=kind))
        times = times[:, :-1]  # -1 fell on the last column
    hidden = torch.where(times > 0, a * (x @ up.T) * times, 0)
    used = (times > 0).any(0)  # a row that nobody uses may hold NaN
    y = hidden[:, used] @ down_t[used]
    if not bool(down_t[used].isfinite().all()):  # and one may be used by some tokens alone
        y = torch.stack([h[t > 0] @ down_t[t > 0] for h, t in zip(hidden, times)])
    return y, times.sum(1).long()
