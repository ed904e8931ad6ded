"""Similarity of layers one pair at a time, as pairwise libraries do it, with and without reuse."""

from __future__ import annotations

import torch


def pair(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Linear CKA of two sets of features [n, d], by Gram matrices."""
    x, y = x - x.mean(0), y - y.mean(0)
    k, m = x @ x.T, y @ y.T
    return (k * m).sum() / (k.norm() * m.norm())


def pairs(x: torch.Tensor) -> torch.Tensor:
    """CKA of all pairs i < j of layers [L, n, d], each from its features."""
    out = torch.eye(len(x), dtype=x.dtype)
    for i in range(len(x)):
        for j in range(i):
            out[i, j] = out[j, i] = pair(x[i], x[j])
    return out


def pairs_cached(x: torch.Tensor) -> torch.Tensor:
    """The same in feature space, with each layer's own norm taken once."""
    x = x - x.mean(1, keepdim=True)
    own = [(a.T @ a).norm() for a in x]
    out = torch.eye(len(x), dtype=x.dtype)
    for i in range(len(x)):
        for j in range(i):
            out[i, j] = out[j, i] = (x[j].T @ x[i]).square().sum() / (own[i] * own[j])
    return out


def grams_cached(x: torch.Tensor) -> torch.Tensor:
    """The same from Gram matrices that are made once: the best loop over pairs."""
    x = x - x.mean(1, keepdim=True)
    grams = [a @ a.T for a in x]
    norms = [k.norm() for k in grams]
    out = torch.eye(len(x), dtype=x.dtype)
    for i in range(len(x)):
        for j in range(i):
            out[i, j] = out[j, i] = torch.dot(grams[i].ravel(), grams[j].ravel()) / (
                norms[i] * norms[j]
            )
    return out


def angles(x: torch.Tensor) -> torch.Tensor:
    """Angular distance of all pairs of layers, a pair at a time: [n, L, L]."""
    n_layers, n, _ = x.shape
    out = x.new_zeros(n, n_layers, n_layers)
    for i in range(n_layers):
        for j in range(i):
            cosine = torch.nn.functional.cosine_similarity(x[i], x[j], dim=1).clamp(-1, 1)
            out[:, i, j] = out[:, j, i] = cosine.arccos() / torch.pi
    return out
