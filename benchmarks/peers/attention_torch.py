"""Attention statistics in torch alone: what the kernel is timed against.

All take q [H, T, d], k [G, T, d] (G divides H), causal, scale d^-1/2, and return (entropy [H, T],
sink mass [H, T], mean distance [H, T], column mass [H, T]).
"""

from __future__ import annotations

import torch

Statistics = tuple[torch.Tensor, ...]


def _of(A: torch.Tensor, log_A: torch.Tensor, start: int) -> Statistics:
    n, w = A.shape[-2:]
    i = torch.arange(start, start + n, dtype=A.dtype)
    entropy = -torch.linalg.vecdot(A, log_A)
    # sum_j A_ij (i - j) = i - sum_j A_ij j for causal rows, which sum to 1
    distance = i - A @ torch.arange(w, dtype=A.dtype)
    return entropy, A[..., 0], distance


def full(q: torch.Tensor, k: torch.Tensor) -> Statistics:
    """The whole pattern, [H, T, T]."""
    H, T, d = q.shape
    key = k.repeat_interleave(H // len(k), 0)
    z = q @ key.mT * d**-0.5
    z.masked_fill_(torch.ones(T, T, dtype=torch.bool).triu_(1), -torch.inf)
    log_A = z.log_softmax(-1)
    A = log_A.exp()
    log_A.masked_fill_(log_A == -torch.inf, 0)
    return *_of(A, log_A, 0), A.sum(1)


def chunked(q: torch.Tensor, k: torch.Tensor, step: int = 64, skip: bool = True) -> Statistics:
    """`step` queries at a time, against the keys that they see (all keys without `skip`)."""
    (H, T, d), G = q.shape, len(k)
    column = q.new_zeros(H, T)
    parts = []
    for start in range(0, T, step):
        stop = min(start + step, T)
        w = stop if skip else T
        n = stop - start
        x = q[:, start:stop].reshape(G, H // G * n, d) * d**-0.5
        z = torch.bmm(x, k[:, :w].mT).view(H, n, w)
        hidden = torch.arange(w) > torch.arange(start, stop)[:, None]
        # finite, so that 0 * log 0 needs no pass of its own
        z.masked_fill_(hidden, -1e4)
        z.sub_(z.amax(-1, keepdim=True))
        A = z.exp()
        s = A.sum(-1, keepdim=True)
        A.div_(s)
        column[:, :w] += A.sum(1)
        entropy, sink, distance = _of(A, z, start)
        parts.append((entropy + s[..., 0].log(), sink, distance))
    return *(torch.cat(x, 1) for x in zip(*parts)), column


def product_only(q: torch.Tensor, k: torch.Tensor, step: int = 64) -> torch.Tensor:
    """The products alone, in the same pieces: the floor."""
    (H, T, d), G = q.shape, len(k)
    z = q.new_empty(H * step * T)
    for start in range(0, T, step):
        stop = min(start + step, T)
        x = q[:, start:stop].reshape(G, -1, d)
        torch.bmm(x, k[:, :stop].mT, out=z[: H * (stop - start) * stop].view(G, -1, stop))
    return z
