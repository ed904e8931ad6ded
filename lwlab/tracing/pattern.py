"""Attention patterns as a readable and editable site.

Fused attention kernels never form the pattern, and the eager ones form it in a local variable. We
register one explicit attention function with transformers and give each attention module a
parameter-free `lwlab_pattern` submodule through which the softmax output passes. Models run their
usual kernel except while a trace asks for `attn_pattern`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import nn

from lwlab.errors import BadInput
from lwlab.models.anatomy import Anatomy
from lwlab.tracing._nnsight import lock

NAME = "lwlab_eager"


def explicit_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A = softmax(cap(s Q K^T) + bias + mask), Z = A V, with groups of heads sharing keys.

    query: [b, heads, q, d]; key, value: [b, kv_heads, k, d]. Returns (Z [b, q, heads, d],
    A [b, heads, q, k]). Raises BadInput for attention sinks, which this form does not have.
    """
    if kwargs.get("s_aux") is not None or getattr(module, "sinks", None) is not None:
        raise BadInput("attn_pattern is not available for attention with learned sinks")
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        scores = scores + attention_mask
    exact = torch.promote_types(query.dtype, torch.float32)
    pattern = scores.softmax(-1, dtype=exact).to(query.dtype)
    if hasattr(module, "lwlab_pattern"):
        pattern = module.get_submodule("lwlab_pattern")(pattern)
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


@cache
def register() -> None:
    """Make the attention function and an explicit mask known to transformers under NAME."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(NAME, explicit_attention)
    AttentionMaskInterface.register(NAME, eager_mask)


def prepare(module: nn.Module, anatomy: Anatomy) -> bool:
    """Give each attention module its `lwlab_pattern`; return whether the site can work here."""
    tap = anatomy.taps.get("attn_pattern")
    if tap is None or not hasattr(module, "set_attn_implementation"):
        return False
    register()
    with lock(module):
        for layer in range(anatomy.n_layers):
            attention = module.get_submodule(tap.at(layer).removesuffix(".lwlab_pattern"))
            if not hasattr(attention, "lwlab_pattern"):
                attention.add_module("lwlab_pattern", nn.Identity())
    return True


@contextlib.contextmanager
def exposed(module: Any, wanted: bool, name: str = NAME) -> Iterator[None]:
    """Switch to the attention function `name` while inside; the caller holds the module's lock."""
    if not wanted:
        yield
        return
    before = module.config._attn_implementation
    module.set_attn_implementation(name)
    try:
        yield
    finally:
        module.set_attn_implementation(before)
