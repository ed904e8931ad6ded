"""What the tests hold lwlab to: architectures by kind, and the slow way with plain torch hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch

from lwlab.models.model import Model
from lwlab.models.sites import Address
from lwlab.tracing import engine

DECODERS = [
    "gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt_neox",
    "gpt_neox_sequential", "opt", "opt_post_norm", "phi", "olmo", "olmo2", "mixtral", "qwen2_moe",
    "qwen3_moe", "mamba",
]  # fmt: skip
ENCODERS = ["bert", "bert_mlm"]
T5 = ["t5:encoder", "t5:decoder", "t5_gated:encoder", "t5_gated:decoder"]
EVERY = [*DECODERS, *ENCODERS, "vit", *T5]
RULED = [
    "gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt_neox",
    "gpt_neox_sequential", "opt", "opt_post_norm", "phi", "olmo", "olmo2",
]  # fmt: skip
PROMPTS = ["Mary gave the old red book to John in the park", "the dog saw", "John went to Paris ."]
Hook = Callable[[torch.Tensor], torch.Tensor]


def inputs_of(model: Model, prompt: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword inputs of a plain forward pass."""
    data = engine.batch(model, prompt)
    return data.args, data.inputs


def forward(
    model: Model,
    prompt: Any,
    read: list[Address] | None = None,
    edit: Mapping[Address, Hook] | None = None,
    copy: bool = True,
) -> tuple[torch.Tensor, dict[Address, torch.Tensor]]:
    """Logits (or last states) and sites, by torch hooks: no nnsight, no planning, no sharing."""
    args, kwargs = inputs_of(model, prompt)
    out: dict[Address, torch.Tensor] = {}
    with ExitStack() as stack:
        for address, function in (edit or {}).items():
            stack.callback(_edit(model, address, function).remove)
        for address in read or []:
            stack.callback(_read(model, address, out, copy).remove)
        z = engine.tensor_of(model.module(*args, **kwargs))
    return z, out


def _site(model: Model, address: Address) -> tuple[Any, Any, str, bool]:
    tap = model.anatomy.taps[address.site]
    return model.module.get_submodule(tap.at(address.layer)), tap.view, tap.end, tap.shared


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, str | None]:
    if args:
        return args[0], None
    key = next(iter(kwargs))
    return kwargs[key], key


def _read(model: Model, address: Address, out: dict[Address, torch.Tensor], copy: bool) -> Any:
    module, view, end, _ = _site(model, address)

    def keep(tensor: torch.Tensor) -> None:
        out[address] = view.read(tensor).clone() if copy else view.read(tensor)

    if end == "output":
        return module.register_forward_hook(lambda m, a, o: keep(engine.tensor_of(o)))
    return module.register_forward_pre_hook(lambda m, a, k: keep(_first(a, k)[0]), with_kwargs=True)


def _edit(model: Model, address: Address, function: Hook) -> Any:
    module, view, end, shared = _site(model, address)

    def new(tensor: torch.Tensor) -> torch.Tensor:
        return view.write(tensor, function(view.read(tensor)))

    def after(m: Any, a: Any, o: Any) -> Any:
        return (new(o[0]), *o[1:]) if isinstance(o, tuple) else new(o)

    def before(m: Any, a: Any, k: Any) -> Any:
        tensor, key = _first(a, k)
        if shared:
            tensor.copy_(new(tensor))
            return None
        if key is None:
            return (new(tensor), *a[1:]), k
        return a, {**k, key: new(tensor)}

    if end == "output":
        return module.register_forward_hook(after)
    return module.register_forward_pre_hook(before, with_kwargs=True)
