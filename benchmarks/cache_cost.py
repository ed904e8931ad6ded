"""What does it cost to keep every stream of a model? lwlab beside plain PyTorch hooks.

lwlab bench cache_cost
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, partial
from typing import Any

import torch
from peers.streams import model
from torch import nn

import lwlab as lw
from lwlab import bench
from lwlab.models.sites import Address
from lwlab.models.tokens import Tokens
from lwlab.tracing import engine

STREAMS = ("resid_pre", "resid_mid", "resid_post")
TEXT = "When Mary and John went to the store, John gave a drink to the girl who sat by the door. "
# At most 1.15 times hooks; the middle half of hooks against hooks within 7 %.
TARGET, NULL = 1 / 1.15, (0.93, 1.07)


class Hooks:
    """Every stream by forward hooks on the modules that `lw.cache` reads, without copies."""

    def __init__(self, model: lw.Model, plain: nn.Module, tokens: Tokens, logits: bool) -> None:
        self.inputs = {"input_ids": tokens.ids, "attention_mask": tokens.mask, "use_cache": False}
        # Without logits lwlab stops after the last block. The body alone does what that takes.
        self.root: Any = plain if logits else plain.get_submodule("model")
        self.logits = logits
        taps = model.anatomy.taps
        self.places = [
            (Address(site, layer), plain.get_submodule(taps[site].at(layer)), taps[site].end)
            for site in STREAMS
            for layer in range(model.n_layers)
        ]

    def bare(self) -> Any:
        """Run the forward pass alone."""
        with torch.no_grad():
            return self.root(**self.inputs)

    def cache(self) -> dict[Address, torch.Tensor]:
        """Run it with hooks, which are set before and taken away after."""
        out: dict[Address, torch.Tensor] = {}
        handles = [hook(module, end, at, out) for at, module, end in self.places]
        try:
            z = self.bare()
        finally:
            for handle in handles:
                handle.remove()
        if self.logits:
            out[Address("logits")] = z.logits
        return out


def hook(module: nn.Module, end: str, at: Address, out: dict[Address, torch.Tensor]) -> Any:
    """Set a hook that keeps one end of a module."""

    def before(_: Any, args: Any, kwargs: Any) -> None:
        out[at] = args[0] if args else kwargs["hidden_states"]

    def after(_: Any, args: Any, output: Any) -> None:
        out[at] = output[0] if isinstance(output, tuple) else output

    if end == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


def twin(model: lw.Model) -> nn.Module:
    """The same weights in a module that nnsight has not wrapped."""
    plain = type(model.module)(model.module.config).eval()
    plain.load_state_dict(model.module.state_dict(), assign=True)
    return plain


@cache
def plain() -> nn.Module:
    """The model's weights in a module that nnsight has not wrapped."""
    return twin(model())


def same(value: Any) -> dict[str, torch.Tensor]:
    """What any of the ways kept, by address."""
    if isinstance(value, dict):
        return {str(at): x for at, x in value.items()}
    if isinstance(value, engine.Trace):
        logits = {} if value.logits is None else {"logits": value.logits}
        return same(value.values) | logits
    out = {}
    for site in value.data_vars:
        array = value[site]
        layers: Iterable[int] = array.layer.values if "layer" in array.dims else ()
        out |= {f"{site}.{i}": torch.from_numpy(array.sel(layer=i).values) for i in layers}
        if "layer" not in array.dims:
            out[str(site)] = torch.from_numpy(array.values)
    return out


def case(n: int, logits: bool) -> bench.Case:
    """Every stream of a prompt of n tokens, with or without all logits."""
    lab = model()
    tokens = lab.tokens(lab.tokens(TEXT * (1 + n // 16)).ids[:, :n])
    hooks = Hooks(lab, plain(), tokens, logits)
    reads = [Address(s, i) for s in STREAMS for i in range(lab.n_layers)]
    sites = [*STREAMS, "logits"] if logits else list(STREAMS)
    return bench.Case(
        f"every stream of 30 layers, {n} tokens{', all logits' if logits else ''}",
        "lw.cache",
        {
            "lw.cache": lambda: lw.cache(lab, tokens, sites),
            "engine.run": lambda: engine.run(lab, tokens, reads, logits="all" if logits else None),
            "hooks": hooks.cache,
            "forward pass alone": bench.Way(hooks.bare, limit=True),
        },
        compare=same, null="hooks", null_bounds=NULL, rounds=15,
        targets={"hooks": TARGET},
    )  # fmt: skip


CASES = {
    "14": partial(case, 14, False),
    "14-logits": partial(case, 14, True),
    "128": partial(case, 128, False),
    "128-logits": partial(case, 128, True),
}
