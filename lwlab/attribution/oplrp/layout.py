"""A walked graph as two tables, for drawing it: nodes in rows by depth, and the lines between."""

from __future__ import annotations

import pandas as pd

from lwlab.attribution.oplrp.graph import Graph, Node, op
from lwlab.attribution.oplrp.walk import Relevance


def layout(walk: Relevance) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Nodes (x, y, operation, relevance, promised, live, step) and edges (x, y, x2, y2, live).

    y is the longest way from the output; nodes of one depth stand side by side, below their users.
    `promised` says for which nodes an operand had to be rebuilt, `path` how; `step` is the order of
    the walk.
    """
    graph = walk.graph
    depth: dict[Node, int] = {graph.root[0]: 0}
    for node in graph.nodes:
        for below, _ in node.next_functions:
            if below is not None:
                depth[below] = max(depth.get(below, 0), depth[node] + 1)
    x = _across(graph, depth)
    ways: dict[Node, list[str]] = {}
    for promise in walk.promises:
        ways.setdefault(promise.node, []).append(str(promise))
    steps = {n: i for i, n in enumerate(walk.nodes)}
    nodes = pd.DataFrame(
        {
            "x": [x[n] for n in graph.nodes],
            "y": [depth[n] for n in graph.nodes],
            "operation": [op(n).removesuffix("Backward0") for n in graph.nodes],
            "relevance": [walk.nodes.get(n, float("nan")) for n in graph.nodes],
            "promised": [n in ways for n in graph.nodes],
            "path": ["; ".join(ways.get(n, [])) for n in graph.nodes],
            "live": [n in graph.live for n in graph.nodes],
            "step": [steps.get(n, -1) for n in graph.nodes],
        }
    )
    lines = [
        (x[n], depth[n], x[b], depth[b], b in graph.live)
        for n in graph.nodes
        for b, _ in n.next_functions
        if b is not None
    ]
    return nodes, pd.DataFrame(lines, columns=["x", "y", "x2", "y2", "live"])


def _across(graph: Graph, depth: dict[Node, int]) -> dict[Node, float]:
    """Each node below the middle of its users, operands spread out, at least 1 apart."""
    rows: dict[int, list[Node]] = {}
    for node in graph.nodes:
        rows.setdefault(depth[node], []).append(node)
    x: dict[Node, float] = {}
    for y in sorted(rows):
        wish = {}
        for node in rows[y]:
            ways = [
                x[user] + k - (len(user.next_functions) - 1) / 2 for user, k in graph.users[node]
            ]
            wish[node] = sum(ways) / len(ways) if ways else 0.0
        row = sorted(rows[y], key=lambda n: wish[n])
        last = float("-inf")
        for node in row:
            x[node] = last = max(wish[node], last + 1)
    return x
