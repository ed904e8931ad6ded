"""Decoders with a copy of the stream for every receiver: edges by plain autograd, one at a time.

Norms, MLPs and activations are the equations of `decoders_by_hand` (with the backward rules in
them); heads are written out one by one. Nothing here comes from lwlab.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from decoders_by_hand import ByHand
from torch import Tensor

Adds = Mapping[str, Tensor]


class Wired(ByHand):
    """One prompt through gpt2 or llama, in float64; `add` goes onto what single receivers read."""

    def __init__(self, module: Any, rules: tuple[str, ...] = ()) -> None:
        super().__init__(copy.deepcopy(module).double(), frozenset(rules))
        self.kv = getattr(self.config, "num_key_value_heads", self.config.num_attention_heads)
        self.heads = self.config.num_attention_heads

    def wired(
        self, ids: Tensor, add: Adds, hold: Adds | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Senders' outputs [positions, d_model], and the last logits; `hold` replaces outputs."""
        base = self.model.transformer if self.kind == "gpt2" else self.model.model
        n, hold = len(ids), hold or {}
        if self.kind == "gpt2":
            x, blocks = base.wte.weight[ids] + base.wpe.weight[:n], base.h
        else:
            x, blocks = base.embed_tokens.weight[ids], base.layers
        rope = None if self.kind == "gpt2" else base.rotary_emb(x, torch.arange(n)[None])
        sent = {"input": hold.get("input", x)}
        stream = sent["input"]
        for i, b in enumerate(blocks):
            attn, norms = (
                (b.attn, (b.ln_1, b.ln_2))
                if self.kind == "gpt2"
                else (b.self_attn, (b.input_layernorm, b.post_attention_layernorm))
            )

            def reads(name: str, norm: Any = norms[0], s: Tensor = stream) -> Tensor:
                return self.norm(norm, s + add[name] if name in add else s)

            for h, out in enumerate(self.one_by_one(attn, reads, i, rope)):
                name = f"a{i}.h{h}"
                sent[name] = hold.get(name, out)
                stream = stream + sent[name]
            if self.kind == "gpt2":
                stream = stream + attn.c_proj.bias  # nobody sends it
            name = f"m{i}"
            read = stream + add[name] if name in add else stream
            sent[name] = hold.get(name, self.mlp(b.mlp, self.norm(norms[1], read)))
            stream = stream + sent[name]
        final = base.ln_f if self.kind == "gpt2" else base.norm
        stream = stream + add["logits"] if "logits" in add else stream
        return sent, (self.norm(final, stream) @ self.model.lm_head.weight.T)[-1]

    def one_by_one(self, m: Any, reads: Callable[[str], Tensor], i: int, rope: Any) -> list[Tensor]:
        """Every head's own W_O z, each with a query of its own and its group's key and value."""
        out, group = [], self.heads // self.kv
        d = self.config.hidden_size // self.heads
        parts: dict[str, list[tuple[Tensor, Tensor | float]]] = {}
        if self.kind == "gpt2":
            for kind, w, bias in zip("qkv", m.c_attn.weight.chunk(3, 1), m.c_attn.bias.chunk(3)):
                parts[kind] = list(zip(w.split(d, 1), bias.split(d)))
            o = m.c_proj.weight
        else:
            for kind, p in zip("qkv", (m.q_proj, m.k_proj, m.v_proj)):
                parts[kind] = [(w.T, 0.0) for w in p.weight.split(d)]
            o = m.o_proj.weight.T

        def project(kind: str, name: str, j: int) -> Tensor:
            w, bias = parts[kind][j]
            y = reads(name) @ w + bias
            if rope is None or kind == "v":
                return y
            return self.rotate(y[None, :, None], *rope)[0, :, 0]

        keys = [project("k", f"a{i}.kv{g}<k>", g) for g in range(self.kv)]
        values = [project("v", f"a{i}.kv{g}<v>", g) for g in range(self.kv)]
        for h in range(self.heads):
            q = project("q", f"a{i}.h{h}<q>", h)
            scores = q @ keys[h // group].T * d**-0.5
            n = len(scores)
            mask = torch.ones(n, n, dtype=torch.bool).tril()
            pattern = scores.masked_fill(~mask, float("-inf")).softmax(-1)
            pattern = pattern.detach() if "attention" in self.rules else pattern
            out.append(pattern @ values[h // group] @ o[h * d : (h + 1) * d])
        return out

    def slopes(
        self, ids: Tensor, names: list[str], metric: Callable[[Tensor], Tensor], hold: Adds
    ) -> dict[str, Tensor]:
        """The metric's gradient at what each receiver reads, through that receiver alone."""
        sent = self.wired(ids, {}, hold)[0]
        knobs = {r: torch.zeros_like(sent["input"], requires_grad=True) for r in names}
        m = metric(self.wired(ids, knobs, hold)[1])
        found = torch.autograd.grad(m, list(knobs.values()), allow_unused=True)
        zero = torch.zeros_like(sent["input"])
        return {r: zero if g is None else g for r, g in zip(names, found)}

    def scores(
        self,
        clean: Tensor,
        corrupt: Tensor,
        graph: Any,
        metric: Callable[[Tensor], Tensor],
        ways: list[Adds] | None = None,
        senders: list[str] | None = None,
    ) -> Tensor:
        """<clean - corrupt, mean slope> for each edge; one way is one run with outputs held."""
        with torch.no_grad():
            ours, theirs = self.wired(clean, {})[0], self.wired(corrupt, {})[0]
        ways = ways or [{}]
        names = list(graph.receiver_names)
        runs = [self.slopes(corrupt, names, metric, hold) for hold in ways]
        out = torch.zeros(graph.exists.shape, dtype=torch.float64)
        for s, sender in enumerate(graph.sender_names):
            if senders is not None and sender not in senders:
                continue
            for r, receiver in enumerate(names):
                if graph.exists[s, r]:
                    slope = sum(run[receiver] for run in runs) / len(runs)
                    out[s, r] = ((ours[sender] - theirs[sender]) * slope).sum()
        return out

    def effect(
        self,
        clean: Tensor,
        corrupt: Tensor,
        edge: tuple[str, str],
        metric: Callable[[Tensor], Tensor],
    ) -> float:
        """What the metric gains when one edge carries its clean value, really run."""
        with torch.no_grad():
            ours, theirs = self.wired(clean, {})[0], self.wired(corrupt, {})
            add = {edge[1]: ours[edge[0]] - theirs[0][edge[0]]}
            return float(metric(self.wired(corrupt, add)[1]) - metric(theirs[1]))
