"""Exact pruning: edges are dropped when really cutting them changes too little.

After ACDC (Conmy et al. 2023, arXiv:2304.14997): from the logits downwards, one receiver after the
other, an edge goes when the metric moves by less than tau without it. Here the metric is the task's
own, as a share of its whole effect, and the runs that do not wait for each other are made together.
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

    Receivers are visited from the logits downwards. At each, every edge into it is cut alone and f
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
    for receiver in reversed(range(len(graph.receivers))):
        senders = np.flatnonzero(kept[:, receiver])
        if not len(senders):
            continue
        tables = np.repeat(kept[None], len(senders), 0)
        tables[np.arange(len(senders)), senders, receiver] = False
        alone = f - scale.run(tables)
        effect[senders, receiver] = alone
        order = np.argsort(np.abs(alone), kind="stable")
        little = [i for i in order if abs(alone[i]) < tau]
        steps = np.repeat(kept[None], len(little), 0)
        for j, i in enumerate(little):
            steps[j:, senders[i], receiver] = False
        # The first step is already known: it is the smallest change alone.
        after = [f - alone[i] for i in little[:1]]
        after += [float(x) for x in scale.run(steps[1:])] if len(little) > 1 else []
        for j, g in enumerate(after):
            if abs(g - f) >= tau:
                break
            f, kept = float(g), steps[j]
        kept = trim(graph, kept)
        done += len(senders)
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
