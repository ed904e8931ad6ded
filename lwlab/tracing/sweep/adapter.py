"""Architectures the packed engine knows, as data; what a row lacks, the anatomy says.

A row names the norms of a block. Projections, heads and MLP come from the anatomy's sites, masks
and rotary tables from how the blocks were called, and every product is made by the model's own
modules. A row is trusted after it has given back the model's own streams (`verify`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.models.sites import Address
from lwlab.tracing._nnsight import lock
from lwlab.tracing.blocks import Call
from lwlab.tracing.sweep.observe import Seen


@dataclass(frozen=True)
class Row:
    """Norms before attention and MLP, relative to the block; None where there is none."""

    model_types: tuple[str, ...]
    norm_1: str | None = "input_layernorm"
    norm_2: str | None = "post_attention_layernorm"
    attn: str = "self_attn"


ROWS: tuple[Row, ...] = (
    Row(("llama", "mistral", "ministral", "qwen2", "qwen3", "olmo", "smollm3", "gemma", "phi3")),
    Row(("gemma2", "gemma3_text", "gemma3"), norm_2="pre_feedforward_layernorm"),
    Row(("olmo2", "olmo3"), norm_1=None, norm_2=None),
    Row(("gpt2",), "ln_1", "ln_2", "attn"),
    Row(("gpt_neox",), attn="attention"),
    Row(("phi",), norm_2="input_layernorm"),
    Row(("opt",), "self_attn_layer_norm", "final_layer_norm"),
)

_TRUSTED: WeakKeyDictionary[nn.Module, set[int]] = WeakKeyDictionary()


def find(model: Model) -> Row | None:
    """The row of a model's architecture, or None."""
    return next((row for row in ROWS if model.anatomy.name in row.model_types), None)


def refusal(model: Model) -> str | None:
    """Why the packed engine cannot serve a model, or None."""
    a = model.anatomy
    if find(model) is None:
        return f"there is no adapter for {a.name}"
    if not a.causal or a.stream_norms:
        return "tokens before the edited one must be out of its reach, and blocks must add up"
    needed = {"resid_pre", "resid_post", "q", "k", "v", "head_out", "attn_out", "mlp_out", "mlp_up"}
    if lacks := sorted(needed - set(a.taps)):
        return f"{a.name} has no {', '.join(lacks)}"
    if not (a.o_proj and a.down and a.act and a.unembed):
        return "its projections have no modules of their own"
    if len({p.device for p in model.module.parameters()}) > 1:
        return "it is spread over several devices"
    return None


class Adapter:
    """The pieces of a model's blocks, called on rows [rows, features] without a batch.

    `flops` counts the operations of the products it made, from the shapes at hand.
    """

    def __init__(self, model: Model, row: Row) -> None:
        """Look up the modules of every layer once."""
        self.model, self.a = model, model.anatomy
        a, n = self.a, model.n_layers
        get = model.module.get_submodule
        base = [f"{a.blocks}.{i}." for i in range(n)]

        def each(path: str | None) -> list[Any]:
            return [None if path is None else get(path.replace("{}", str(i))) for i in range(n)]

        self.norm_1 = [get(b + row.norm_1) if row.norm_1 else None for b in base]
        self.norm_2 = [get(b + row.norm_2) if row.norm_2 else None for b in base]
        self.attn: list[Any] = [get(b + row.attn) for b in base]
        self.qkv = {s: (each(a.taps[s].path), a.taps[s].view) for s in ("q", "k", "v")}
        self.fused = a.taps["q"].path == a.taps["k"].path
        self.o, self.attn_post = each(a.o_proj), each(a.attn_post)
        gate = a.taps.get("mlp_gate")
        self.gate = None if gate is None else (each(gate.path), gate.view)
        self.up = each(a.taps["mlp_up"].path), a.taps["mlp_up"].view
        self.act, self.down = each(a.act), each(a.down)
        written = a.taps["mlp_out"].path
        own = written in (a.down, (a.down or "").rpartition(".")[0])
        self.mlp_post = each(None if own else written)
        eager = (
            getattr(getattr(model.module, "config", None), "_attn_implementation", "") == "eager"
        )
        self.softcap = [
            getattr(m, "attn_logit_softcapping", None) if eager else None for m in self.attn
        ]
        self.flops = 0

    def product(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        """module(x) for x [rows, in], counted: 2 rows in out."""
        self.flops += 2 * len(x) * module.weight.numel()
        y: torch.Tensor = module(x)
        return y

    def normed(self, layer: int, h: torch.Tensor, which: int = 1) -> torch.Tensor:
        """What attention (1) or the MLP (2) reads of a stream."""
        norm = (self.norm_1 if which == 1 else self.norm_2)[layer]
        return h if norm is None else norm(h)

    def project(self, layer: int, x: torch.Tensor, sites: str) -> list[torch.Tensor]:
        """Raw queries, keys, values ("qkv" or some of them): each [rows, heads, d_head]."""
        done: dict[int, torch.Tensor] = {}
        out = []
        for s in sites:
            modules, view = self.qkv[s]
            module = modules[layer]
            if id(module) not in done:
                done[id(module)] = self.product(module, x)
            out.append(view.read(done[id(module)]))
        return out

    def clip(self, site: str, x: torch.Tensor) -> torch.Tensor:
        """Clamp edited queries, keys or values as the model clamps its own (OLMo)."""
        limit = getattr(self.qkv[site][1], "clip", None)
        return x if limit is None else x.clamp(-limit, limit)

    def finish(
        self, layer: int, site: str, x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        """Norm and rotate raw queries or keys [rows, heads, d_head]; `turn` = cos, sin of rows."""
        norm = getattr(self.attn[layer], f"{site}_norm", None)
        if norm is not None:
            flat = norm.weight.numel() != x.shape[-1]
            x = norm(x.flatten(1)).view_as(x) if flat else norm(x)
        if turn is None or not getattr(self.attn[layer], "use_rope", True):
            return x
        cos, sin = (t[:, None] for t in turn)
        d = cos.shape[-1]
        y = x[..., :d]
        a, b = y.chunk(2, -1)
        y = y * cos + torch.cat([-b, a], -1) * sin
        return y if d == x.shape[-1] else torch.cat([y, x[..., d:]], -1)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Heads' outputs [n, m, heads, d] of q [n, m, heads, d] on k, v [n, t, kv_heads, d].

        The queries of one key/value head lie side by side, so that grouped keys are not copied.
        `mask` [m, t] is added to the scores.
        """
        n, m, heads, d = q.shape
        kv, t = k.shape[2], k.shape[1]
        r = heads // kv
        self.flops += 4 * n * m * heads * d * t
        q = q.view(n, m, kv, r, d).permute(0, 2, 3, 1, 4).reshape(n, kv, r * m, d)
        k, v, mask = k.transpose(1, 2), v.transpose(1, 2), mask.repeat(r, 1)
        scaling, cap = self.attn[layer].scaling, self.softcap[layer]
        if cap is None:
            z = nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scaling)
        else:
            s = cap * torch.tanh(q @ k.transpose(-1, -2) * scaling / cap) + mask
            z = s.softmax(-1) @ v
        return z.view(n, kv, r, m, d).permute(0, 3, 1, 2, 4).reshape(n, m, heads, d)

    def write(self, layer: int, z: torch.Tensor) -> torch.Tensor:
        """What attention adds to the stream, of heads' outputs [rows, heads, d_head]."""
        y = self.product(self.o[layer], z.flatten(1))
        post = self.attn_post[layer]
        return y if post is None else post(y)

    def activate(self, layer: int, gate: torch.Tensor | None, up: torch.Tensor) -> torch.Tensor:
        """Neurons f(gate) * up, or f(up) without a gate."""
        act = self.act[layer]
        out: torch.Tensor = act(up) if gate is None else act(gate).mul_(up)
        return out

    def gates(self, layer: int, x: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Pre-activations (gate, up) of what the MLP reads."""
        modules, view = self.up
        y = self.product(modules[layer], x)
        if self.gate is None:
            return None, view.read(y)
        gates, gate_view = self.gate
        g = y if gates[layer] is modules[layer] else self.product(gates[layer], x)
        return gate_view.read(g), view.read(y)

    def close(self, layer: int, neurons: torch.Tensor) -> torch.Tensor:
        """What the MLP adds to the stream, of its neurons."""
        y = self.product(self.down[layer], neurons)
        post = self.mlp_post[layer]
        return y if post is None else post(y)

    def mlp(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """What the MLP adds to the stream, of what it reads."""
        return self.close(layer, self.activate(layer, *self.gates(layer, x)))

    def after(self, layer: int, h: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """The stream leaving a block, of the stream entering it and the heads' outputs."""
        w = self.write(layer, z)
        if self.a.parallel:
            return w.add_(h).add_(self.mlp(layer, self.normed(layer, h, 2)))
        mid = w.add_(h)
        return mid.add_(self.mlp(layer, self.normed(layer, mid, 2)))


def tables(
    call: Call, length: int, like: torch.Tensor
) -> tuple[tuple[torch.Tensor, torch.Tensor] | None, torch.Tensor]:
    """Rotary (cos, sin) [length, d] or None, and the additive mask [length, length] of a block."""
    args, kwargs = call
    turn = kwargs.get("position_embeddings")
    if turn is None:
        turn = next((x for x in args if isinstance(x, tuple) and len(x) == 2), None)
    if turn is not None:
        turn = tuple(t.reshape(-1, *t.shape[-2:])[0, :length].to(like) for t in turn)
    square = [
        x for x in (*args, *kwargs.values())
        if isinstance(x, torch.Tensor) and x.ndim == 4 and x.shape[-2:] == (length, length)
    ]  # fmt: skip
    allowed = torch.ones(length, length, dtype=torch.bool, device=like.device).tril()
    if square and square[0].dtype == torch.bool:
        allowed = square[0][0, 0]
    elif square:
        return turn, square[0][0, 0].to(like)
    mask = torch.zeros(length, length, dtype=like.dtype, device=like.device)
    return turn, mask.masked_fill(~allowed, float("-inf"))


def verify(adapter: Adapter, seen: Seen) -> None:
    """Let the adapter run a prompt whole, and compare with the streams the model itself made.

    Every layer the first time, the first and last one for each further length. Raises BadInput.
    """
    model, n = adapter.model, adapter.model.n_layers
    trusted = _TRUSTED.setdefault(model.module, set())
    near = 1e-4 if model.dtype in (torch.float32, torch.float64) else 3e-2
    for length in sorted(set(seen.lengths.tolist()) - trusted):
        at = int(seen.offsets[seen.lengths == length][0])
        own = slice(at, at + length)
        for layer in range(n) if not trusted else sorted({0, n - 1}):
            h = seen.values[Address("resid_pre", layer)][own]
            turn, mask = tables(seen.calls[length][layer], length, h)
            with lock(model), torch.no_grad():
                q, k, v = adapter.project(layer, adapter.normed(layer, h), "qkv")
                q, k = (adapter.finish(layer, s, x, turn) for s, x in (("q", q), ("k", k)))
                z = adapter.attend(layer, q[None], k[None], v[None], mask)[0]
                out = adapter.after(layer, h, z)
            after = (
                Address("resid_pre", layer + 1) if layer < n - 1 else Address("resid_post", layer)
            )
            known = seen.values[after][own]
            off = float((out - known).float().norm() / known.float().norm().clamp(min=1e-12))
            if not off < near:
                raise BadInput(
                    f"the adapter of {model.anatomy.name} gives another stream after layer {layer} "
                    f"(off by {off:.2g} of its size)"
                )
        trusted.add(length)
    adapter.flops = 0
