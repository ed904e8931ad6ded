"""What the benchmarks read: real streams of the default model, and random numbers."""

from __future__ import annotations

from functools import cache

import torch

import lwlab as lw
from lwlab.tracing.rows import features_of


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@cache
def model() -> lw.Model:
    """The default model."""
    return lw.load("smollm2-135m")


@cache
def streams(rows: int) -> torch.Tensor:
    """resid_post of every layer at `rows` own positions from 1 on, [30, rows, 576]."""
    texts = lw.tasks.corpus(tokens=128, model=model(), n=2 + rows // 64)
    x = features_of(model(), texts, "resid_post", model().anatomy.layers(None), 1)
    return x[:, :rows].contiguous()
