"""AF1: equal to edits of patterns and streams through the tracer; what must hold, holds."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import lwlab as lw
from lwlab.attribution import af1
from lwlab.errors import BadInput, UnknownName
from lwlab.models import toys
from lwlab.tasks import Task, arithmetic_grid

ARCHS = ["llama", "mistral", "qwen3", "gemma2", "gpt2", "gpt_neox", "phi", "opt"]
GRID = {
    "operands": (range(1, 4), range(1, 4)), "prefix": "1 + 2 = 3 the ", "template": "{a} + {b} =",
}  # fmt: skip


@cache
def random_model(arch: str) -> tuple[lw.Model, Task]:
    """A random model, and a grid whose right answer is what the model says to three prompts."""
    module, _ = toys.tiny(arch)
    words = [*map(str, range(28)), "+", "=", "the", "of"]
    model = lw.wrap(module, tokenizer=toys.tokenizer(words), name=arch)
    task = arithmetic_grid(model, **GRID)
    said = lw.patch(model, list(task.clean), {"resid_pre.0": lambda h: h}, compare=False)
    answers = torch.as_tensor(said.logits.values.argmax(-1).copy())
    answers[3:] = (answers[3:] + 1) % 100
    answers[-1] = (answers[-1] - 1) % 100  # solved: the first three and the last
    return model, replace(task, answer_sets=answers[:, None])


SOLVED = [0, 1, 2, 8]


def visible(length: int, shared: int, kind: str, sees: str) -> np.ndarray[Any, Any]:
    """Which key [column] each query [row] may see, from the words of the definition."""
    out = np.zeros((length, length))
    for q in range(length):
        for k in range(q + 1):
            start = k < shared if sees == "prefix" else k == 0
            peeks = kind == "peek" and q == length - 1
            out[q, k] = q < shared or k == q or start or peeks
    return out


def by_hand(model: lw.Model, task: Task, wait: int, until: int, sees: str) -> np.ndarray[Any, Any]:
    """Log-probabilities of the subgraph, whole prompts, by edits through nnsight."""
    clean = list(task.clean)
    ids = model.tokens(clean).ids.numpy()
    length = ids.shape[1]
    shared = next(i for i in range(length) if len(set(ids[:, i])) > 1)
    edits: dict[str, Any] = {}
    if wait < model.n_layers:
        h = lw.cache(model, clean, "resid_pre", layers=wait).resid_pre.values[:, 0]
        new = h.copy()
        for i in range(len(ids)):
            for t in range(length):
                new[i, t] = np.mean([h[j, t] for j in range(len(ids)) if ids[j, t] == ids[i, t]], 0)
        edits[f"resid_pre.{wait}"] = new
    for layer in range(wait, model.n_layers):
        seen = torch.as_tensor(visible(length, shared, "peek" if layer < until else "alone", sees))

        def restrict(p: torch.Tensor, seen: torch.Tensor = seen) -> torch.Tensor:
            p = p * seen
            return p / p.sum(-1, keepdim=True)

        edits[f"attn_pattern.{layer}"] = restrict
    z = lw.patch(model, clean, edits, compare=False).logits.values
    return torch.as_tensor(z).double().log_softmax(-1).numpy()


@pytest.mark.parametrize("sees", ["prefix", "first"])
@pytest.mark.parametrize("arch", ARCHS)
def test_the_subgraph_equals_edits_of_whole_prompts(arch: str, sees: Any) -> None:
    model, task = random_model(arch)
    rows = af1.prepare(model, task, sees)
    grid = af1.windows(model, rows, transfers=range(4))
    for wait, until in [(0, 0), (0, 1), (1, 2), (2, 3), (0, 3), (1, 1)]:
        p = by_hand(model, task, wait, until, sees)
        want = p[np.arange(9), task.answer_ids.numpy()][SOLVED]
        one = af1.subgraph(model, rows, wait, until)
        np.testing.assert_allclose(one.log_prob, want, atol=2e-5)
        assert (
            one.correct.values.tolist()
            == (p.argmax(-1) == task.answer_ids.numpy())[SOLVED].tolist()
        )
        here = grid.log_prob.sel(wait=wait, transfer=until - wait)
        np.testing.assert_allclose(here, want, atol=2e-5)
    assert np.isnan(grid.correct.sel(wait=2, transfer=2)).all()


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_cutting_the_last_token_equals_edits_of_the_pattern(arch: str) -> None:
    model, task = random_model(arch)
    cuts: list[Any] = [0, 1, 2, (0, 2), (1, 2), (0, 1, 2)]
    got = af1.knockout(model, task, cuts)
    assert got.cut.values.tolist() == ["0", "1", "2", "0+2", "1+2", "0+1+2"]
    alone = torch.as_tensor(visible(10, 6, "alone", "prefix"))
    assert model.tokens(list(task.clean)).ids.shape[1] == 10

    def restrict(p: torch.Tensor) -> torch.Tensor:
        p = p.clone()
        p[:, :, -1] *= alone[-1]
        return p / p.sum(-1, keepdim=True)

    for name, cut in zip(got.cut.values, cuts):
        layers = {cut} if isinstance(cut, int) else set(cut)
        edits = {f"attn_pattern.{i}": restrict for i in layers}
        z = lw.patch(model, list(task.clean), edits, compare=False).logits.values
        p = torch.as_tensor(z).double().log_softmax(-1).numpy()
        want = p[np.arange(9), task.answer_ids.numpy()][SOLVED]
        np.testing.assert_allclose(got.log_prob.sel(cut=name), want, atol=2e-5)

    h = lw.cache(model, list(task.clean), "resid_pre", layers=1).resid_pre.values[:, 0]
    h[:, -1] = h[:, -1].mean(0)
    z = lw.patch(
        model, list(task.clean), {"resid_pre.1": h, "attn_pattern.2": restrict}, compare=False
    ).logits.values
    p = torch.as_tensor(z).double().log_softmax(-1).numpy()
    want = p[np.arange(9), task.answer_ids.numpy()][SOLVED]
    averaged = af1.knockout(model, task, [2], wait=1)
    np.testing.assert_allclose(averaged.log_prob[0], want, atol=2e-5)
    with pytest.raises(BadInput, match=r"cuts=\[0\]: give rising numbers from 1"):
        af1.knockout(model, task, [0], wait=1)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2"])
def test_waiting_equals_a_stream_put_in_by_hand(arch: str) -> None:
    model, task = random_model(arch)
    got = af1.waiting(model, task, af1.TECHNIQUES)
    base = lw.cache(model, list(task.clean), "resid_pre").resid_pre.values
    for w in range(model.n_layers):
        h = base[:, w]
        tail = np.arange(h.shape[1])[None, :, None] >= 6  # six shared tokens stay as they are
        news = {
            "mean": np.where(tail, h.mean(0, keepdims=True), h),
            "zero": np.where(tail, 0, h),
            "skip": np.where(tail, base[:, 0], h),
        }
        for technique, new in news.items():
            z = lw.patch(model, list(task.clean), {f"resid_pre.{w}": new}, compare=False).logits
            p = torch.as_tensor(z.values).double().log_softmax(-1).numpy()
            want = p[np.arange(9), task.answer_ids.numpy()][SOLVED]
            np.testing.assert_allclose(
                got.log_prob.sel(technique=technique, wait=w), want, atol=2e-5
            )


@pytest.mark.parametrize("arch", ARCHS)
def test_before_any_block_nothing_is_replaced(arch: str) -> None:
    model, task = random_model(arch)
    got = af1.waiting(model, task, ("cama", "skip", "alone"), [0])
    z = lw.patch(model, list(task.clean), {"resid_pre.0": lambda h: h}, compare=False).logits.values
    own = torch.as_tensor(z).double().log_softmax(-1).numpy()
    own = own[np.arange(9), task.answer_ids.numpy()][SOLVED]
    np.testing.assert_allclose(got.log_prob.values[:, 0], np.stack([own] * 3), atol=2e-5)
    assert bool((got.correct == 1).all())


def test_averaging_one_prompt_is_the_prompt_itself_at_every_layer() -> None:
    model, task = random_model("llama")
    rows = af1.prepare(model, task.subset([8]))
    for layer in range(model.n_layers + 1):
        for technique in ("cama", "mean"):
            assert torch.equal(af1.expected(rows, layer, technique), rows.base[layer])


def test_transfer_through_all_blocks_leaves_the_last_row_of_the_mask_as_it_was() -> None:
    model, task = random_model("llama")
    rows = af1.prepare(model, task)
    for layer in range(model.n_layers):
        assert torch.equal(rows.mask(layer, "peek")[-1], rows.mask(layer, "full")[-1])
        assert not torch.equal(rows.mask(layer, "peek")[1:-1], rows.mask(layer, "full")[1:-1])


def test_an_unconditional_mean_gives_all_prompts_one_answer() -> None:
    model, task = random_model("gpt2")
    rows = af1.prepare(model, task)
    h = af1.expected(rows, 1, "mean")
    assert torch.equal(h, h[:1].expand_as(h))
    got = af1.waiting(model, rows, "mean", [1, 2]).correct.mean("prompt")
    counts = np.unique(task.answer_ids[SOLVED], return_counts=True)[1] / 4
    assert set(np.round(got.values.ravel(), 6)) <= {0.0, *np.round(counts, 6)}
    assert af1.chance(rows) == counts.max()


def test_pruned_heads_look_at_themselves_only() -> None:
    model, task = random_model("llama")
    order = af1.prune(model, task, 1, 3)
    assert order.sizes["step"] == 9  # two blocks of four heads, and the start
    heads = set(zip(order["layer"].values[1:].tolist(), order["head"].values[1:].tolist()))
    assert heads == {(i, j) for i in (1, 2) for j in range(4)}
    first = af1.subgraph(model, task, 1, 3)
    np.testing.assert_allclose(order.log_prob.isel(step=0), first.log_prob, atol=1e-5)
    none = af1.subgraph(model, task, 1, 1)
    np.testing.assert_allclose(order.log_prob.isel(step=-1), none.log_prob, atol=1e-5)


def test_the_longest_wait_and_then_the_shortest_transfer_are_found() -> None:
    model, task = random_model("llama")
    grid = af1.windows(model, task, transfers=range(4))
    made = np.zeros(grid.correct.shape)
    made[0, 1:], made[1, 2], made[2, 1] = 1, 1, 1
    made[2, 1, 0] = 0  # 0.75
    grid = grid.assign(correct=(grid.correct.dims, made))
    assert af1.find(grid, 0.9) == (1, 3, 1.0)
    assert af1.find(grid, 0.7) == (2, 3, 0.75)
    found = af1.find(grid, 0.9)
    assert found is not None
    assert found.transfer == 2
    assert af1.find(grid.assign(correct=grid.correct * 0), 0.9) is None


def test_layers_out_of_order_are_refused() -> None:
    model, task = random_model("llama")
    for wait, until in [(2, 1), (-1, 2), (0, 4)]:
        with pytest.raises(BadInput, match="layers out of order"):
            af1.subgraph(model, task, wait, until)
        with pytest.raises(BadInput, match="layers out of order"):
            af1.prune(model, task, wait, until)
    with pytest.raises(BadInput, match="rising numbers from 0 to 3"):
        af1.waiting(model, task, layers=[2, 1])
    with pytest.raises(BadInput, match="rising"):
        af1.windows(model, task, waits=[0, 4])
    with pytest.raises(BadInput, match="rising"):
        af1.windows(model, task, transfers=[])
    for cuts in ([3], [()], []):
        with pytest.raises(BadInput, match="cuts"):
            af1.knockout(model, task, cuts)


def test_other_input_that_cannot_work_is_refused_with_the_reason() -> None:
    model, task = random_model("llama")
    wrong = replace(task, answer_sets=(task.answer_sets * 0 + 7))
    said = lw.patch(model, list(task.clean), {"resid_pre.0": lambda h: h}, compare=False)
    assert 7 not in said.logits.values.argmax(-1)
    with pytest.raises(BadInput, match="answers no prompt of arithmetic_grid right"):
        af1.waiting(model, wrong)
    with pytest.raises(UnknownName, match="'camma'; did you mean 'cama'"):
        af1.waiting(model, task, "camma")
    with pytest.raises(BadInput, match="'prefix' or 'first'"):
        af1.prepare(model, task, "all")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="share no token at their start"):
        af1.prepare(model, arithmetic_grid(model, **{**GRID, "prefix": ""}))
    with pytest.raises(BadInput, match="threshold"):
        af1.find(af1.windows(model, task), 1.5)
    rows = af1.prepare(model, task)
    with pytest.raises(BadInput, match="prepare them again"):
        af1.windows(random_model("gpt2")[0], rows)
    with pytest.raises(BadInput, match="prepare them again"):
        af1.prepare(model, rows, "first")


@pytest.mark.parametrize("arch", ["mixtral", "mamba"])
def test_architectures_whose_attention_cannot_be_restricted_are_refused(arch: str) -> None:
    model, _ = random_model("llama")
    module, _ = toys.tiny(arch)
    other = lw.wrap(module, tokenizer=model.tokenizer, name=arch)
    with pytest.raises(BadInput, match="cannot restrict the attention"):
        af1.prepare(other, arithmetic_grid(other, **GRID))


def test_results_are_labelled_and_survive_the_disk(tmp_path: Any) -> None:
    model, task = random_model("llama")
    grid = af1.windows(model, task)
    assert grid.correct.dims == ("wait", "transfer", "prompt")
    assert (grid.attrs["n_solved"], grid.attrs["n"]) == (4, 9)
    assert grid.prompt.values.tolist() == SOLVED
    path = lw.results.save(grid, tmp_path / "grid.nc")
    assert lw.results.open(path).identical(grid)


def test_the_panel_runs_the_subgraph_at_its_sliders() -> None:
    from lwlab.attribution.af1_panel import BoundaryPanel, scheme

    model, task = random_model("llama")
    rows = af1.prepare(model, task)
    panel = BoundaryPanel(model, rows, 1, 2, prompt=8)
    share = float(af1.subgraph(model, rows, 1, 2).correct.mean())
    assert f"accuracy {share:.0%} of 4" in panel.numbers.value
    panel.set(0, 3)
    want = af1.subgraph(model, rows, 0, 3)
    assert float(panel.result().correct.mean()) == float(want.correct.mean())
    top = int(want.logits.values[-1].argmax())
    assert repr(model.tokenizer.decode([top])) in panel.numbers.value
    panel.until.value = 1
    panel.wait.value = 2  # pushes the other boundary along
    assert (panel.wait.value, panel.until.value) == (2, 2)
    assert panel.map.error == ""
    panel.map.pick(0, 0)
    assert "waits" in panel.map.answer
    grid = scheme(rows, 1, 2)
    assert grid.values.tolist() == [[-1] * 4, [0, 0, 0, 1], [0] * 4]
    assert grid.position_str.values.tolist() == ["a", "'+'", "b", "'='"]
    with pytest.raises(BadInput, match="layers out of order"):
        panel.set(2, 1)
    with pytest.raises(BadInput, match="not one the model solves"):
        BoundaryPanel(model, rows, 1, 2, prompt=5)
