"""What a circuit is worth, measured by really cutting edges.

With m(C) the task's metric when only the edges C carry their own values (`cut`), M all edges, and
means taken over prompts first,

    f(C) = (m(C) - m(none)) / (m(M) - m(none)).

Faithfulness, completeness and minimality: Wang et al. 2023 (arXiv:2211.00593, section 4), here over
edges. CPR and CMD: Mueller et al. 2025, MIB (arXiv:2504.13151), the areas under f and between f and
1 over the share k of edges kept, by trapezoids between the ten shares of `SIZES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lwlab.attribution.circuits.cut import MEMORY, Cutter, Value
from lwlab.attribution.circuits.graph import Bools
from lwlab.attribution.circuits.scale import Asked, Scale, cutter_of
from lwlab.attribution.circuits.select import random_edges, selector
from lwlab.attribution.circuits.subgraph import Circuit, mean_scores, technique_of
from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.results import label

#: Shares of edges at which MIB runs circuits.
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
PAPER = "2504.13151"


def faithfulness(
    model: Model,
    task: Asked,
    circuits: Circuit | Sequence[Circuit] | Mapping[str, Circuit],
    *,
    value: Value = "patch",
    memory: float = MEMORY,
    seed: int = 0,
) -> xr.Dataset:
    """f(C) of circuits: the share of the effect that is there when all other edges are cut.

    Returns `faithfulness`, `low`, `high` (95 % interval over groups of prompts), `edges` by
    (circuit) and `metric` (circuit, prompt). `task` may be a `Cutter`, which then decides `value`.

    Raises BadInput for no circuit, circuits of another model's graph, a metric that cutting every
    edge leaves as it is, and as `Cutter` does.
    """
    named = _named(circuits)
    cutter = cutter_of(model, task, value, memory)
    for name, c in named.items():
        _fits(cutter, c, name)
    scale = Scale(cutter)
    metrics = cutter.metrics(np.stack([c.edges for c in named.values()]))
    ends = scale.intervals(metrics, seed)
    coords = {"circuit": list(named)}
    one = {
        "faithfulness": scale.of(metrics), "low": ends[:, 0], "high": ends[:, 1],
        "edges": np.array([len(c) for c in named.values()]),
    }  # fmt: skip
    arrays = {k: label(v, "circuit", coords).drop_attrs() for k, v in one.items()}
    arrays["metric"] = label(metrics, ("circuit", "prompt"), coords).drop_attrs()
    return xr.Dataset(arrays, attrs=scale.about(technique="faithfulness", paper="2211.00593"))


def completeness(
    model: Model,
    task: Asked,
    circuit: Circuit,
    *,
    draws: int = 0,
    share: float = 0.5,
    value: Value = "patch",
    memory: float = MEMORY,
    seed: int = 0,
) -> xr.Dataset:
    """What the model does without the circuit, and whether both miss the same parts alike.

    `complement` = f(M \\ C), 0 where the circuit is all that matters. For each of `draws` random
    subsets K with `share` of the circuit's edges: `circuit_without` = f(C \\ K), `model_without` =
    f(M \\ K), and `incompleteness` = |f(C \\ K) - f(M \\ K)| by (draw).

    Raises as `faithfulness` does, and BadInput for a share outside 0 to 1 or a negative number of
    draws.
    """
    if draws < 0 or not 0 < share <= 1:
        raise BadInput(f"draws={draws}, share={share}: draws count from 0, a share is in (0, 1]")
    cutter = cutter_of(model, task, value, memory)
    _fits(cutter, circuit, "it")
    whole, rng = cutter.graph.exists, np.random.default_rng(seed)
    at = np.flatnonzero(circuit.edges)
    less = []
    for _ in range(draws):
        k = np.zeros(whole.shape, bool)
        k.flat[rng.choice(at, max(1, round(share * len(at))), replace=False)] = True
        less += [circuit.edges & ~k, whole & ~k]
    scale = Scale(cutter)
    f = scale.run([whole & ~circuit.edges, *less])
    ours, theirs = f[1::2], f[2::2]
    arrays = {
        "circuit_without": ours, "model_without": theirs, "incompleteness": np.abs(ours - theirs)
    }  # fmt: skip
    out = xr.Dataset({k: label(v, "draw").drop_attrs() for k, v in arrays.items()})
    out["complement"] = float(f[0])
    return out.assign_attrs(scale.about(technique="completeness", paper="2211.00593", share=share))


def minimality(
    model: Model,
    task: Asked,
    circuit: Circuit,
    *,
    value: Value = "patch",
    memory: float = MEMORY,
) -> xr.DataArray:
    """What each edge of a circuit is good for: f(C) - f(C without it), by (edge).

    Wang et al. look for any set of other parts beside which a part matters; here that set is empty,
    so a small number may also mean that another edge does the same. Coordinates `sender`,
    `receiver`. Raises as `faithfulness` does, and BadInput for an empty circuit.
    """
    if not len(circuit):
        raise BadInput("the circuit has no edge, so none of it can be left out")
    cutter = cutter_of(model, task, value, memory)
    _fits(cutter, circuit, "it")
    tables = [circuit.edges]
    for s, r in zip(*np.nonzero(circuit.edges)):
        less = circuit.edges.copy()
        less[s, r] = False
        tables.append(less)
    scale = Scale(cutter)
    f = scale.run(tables)
    names = circuit.names
    coords = {
        "edge": [f"{s}->{r}" for s, r in names],
        "sender": (("edge",), [s for s, _ in names]),
        "receiver": (("edge",), [r for _, r in names]),
    }
    found = label(f[0] - f[1:], "edge", coords, name="drop", long_name="loss of faithfulness")
    about = scale.about(technique="minimality", paper="2211.00593", faithfulness=float(f[0]))
    return found.assign_attrs(found.attrs | about)


def curve(
    model: Model,
    task: Asked,
    scores: xr.DataArray,
    sizes: Sequence[float] = SIZES,
    *,
    select: str = "greedy",
    absolute: bool = True,
    random: int = 0,
    value: Value = "patch",
    memory: float = MEMORY,
    seed: int = 0,
) -> xr.Dataset:
    """Faithfulness of circuits of growing size, selected by scores, and of random ones.

    At each share k of `sizes`, int(k * all edges) edges are selected as `lw.circuit` does, and what
    is left without dangling edges is run. `random` circuits of as many edges (`random_edges`: none
    of theirs dangle, so they have no fewer) are the control.

    `scores` (sender, receiver), with `prompt` or not, with `technique` or not. Returns
    `faithfulness`, `low`, `high`, `edges` (technique, size), and `random` (draw, size). Raises as
    `lw.circuit` and `faithfulness` do, BadInput for sizes that do not grow from 0 to 1.
    """
    if not len(sizes) or any(b <= a for a, b in zip((0, *sizes), sizes)) or sizes[-1] > 1:
        raise BadInput(f"sizes={list(sizes)}: shares of all edges must grow, above 0 and up to 1")
    if random < 0:
        raise BadInput(f"random={random}: the number of random circuits counts from 0")
    pick = selector(select)
    names, tables = _ranked(scores)
    cutter = cutter_of(model, task, value, memory)
    graph = cutter.graph
    counts = [int(k * graph.n_edges) for k in sizes]
    rng = np.random.default_rng(seed)
    kept: list[Bools] = []
    for found, values in tables:
        if found != graph:
            raise BadInput(f"these scores are of another graph than {model.name}'s: {found}")
        kept += [pick(graph, np.abs(values) if absolute else values, n) for n in counts]
    drawn = [random_edges(graph, n, rng) for _ in range(random) for n in counts]
    scale = Scale(cutter)
    # With every edge kept all techniques, and all draws, are one circuit: the model.
    some = [i for i, t in enumerate(kept + drawn) if t.sum() < graph.n_edges]
    metrics = scale.all.float().repeat(len(kept + drawn), 1)
    if some:
        metrics[some] = cutter.metrics(np.stack([(kept + drawn)[i] for i in some]))
    k, shape = len(kept), (len(names), len(sizes))
    ends = scale.intervals(metrics[:k], seed)
    coords = {"technique": names, "size": list(sizes)}
    arrays: dict[str, Any] = {
        "faithfulness": scale.of(metrics[:k]), "low": ends[:, 0], "high": ends[:, 1],
        "edges": np.array([t.sum() for t in kept]),
    }  # fmt: skip
    arrays = {
        name: label(v.reshape(shape), ("technique", "size"), coords).drop_attrs()
        for name, v in arrays.items()
    }
    f = scale.of(metrics[k:]).reshape(random, len(sizes))
    arrays["random"] = label(f, ("draw", "size"), {"size": list(sizes)}).drop_attrs()
    about = scale.about(technique="curve", paper=PAPER, select=select, absolute=absolute)
    return xr.Dataset(arrays, attrs=about)


def areas(curve: xr.Dataset) -> xr.Dataset:
    """CPR and CMD of a curve (Mueller et al. 2025, arXiv:2504.13151).

    CPR = int f(C_k) dk, higher is better; CMD = int |1 - f(C_k)| dk, lower is better, with k the
    share of edges asked for, from the first to the last size, and straight lines of f (for CMD, of
    |1 - f|) between sizes. Returns `cpr`, `cmd` (technique), `random_cpr`, `random_cmd` (draw).

    Raises BadInput for what is no curve, or one of fewer than two sizes.
    """
    if not {"faithfulness", "random"} <= set(getattr(curve, "data_vars", ())):
        raise BadInput("areas are taken of what circuits.curve returns")
    if curve.sizes["size"] < 2:
        raise BadInput("an area needs the faithfulness of at least two sizes")
    k = curve["size"].values
    out: dict[str, Any] = {}
    for prefix, name in (("", "faithfulness"), ("random_", "random")):
        f = curve[name].transpose(..., "size")
        gap: xr.DataArray = abs(1 - f)
        for short, y in (("cpr", f), ("cmd", gap)):
            area = np.trapezoid(y.values, k, axis=-1)
            out[prefix + short] = y.isel(size=0, drop=True).copy(data=area)
    return xr.Dataset(out, attrs={**curve.attrs, "sizes": k.tolist()})


def _ranked(scores: xr.DataArray) -> tuple[list[str], list[Any]]:
    if isinstance(scores, xr.DataArray) and "technique" in scores.dims:
        names = [str(t) for t in scores.technique.values]
        return names, [mean_scores(scores.sel(technique=t)) for t in names]
    found = mean_scores(scores)
    return [technique_of(scores) or "scores"], [found]


def _named(circuits: Any) -> dict[str, Circuit]:
    if isinstance(circuits, Circuit):
        circuits = [circuits]
    if not isinstance(circuits, Mapping):
        circuits = {str(i): c for i, c in enumerate(circuits)}
    if not circuits or not all(isinstance(c, Circuit) for c in circuits.values()):
        raise BadInput("give a Circuit, a list of them, or a mapping from names to them")
    return dict(circuits)


def _fits(cutter: Cutter, circuit: Any, name: str) -> None:
    if not isinstance(circuit, Circuit) or circuit.graph != cutter.graph:
        raise BadInput(
            f"circuit {name!r} is none of {cutter.model.name}'s graph ({cutter.graph}): circuits "
            "are of one architecture"
        )
