"""Selection, worth and pruning of circuits: against ground truth, definitions and brute force."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import lwlab as lw
from lwlab.attribution import circuits, edges
from lwlab.attribution.circuits import Circuit, Graph, prune, random_edges, trim
from lwlab.errors import BadInput, UnknownName
from lwlab.models import handmade

Toy = Callable[[str], lw.Model]
TECHNIQUES = ("eap", "relp", "eap-ig-inputs", "eap-ig-activations")


@cache
def made(name: str) -> tuple[handmade.Handmade, Any, xr.DataArray]:
    it = handmade.build(name)
    task = it.task(4)
    return it, task, edges.scores(it.model, task, TECHNIQUES)


@pytest.mark.parametrize("name", handmade.NAMES)
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_edges_above_a_threshold_are_the_true_ones(name: str, technique: str) -> None:
    it, _, scores = made(name)
    found = lw.circuit(scores.sel(technique=technique), above=1e-4)
    assert set(found.names) == set(it.circuit())


@pytest.mark.parametrize("name", handmade.NAMES)
@pytest.mark.parametrize("value", ["patch", "zero"])
def test_exact_pruning_finds_the_true_edges(name: str, value: Any) -> None:
    it, task, _ = made(name)
    found = prune(it.model, task, tau=1e-4, value=value)
    assert set(found.names) == set(it.circuit(value))
    assert found.about["faithfulness"] == pytest.approx(1, abs=1e-5)
    assert found.about["runs"] < 2 * found.graph.n_edges


def test_pruning_with_one_group_for_both_heads() -> None:
    it = handmade.induction(groups=1)
    found = prune(it.model, it.task(2), tau=1e-4)
    assert set(found.names) == set(it.circuit())
    assert {"a0.kv0<v>", "a1.kv0<k>"} <= {r for _, r in found.names}


@pytest.mark.parametrize("arch", ["llama", "gpt_neox", "gpt2"])
def test_trim_leaves_exactly_what_lies_on_a_way(arch: str, toy: Toy) -> None:
    graph = Graph.of(toy(arch))
    rng = np.random.default_rng(0)
    for share in (0.02, 0.1, 0.4):
        some = graph.exists & (rng.random(graph.exists.shape) < share)
        assert set(graph.edges(trim(graph, some))) == _on_ways(graph, some)


def _on_ways(graph: Graph, some: Any) -> set[tuple[str, str]]:
    """Edges on some way from the input to the logits, by walking all ways node by node."""
    names = list(graph.edges(some))
    feeds = {
        r.name: {s.name for j, s in enumerate(graph.senders) if graph.feeds[i, j]}
        for i, r in enumerate(graph.receivers)
    }
    reached, ends = {"input"}, {"logits"}
    for _ in graph.senders:
        reached |= {x for s, r in names if s in reached for x in feeds[r]}
        ends |= {r for r in feeds for s, t in names if s in feeds[r] and t in ends}
    return {(s, r) for s, r in names if s in reached and r in ends}


@pytest.mark.parametrize("select", ["greedy", "threshold"])
def test_selection_keeps_the_best_and_leaves_none_dangling(select: str, toy: Toy) -> None:
    model = toy("llama")
    graph = Graph.of(model)
    rng = np.random.default_rng(1)
    values = np.where(graph.exists, rng.normal(size=graph.exists.shape), 0)
    scores = lw.results.label(values, ("sender", "receiver"), graph.coords())
    small, large = (lw.circuit(scores, keep=k, select=select) for k in (30, 120))
    for c, n in ((small, 30), (large, 120)):
        assert 0 < len(c) <= n
        assert (trim(graph, c.edges) == c.edges).all()
    everything = lw.circuit(scores, keep=1.0, select=select)
    assert len(everything) == graph.n_edges
    signed = lw.circuit(scores, keep=60, select=select, absolute=False)
    assert values[signed.edges].mean() > np.abs(values[graph.exists]).mean()


def test_greedy_grows_from_the_logits_best_first(toy: Toy) -> None:
    graph = Graph.of(toy("llama"))
    values = np.zeros(graph.exists.shape)
    for rank, edge in enumerate(("m2->logits", "m1->m2", "input->m1", "input->a0.h0<q>")):
        values += graph.mask([edge]) * (5 - rank if rank < 3 else 99)
    scores = lw.results.label(values, ("sender", "receiver"), graph.coords())
    assert lw.circuit(scores, keep=3).names == [("input", "m1"), ("m1", "m2"), ("m2", "logits")]
    # The largest score of all leads nowhere: alone it is no circuit, and a threshold drops it.
    assert len(lw.circuit(scores, keep=1, select="threshold")) == 0


@pytest.mark.parametrize("arch", ["llama", "gpt_neox"])
def test_random_circuits_have_the_size_asked_for_and_no_loose_end(arch: str, toy: Toy) -> None:
    graph = Graph.of(toy(arch))
    for n in (0, 1, 2, 3, 17, 100, graph.n_edges // 2 + 1, graph.n_edges):
        found = random_edges(graph, n, seed=n)
        assert found.sum() == n
        assert (trim(graph, found) == found).all()
    assert (random_edges(graph, 40, 0) != random_edges(graph, 40, 1)).any()
    assert (random_edges(graph, 40, 0) == random_edges(graph, 40, 0)).all()


def test_areas_are_the_trapezoids_of_the_definition() -> None:
    f = [0.0, 0.5, 1.2, 1.0]
    k = [0.001, 0.1, 0.5, 1.0]
    curve = xr.Dataset(
        {
            "faithfulness": (("technique", "size"), [f]),
            "random": (("draw", "size"), [[0, 0, 0, 1]]),
        },
        coords={"technique": ["x"], "size": k},
    )
    found = circuits.areas(curve)
    steps = list(zip(k, k[1:], f, f[1:]))
    assert found.cpr.item() == pytest.approx(sum((b - a) * (u + v) / 2 for a, b, u, v in steps))
    gaps = sum((b - a) * (abs(1 - u) + abs(1 - v)) / 2 for a, b, u, v in steps)
    assert found.cmd.item() == pytest.approx(gaps)
    assert found.random_cpr.item() == pytest.approx(0.25)
    assert circuits.SIZES == (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def test_a_curve_is_the_faithfulness_of_each_circuit_measured_alone() -> None:
    it, task, scores = made("duplicate")
    sizes = (0.1, 0.2, 1.0)
    two = scores.sel(technique=["relp", "eap"])
    found = circuits.curve(it.model, task, two, sizes, random=2)
    assert dict(found.sizes) == {"technique": 2, "size": 3, "draw": 2}
    for t in ("relp", "eap"):
        for k in sizes:
            c = lw.circuit(two.sel(technique=t), keep=float(k))
            alone = circuits.faithfulness(it.model, task, c)
            here = found.sel(technique=t, size=k)
            assert here.faithfulness.item() == pytest.approx(alone.faithfulness.item(), abs=1e-5)
            assert here.edges.item() == len(c)
    assert found.faithfulness.sel(size=1.0).values == pytest.approx([1, 1], abs=1e-5)
    assert found.random.sel(size=1.0).values == pytest.approx([1, 1], abs=1e-5)
    assert (circuits.areas(found).cpr > circuits.areas(found).random_cpr.mean()).all()


def test_faithfulness_from_its_definition(toy: Toy) -> None:
    it, task, scores = made("reverse")
    model = it.model
    whole = lw.circuit(scores.sel(technique="relp"), above=1e-4)
    part = whole.without(["input->a0.kv0<k>"])
    found = circuits.faithfulness(model, task, {"whole": whole, "part": part})
    m = circuits.metrics(model, task, np.stack([part.edges, part.graph.exists, part.edges & False]))
    c, full, none = (float(x.mean()) for x in m)
    assert found.faithfulness.sel(circuit="part").item() == pytest.approx(
        (c - none) / (full - none)
    )
    assert found.faithfulness.sel(circuit="whole").item() == pytest.approx(1, abs=1e-6)
    assert 0 < found.faithfulness.sel(circuit="part").item() < 0.9


def test_completeness_and_minimality_of_a_true_circuit_and_of_a_part() -> None:
    it, task, scores = made("induction")
    whole = lw.circuit(scores.sel(technique="relp"), above=1e-4)
    complete = circuits.completeness(it.model, task, whole, draws=5)
    assert abs(complete.complement.item()) < 1e-5  # without the circuit nothing is left
    assert complete.incompleteness.max().item() < 1e-5
    drops = circuits.minimality(it.model, task, whole)
    assert drops.sizes["edge"] == len(whole)
    assert drops.min().item() > 0.1  # every edge is needed
    for name, drop in zip(drops.edge.values, drops.values):
        less = circuits.faithfulness(it.model, task, whole.without([str(name)]))
        assert drop == pytest.approx(1 - less.faithfulness.item(), abs=1e-5)
    fat = Circuit.of(whole.graph, [*whole.names, ("input", "m0"), ("m0", "m1"), ("m1", "logits")])
    assert circuits.minimality(it.model, task, fat).sel(edge="m0->m1").item() == 0
    thin = whole.without(["a1.h0->logits"])
    assert len(thin) == 0  # nothing else leads to the logits


def test_json_there_and_back(tmp_path: Path) -> None:
    scores = made("reverse")[2]
    one = lw.circuit(scores.sel(technique="relp"), above=1e-4)
    text = one.to_json(tmp_path / "c.json")
    for source in (text, tmp_path / "c.json", str(tmp_path / "c.json")):
        again = Circuit.from_json(source)
        assert again.graph == one.graph
        assert (again.edges == one.edges).all()
        assert again.about["model"] == "reverse"
        np.testing.assert_allclose(again.to_frame().score, one.to_frame().score)
    raw = json.loads(text)
    assert set(raw) == {"format", "graph", "nodes", "edges", "about"}
    assert raw["nodes"] == ["input", "a0.h0", "m0", "a1.h0", "logits"]
    assert "<Circuit by relp: 5 of 46 edges" in repr(again)
    assert again.heads == [(0, 0), (1, 0)]
    unscored = Circuit.random(one.graph, 6)
    assert Circuit.from_json(unscored.to_json()).scores is None


def test_parallel_blocks_survive_scores_and_json(toy: Toy) -> None:
    model = toy("gpt_neox")
    names = ["Mary", "John", "Tom", "Anna"]
    task = lw.tasks.ioi(model, n=2, names=names, template="When {A} and {B} went , {S} gave to")
    scores = edges.scores(model, task, "eap")
    found = lw.circuit(scores, keep=0.3)
    assert found.graph == Graph.of(model)
    assert found.graph.parallel
    assert Circuit.from_json(found.to_json()).graph.parallel


def test_bad_input_before_any_run(tmp_path: Path, toy: Toy) -> None:
    it, task, scores = made("induction")
    one = scores.sel(technique="relp")
    for keep in (-1, 1.5, 10**6, True):
        with pytest.raises(BadInput, match="number of edges"):
            lw.circuit(one, keep=keep)
    with pytest.raises(BadInput, match="either how many"):
        lw.circuit(one)
    with pytest.raises(BadInput, match="pick one of each"):
        lw.circuit(scores, keep=3)
    with pytest.raises(BadInput, match="NaN or infinite"):
        lw.circuit(one * np.nan, keep=3)
    with pytest.raises(BadInput, match="made from edge scores"):
        lw.circuit(one.rename(sender="layer"), keep=3)
    with pytest.raises(BadInput, match="not those of a model's graph"):
        lw.circuit(one.isel(sender=slice(0, 3)), keep=3)
    with pytest.raises(UnknownName, match="did you mean 'greedy'"):
        lw.circuit(one, keep=3, select="greed")
    c = lw.circuit(one, keep=5)
    loose = c.graph.mask(["input->m0"])
    with pytest.raises(BadInput, match=r"1 edges dangle .input->m0"):
        Circuit(c.graph, loose)
    with pytest.raises(BadInput, match="no circuit as to_json writes"):
        Circuit.from_json("{}")
    with pytest.raises(BadInput, match="no circuit can be read"):
        Circuit.from_json(tmp_path / "none.json")
    other = Circuit.random(Graph.of(toy("llama")), 5)
    for f in (circuits.faithfulness, circuits.minimality, circuits.completeness):
        with pytest.raises(BadInput, match="graph"):
            f(it.model, task, other)  # type: ignore[operator]
    with pytest.raises(BadInput, match="no edge"):
        circuits.minimality(it.model, task, Circuit.random(c.graph, 0))
    with pytest.raises(BadInput, match="must grow"):
        circuits.curve(it.model, task, one, sizes=(0.5, 0.1))
    with pytest.raises(BadInput, match="give the change"):
        prune(it.model, task, tau=0)
    with pytest.raises(BadInput, match="46 edges would each be cut"):
        prune(it.model, task, most=10)
    with pytest.raises(BadInput, match="at least two sizes"):
        circuits.areas(circuits.curve(it.model, task, one, sizes=(0.5,)))


def test_a_task_whose_twins_score_the_same_is_refused() -> None:
    it, task, _ = made("induction")
    same = replace(task, corrupt=task.clean)
    with pytest.raises(BadInput, match="no circuit can be told from another"):
        circuits.faithfulness(it.model, same, Circuit.random(Graph.of(it.model), 3))


def test_intervals_resample_groups_and_the_effect_with_them() -> None:
    it, _, scores = made("reverse")
    one = lw.circuit(scores.sel(technique="relp"), above=1e-4).without(["input->a0.kv0<k>"])
    task = it.task(6, seed=2)
    whole = Circuit.of(one.graph, one.graph.exists)
    found = circuits.faithfulness(it.model, task, {"whole": whole, "part": one})
    at = found.sel(circuit="whole")
    assert [at.low.item(), at.high.item()] == pytest.approx([1, 1], abs=1e-6)  # 1 in any resample
    part = found.sel(circuit="part")
    assert part.low.item() <= part.faithfulness.item() <= part.high.item()
    alone = circuits.faithfulness(it.model, it.task(1), one)
    assert np.isnan(alone.low.item())  # one group has no interval
