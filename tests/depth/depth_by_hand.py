"""The slow reference of the depth tests: a plain forward with torch hooks, no engine."""

from __future__ import annotations

from typing import Any

import torch

from lwlab.models import Model

TEXT = "Mary and John went to the store and Mary gave a book to John"


def hooked(model: Model, text: str, put: dict[tuple[str, int], Any]) -> dict[str, torch.Tensor]:
    """One plain forward with torch hooks: streams around every block, sublayer writes, logits.

    `put[(site, layer)]` maps a tensor [1, T, d] to its replacement, for "block", "attn_out" and
    "mlp_out". It shares no code with the library's engines.
    """
    a, module = model.anatomy, model.module
    seen: dict[tuple[str, int], torch.Tensor] = {}
    handles = []

    def first(x: Any) -> torch.Tensor:
        return x[0] if isinstance(x, tuple) else x

    def after(site: str, layer: int) -> Any:
        def hook(_m: Any, _args: Any, out: Any) -> Any:
            x = first(out)
            if (site, layer) in put:
                x = put[site, layer](x)
            seen[site, layer] = x.detach()
            return (x, *out[1:]) if isinstance(out, tuple) else x

        return hook

    def before(layer: int) -> Any:
        def hook(_m: Any, args: Any, kwargs: Any) -> None:
            seen["pre", layer] = (args[0] if args else kwargs["hidden_states"]).detach()

        return hook

    for i in range(model.n_layers):
        block = module.get_submodule(f"{a.blocks}.{i}")
        handles.append(block.register_forward_pre_hook(before(i), with_kwargs=True))
        handles.append(block.register_forward_hook(after("block", i)))
        for site in ("attn_out", "mlp_out"):
            if site in a.taps:
                sub = module.get_submodule(a.taps[site].at(i))
                handles.append(sub.register_forward_hook(after(site, i)))
    try:
        logits = module(model.tokens(text).ids).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    stack = {
        s: torch.stack([seen[s, i][0] for i in range(model.n_layers)])
        for s in ("pre", "block", "attn_out", "mlp_out")
        if (s, 0) in seen
    }
    return {**stack, "logits": logits}
