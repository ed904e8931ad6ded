"""Decoders written out in full, with the backward rules in their formulas: a slow reference.

Nothing here comes from lwlab; weights and rotary tables come from the transformers module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class ByHand:
    """One of gpt2, llama, qwen3, gemma2, olmo2, run by its equations."""

    model: Any
    rules: frozenset[str]

    def __post_init__(self) -> None:
        self.config = self.model.config
        self.kind = self.config.model_type

    def run(self, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the logits [prompts, positions, tokens] and the stream entering each block."""
        base = self.model.transformer if self.kind == "gpt2" else self.model.model
        n = ids.shape[1]
        if self.kind == "gpt2":
            x = base.wte.weight[ids] + base.wpe.weight[:n]
            blocks, rope = base.h, None
        else:
            x = base.embed_tokens.weight[ids]
            x = x * self.config.hidden_size**0.5 if self.kind == "gemma2" else x
            blocks, rope = base.layers, base.rotary_emb(x, torch.arange(n)[None])
        streams = []
        for i, block in enumerate(blocks):
            streams.append(x)
            x = self.block(block, x, rope, i)
        final = base.ln_f if self.kind == "gpt2" else base.norm
        z = self.norm(final, x) @ self.model.lm_head.weight.T
        if self.kind == "gemma2":
            cap = self.config.final_logit_softcapping
            capped = cap * torch.tanh(z / cap)
            z = z * (capped / z).detach() if "identity" in self.rules else capped
        return z, streams

    def block(self, b: Any, x: Tensor, rope: Any, i: int) -> Tensor:
        """x -> x + attention + MLP, with the norms where the architecture has them."""
        if self.kind == "gpt2":
            x = x + self.attention(b.attn, self.norm(b.ln_1, x), rope, i)
            return x + self.mlp(b.mlp, self.norm(b.ln_2, x))
        if self.kind == "olmo2":
            x = x + self.norm(b.post_attention_layernorm, self.attention(b.self_attn, x, rope, i))
            return x + self.norm(b.post_feedforward_layernorm, self.mlp(b.mlp, x))
        a = self.attention(b.self_attn, self.norm(b.input_layernorm, x), rope, i)
        if self.kind == "gemma2":
            x = x + self.norm(b.post_attention_layernorm, a)
            m = self.mlp(b.mlp, self.norm(b.pre_feedforward_layernorm, x))
            return x + self.norm(b.post_feedforward_layernorm, m)
        x = x + a
        return x + self.mlp(b.mlp, self.norm(b.post_attention_layernorm, x))

    def norm(self, m: Any, x: Tensor) -> Tensor:
        """g (x - mean) / std + b, or g x / rms; the denominator is a constant under ln."""
        layer = self.kind == "gpt2"
        h = x - x.mean(-1, keepdim=True) if layer else x
        eps = m.eps if hasattr(m, "eps") else m.variance_epsilon
        size = (h.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        y = h / (size.detach() if "ln" in self.rules else size)
        if layer:
            return y * m.weight + m.bias
        return y * (1 + m.weight if self.kind == "gemma2" else m.weight)

    def mlp(self, m: Any, x: Tensor) -> Tensor:
        """W_down f(x), or W_down (f(gate) * up) with half of each factor's gradient."""
        if self.kind == "gpt2":
            h = self.f(x @ m.c_fc.weight + m.c_fc.bias)
            return h @ m.c_proj.weight + m.c_proj.bias
        h = self.f(x @ m.gate_proj.weight.T) * (x @ m.up_proj.weight.T)
        h = h / 2 + (h / 2).detach() if "half" in self.rules else h
        return h @ m.down_proj.weight.T

    def f(self, x: Tensor) -> Tensor:
        """The activation, or x times the constant f(x) / x."""
        y = F.gelu(x, approximate="tanh") if self.kind in ("gpt2", "gemma2") else F.silu(x)
        return x * (y / x).detach() if "identity" in self.rules else y

    def attention(self, m: Any, x: Tensor, rope: Any, i: int) -> Tensor:
        """W_O sum_k softmax(q k^T) v; the pattern is a constant under attention."""
        c = self.config
        n, heads = x.shape[1], c.num_attention_heads
        if self.kind == "gpt2":
            q, k, v = (x @ m.c_attn.weight + m.c_attn.bias).chunk(3, -1)
        else:
            q, k, v = (x @ p.weight.T for p in (m.q_proj, m.k_proj, m.v_proj))
        if self.kind == "olmo2":
            q, k = self.norm(m.q_norm, q), self.norm(m.k_norm, k)
        d = q.shape[-1] // heads
        q, k, v = (t.unflatten(-1, (-1, d)) for t in (q, k, v))
        if self.kind == "qwen3":
            q, k = self.norm(m.q_norm, q), self.norm(m.k_norm, k)
        if rope is not None:
            q, k = (self.rotate(t, *rope) for t in (q, k))
        k, v = (t.repeat_interleave(heads // t.shape[2], 2) for t in (k, v))
        scale = c.query_pre_attn_scalar**-0.5 if self.kind == "gemma2" else d**-0.5
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale
        if self.kind == "gemma2":
            cap = c.attn_logit_softcapping
            scores = cap * torch.tanh(scores / cap)
        distance = torch.arange(n)[:, None] - torch.arange(n)
        seen = distance >= 0
        if self.kind == "gemma2" and c.layer_types[i] == "sliding_attention":
            seen &= distance < c.sliding_window
        pattern = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        if "attention" in self.rules:
            pattern = pattern.detach()
        z = torch.einsum("bhqk,bkhd->bqhd", pattern, v).flatten(2)
        if self.kind == "gpt2":
            return z @ m.c_proj.weight + m.c_proj.bias
        return z @ m.o_proj.weight.T

    @staticmethod
    def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotary positions on [prompts, positions, heads, d]."""
        a, b = x.chunk(2, -1)
        return x * cos[:, :, None] + torch.cat([-b, a], -1) * sin[:, :, None]
