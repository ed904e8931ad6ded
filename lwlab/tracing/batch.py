"""From prompts of any kind to the inputs of one forward pass."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lwlab.errors import BadInput
from lwlab.models.model import Model, Prompts
from lwlab.models.tokens import Tokens
from lwlab.tracing._nnsight import refuse_nested


@dataclass
class Batch:
    """Keyword inputs of one forward, and the tokens behind them where there are any."""

    inputs: dict[str, Any]
    tokens: Tokens | None
    args: tuple[Any, ...] = ()

    def fresh(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword inputs, as copies where a model writes into what it is given.

        It does so with pictures and with keys and values of earlier tokens, to which it adds its
        own: without a copy a second pass would read the tokens of the first one twice.
        """
        return tuple(map(_copy, self.args)), {k: _copy(v) for k, v in self.inputs.items()}


def _copy(value: Any) -> Any:
    if hasattr(value, "get_seq_length"):  # a cache of keys and values
        return _copy_cache(value)
    floats = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.clone() if floats else value


def _copy_cache(cache: Any) -> Any:
    layers = getattr(cache, "layers", None)
    if not layers or not all(type(x).__name__.startswith("Dynamic") for x in layers):
        return copy.deepcopy(cache)
    new = copy.copy(cache)
    new.layers = [copy.copy(x) for x in layers]  # these make new tensors when they grow
    return new


def batch(model: Model, prompts: Prompts) -> Batch:
    """Turn prompts (text, ids, Tokens, or a mapping of tensors) into forward inputs.

    A mapping of what a tokenizer returns (input_ids, attention_mask) is read as tokens; any other
    mapping goes to the forward pass as it is.
    """
    refuse_nested(f"a run of {model.name}")
    extra: dict[str, Any] = {}
    if isinstance(prompts, Mapping):
        extra = {k: _moved(model, v) for k, v in prompts.items()}
        if model.kind in ("vision", "generic") or "input_ids" not in extra:
            return Batch(extra, None)
        prompts = from_encoding(model, extra)
    if isinstance(prompts, torch.Tensor) and model.kind == "vision":
        if prompts.ndim != 4:
            raise BadInput(
                f"{model.name} reads pictures [n, channels, height, width], not a tensor of shape "
                f"{tuple(prompts.shape)}"
            )
        name = "pixel_values" if "pixel_values" in model.forward_names else None
        x = _moved(model, prompts)
        return Batch({name: x}, None) if name else Batch({}, None, (x,))
    if isinstance(prompts, torch.Tensor) and model.kind == "generic" and model.tokenizer is None:
        return Batch({}, None, (_moved(model, prompts),))
    tokens = model.tokens(prompts)
    takes = model.forward_names
    if "input_ids" not in takes:
        if tokens.padded:
            raise BadInput(f"{model.name} takes no attention mask: give prompts of equal length")
        return Batch(extra, tokens, (tokens.ids,))
    inputs: dict[str, Any] = {**extra, "input_ids": tokens.ids}
    if "attention_mask" in takes:
        inputs["attention_mask"] = tokens.mask
    # RoBERTa finds its positions by the padding id; others count columns unless told.
    finds = "roberta" in model.anatomy.name
    if "position_ids" in takes and not finds and not bool((tokens.offsets == 0).all()):
        inputs["position_ids"] = tokens.position_ids
    if "use_cache" in takes:
        inputs["use_cache"] = False
    if "decoder_input_ids" in takes:
        start = decoder_tokens(model, tokens, extra.get("decoder_input_ids"))
        inputs["decoder_input_ids"] = start.ids
        # The positions of a result are those of the stack that the anatomy describes.
        tokens = start if model.anatomy.causal else tokens
    return Batch(inputs, tokens)


def _moved(model: Model, value: Any) -> Any:
    """A tensor on the model's device, in its type where it is a floating-point one."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)


def from_encoding(model: Model, inputs: Mapping[str, Any]) -> Tokens:
    """Read a tokenizer's output as Tokens. Raises BadInput for a mask with holes."""
    ids = inputs["input_ids"]
    plain = model.tokens(ids)
    mask = torch.as_tensor(inputs.get("attention_mask", torch.ones_like(plain.ids)))
    mask = mask.to(plain.ids).view_as(plain.ids)
    if bool((mask.diff(dim=1).abs().sum(1) > 1).any()) or not bool(mask.any(1).all()):
        raise BadInput("attention_mask must be ones over each prompt's tokens and zeros elsewhere")
    rows = [row[m].tolist() for row, m in zip(plain.ids, mask.bool())]
    own = [model.tokens(torch.tensor(row)) for row in rows]
    return Tokens(plain.ids, mask, tuple(t.strings[0] for t in own), tuple(t.texts[0] for t in own))


def decoder_tokens(model: Model, tokens: Tokens, given: torch.Tensor | None) -> Tokens:
    """What the decoder of an encoder-decoder model reads: as given, or its start token."""
    if given is None:
        config: Any = model.module.config
        start = getattr(config, "decoder_start_token_id", None) or config.pad_token_id or 0
        given = torch.full_like(tokens.ids[:, :1], start)
    return model.tokens(given)
