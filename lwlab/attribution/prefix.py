"""Runs that start in the middle of a prompt, from the keys and values of what came before."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from lwlab.models.model import Model
from lwlab.models.tokens import Tokens
from lwlab.tracing import engine
from lwlab.tracing._nnsight import lock


def inputs(
    model: Model, tokens: Tokens, rows: torch.Tensor, begin: int, cache: Any
) -> engine.Batch:
    """Forward inputs of prompts `rows` from token `begin` on, after what `cache` holds."""
    part = Tokens(
        tokens.ids[rows, begin:],
        tokens.mask[rows, begin:],
        tuple(tokens.strings[i][begin:] for i in rows.tolist()),
        tuple(tokens.texts[i] for i in rows.tolist()),
    )
    given: dict[str, Any] = {"input_ids": part.ids}
    if "position_ids" in model.forward_names:
        # One row, so that it fits however many rows the batch grows to on its way.
        given["position_ids"] = torch.arange(begin, tokens.ids.shape[1], device=part.ids.device)[
            None
        ]
    if cache is not None:
        given |= {"past_key_values": cache, "use_cache": True}
    elif "use_cache" in model.forward_names:
        given["use_cache"] = False
    return engine.Batch(given, part)


def extend(model: Model, cache: Any, ids: torch.Tensor) -> Any:
    """Return the keys and values of `ids` [prompts, tokens] after those in `cache` (changed)."""
    keep = {"logits_to_keep": 1} if "logits_to_keep" in model.forward_names else {}
    with lock(model), torch.no_grad():
        out = model.module(input_ids=ids, past_key_values=cache, use_cache=True, **keep)
    return out.past_key_values


def select(cache: Any, rows: Sequence[torch.Tensor]) -> Any:
    """Copy a cache, with the prompts `rows[layer]` in each layer (models change what they get)."""
    out = copy.deepcopy(cache)
    for layer, wanted in zip(out.layers, rows, strict=True):
        layer.batch_select_indices(wanted.to(layer.keys.device))
    return out
