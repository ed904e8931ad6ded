"""A small compiler: each statement of a program becomes integer matrices of a transformer.

A variable's columns are one-hot or a number; `select` is a head's QK matrix, `aggregate` its OV
matrix, a function of variables a ReLU MLP (see `lwlab.models.programs`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lwlab.errors import BadInput
from lwlab.models.anatomy import Anatomy, Tap
from lwlab.models.programs import Head, Program
from lwlab.models.views import Heads


class _Attention(nn.Module):
    """softmax(q k^T) v with a causal mask, no scale; heads of a group share keys and values."""

    def __init__(self, width: int, n_heads: int, n_kv_heads: int, d_head: int) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.d_head = n_heads, n_kv_heads, d_head
        self.q_proj = nn.Linear(width, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(width, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(width, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[prompts, positions, width] -> the same."""
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, self.n_heads, self.d_head).transpose(1, 2)
        k, v = (
            p(x).view(b, t, self.n_kv_heads, self.d_head).transpose(1, 2)
            .repeat_interleave(self.n_heads // self.n_kv_heads, 1)
            for p in (self.k_proj, self.v_proj)
        )  # fmt: skip
        ahead = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
        scores = (q @ k.transpose(-1, -2)).masked_fill(ahead, float("-inf"))
        z = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, -1)
        out: Tensor = self.o_proj(z)
        return out


class _Perceptron(nn.Module):
    def __init__(self, width: int, neurons: int) -> None:
        super().__init__()
        self.up_proj, self.act = nn.Linear(width, neurons), nn.ReLU()
        self.down_proj = nn.Linear(neurons, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """W_down relu(W_up x + b)."""
        out: Tensor = self.down_proj(self.act(self.up_proj(x)))
        return out


class _Block(nn.Module):
    def __init__(self, attn: _Attention, mlp: _Perceptron) -> None:
        super().__init__()
        self.attn, self.between, self.mlp = attn, nn.Identity(), mlp

    def forward(self, x: Tensor) -> Tensor:
        """Add attention, then the MLP; there are no norms."""
        x = x + self.attn(x)
        y: Tensor = x + self.mlp(self.between(x))
        return y


class Compiled(nn.Module):
    """The transformer of a program: token and position embeddings, blocks, unembedding."""

    def __init__(self, program: Program) -> None:
        """Fill the weights; raise BadInput where heads of a group ask for different keys."""
        super().__init__()
        p, n_heads = program, len(program.heads[0])
        self.program, self.limit = program, program.positions
        heads = [h for layer in p.heads for h in layer if h is not None]
        d_head = max(max(_rank(h), p.slots[h.value].stop - p.slots[h.value].start) for h in heads)
        self.embed = nn.Embedding(p.vocabulary, p.width)
        self.place = nn.Embedding(p.positions, p.width)
        self.blocks = nn.ModuleList(
            _Block(
                _Attention(p.width, n_heads, p.n_kv_heads, d_head),
                _Perceptron(p.width, max(1, max(map(len, p.neurons)))),
            )
            for _ in p.heads
        )
        self.final_norm = nn.Identity()
        self.unembed = nn.Linear(p.width, p.vocabulary, bias=False)
        with torch.no_grad():
            for w in self.parameters():
                w.zero_()
            self._fill(p)
        self.requires_grad_(False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Ids [prompts, positions] -> logits [prompts, positions, tokens]."""
        n = input_ids.shape[1]
        if n > self.limit:
            raise BadInput(f"{n} tokens; this model was compiled for at most {self.limit}")
        x = self.embed(input_ids) + self.place(torch.arange(n, device=input_ids.device))
        for block in self.blocks:
            x = block(x)
        z: Tensor = self.unembed(self.final_norm(x))
        return z

    def anatomy(self, name: str) -> Anatomy:
        """Where the sites are."""
        b, first = "blocks.{}", self.blocks[0]
        assert isinstance(first, _Block)
        many, few = Heads(first.attn.n_heads), Heads(first.attn.n_kv_heads)
        taps = {
            "embed": Tap("embed", "output"),
            "resid_pre": Tap(b, "input"),
            "attn_in": Tap(f"{b}.attn", "input"),
            "q": Tap(f"{b}.attn.q_proj", "output", many),
            "k": Tap(f"{b}.attn.k_proj", "output", few),
            "v": Tap(f"{b}.attn.v_proj", "output", few),
            "head_out": Tap(f"{b}.attn.o_proj", "input", many),
            "attn_out": Tap(f"{b}.attn", "output"),
            "resid_mid": Tap(f"{b}.between", "input", shared=True),
            "mlp_in": Tap(f"{b}.mlp", "input"),
            "mlp_up": Tap(f"{b}.mlp.up_proj", "output"),
            "neurons": Tap(f"{b}.mlp.down_proj", "input"),
            "mlp_out": Tap(f"{b}.mlp", "output"),
            "resid_post": Tap(b, "output"),
            "final_norm": Tap("final_norm", "output"),
            "logits": Tap("", "output"),
        }
        return Anatomy(
            name=name, kind="decoder", blocks="blocks", n_layers=len(self.blocks),
            d_model=self.program.width, taps=taps, writes=("attn_out", "mlp_out"),
            o_proj=f"{b}.attn.o_proj", final_norm="final_norm", unembed="unembed",
            act=f"{b}.mlp.act", down=f"{b}.mlp.down_proj", n_heads=first.attn.n_heads,
            n_kv_heads=first.attn.n_kv_heads, d_head=first.attn.d_head,
            d_mlp=first.mlp.up_proj.out_features, d_vocab=self.program.vocabulary,
            missing={"attn_pattern": "its attention is not transformers' own",
                     "mlp_gate": "its MLP has no gate"},
        )  # fmt: skip

    def _fill(self, p: Program) -> None:
        self.embed.weight[:, p.slots["token"]] = torch.eye(p.vocabulary)
        self.place.weight[:, p.slots["position"]] = torch.eye(p.positions)
        self.place.weight[:, p.slots["one"]] = 1
        for block, heads, neurons in zip(self.blocks, p.heads, p.neurons):
            assert isinstance(block, _Block)
            for h, head in enumerate(heads):
                if head is not None:
                    _head(block.attn, p, h, head)
            for i, neuron in enumerate(neurons):
                for (variable, j), w in neuron.reads.items():
                    block.mlp.up_proj.weight[i, p.slots[variable].start + j] += w
                block.mlp.up_proj.bias[i] = neuron.bias
                for (variable, j), w in neuron.writes.items():
                    block.mlp.down_proj.weight[p.slots[variable].start + j, i] += w
        for variable, table in p.output.items():
            self.unembed.weight[:, p.slots[variable]] += table.T.float()


def _rank(head: Head) -> int:
    return sum(part.q.shape[1] for part in head.parts)


def _head(attn: _Attention, p: Program, h: int, head: Head) -> None:
    d, g = attn.d_head, h * attn.n_kv_heads // attn.n_heads
    k, v = torch.zeros(2, d, p.width)
    at = 0
    for part in head.parts:
        rows = slice(at, at + part.q.shape[1])
        attn.q_proj.weight[h * d : (h + 1) * d][rows, p.slots[part.query]] += part.q.T.float()
        k[rows, p.slots[part.key]] += part.k.T.float()
        at = rows.stop
    value = p.slots[head.value]
    size = value.stop - value.start
    v[:size, value] = torch.eye(size) if head.v is None else head.v.T.float()
    for table, new, what in ((attn.k_proj, k, "keys"), (attn.v_proj, v, "values")):
        here = table.weight[g * d : (g + 1) * d]
        shared = what == "keys" and not head.parts  # uniform attention reads no keys
        if bool(here.any()) and not shared and not torch.equal(here, new):
            raise BadInput(f"head {h}: heads of group {g} share {what}, and it asks for others")
        if not shared:
            here.copy_(new)
    out = p.slots[head.out]
    if out.stop - out.start != size:
        raise BadInput(f"head {h}: {head.value!r} has {size} columns and {head.out!r} another size")
    attn.o_proj.weight[out, h * d : h * d + size] = torch.eye(size)
