"""Exact pruning: edges are dropped when really cutting them changes too little.

After ACDC (Conmy et al. 2023, arXiv:2304.14997): from the logits downwards, one sublayer's inputs
after the other, an edge goes when the metric moves by less than tau without it. Here the metric is
the task's own, as a share of its whole effect, and runs that do not wait for each other are made
together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lwlab.attribution.circuits.cut import MEMORY, Value
from lwlab.attribution.circuits.scale import Asked, Scale, cutter_of
from lwlab.attribution.circuits.select import trim
from lwlab.attribution.circuits.subgraph import Circuit
from lwlab.errors import BadInput
from lwlab.models.model import Model

Progress = Callable[[int, int], None]


def prune(
    model: Model,
    task: Asked,
    start: Circuit | None = None,
    *,
    tau: float = 0.01,
    value: Value = "patch",
    memory: float = MEMORY,
    progress: Progress | None = None,
    most: int = 5000,
) -> Circuit:
    """Prune a circuit (or the whole graph) to the edges that each make a difference.

    Sublayers are visited from the logits downwards. At each, every edge into it is cut alone and f
    (see `worth`) measured; then, from the smallest change upwards, edges are cut one after the
    other for as long as each step changes f by less than `tau`. Edges that then dangle go too.

    The circuit's `scores` are f(C) - f(C without the edge), when it was looked at (NaN for edges
    not looked at); `about` has `faithfulness`, `tau` and `runs`, circuits run on all prompts.
    `progress(done, all)` counts edges. Costs between one and two runs an edge. Raises BadInput for
    a tau that is not positive, a start from another graph, or more than `most` edges to look at
    (prune what `lw.circuit` selected, or raise it), and as `worth.faithfulness` does.
    """
    if not tau > 0:
        raise BadInput(f"tau={tau}: give the change of faithfulness to ignore, such as 0.01")
    cutter = cutter_of(model, task, value, memory)
    graph = cutter.graph
    if start is not None and start.graph != graph:
        raise BadInput(f"the circuit to start from is none of {model.name}'s graph ({graph})")
    kept = (graph.exists if start is None else start.edges).copy()
    total = int(kept.sum())
    if total > most:
        raise BadInput(
            f"{total} edges would each be cut and run; start from a smaller circuit, such as "
            f"lw.circuit(scores, keep=500), or raise most={most}"
        )
    scale = Scale(cutter)
    before = cutter.rows_run
    f, done = float(scale.run([kept])[0]), 0
    effect = np.full(kept.shape, np.nan)
    for block in reversed(cutter.wiring.blocks):
        here = np.zeros_like(kept)
        here[:, cutter.wiring.columns(block)] = True
        edges = list(zip(*np.nonzero(kept & here)))
        if not edges:
            continue
        tables = np.repeat(kept[None], len(edges), 0)
        for table, edge in zip(tables, edges):
            table[edge] = False
        alone = f - scale.run(tables)
        for edge, change in zip(edges, alone):
            effect[edge] = change
        order = np.argsort(np.abs(alone), kind="stable")
        little = [int(i) for i in order if abs(alone[i]) < tau]
        steps = np.repeat(kept[None], len(little), 0)
        for j, i in enumerate(little):
            for step in steps[j:]:
                step[edges[i]] = False
        # The first step is already known: it is the smallest change alone.
        after = [f - float(alone[i]) for i in little[:1]]
        after += [float(x) for x in scale.run(steps[1:])] if len(little) > 1 else []
        for step, g in zip(steps, after):
            if abs(g - f) >= tau:
                break
            f, kept = g, step
        kept = trim(graph, kept)
        done += len(edges)
        if progress is not None:
            progress(done, total)
    # What dangled was dropped unseen; where cut edges carry nothing or a mean, that may matter.
    f = float(scale.run([kept])[0])
    runs = (cutter.rows_run - before) / len(cutter.pair)
    about = scale.about(
        technique="exact pruning", paper="2304.14997", tau=tau, faithfulness=f, runs=int(runs),
        start=total,
    )  # fmt: skip
    return Circuit(graph, kept, np.where(kept, effect, np.nan), about)
