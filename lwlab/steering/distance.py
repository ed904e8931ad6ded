"""How far two samples of numbers are apart: optimal transport in one dimension, by sorting."""

from __future__ import annotations

import torch

from lwlab.errors import BadInput


def quantiles(u: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return both quantile functions on their common steps, and how long each step is.

    u [n, ...] and v [m, ...] are samples, column by column. The quantile function of n numbers is
    constant on each ((i - 1)/n, i/n]; both are constant between the points {i/n} and {j/m} taken
    together. Returns (sorted u, sorted v) [steps, ...] and weights [steps] that add up to 1; for
    n = m these are the sorted samples and 1/n. Gradients flow through. Raises BadInput for empty
    samples or columns that differ.
    """
    if not len(u) or not len(v) or u.shape[1:] != v.shape[1:]:
        raise BadInput(
            f"samples of shapes {tuple(u.shape)} and {tuple(v.shape)}: give [n, ...] and [m, ...] "
            "with n, m > 0 and the same columns"
        )
    a, b = u.sort(0).values, v.sort(0).values
    n, m = len(u), len(v)
    if n == m:
        return a, b, torch.full((n,), 1 / n, dtype=a.dtype, device=a.device)
    # In whole numbers, 1/(n m) apart: no rounding decides to which step a point belongs.
    ends = torch.unique(torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]))
    size = torch.diff(ends, prepend=torch.zeros(1, dtype=ends.dtype))
    i, j = (ends - 1) // m, (ends - 1) // n
    weight = (size / (n * m)).to(a)
    return a[i.to(a.device)], b[j.to(b.device)], weight


def wasserstein(u: torch.Tensor, v: torch.Tensor, p: int = 2) -> torch.Tensor:
    """W_p^p of the samples u [n, ...] and v [m, ...], column by column: returns [...].

    W_p^p = integral over q of |U^-1(q) - V^-1(q)|^p, which for n = m is the mean over i of
    |sort(u)_i - sort(v)_i|^p. In the squared unit of the samples for p = 2. Raises BadInput as
    `quantiles` does.
    """
    a, b, weight = quantiles(u, v)
    shape = (-1, *[1] * (a.ndim - 1))
    return (weight.view(shape) * (a - b).abs() ** p).sum(0)
