"""Both ends of every edge: what a sender puts into the stream, what a receiver takes out of it.

A sender's output is counted where it enters the stream: a head's share of attn_out is W_O z_h
(behind a sandwich norm, that norm's scale as it is in this run times W_O z_h), so the shares of a
layer's heads and a bias are attn_out. A receiver's gradient is counted at the stream it reads,
before the norm: J_norm^T W_q,h^T dm/dq_h for a query, the same for a key or value of a group,
J_norm^T dm/d(mlp_in) for an MLP, dm/dh at the last stream for the logits. J_norm is taken from the
graph of the traced run itself, so backward rules (`lw.rules`) act on it too. Summed over the
receivers after a sender these are the whole gradient at that sender's output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from lwlab.attribution.circuits.graph import Graph
from lwlab.attribution.pairs import Values
from lwlab.errors import MissingSite
from lwlab.models.model import Model
from lwlab.models.sites import Address
from lwlab.models.views import Heads
from lwlab.tracing._nnsight import lock
from lwlab.tracing.rules import norm_surrogate

Block = tuple[str, int]


class Wiring:
    """Senders and receivers of one model (or a ruled view of one) as sites and matrices."""

    def __init__(self, model: Model) -> None:
        """Raise as `Graph.of` does, MissingSite where receivers cannot be read.

        Also BadInput for a model that runs remotely: its weights have to be here.
        """
        self.model, self.graph = model, Graph.of(model)
        lock(model)
        model.anatomy.require(["attn_in", *(["mlp_in", "mlp_out"] if self.graph.mlps else [])])
        if model.anatomy.attn_post is not None:
            for i in range(model.n_layers):
                self._post(i)
        layers = range(model.n_layers)
        sites = ["head_out", *(["mlp_out"] if self.graph.mlps else [])]
        self.sends = [Address("resid_pre", 0), *(Address(s, i) for i in layers for s in sites)]
        self.blocks: list[Block] = []
        for i in layers:
            self.blocks += [("attn", i), ("mlp", i)] if self.graph.mlps else [("attn", i)]
        self.blocks.append(("logits", model.n_layers))

    # Senders

    def outputs(self, values: Values) -> torch.Tensor:
        """What each sender adds to the stream: [prompts, senders, positions, d_model], float32."""
        parts = [values[Address("resid_pre", 0)].float()[:, None]]
        for i in range(self.graph.n_layers):
            parts.append(self.shares(i, values[Address("head_out", i)]))
            if self.graph.mlps:
                parts.append(values[Address("mlp_out", i)].float()[:, None])
        return torch.cat(parts, 1)

    def delta(self, clean: Values, corrupt: Values) -> torch.Tensor:
        """How the outputs differ, clean minus corrupt: [prompts, senders, positions, d_model]."""
        if self.model.anatomy.attn_post is not None:
            return self.outputs(clean) - self.outputs(corrupt)
        return self.outputs({a: clean[a] - corrupt[a] for a in self.sends})

    def shares(self, layer: int, z: torch.Tensor) -> torch.Tensor:
        """What each head of a layer adds, from head_out: [prompts, heads, positions, d_model]."""
        a = self.model.anatomy
        module = self.model.module.get_submodule((a.o_proj or "").replace("{}", str(layer)))
        w = matrix(module)
        w = w.reshape(self.graph.n_heads, -1, w.shape[1])  # [head, d_head, d_model]
        with lock(self.model), torch.no_grad():
            share = torch.einsum("nphe,hed->nhpd", z.to(w.dtype), w)
            if a.attn_post is not None:
                share = share * self._scale(layer, module(z.flatten(2).to(w.dtype)))[:, None]
        return share.float()

    def _post(self, layer: int) -> nn.Module:
        path = (self.model.anatomy.attn_post or "").replace("{}", str(layer))
        module = self.model.module.get_submodule(path)
        if getattr(module, "bias", None) is not None or isinstance(module, nn.LayerNorm):
            raise MissingSite(
                f"{self.model.name}: the norm at {path} centres or shifts what the heads write, so "
                "no head has a share of it"
            )
        return module

    def _scale(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """w / rms(x): what an RMSNorm multiplies x by, which is how it multiplies each share."""
        path = (self.model.anatomy.attn_post or "").replace("{}", str(layer))
        form = norm_surrogate(self._post(layer), path)
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            return torch.autograd.grad(form(x).sum(), x)[0]

    # Receivers

    def after(self, sender: int) -> list[Block]:
        """The groups of receivers that can read a sender."""
        return [b for b in self.blocks if self.graph.exists[sender, self.columns(b).start]]

    def columns(self, block: Block) -> slice:
        """Where a group of receivers stands among all: one layer's q, k and v, an MLP, logits."""
        g = self.graph
        heads = g.n_heads + 2 * g.n_kv_heads
        start = block[1] * (heads + g.mlps) + (heads if block[0] == "mlp" else 0)
        return slice(start, start + (heads if block[0] == "attn" else 1))

    def takes(self, blocks: list[Block]) -> list[Address]:
        """Sites that a run with gradients has to read for these receivers."""
        out: list[Address] = []
        for block in blocks:
            stream, entry = self._entry(block)
            out += [stream, entry, *self._slots(block)]
        return list(dict.fromkeys(out))

    def pull(
        self, values: Values, metric: torch.Tensor, blocks: list[Block]
    ) -> Iterator[tuple[Block, torch.Tensor]]:
        """Gradients of sum(metric) at the streams that receivers read, group by group.

        `values` are what a run with gradients read at `takes(blocks)`. Yields (block, [receivers,
        prompts, positions, d_model]), last layers first, in float32.
        """
        ends = [a for b in blocks for a in (self._slots(b) or [self._entry(b)[1]])]
        found = torch.autograd.grad(metric.sum(), [values[a] for a in ends], retain_graph=True)
        slopes = dict(zip(ends, found))
        for block in reversed(blocks):
            stream, entry = self._entry(block)
            if block[0] == "attn":
                g = torch.cat([self._project(s, values, slopes) for s in self._kinds(block)])
            else:
                g = slopes[entry][None]
            if entry != stream:
                (g,) = torch.autograd.grad(
                    values[entry], values[stream], g, retain_graph=True, is_grads_batched=True
                )
            yield block, g.float()

    def _entry(self, block: Block) -> tuple[Address, Address]:
        """The stream that a group reads, and the site behind its norm."""
        kind, layer = block
        if kind == "logits":
            last = Address("resid_post", self.graph.n_layers - 1)
            return last, last
        if kind == "attn":
            return Address("resid_pre", layer), Address("attn_in", layer)
        stream = Address("resid_pre" if self.graph.parallel else "resid_mid", layer)
        return stream, Address("mlp_in", layer)

    def _kinds(self, block: Block) -> list[Address]:
        return [Address(s, block[1]) for s in "qkv"]

    def _slots(self, block: Block) -> list[Address]:
        """Queries, keys and values, which relevance does not pass where patterns are constants."""
        if block[0] != "attn":
            return []
        fixed = "attention" in self.model.rules
        return [a for a in self._kinds(block) if a.site == "v" or not fixed]

    def _project(self, at: Address, values: Values, slopes: Values) -> torch.Tensor:
        """Gradients at the heads of q, k or v, each brought back through its own projection."""
        tap = self.model.anatomy.taps[at.site]
        view, clip = tap.view, None
        if isinstance(view, Heads) and view.clip is not None:
            view, clip = replace(view, clip=None), view.clip
        w = view.read(matrix(self.model.module.get_submodule(tap.at(at.layer))))
        if at not in slopes:
            like = values[Address("attn_in", at.layer)]
            return like.new_zeros(w.shape[1], *like.shape)
        g = slopes[at]
        if clip is not None:
            g = g * (values[at].detach().abs() < clip)
        return torch.einsum("nphe,dhe->hnpd", g, w)


def matrix(module: nn.Module) -> torch.Tensor:
    """Return W of a linear module x -> x W + b, [features in, features out].

    The weight itself where the module is a Linear (or GPT-2's Conv1D, whose weight is W); any
    other module is asked with unit vectors.
    """
    weight = getattr(module, "weight", None)
    if type(module) is nn.Linear:
        return module.weight.detach().T
    if type(module).__name__ == "Conv1D" and isinstance(weight, torch.Tensor):
        return weight.detach()
    width = int(getattr(module, "in_features", 0))
    like = next(module.parameters())
    if width < 1:
        raise MissingSite(f"{type(module).__name__} does not say how many features it reads")
    with torch.no_grad():
        eye = torch.eye(width, device=like.device)
        out: torch.Tensor = module(eye) - module(torch.zeros_like(eye))
    return out
