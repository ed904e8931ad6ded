"""Listen to the queries and keys that attention really multiplies, in any architecture.

transformers lets a model's attention be computed by a function of our own. It is given queries and
keys after rotary embedding, QK norm and clipping, with the scale, soft cap, mask and position bias
of the layer: nothing about the architecture has to be known here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.tracing.pattern import explicit_attention, exposed

NAME = "lwlab_heard"
_STEP = 128  # queries at a time, where attention must be formed explicitly


@dataclass(frozen=True)
class Heard:
    """What one layer multiplies.

    query [b, heads, q, d], key [b, kv_heads, k, d]; scores are cap(scale QK^T) + bias where
    `mask` (bool [b, 1, q, k], or None) allows it; with None, all or, if `causal`, keys up to the
    query.
    """

    query: torch.Tensor
    key: torch.Tensor
    scale: float
    softcap: float | None
    mask: torch.Tensor | None
    causal: bool
    bias: torch.Tensor | None


Listener = Callable[[Heard], None]
_LISTENERS: WeakKeyDictionary[nn.Module, Listener] = WeakKeyDictionary()


def heard_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    position_bias: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Tell the module's listener, then attend as usual. Raises BadInput for learned sinks."""
    if kwargs.get("s_aux") is not None or getattr(module, "sinks", None) is not None:
        raise BadInput("attention with learned sinks is not a softmax over keys alone")
    # The rule by which transformers' own function reads a mask of None.
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = bool(causal) and attention_mask is None and query.shape[2] > 1
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    bias, mask = position_bias, attention_mask
    if mask is not None and mask.dtype != torch.bool:
        bias, mask = mask if bias is None else bias + mask, None
    listener = _LISTENERS.get(module)
    if listener is not None:
        listener(Heard(query, key, scale, softcap, mask, causal, bias))
    if softcap is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal,
            position_bias=position_bias, **kwargs,
        )  # fmt: skip
        return out, None
    parts = []
    for start in range(0, query.shape[2], _STEP):
        here = slice(start, start + _STEP)
        allowed = _rows(attention_mask, causal, here, query, key)
        added = None if position_bias is None else position_bias[:, :, here]
        part, _ = explicit_attention(
            nn.Module(), query[:, :, here], key, value, allowed, scale, softcap, added
        )
        parts.append(part)
    return torch.cat(parts, 1), None


def _rows(
    mask: torch.Tensor | None, causal: bool, here: slice, query: torch.Tensor, key: torch.Tensor
) -> torch.Tensor | None:
    """What is added to the scores of queries `here`."""
    if mask is not None:
        mask = mask[:, :, here]
        if mask.dtype != torch.bool:
            return mask
    elif causal:
        T, S = query.shape[2], key.shape[2]
        at = torch.arange(S - T, S, device=key.device)[here, None]
        mask = (torch.arange(S, device=key.device) <= at)[None, None]
    else:
        return None
    lowest = torch.finfo(query.dtype).min
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, lowest)


@cache
def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, heard_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def attention_module(model: Model, layer: int) -> nn.Module:
    """The self-attention of `layer`; raise MissingSite where there is no pattern to speak of."""
    model.anatomy.require("attn_pattern")
    path = model.anatomy.taps["attn_pattern"].at(layer).removesuffix(".lwlab_pattern")
    return model.module.get_submodule(path)


@contextlib.contextmanager
def listening(model: Model, listeners: Mapping[int, Listener]) -> Iterator[None]:
    """Call `listeners[layer]` as each layer attends, inside; the caller holds the model's lock."""
    _register()
    modules = {attention_module(model, layer): heard for layer, heard in listeners.items()}
    _LISTENERS.update(modules)
    try:
        with exposed(model.module, True, NAME):
            yield
    finally:
        for module in modules:
            _LISTENERS.pop(module, None)
