"""Gated MLPs of one token in torch: dense, and with some of the neurons."""

from __future__ import annotations

import torch
from torch.nn.functional import linear, silu


def dense(
    x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """All neurons; down is [d_out, neurons], as models store it."""
    return linear(silu(linear(x, gate)) * linear(x, up), down)


def without(
    x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, idx: torch.Tensor
) -> torch.Tensor:
    """The definition of a neuron set: all neurons, those outside of it set to zero."""
    z = silu(linear(x, gate)) * linear(x, up)
    return linear(torch.zeros_like(z).index_copy(1, idx, z[:, idx]), down)


def indexed(
    x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down_t: torch.Tensor, idx: torch.Tensor
) -> torch.Tensor:
    """A set that is new for each token: rows are copied out of the weights."""
    return (silu(x @ gate[idx].T) * (x @ up[idx].T)) @ down_t[idx]


def chess(
    x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down_t: torch.Tensor, t: float
) -> torch.Tensor:
    """CHESS: neurons whose gate is below the threshold are left out."""
    a = silu(linear(x, gate))
    i = (a[0].abs() >= t).nonzero()[:, 0]
    return (a[:, i] * linear(x, up[i])) @ down_t[i]
