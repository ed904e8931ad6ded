"""What of a circuit is drawn, and how it is said: components, and lines between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ._graphpicture import Dot, Line

if TYPE_CHECKING:
    from lwlab.attribution.circuits import Circuit, Graph
    from lwlab.attribution.circuits.graph import Node
    from lwlab.attribution.circuits.select import Floats

_ROLES = {"q": "query", "k": "key", "v": "value"}


class Layout(NamedTuple):
    """Dots, lines (the strongest first), names of the rows, and how many lines there would be."""

    dots: tuple[Dot, ...] = ()
    lines: tuple[Line, ...] = ()
    rows: dict[int, str] = {}  # noqa: RUF012 - never changed
    total: int = 0

    @property
    def names(self) -> list[str]:
        """The components in the picture."""
        return [d.name for d in self.dots]


def lay_out(circuit: Circuit, values: Floats | None, most: int) -> Layout:
    """Return the `most` strongest lines of a circuit and the components at their ends.

    All edges from one component into another (its query, key and value) are one line, as strong as
    the sum of their `values` [sender, receiver]. A key or value that several heads share leads to
    each of them that is part of the circuit.
    """
    graph, on = circuit.graph, set(circuit.nodes)
    found: dict[tuple[str, str], list[tuple[str, float | None]]] = {}
    for s, r in zip(*np.nonzero(circuit.edges)):
        weight = None if values is None else float(values[s, r])
        node = graph.receivers[r]
        for reader in _readers(graph, node):
            if reader in on:
                pair = graph.sender_names[s], reader
                found.setdefault(pair, []).append((_ROLES.get(node.kind, ""), weight))
    lines = []
    for (a, b), parts in found.items():
        known = [w for _, w in parts if w is not None]
        said = ", ".join(f"{p} {_number(w)}".strip() for p, w in parts)
        total = sum(known) if known else None
        lines.append(Line(a, b, total, f"{in_words(a)} to {in_words(b)}: {said}".rstrip(": ")))
    strongest = sorted(lines, key=lambda e: -abs(e.weight or 0))[:most]
    shown = {n for e in strongest for n in (e.sender, e.receiver)}
    dots = tuple(
        Dot(n, *_place(graph, n), n, _said(n, strongest)) for n in circuit.nodes if n in shown
    )
    return Layout(dots, tuple(strongest), {d.step: _row(d) for d in dots}, len(lines))


def in_words(name: str) -> str:
    """Return a component's name in words: "layer 1 head 0"."""
    if name in ("input", "logits"):
        return name
    layer, _, head = name[1:].partition(".h")
    return f"layer {layer} head {head}" if head else f"layer {layer} MLP"


def _readers(graph: Graph, node: Node) -> Iterator[str]:
    """Names of the components that a receiver's input goes into: a key feeds its whole group."""
    if node.kind in ("mlp", "logits"):
        yield node.name
    elif node.kind == "q":
        yield f"a{node.layer}.h{node.head}"
    else:
        first = node.head * graph.group
        yield from (f"a{node.layer}.h{h}" for h in range(first, first + graph.group))


def _place(graph: Graph, name: str) -> tuple[int, int]:
    """The half step at which a component runs, and its place there."""
    if name in ("input", "logits"):
        return (-1 if name == "input" else 2 * graph.n_layers), 0
    node = graph.senders[graph.sender(name)]
    return 2 * node.layer + (node.kind == "mlp"), node.head


def _row(dot: Dot) -> str:
    if dot.name in ("input", "logits"):
        return ""  # the component says it already
    layer, late = divmod(dot.step, 2)
    return f"layer {layer} {'MLP' if late else 'heads'}"


def _said(name: str, lines: list[Line]) -> str:
    into = [f"{in_words(e.sender)} {_number(e.weight)}" for e in lines if e.receiver == name]
    out = [f"{in_words(e.receiver)} {_number(e.weight)}" for e in lines if e.sender == name]
    reads = f" reads {_some(into)}" if into else ""
    feeds = f"{' and' if into else ''} feeds {_some(out)}" if out else ""
    return f"{in_words(name)}:{reads}{feeds}"


def _number(v: float | None) -> str:
    return "" if v is None else f"{v:+.3g}".replace("-", "−")


def _some(items: list[str]) -> str:
    more = f" and {len(items) - 6} more" if len(items) > 6 else ""
    return ", ".join(x.strip() for x in items[:6]) + more
