"""Lens statistics in torch alone, as well as we can write them: what the kernel is timed against.

All take h [L, T, d] already normalised, W_U [V, d], targets [T], the reference layer and k, and
return (ids, log_prob, entropy, kl, rank, target_log_prob) as `lwlab_kernels.lens_stats` does.
"""

from __future__ import annotations

import torch

Statistics = tuple[torch.Tensor, ...]


def lean(
    h: torch.Tensor, W_U: torch.Tensor, targets: torch.Tensor, ref: int, k: int, columns: int = 8
) -> Statistics:
    """The fewest passes over the logits: some positions at all layers, buffers used again."""
    L, T, d = h.shape
    V = len(W_U)
    z_all = h.new_empty(L * columns * V)
    p_all = h.new_empty(L * columns * V)
    parts = []
    for start in range(0, T, columns):
        x = h[:, start : start + columns]
        c = x.shape[1]
        z, p = z_all[: L * c * V].view(L * c, V), p_all[: L * c * V].view(L * c, V)
        torch.mm(x.reshape(-1, d), W_U.T, out=z)
        top, ids = z.topk(k)
        highest = top[:, :1]
        torch.sub(z, highest, out=p).exp_()
        s = p.sum(1)
        lse = highest[:, 0] + s.log()
        # E_p[z - max] by one dot product a row: no further tensor of logits
        z.sub_(highest)
        mean = torch.linalg.vecdot(p, z) / s
        entropy = s.log() - mean
        z3, p3 = z.view(L, c, V), p.view(L, c, V)
        # E_p[z_ref] for all layers of a position is a matrix-vector product
        shifted = lse.view(L, c) - highest.view(L, c)
        mean_ref = torch.einsum("lcv,cv->lc", p3, z3[ref]) / s.view(L, c)
        kl = mean.view(L, c) - shifted - mean_ref + shifted[ref]
        at = targets[start : start + c].expand(L, c)[..., None]
        value = z3.gather(2, at)
        rank = (z3 > value).sum(-1)
        target = value[..., 0] - shifted
        log_prob = (top - lse[:, None]).view(L, c, k)
        parts.append((ids.view(L, c, k), log_prob, entropy.view(L, c), kl, rank, target))
    return tuple(torch.cat(x, 1) for x in zip(*parts))


def blocked(
    h: torch.Tensor,
    W_U: torch.Tensor,
    targets: torch.Tensor,
    ref: int,
    k: int,
    columns: int = 8,
    width: int = 4096,
) -> Statistics:
    """`lean` over blocks of the vocabulary that stay in the cache: the kernel's idea in torch."""
    L, T, d = h.shape
    parts = []
    for start in range(0, T, columns):
        x = h[:, start : start + columns]
        c = x.shape[1]
        x = x.reshape(-1, d)
        here = targets[start : start + c]
        value = (h[:, start : start + c] * W_U[here]).sum(-1, keepdim=True)
        m = x.new_full((L * c, 1), -torch.inf)
        s, a, b = x.new_zeros(3, L * c, 1)
        rank = torch.zeros(L, c, dtype=torch.long)
        tops, all_ids = [], []
        for first in range(0, len(W_U), width):
            z = x @ W_U[first : first + width].T
            top, ids = z.topk(min(k, z.shape[1]))
            tops.append(top)
            all_ids.append(ids + first)
            rank += (z.view(L, c, -1) > value).sum(-1)
            new = torch.maximum(m, top[:, :1])
            down = torch.where(s > 0, m - new, 0)
            f = down.exp()
            d_ = z - new
            p = d_.exp()
            a = f * (a + s * down) + torch.linalg.vecdot(p, d_)[:, None]
            s = f * s + p.sum(1, keepdim=True)
            z3 = z.view(L, c, -1)
            z3 = z3 - z3[ref]
            b = f * b + torch.linalg.vecdot(p, z3.view(L * c, -1))[:, None]
            m = new
        log_prob, order = torch.cat(tops, 1).topk(k)
        lse = m + s.log()
        kl = (b / s - lse).view(L, c) + lse.view(L, c)[ref]
        ids = torch.cat(all_ids, 1).gather(1, order).view(L, c, k)
        entropy = (s.log() - a / s).view(L, c)
        target = value[..., 0] - lse.view(L, c)
        parts.append((ids, (log_prob - lse).view(L, c, k), entropy, kl, rank, target))
    return tuple(torch.cat(x, 1) for x in zip(*parts))


def by_layer(
    h: torch.Tensor, W_U: torch.Tensor, targets: torch.Tensor, ref: int, k: int
) -> Statistics:
    """One layer at a time, as most lens code is written: log_softmax and the formulas."""
    to = (h[ref] @ W_U.T).log_softmax(-1)
    parts = []
    for x in h:
        logp = (x @ W_U.T).log_softmax(-1)
        p = logp.exp()
        log_prob, ids = logp.topk(k)
        target = logp.gather(1, targets[:, None])
        entropy, kl = -(p * logp).sum(-1), (p * (logp - to)).sum(-1)
        parts.append((ids, log_prob, entropy, kl, (logp > target).sum(-1), target[:, 0]))
    return tuple(torch.stack(x) for x in zip(*parts))


def naive(
    h: torch.Tensor, W_U: torch.Tensor, targets: torch.Tensor, ref: int, k: int
) -> Statistics:
    """All logits at once, [L, T, V]."""
    logp = (h @ W_U.T).log_softmax(-1)
    p = logp.exp()
    log_prob, ids = logp.topk(k)
    at = targets.expand(len(h), -1)[..., None]
    target = logp.gather(2, at)
    entropy, kl = -(p * logp).sum(-1), (p * (logp - logp[ref])).sum(-1)
    return ids, log_prob, entropy, kl, (logp > target).sum(-1), target[..., 0]


def product_only(h: torch.Tensor, W_U: torch.Tensor, columns: int = 8) -> torch.Tensor:
    """The matrix product alone, in the same pieces: the floor on a CPU."""
    L, T, d = h.shape
    z = h.new_empty(L * columns, len(W_U))
    for start in range(0, T, columns):
        x = h[:, start : start + columns].reshape(-1, d)
        torch.mm(x, W_U.T, out=z[: len(x)])
    return z
