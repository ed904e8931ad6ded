"""RelP written out in numpy, float64: forward and backward by hand, no autograd, no hooks.

The gradients are those of the equations in the docstrings of `lwlab.tracing.rules`, worked out on
paper. One prompt at a time, for the Llama and GPT-2 architectures of transformers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray


@dataclass
class Norm:
    """y = w (x - centre) s + b, s = 1 / sqrt(mean((x - centre)^2) + eps)."""

    w: Array
    b: Array | None
    eps: float

    def forward(self, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True) if self.b is not None else x
        self.s = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + self.eps)
        self.hat = centred * self.s
        return self.w * self.hat + (0 if self.b is None else self.b)

    def backward(self, gy: Array, rules: Collection[str]) -> Array:
        g = self.w * gy
        if "ln" not in rules:
            g = g - self.hat * (g * self.hat).mean(-1, keepdims=True)
        if self.b is not None:
            g = g - g.mean(-1, keepdims=True)
        return g * self.s


@dataclass
class Attention:
    q: tuple[Array, Array]
    k: tuple[Array, Array]
    v: tuple[Array, Array]
    o: tuple[Array, Array]
    heads: int
    kv_heads: int
    theta: float | None

    def turn(self, x: Array, back: bool = False) -> Array:
        """Rotary positions on [head, position, d]; `back` is the transposed rotation."""
        if self.theta is None:
            return x
        half = x.shape[-1] // 2
        angle = np.arange(x.shape[1])[:, None] * self.theta ** (-np.arange(half) / half)
        c, s = np.cos(angle), np.sin(angle) * (-1 if back else 1)
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * c - b * s, b * c + a * s], -1)

    def split(self, x: Array, n: int) -> Array:
        return x.reshape(len(x), n, -1).transpose(1, 0, 2)

    def join(self, x: Array) -> Array:
        return x.transpose(1, 0, 2).reshape(x.shape[1], -1)

    def forward(self, x: Array) -> Array:
        group = self.heads // self.kv_heads
        self.Q = self.turn(self.split(x @ self.q[0] + self.q[1], self.heads))
        self.K = self.turn(self.split(x @ self.k[0] + self.k[1], self.kv_heads)).repeat(group, 0)
        self.V = self.split(x @ self.v[0] + self.v[1], self.kv_heads).repeat(group, 0)
        score = self.Q @ self.K.transpose(0, 2, 1) / np.sqrt(self.Q.shape[-1])
        score = np.where(np.tri(len(x), dtype=bool), score, -np.inf)
        e = np.exp(score - score.max(-1, keepdims=True))
        self.A = e / e.sum(-1, keepdims=True)
        return self.join(self.A @ self.V) @ self.o[0] + self.o[1]

    def backward(self, gy: Array, rules: Collection[str]) -> Array:
        gz = self.split(gy @ self.o[0].T, self.heads)
        gx = self.join(self.ungroup(self.A.transpose(0, 2, 1) @ gz)) @ self.v[0].T
        if "attention" in rules:
            return gx
        gA = gz @ self.V.transpose(0, 2, 1)
        gs = self.A * (gA - (gA * self.A).sum(-1, keepdims=True)) / np.sqrt(self.Q.shape[-1])
        gq = self.turn(gs @ self.K, back=True)
        gk = self.turn(self.ungroup(gs.transpose(0, 2, 1) @ self.Q), back=True)
        return gx + self.join(gq) @ self.q[0].T + self.join(gk) @ self.k[0].T

    def ungroup(self, g: Array) -> Array:
        return g.reshape(self.kv_heads, -1, *g.shape[1:]).sum(1)


@dataclass
class GatedMLP:
    gate: Array
    up: Array
    down: Array

    def forward(self, x: Array) -> Array:
        self.g, self.u = x @ self.gate, x @ self.up
        self.sigma = 1 / (1 + np.exp(-self.g))
        return (self.g * self.sigma * self.u) @ self.down

    def backward(self, gy: Array, rules: Collection[str]) -> Array:
        gp = gy @ self.down.T * (0.5 if "half" in rules else 1)
        curved = 0 if "identity" in rules else self.g * self.sigma * (1 - self.sigma)
        return (gp * self.u * (self.sigma + curved)) @ self.gate.T + (
            gp * self.g * self.sigma
        ) @ self.up.T


@dataclass
class PlainMLP:
    up: tuple[Array, Array]
    down: tuple[Array, Array]

    def forward(self, x: Array) -> Array:
        self.h = x @ self.up[0] + self.up[1]
        self.t = np.tanh(np.sqrt(2 / np.pi) * (self.h + 0.044715 * self.h**3))
        return (0.5 * self.h * (1 + self.t)) @ self.down[0] + self.down[1]

    def backward(self, gy: Array, rules: Collection[str]) -> Array:
        slope = 0.5 * (1 + self.t)
        if "identity" not in rules:
            inner = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * self.h**2)
            slope = slope + 0.5 * self.h * (1 - self.t**2) * inner
        return (gy @ self.down[0].T * slope) @ self.up[0].T


@dataclass
class Net:
    """A pre-norm decoder: h += attn(norm1(h)); h += mlp(norm2(h)); logits = norm(h) @ unembed."""

    embed: Any
    blocks: list[tuple[Norm, Attention, Norm, Any]]
    norm: Norm
    unembed: Array

    def run(self, ids: Array) -> tuple[dict[tuple[str, int], Array], Array]:
        """Streams and sublayer outputs [positions, d_model], and the last position's logits."""
        seen, h = {}, self.embed(ids)
        for i, (n1, attn, n2, mlp) in enumerate(self.blocks):
            seen["resid_pre", i] = h
            seen["attn_out", i] = attn.forward(n1.forward(h))
            h = h + seen["attn_out", i]
            seen["mlp_out", i] = mlp.forward(n2.forward(h))
            h = h + seen["mlp_out", i]
        return seen, (self.norm.forward(h) @ self.unembed)[-1]

    def slopes(self, ids: Array, weights: Array, rules: Collection[str]) -> dict[Any, Array]:
        """What reaches each site when weights . logits is propagated back by `rules`."""
        self.run(ids)
        gy = np.zeros((len(ids), self.unembed.shape[0]))
        gy[-1] = self.unembed @ weights
        g, out = self.norm.backward(gy, rules), {}
        for i, (n1, attn, n2, mlp) in reversed(list(enumerate(self.blocks))):
            out["mlp_out", i] = g
            g = g + n2.backward(mlp.backward(g, rules), rules)
            out["attn_out", i] = g
            g = g + n1.backward(attn.backward(g, rules), rules)
            out["resid_pre", i] = g
        return out


def _array(p: Any) -> Array:
    return p.detach().double().numpy()


def llama(module: Any) -> Net:
    c = module.config

    def linear(m: Any) -> tuple[Array, Array]:
        return _array(m.weight).T, np.zeros(m.weight.shape[0])

    def norm(m: Any) -> Norm:
        return Norm(_array(m.weight), None, c.rms_norm_eps)

    blocks = []
    for b in module.model.layers:
        a = b.self_attn
        heads = Attention(
            *(linear(m) for m in (a.q_proj, a.k_proj, a.v_proj, a.o_proj)),
            c.num_attention_heads, c.num_key_value_heads, c.rope_parameters["rope_theta"],
        )  # fmt: skip
        mlp = GatedMLP(
            *(_array(m.weight).T for m in (b.mlp.gate_proj, b.mlp.up_proj, b.mlp.down_proj))
        )
        blocks.append((norm(b.input_layernorm), heads, norm(b.post_attention_layernorm), mlp))
    table = _array(module.model.embed_tokens.weight)
    return Net(lambda i: table[i], blocks, norm(module.model.norm), _array(module.lm_head.weight).T)


def gpt2(module: Any) -> Net:
    c = module.config

    def norm(m: Any) -> Norm:
        return Norm(_array(m.weight), _array(m.bias), c.layer_norm_epsilon)

    def conv(m: Any) -> tuple[Array, Array]:
        return _array(m.weight), _array(m.bias)

    blocks = []
    for b in module.transformer.h:
        w, bias = conv(b.attn.c_attn)
        qkv = zip(np.split(w, 3, 1), np.split(bias, 3))
        heads = Attention(*qkv, conv(b.attn.c_proj), c.n_head, c.n_head, None)
        mlp = PlainMLP(conv(b.mlp.c_fc), conv(b.mlp.c_proj))
        blocks.append((norm(b.ln_1), heads, norm(b.ln_2), mlp))
    t = module.transformer
    tokens, places = _array(t.wte.weight), _array(t.wpe.weight)
    return Net(
        lambda i: tokens[i] + places[: len(i)],
        blocks,
        norm(t.ln_f),
        _array(module.lm_head.weight).T,
    )
