"""Programs over named variables, which `lwlab.models.compiled` turns into a transformer's weights.

A program says which variable every head and MLP reads and writes; each variable has columns of its
own in the residual stream. What is connected to what is then known by construction, which follows
the idea of RASP (Weiss, Goldberg & Yahav 2021, arXiv:2106.06981) and of its compiler Tracr (Lindner
et al. 2023, arXiv:2301.05062): categorical variables are one-hot, `select` is a head's QK matrix,
`aggregate` its OV matrix, a function of a variable an MLP. The code is our own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

Cut = Literal["patch", "zero"]


class Wire(NamedTuple):
    """One sender's output read by one receiver, for the sake of one variable.

    `varies` says whether the variable depends on the tokens of the prompt at all.
    """

    sender: str
    receiver: str
    variable: str
    varies: bool


class Part(NamedTuple):
    """One term of a head's scores: score(i, j) += (query_i Q) . (key_j K), Q and K integers."""

    query: str
    q: Tensor
    key: str
    k: Tensor


@dataclass(frozen=True)
class Head:
    """One head: scores from `parts` (none: uniform attention), `value` V -> `out`."""

    parts: Sequence[Part]
    value: str
    out: str
    v: Tensor | None = None


class Neuron(NamedTuple):
    """One ReLU neuron: reads {(variable, index): weight} and a bias, writes likewise."""

    reads: Mapping[tuple[str, int], int]
    bias: int
    writes: Mapping[tuple[str, int], int]


@dataclass
class Program:
    """What to compile. Variables "token", "position" and "one" are written by the input.

    `heads[layer][h]` and `neurons[layer]` say what is computed; an entry that is None does
    nothing. Heads of one group of `n_heads / n_kv_heads` must read the same keys and values.
    `output` maps a variable to its integer matrix [size, vocabulary].
    """

    vocabulary: int
    positions: int
    variables: dict[str, int]
    heads: Sequence[Sequence[Head | None]]
    neurons: Sequence[Sequence[Neuron]]
    output: Mapping[str, Tensor]
    n_kv_heads: int
    slots: dict[str, slice] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Lay the variables side by side in the stream."""
        sizes = {"token": self.vocabulary, "position": self.positions, "one": 1, **self.variables}
        at = 0
        for name, size in sizes.items():
            self.slots[name] = slice(at, at + size)
            at += size
        self.width = at

    def wires(self) -> list[Wire]:
        """Every connection of the program, in the order of the forward pass."""
        found: list[Wire] = []
        writers: dict[str, list[str]] = {v: ["input"] for v in ("token", "position", "one")}
        varies = {"token": True, "position": False, "one": False}
        group = len(self.heads[0]) // self.n_kv_heads

        def read(receiver: str, variable: str) -> bool:
            found.extend(
                Wire(s, receiver, variable, varies[variable]) for s in writers.get(variable, ())
            )
            return varies.get(variable, False)

        def write(sender: str, variable: str, moves: bool) -> None:
            writers.setdefault(variable, []).append(sender)
            varies[variable] = varies.get(variable, False) or moves

        for layer, heads in enumerate(self.heads):
            written = []
            for h, head in enumerate(heads):
                if head is None:
                    continue
                at, g = f"a{layer}", h // group
                moves = [read(f"{at}.h{h}<q>", p.query) for p in head.parts]
                moves += [read(f"{at}.kv{g}<k>", p.key) for p in head.parts]
                moves += [read(f"{at}.kv{g}<v>", head.value)]
                written.append((f"{at}.h{h}", head.out, any(moves)))
            for sender, out, moved in written:
                write(sender, out, moved)
            inputs = {v for n in self.neurons[layer] for v, _ in n.reads}
            moves = [read(f"m{layer}", v) for v in sorted(inputs)]
            for out in sorted({v for n in self.neurons[layer] for v, _ in n.writes}):
                write(f"m{layer}", out, any(moves))
        for variable in self.output:
            read("logits", variable)
        return list(dict.fromkeys(found))

    def circuit(self, cut: Cut = "patch") -> list[tuple[str, str]]:
        """Edges (sender, receiver) that lead to the logits, in the order of the forward pass.

        A cut edge carries another prompt's value ("patch"), which changes nothing where a variable
        is the same in all prompts (positions), or nothing at all ("zero").
        """
        wires, live = self.wires(), {"logits"}
        kept: list[tuple[str, str]] = []
        for w in reversed(wires):
            if w.receiver in live:
                live |= self._readers(w.sender)
                if w.varies or cut == "zero":
                    kept.append((w.sender, w.receiver))
        return list(dict.fromkeys(reversed(kept)))

    def _readers(self, sender: str) -> set[str]:
        """Receivers that make up a sender's output: a head's query, key and value; an MLP."""
        if not sender.startswith("a"):
            return {sender}
        layer, h = sender[1:].split(".h")
        g = int(h) * self.n_kv_heads // len(self.heads[0])
        return {f"{sender}<q>", f"a{layer}.kv{g}<k>", f"a{layer}.kv{g}<v>"}
