"""Integrals along a path: complete in the limit, with as many steps as that takes."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from lwlab.attribution import Pair, edges, nodes
from lwlab.attribution.edges import Edges
from lwlab.attribution.first_order import Driver
from lwlab.attribution.wiring import Wiring
from lwlab.errors import BadInput

IG = ("eap-ig-inputs", "eap-ig-activations")


@pytest.mark.parametrize("technique", IG)
@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_the_gap_closes_with_the_square_of_the_steps(
    arch: str, technique: str, toy_ioi: Any
) -> None:
    model, task = toy_ioi(arch)
    given: dict[str, Any] = {"tolerance": None, "normalise": False}
    few, many = (
        edges.scores(model, task, technique, steps=n, max_steps=n, **given) for n in (20, 60)
    )
    assert float(few.gap.max()) > 0
    assert float(many.gap.max()) < float(few.gap.max()) / 4  # 9 by theory, until float32 is reached
    assert float(many.gap.max()) < 2e-4
    assert many.attrs["steps"] == 60


@pytest.mark.parametrize("technique", IG)
def test_the_gap_is_what_the_edges_miss(technique: str, toy_ioi: Any) -> None:
    model, task = toy_ioi("llama")
    found = edges.scores(model, task, technique, steps=3, tolerance=None, normalise=False)
    clean, corrupt = Pair.of(model, task).metrics()
    total = found.sel(sender="input").sum("receiver").values
    missing = np.abs(total - (clean - corrupt).numpy())
    assert (found.gap.values >= missing - 1e-6).all()
    if technique == "eap-ig-inputs":
        np.testing.assert_allclose(found.gap.values, missing, atol=1e-6)


@pytest.mark.parametrize("technique", IG)
def test_steps_are_added_for_the_prompts_that_need_them(technique: str, toy_ioi: Any) -> None:
    model, task = toy_ioi("llama")
    rough = edges.scores(model, task, technique, steps=5, tolerance=None)
    clean, corrupt = (m.numpy() for m in Pair.of(model, task).metrics())
    effect = np.abs(clean - corrupt).mean() / abs(clean.mean() - corrupt.mean())
    between = float(np.sort(np.unique(rough.gap.values.round(6)))[[0, -1]].mean() / effect)
    found = edges.scores(model, task, technique, steps=5, tolerance=between, max_steps=160)
    assert set(found.steps.values.tolist()) == {5, 10}
    assert found.attrs["converged"]
    assert found.attrs["completeness_gap"] <= between
    kept = found.steps.values == 5
    np.testing.assert_allclose(found.values[kept], rough.values[kept], atol=1e-6)
    ten = edges.scores(model, task, technique, steps=10, tolerance=None)
    if technique == "eap-ig-inputs":
        np.testing.assert_allclose(found.values[~kept], ten.values[~kept], atol=1e-6)


def test_an_integral_that_stays_open_says_so(toy_ioi: Any) -> None:
    model, task = toy_ioi("llama")
    with pytest.warns(UserWarning, match=r"after 4 steps .* miss .*\(tolerance 1e-09\)") as seen:
        found = edges.scores(model, task, IG[0], steps=2, tolerance=1e-9, max_steps=7)
    assert seen[0].filename == __file__
    assert not found.attrs["converged"]
    assert found.attrs["steps"] == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        closed = edges.scores(model, task, IG[0], tolerance=0.2)
    assert closed.attrs["converged"]


def test_both_integrals_move_the_input_alike(toy_ioi: Any) -> None:
    model, task = toy_ioi("qwen3")
    both = edges.scores(model, task, IG, steps=4, tolerance=None)
    row = both.sel(sender="input")
    np.testing.assert_allclose(row[0].values, row[1].values, atol=1e-5)
    assert float(np.abs(both[0] - both[1]).max()) > 1e-3  # elsewhere they are two techniques


@pytest.mark.parametrize("technique", [*edges.TECHNIQUES])
def test_chunks_change_nothing_and_progress_is_told(technique: str, toy_ioi: Any) -> None:
    model, task = toy_ioi("llama")
    pair = Pair.of(model, task)
    one = Driver(model, pair, Edges(Wiring(model)), 2**30)
    told: list[tuple[int, int]] = []
    given: dict[str, Any] = {"technique": technique, "steps": 3, "tolerance": None}
    whole = edges.scores(model, pair, **given)
    small = edges.scores(
        model, pair, memory=one.row + one.item, progress=lambda *at: told.append(at), **given
    )
    np.testing.assert_allclose(small.values, whole.values, rtol=1e-5, atol=3e-6)
    done = [d for d, _ in told]
    assert done == sorted(done)
    assert told[-1][0] == told[-1][1]
    passes = {"eap": 1, "relp": 1, "eap-ig-inputs": 3, "eap-ig-activations": 3 * 7}[technique]
    assert told[-1][0] == 4 * passes
    assert len(told) >= 4  # a pass at a time


def test_a_budget_too_small_for_one_prompt_is_refused(toy_ioi: Any) -> None:
    model, task = toy_ioi("llama")
    with pytest.raises(BadInput, match=r"memory=0\.001 MB: one prompt of 14 tokens needs about"):
        edges.scores(model, task, memory=1000)
    with pytest.raises(BadInput, match="memory="):
        nodes.scores(model, task, memory=1000)
