"""A short input of each kind, for the checks that a model passes when it is loaded."""

from __future__ import annotations

from typing import Any

import torch

from lwlab.models.model import Model, Prompts


def sample(model: Model, seed: int = 0, tokens: int = 6) -> Prompts | None:
    """A small input for this model, or None when its kind of input is unknown."""
    g = torch.Generator().manual_seed(seed)
    config: Any = getattr(model.module, "config", None)
    if model.example is not None:
        return model.example
    if model.d_vocab and model.kind in ("decoder", "encoder", "encoder-decoder"):
        high = min(model.d_vocab, 40)
        ids = torch.randint(min(10, high // 2), high, (1, tokens), generator=g)
        if model.kind == "encoder-decoder":
            return {"input_ids": ids, "decoder_input_ids": ids.flip(1)}
        return ids
    size = getattr(config, "image_size", None) or getattr(model.module, "image_size", None)
    if model.kind == "vision" and size:
        channels = getattr(config, "num_channels", 3)
        return torch.randn(1, channels, size, size, generator=g)
    return None
