"""The final norms of language models, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from lwlab.errors import BadInput


@dataclass(frozen=True)
class Norm:
    """A final norm: `Norm("rms", weight)`, `Norm("layer", weight, bias)`, Gemma's `plus_one=True`.

    * rms:   x / sqrt(mean(x^2) + eps) * w;
    * layer: (x - mean(x)) / sqrt(var(x) + eps) * w + b, with the biased variance.

    w is `weight` (1 where None), or 1 + `weight` with `plus_one`. [..., d] -> [..., d], computed
    and returned in float32 (float64 for float64 streams).
    """

    kind: Literal["rms", "layer"]
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    eps: float = 1e-5
    plus_one: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("rms", "layer"):
            raise BadInput(f"norm kind {self.kind!r}: use 'rms' or 'layer'")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last axis."""
        x = x if x.dtype == torch.float64 else x.float()
        if self.kind == "layer":
            x = x - x.mean(-1, keepdim=True)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.weight is not None:
            w = self.weight.to(x.dtype)
            x = x * (1 + w if self.plus_one else w)
        return x if self.bias is None else x + self.bias.to(x.dtype)
