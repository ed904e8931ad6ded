"""Which edges to keep: by their scores, without loose ends, and at random for comparison.

An edge is *dangling* when nothing reaches its sender or nothing of its receiver reaches the logits
by kept edges. Where cut edges carry the corrupt value, dangling edges change nothing at all: a
sender whose inputs are all cut computes its corrupt output anyway.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lwlab.attribution.circuits.graph import Bools, Graph
from lwlab.errors import BadInput, UnknownName, suggest

Floats = NDArray[np.floating[Any]]
Select = Callable[[Graph, Floats, int], Bools]


def trim(graph: Graph, edges: Bools) -> Bools:
    """Return `edges` [sender, receiver] without the dangling ones."""
    feeds = graph.feeds
    kept: Bools = np.asarray(graph.exists & edges)
    while True:
        fed = (feeds & np.any(kept, 0)[:, None]).any(0)  # senders that something reaches
        heard = (feeds & np.any(kept, 1)[None, :]).any(1)  # receivers that something reads
        fed[graph.sender("input")] = heard[graph.receiver("logits")] = True
        left: Bools = np.asarray(kept & fed[:, None] & heard[None, :])
        if np.array_equal(left, kept):
            return left
        kept = left


def threshold(graph: Graph, values: Floats, n: int) -> Bools:
    """The n edges with the largest values, less those that then dangle (MIB's "top-n")."""
    out: Bools = np.zeros(graph.exists.shape, bool)
    order = np.argsort(np.where(graph.exists, -values, np.inf), axis=None, kind="stable")
    out.flat[order[:n]] = True
    return trim(graph, out)


def greedy(graph: Graph, values: Floats, n: int) -> Bools:
    """Grow n edges from the logits downwards, always the largest next to what is there.

    An edge may join when its receiver's component has an edge to something that is in; every edge
    so leads to the logits, and those that nothing reaches are dropped at the end (Hanna, Pezzelle
    & Belinkov 2024, arXiv:2403.17806, section 3).
    """
    out: Bools = np.zeros(graph.exists.shape, bool)
    heap: list[tuple[float, int, int]] = []
    open_: set[int] = set()

    def admit(receiver: int) -> None:
        if receiver not in open_:
            open_.add(receiver)
            for sender in np.flatnonzero(graph.exists[:, receiver]):
                heapq.heappush(heap, (-float(values[sender, receiver]), int(sender), receiver))

    admit(graph.receiver("logits"))
    taken = 0
    while heap and taken < n:
        _, sender, receiver = heapq.heappop(heap)
        out[sender, receiver] = True
        taken += 1
        for feeding in np.flatnonzero(graph.feeds[:, sender]):
            admit(int(feeding))
    return trim(graph, out)


SELECT: dict[str, Select] = {"greedy": greedy, "threshold": threshold}


def selector(name: str) -> Select:
    """Return a way to select by name; raise UnknownName for another one."""
    if name not in SELECT:
        raise UnknownName(f"no selection {name!r}{suggest(name, SELECT)}")
    return SELECT[name]


def random_edges(graph: Graph, n: int, seed: int | np.random.Generator = 0) -> Bools:
    """Exactly n edges at random, none dangling: random ways from the logits down to the input.

    A way takes a random edge into the logits, then one into a random query, key or value of its
    sender's (or into the MLP), and so on. Raises BadInput for more edges than there are.
    """
    if not 0 <= n <= graph.n_edges:
        raise BadInput(f"n={n} random edges: the graph has {graph.n_edges}")
    rng = np.random.default_rng(seed)
    if 2 * n > graph.n_edges:  # nearly all: ways would take long to find the last ones
        return _thinned(graph, n, rng)
    while True:
        found = _grown(graph, n, rng)
        if found is not None:
            return found


def _grown(graph: Graph, n: int, rng: np.random.Generator, tries: int = 500) -> Bools | None:
    """Add random ways until there are n edges; None where the last ones do not come out even.

    Beside "input->logits" alone, say, no single edge can be added: then begin again.
    """
    out: Bools = np.zeros(graph.exists.shape, bool)
    # Senders stand in the order of the forward pass: a receiver reads the first so many.
    into = [int(k) for k in graph.exists.sum(0)]
    behind = [[int(r) for r in np.flatnonzero(column)] for column in graph.feeds.T]
    left, failed = n, 0
    while left:
        receiver = graph.receiver("logits")
        new: list[tuple[int, int]] = []
        while True:
            sender = int(rng.random() * into[receiver])
            if not out[sender, receiver]:
                new.append((sender, receiver))
            if not behind[sender]:
                break
            receiver = behind[sender][int(rng.random() * len(behind[sender]))]
        if not new or len(new) > left:
            failed += 1
            if failed > tries:
                return None
            continue
        for edge in new:
            out[edge] = True
        left, failed = left - len(new), 0
    return out


def _thinned(graph: Graph, n: int, rng: np.random.Generator) -> Bools:
    """Take random edges away from the whole graph, never one whose loss leaves others dangling."""
    kept: Bools = graph.exists.copy()
    into, outof = kept.sum(0), kept.sum(1)
    for i in rng.permutation(np.flatnonzero(kept)):
        if kept.sum() == n:
            break
        s, r = np.unravel_index(i, kept.shape)
        if into[r] > 1 and outof[s] > 1:
            kept[s, r] = False
            into[r] -= 1
            outof[s] -= 1
    return np.asarray(kept)
