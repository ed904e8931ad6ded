"""Path patching of one edge by plain hooks: slow, one edge at a time, for GPT-2 and Llama blocks.

The base run is the corrupt or clean model itself; the receiver's input is recomputed from a stream
in which one sender's output is exchanged. Written without anything of `lwlab.attribution.circuits`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def _parts(module: Any, layer: int) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """(attention norm, o projection, MLP norm, MLP) of a block."""
    if hasattr(module, "transformer"):
        b = module.transformer.h[layer]
        return b.ln_1, b.attn.c_proj, b.ln_2, b.mlp
    b = module.model.layers[layer]
    return b.input_layernorm, b.self_attn.o_proj, b.post_attention_layernorm, b.mlp


def _write(o: Any, z: Tensor, head: int, heads: int) -> Tensor:
    """What one head adds: z [n, t, heads * d] with the others' columns at zero, projected."""
    d = z.shape[-1] // heads
    alone = torch.zeros_like(z)
    alone[..., head * d : (head + 1) * d] = z[..., head * d : (head + 1) * d]
    return o(alone) - o(torch.zeros_like(z))


def sent(module: Any, ids: Tensor, sender: str, heads: int) -> Tensor:
    """What a sender adds to the stream in a plain run."""
    out: list[Tensor] = []
    if sender == "input":
        block = (module.transformer.h if hasattr(module, "transformer") else module.model.layers)[0]
        hook = block.register_forward_pre_hook(
            lambda _m, a, k: out.append(a[0] if a else k["hidden_states"]), with_kwargs=True
        )
    else:
        layer = int(sender[1:].split(".")[0])
        _, o, _, mlp = _parts(module, layer)
        if sender.startswith("m"):
            hook = mlp.register_forward_hook(lambda _m, _a, y: out.append(y))
        else:
            hook = o.register_forward_pre_hook(lambda _m, a: out.append(a[0]))
    with torch.no_grad():
        module(input_ids=ids)
        hook.remove()
        if sender.startswith("a"):
            return _write(o, out[0], int(sender.split(".h")[1]), heads)
    return out[0]


def cut_one(
    module: Any, ids: Tensor, gap: Tensor, receiver: str, heads: int, groups: int
) -> Tensor:
    """Logits of the last token with `gap` added to one receiver's input stream and to no other."""
    if receiver == "logits":
        base = module.transformer if hasattr(module, "transformer") else module.model
        norm = base.ln_f if hasattr(module, "transformer") else base.norm
        hooks = [norm.register_forward_pre_hook(lambda _m, a: (a[0] + gap,))]
    elif receiver.startswith("m"):
        _, _, norm, mlp = _parts(module, int(receiver[1:]))
        seen: list[Tensor] = []
        hooks = [
            norm.register_forward_pre_hook(lambda _m, a: seen.append(a[0])),
            mlp.register_forward_pre_hook(
                lambda _m, _a: (type(norm).forward(norm, seen[0] + gap),)
            ),
        ]
    else:
        hooks = _into_head(module, gap, receiver, heads, groups)
    with torch.no_grad():
        z = module(input_ids=ids).logits[:, -1]
    for hook in hooks:
        hook.remove()
    return z


def _into_head(module: Any, gap: Tensor, receiver: str, heads: int, groups: int) -> list[Any]:
    at, kind = receiver[:-1].split("<")
    layer, which = int(at[1:].split(".")[0]), int(at.split(".")[1].lstrip("hkv"))
    norm = _parts(module, layer)[0]
    seen: list[Tensor] = []
    note = norm.register_forward_pre_hook(lambda _m, a: seen.append(a[0]))
    if hasattr(module, "transformer"):
        proj = module.transformer.h[layer].attn.c_attn
        width = proj.weight.shape[1] // 3
        start = "qkv".index(kind) * width
    else:
        proj = getattr(module.model.layers[layer].self_attn, f"{kind}_proj")
        width, start = proj.weight.shape[0], 0
    d = width // (heads if kind == "q" else groups)
    span = slice(start + which * d, start + (which + 1) * d)

    def put(_m: Any, _a: Any, y: Tensor) -> Tensor:
        x = type(norm).forward(norm, seen[0] + gap)
        new = y.clone()
        new[..., span] = type(proj).forward(proj, x)[..., span]
        return new

    return [note, proj.register_forward_hook(put)]
