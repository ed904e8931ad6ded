"""The graph of a decoder: which component's output enters which component's input.

Every component adds to the stream, and every later one reads the sum. An *edge* is one summand in
one reader's input: sender -> receiver. Senders are the stream that enters the first block and the
outputs of heads and MLPs; receivers are the inputs of heads' queries, keys and values, of MLPs and
of the logits, all of them streams *before* the norm. With grouped queries several heads share one
key and value, so keys and values are receivers of their group, and an edge into them is one edge.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lwlab.errors import BadInput, MissingSite, UnknownName, suggest
from lwlab.models.model import Model

Kind = Literal["input", "head", "q", "k", "v", "mlp", "logits"]
Bools = NDArray[np.bool_]


class Node(NamedTuple):
    """One sender or receiver: its name, kind, layer (-1 for input, n_layers for logits), head.

    `head` is the query head of "head" and "q", the group of "k" and "v", and -1 elsewhere.
    """

    name: str
    kind: Kind
    layer: int
    head: int


@dataclass(frozen=True)
class Graph:
    """Senders and receivers of one architecture, in the order of the forward pass.

    Senders: "input", then for each layer l "a{l}.h{h}" and "m{l}". Receivers: for each layer
    "a{l}.h{h}<q>", "a{l}.kv{g}<k>", "a{l}.kv{g}<v>" and "m{l}", then "logits". Without grouping g
    is the head. In `parallel` blocks the MLP does not read the heads of its own layer; `mlps` is
    False for a model of attention alone.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: bool = False
    mlps: bool = True

    def __post_init__(self) -> None:
        """Raise BadInput for sizes that make no model."""
        if min(self.n_layers, self.n_heads, self.n_kv_heads) < 1 or self.n_heads % self.n_kv_heads:
            raise BadInput(
                f"no graph of {self.n_layers} layers with {self.n_heads} heads in "
                f"{self.n_kv_heads} groups: numbers must be positive, and groups of equal size"
            )

    @classmethod
    def of(cls, model: Model) -> Graph:
        """Return the graph of a model.

        Raises BadInput for a model that is no decoder with a plain sum as its stream (encoders,
        T5, post-norm blocks, anatomies found by structure), MissingSite for one without heads.
        """
        a = model.anatomy
        if model.kind != "decoder" or not a.causal or "logits" not in a.taps:
            raise BadInput(
                f"{model.name} is no causal language model ({model.kind}), so it has no graph of "
                "edges; take a decoder such as smollm2-135m or gpt2"
            )
        if a.stream_norms:
            raise BadInput(
                f"{model.name} normalises the stream itself after each sublayer, so its readers do "
                "not read a sum of components and there are no edges to score"
            )
        sites = ["q", "k", "v", "head_out", "attn_out", "resid_pre", "resid_post"]
        a.require(sites)
        if a.n_heads is None or a.n_kv_heads is None or a.o_proj is None:
            raise MissingSite(
                f"{model.name}: its anatomy does not say how many heads it has or what projects "
                "them (n_heads, n_kv_heads, o_proj), so there are no edges between heads"
            )
        if not set(a.writes) <= {"attn_out", "mlp_out"} or "attn_out" not in a.writes:
            raise BadInput(f"{model.name}: no edges for blocks that write {a.writes}")
        mlps = "mlp_out" in a.writes
        if mlps and not a.parallel:
            a.require("resid_mid")
        return cls(a.n_layers, a.n_heads, a.n_kv_heads, a.parallel, mlps)

    @property
    def group(self) -> int:
        """Query heads that share one key and value."""
        return self.n_heads // self.n_kv_heads

    @cached_property
    def senders(self) -> tuple[Node, ...]:
        """All senders, in the order of the forward pass."""
        out = [Node("input", "input", -1, -1)]
        for i in range(self.n_layers):
            out += [Node(f"a{i}.h{h}", "head", i, h) for h in range(self.n_heads)]
            out += [Node(f"m{i}", "mlp", i, -1)] if self.mlps else []
        return tuple(out)

    @cached_property
    def receivers(self) -> tuple[Node, ...]:
        """All receivers, in the order of the forward pass."""
        out: list[Node] = []
        for i in range(self.n_layers):
            out += [Node(f"a{i}.h{h}<q>", "q", i, h) for h in range(self.n_heads)]
            out += [Node(f"a{i}.kv{g}<k>", "k", i, g) for g in range(self.n_kv_heads)]
            out += [Node(f"a{i}.kv{g}<v>", "v", i, g) for g in range(self.n_kv_heads)]
            out += [Node(f"m{i}", "mlp", i, -1)] if self.mlps else []
        return (*out, Node("logits", "logits", self.n_layers, -1))

    @cached_property
    def sender_names(self) -> tuple[str, ...]:
        """Names of the senders."""
        return tuple(n.name for n in self.senders)

    @cached_property
    def receiver_names(self) -> tuple[str, ...]:
        """Names of the receivers."""
        return tuple(n.name for n in self.receivers)

    @cached_property
    def exists(self) -> Bools:
        """Which edges there are: [sender, receiver]."""
        ours = np.array([self._time(n, sends=True) for n in self.senders])
        theirs = np.array([self._time(n, sends=False) for n in self.receivers])
        return np.asarray(ours[:, None] < theirs[None, :])

    @cached_property
    def feeds(self) -> Bools:
        """Which sender's own output a receiver's input goes into: [receiver, sender].

        A query feeds its head, a key or value every head of its group, an MLP itself; the logits
        feed nobody, and nothing feeds the input.
        """
        out = np.zeros((len(self.receivers), len(self.senders)), bool)
        for i, r in enumerate(self.receivers):
            for j, s in enumerate(self.senders):
                if r.layer == s.layer:
                    same = r.head == (s.head // self.group if r.kind in "kv" else s.head)
                    out[i, j] = same and (r.kind == "mlp") == (s.kind == "mlp")
        return out

    @property
    def n_edges(self) -> int:
        """How many edges there are."""
        return int(self.exists.sum())

    def edges(self, chosen: Bools | None = None) -> Iterator[tuple[str, str]]:
        """Names (sender, receiver) of all edges, or of the `chosen` ones [sender, receiver]."""
        table = self.exists if chosen is None else self.exists & chosen
        for i, j in zip(*np.nonzero(table)):
            yield self.sender_names[i], self.receiver_names[j]

    def mask(self, edges: Iterable[tuple[str, str] | str]) -> Bools:
        """Return the table [sender, receiver] that is True at the edges named.

        An edge is ("a0.h1", "m3") or "a0.h1->m3". Raises UnknownName for a node that is not there,
        BadInput for two nodes without an edge between them.
        """
        out = np.zeros(self.exists.shape, bool)
        for edge in edges:
            pair = edge.split("->") if isinstance(edge, str) else list(edge)
            if len(pair) != 2:
                raise BadInput(f"edge {edge!r}: write it as 'a0.h1->m3' or ('a0.h1', 'm3')")
            i, j = self.sender(pair[0].strip()), self.receiver(pair[1].strip())
            if not self.exists[i, j]:
                raise BadInput(f"no edge {pair[0]} -> {pair[1]}: the receiver runs first")
            out[i, j] = True
        return out

    def sender(self, name: str) -> int:
        """Return the row of a sender; raise UnknownName where there is none of that name."""
        return self._index(name, self.sender_names, "sender")

    def receiver(self, name: str) -> int:
        """Return the column of a receiver; raise UnknownName where there is none of that name."""
        return self._index(name, self.receiver_names, "receiver")

    def coords(self) -> dict[str, Any]:
        """Coordinates for results over (sender, receiver): names, kinds and layers."""
        out: dict[str, Any] = {}
        for dim, nodes in (("sender", self.senders), ("receiver", self.receivers)):
            out[dim] = [n.name for n in nodes]
            out[f"{dim}_kind"] = ((dim,), [n.kind for n in nodes])
            out[f"{dim}_layer"] = ((dim,), [n.layer for n in nodes])
        return out

    def _time(self, node: Node, sends: bool) -> int:
        # Half steps of the forward pass: a block's attention, then its MLP.
        if node.kind == "input":
            return -1
        late = node.kind == "mlp" and (sends or not self.parallel)
        # What a parallel block's two parts write is there for the next block, for neither of them.
        return 2 * node.layer + int(late)

    def _index(self, name: str, names: tuple[str, ...], what: str) -> int:
        if name not in names:
            raise UnknownName(f"no {what} {name!r}{suggest(name, names)}")
        return names.index(name)
