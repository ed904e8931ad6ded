"""The cut forward: exact at both ends, and edge by edge what a naive path patch gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import paths_by_hand
import pytest
import torch

import lwlab as lw
from lwlab.attribution.circuits import Cutter, Graph, metrics, trim
from lwlab.errors import BadInput, UnknownName
from lwlab.models import handmade, toys

Toy = Callable[[str], lw.Model]
ARCHS = (
    "gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt_neox",
    "gpt_neox_sequential", "opt", "phi", "olmo", "olmo2", "mixtral", "qwen2_moe",
)  # fmt: skip


def ask(model: lw.Model, n: int = 2) -> Any:
    names = ["Mary", "John", "Tom", "Anna"]
    template = "When {A} and {B} went to the store , {S} gave to"
    return lw.tasks.ioi(model, n=n, names=names, template=template)


@pytest.mark.parametrize("arch", ARCHS)
def test_full_circuit_is_the_clean_run_and_empty_the_corrupt_one(arch: str, toy: Toy) -> None:
    model = toy(arch)
    cutter = Cutter(model, ask(model))
    whole = cutter.graph.exists
    full, empty = cutter.metrics(np.stack([whole, np.zeros_like(whole)]))
    assert (full - cutter.clean).abs().max() < 1e-5
    assert (empty - cutter.corrupt).abs().max() < 1e-5
    assert (cutter.clean - cutter.corrupt).abs().min() > 1e-3 or "neox" in arch


EDGES = {
    "gpt2": (
        "input->a0.h1<q>", "input->m0", "a0.h2->a1.kv3<k>", "m0->a2.kv0<v>", "a1.h0->m1",
        "m1->logits", "a0.h3->logits", "a1.h2->a2.h2<q>", "m0->m2",
    ),
    "llama": (
        "input->a0.h1<q>", "input->m1", "a0.h2->a1.kv1<k>", "m0->a2.kv0<v>", "a1.h0->m1",
        "m1->logits", "a0.h3->logits", "a1.h2->a2.h2<q>", "m0->m2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("arch", list(EDGES))
def test_cutting_one_edge_is_a_naive_path_patch(arch: str, toy: Toy) -> None:
    model = toy(arch)
    task = ask(model)
    graph = Graph.of(model)
    module, _ = toys.tiny(arch)  # a second copy, which no tracer has touched
    clean, corrupt = (task.tokens(model, w).ids for w in ("clean", "corrupt"))
    heads, groups = int(model.n_heads or 0), int(model.n_kv_heads or 0)
    tables = np.stack([graph.exists & ~graph.mask([e]) for e in EDGES[arch]])
    found = metrics(model, task, tables)
    moved = 0.0
    for edge, got in zip(EDGES[arch], found):
        sender, receiver = edge.split("->")
        ours, theirs = (paths_by_hand.sent(module, x, sender, heads) for x in (clean, corrupt))
        z = paths_by_hand.cut_one(module, clean, theirs - ours, receiver, heads, groups)
        want = task.metric(z)
        assert (got - want).abs().max() < 2e-5, edge
        moved = max(moved, float((want - Cutter(model, task).clean).abs().max()))
    assert moved > 1e-3  # not all of these edges do nothing


@pytest.mark.parametrize("value", ["zero", "mean"])
def test_other_values_by_hand(value: str, toy: Toy) -> None:
    model = toy("llama")
    task = ask(model, 4)
    graph = Graph.of(model)
    module, _ = toys.tiny("llama")
    ids = task.tokens(model).ids
    ours = paths_by_hand.sent(module, ids, "m0", 4)
    theirs = ours.mean(0, keepdim=True) if value == "mean" else torch.zeros_like(ours)
    want = task.metric(paths_by_hand.cut_one(module, ids, theirs - ours, "a2.kv1<v>", 4, 2))
    kept = graph.exists & ~graph.mask(["m0->a2.kv1<v>"])
    assert (metrics(model, task, kept, value)[0] - want).abs().max() < 2e-5  # type: ignore[arg-type]


def test_the_wrong_group_would_be_seen(toy: Toy) -> None:
    model = toy("llama")
    task, graph = ask(model), Graph.of(model)
    one, other = metrics(
        model, task, np.stack([graph.exists & ~graph.mask([f"m0->a1.kv{g}<v>"]) for g in (0, 1)])
    )
    assert (one - other).abs().max() > 1e-4


def test_batches_of_circuits_and_prompts_do_not_mix(toy: Toy) -> None:
    model = toy("qwen2")
    task, graph = ask(model, 4), Graph.of(model)
    rng = np.random.default_rng(0)
    kept = graph.exists & (
        rng.random((5, *graph.exists.shape)) < np.linspace(0.1, 0.9, 5)[:, None, None]
    )
    together = metrics(model, task, kept)
    cutter = Cutter(model, task)
    small = Cutter(model, task, memory=2.1 * cutter._row_bytes)  # one prompt of one circuit a run
    assert torch.allclose(small.metrics(kept), together, atol=1e-5)
    assert small.rows_run == 20
    for i in range(5):
        assert torch.allclose(metrics(model, task, kept[i])[0], together[i], atol=1e-5)


@pytest.mark.parametrize("arch", ["gpt2", "gpt_neox", "llama"])
def test_dangling_edges_change_nothing(arch: str, toy: Toy) -> None:
    model = toy(arch)
    task, graph = ask(model), Graph.of(model)
    rng = np.random.default_rng(1)
    kept = graph.exists & (rng.random(graph.exists.shape) < 0.05)
    less = trim(graph, kept)
    assert less.sum() < kept.sum()
    both = metrics(model, task, np.stack([kept, less]))
    assert (both[0] - both[1]).abs().max() < 1e-5


def test_handmade_circuits_alone_give_the_whole_answer() -> None:
    for name in handmade.NAMES:
        made = handmade.build(name)
        task = made.task(4)
        for value in ("patch", "zero"):
            cutter = Cutter(made.model, task, value)  # type: ignore[arg-type]
            true = cutter.graph.mask(made.circuit(value))  # type: ignore[arg-type]
            assert (cutter.metrics(true)[0] - cutter.clean).abs().max() < 1e-5
            rest = cutter.metrics(cutter.graph.exists & ~true)[0]
            assert (rest - cutter.metrics(np.zeros_like(true))[0]).abs().max() < 1e-5


@cache
def _small() -> tuple[lw.Model, Any]:
    made = handmade.induction()
    return made.model, made.task(2)


def test_bad_input_before_any_run(toy: Toy) -> None:
    model, task = _small()
    with pytest.raises(UnknownName, match="did you mean 'patch'"):
        Cutter(model, task, "patched")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="one prompt of 6 tokens"):
        Cutter(model, task, memory=1000)
    cutter = Cutter(model, task)
    with pytest.raises(BadInput, match="tables of bools"):
        cutter.metrics(cutter.graph.exists.astype(float))
    with pytest.raises(BadInput, match="tables of bools"):
        cutter.metrics(cutter.graph.exists[:, :-1])
    assert cutter.rows_run == 0
    with pytest.raises(BadInput, match="no causal language model"):
        Cutter(toy("bert"), task)


@pytest.mark.slow
def test_smollm2_uncut_is_the_plain_forward(smollm2: lw.Model) -> None:
    task = lw.tasks.ioi(smollm2, n=2)
    cutter = Cutter(smollm2, task)
    whole = cutter.graph.exists
    full, empty = cutter.metrics(np.stack([whole, np.zeros_like(whole)]))
    for got, which in ((full, "clean"), (empty, "corrupt")):
        with torch.no_grad():
            z = smollm2.module(input_ids=task.tokens(smollm2, which).ids).logits[:, -1]  # type: ignore[arg-type]
        assert (got - task.metric(z)).abs().max() < 1e-4
