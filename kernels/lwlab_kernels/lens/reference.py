"""The definition of lens statistics, in plain torch, some positions' logits at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lwlab_kernels.choose import Backend
from lwlab_kernels.lens import LensStats

Head = Callable[[torch.Tensor], torch.Tensor]


def streams(h: torch.Tensor, norm: Head | None, scale: float, dtype: torch.dtype) -> torch.Tensor:
    """What the unembedding reads: scale * norm(h), [L, T, d] -> [L * T, d]."""
    x = (h if norm is None else norm(h)).to(h.device, dtype)
    return (x * scale).reshape(-1, x.shape[-1])


def capped(z: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """softcap tanh(z / softcap), in place."""
    return z if softcap is None else z.div_(softcap).tanh_().mul_(softcap)


def precision(h: torch.Tensor, W_U: torch.Tensor | Head) -> torch.dtype:
    """float32, or float64 where an input is."""
    given = [h.dtype, *([W_U.dtype] if isinstance(W_U, torch.Tensor) else [])]
    return torch.float64 if torch.float64 in given else torch.float32


def reference(
    h: torch.Tensor,
    norm: Head | None,
    W_U: torch.Tensor | Head,
    targets: torch.Tensor | None,
    ref: int | None,
    k: int,
    V: int,
    bias: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    memory: int,
    backend: Backend,
) -> LensStats:
    """Lens statistics by their formulas; `memory` only bounds the positions taken at once."""
    L, T, _ = h.shape
    dtype = precision(h, W_U)
    columns = max(1, memory // max(1, L * V * dtype.itemsize))
    parts = []
    for p in range(0, T if L else 0, columns):
        here = slice(p, p + columns)
        x = streams(h[:, here], norm, scale, dtype)
        if isinstance(W_U, torch.Tensor):
            z = x @ W_U.to(dtype).T
            z = z if bias is None else z + bias.to(dtype)
        else:
            z = W_U(x.to(h.dtype)).to(dtype).clone()
        z = capped(z, softcap).view(L, -1, V)
        parts.append(_statistics(z, ref, k, None if targets is None else targets[here]))
    if not parts:
        parts = [_statistics(h.new_zeros(L, T, V, dtype=dtype), ref, k, targets)]
    ids, log_prob, entropy, kl, rank, target = (
        torch.cat([x for x in field if x is not None], 1) if field[0] is not None else None
        for field in zip(*parts)
    )
    assert ids is not None
    assert log_prob is not None
    assert entropy is not None
    return LensStats(ids, log_prob, entropy, kl, rank, target, backend)


def _statistics(
    z: torch.Tensor, ref: int | None, k: int, targets: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    """ids, log_prob, entropy, kl, rank, target_log_prob of logits [L, T, V]."""
    lowest = -torch.inf
    wrong = z.isnan().any(-1) | (z == -lowest).any(-1) | (z == lowest).all(-1)
    logp = z.log_softmax(-1)
    p = logp.exp()
    log_prob, ids = z.sort(dim=-1, descending=True, stable=True)
    log_prob, ids = logp.gather(-1, ids[..., :k]), ids[..., :k]
    entropy = -torch.where(p > 0, p * logp, 0).sum(-1)
    kl = rank = target = None
    if ref is not None and len(z):
        to = logp[ref]
        kl = torch.where(p > 0, p * (logp - to), 0).sum(-1).clamp(min=0)
        # p = 0 in this precision need not be p = 0
        kl = torch.where(((z > lowest) & (to == lowest)).any(-1), torch.inf, kl)
        kl = torch.where(wrong | wrong[ref], torch.nan, kl)
    elif ref is not None:
        kl = entropy.clone()
    if targets is not None:
        at = targets.expand(len(z), *targets.shape)
        value, target = z.gather(-1, at)[..., None], logp.gather(-1, at)
        before = torch.arange(z.shape[-1], device=z.device) < at[..., None]
        above = z[..., None, :] > value
        rank = (above | (z[..., None, :] == value) & before).sum(-1)
        rank = rank.masked_fill(wrong[..., None], -1)
        target = target.masked_fill(wrong[..., None], torch.nan)
    ids = ids.masked_fill(wrong[..., None], -1)
    log_prob = log_prob.masked_fill(wrong[..., None], torch.nan)
    entropy = entropy.clamp(min=0).masked_fill(wrong, torch.nan)
    return ids, log_prob, entropy, kl, rank, target
