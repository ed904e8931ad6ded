"""Norms as modules: with the mean (torch's LayerNorm), without it, compressed, and frozen."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """y = g x / sqrt(mean x^2 + eps) + b over the last dimension.

    torch's own has no bias; a LayerNorm that was converted keeps its.
    """

    def __init__(self, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> None:
        super().__init__()
        self.weight = None if weight is None else nn.Parameter(weight.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise `x` [..., d]."""
        y = F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        return y if self.bias is None else y + self.bias


class CRMSNorm(nn.Module):
    """RMSNorm of a zero-mean vector that is stored without its last coordinate, [..., d - 1].

    The missing one is minus the sum of the others, so that with s = sum_i x_i

        y_i = x_i / sqrt((sum_i x_i^2 + s^2) / d + eps),  i = 1 .. d - 1

    (arXiv:2305.14858, section 3). There is no gain and no bias: they belong to what reads y.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise `x` [..., d - 1] by the d numbers that it stands for."""
        squares = x.square().sum(-1, keepdim=True) + x.sum(-1, keepdim=True).square()
        return x * torch.rsqrt(squares / (x.shape[-1] + 1) + self.eps)


class FrozenNorm(nn.Module):
    """A norm whose scale is a constant: y = g (x - mean x) / S + b, linear in x up to b.

    `first` is the scale at the first position where it differs (an attention sink is far longer
    than the rest); without `centred` the mean stays, as in an RMSNorm.
    """

    scale: torch.Tensor
    first: torch.Tensor | None

    def __init__(
        self,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        scale: float,
        first: float | None = None,
        *,
        centred: bool = True,
    ) -> None:
        super().__init__()
        self.weight = None if weight is None else nn.Parameter(weight.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.centred = centred
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.register_buffer("first", None if first is None else torch.tensor(float(first)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply to `x` [..., positions, d]."""
        h = x - x.mean(-1, keepdim=True) if self.centred else x
        if self.first is None:
            h = h / self.scale.to(x.dtype)
        else:
            s = self.scale.to(x.dtype).repeat(x.shape[-2])
            s[0] = self.first.to(x.dtype)
            h = h / s[:, None]
        h = h if self.weight is None else h * self.weight
        return h if self.bias is None else h + self.bias
