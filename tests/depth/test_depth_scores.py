"""Scores, halves, questions: formulas, intervals, generators, bad input."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
import xarray as xr

from lwlab.depth import (
    deepening,
    depth_score,
    from_hub,
    halves,
    multi_hop,
    overview,
    question_effects,
    row_means,
    scores_by_level,
    skip_effects,
    sums,
    word_problems,
)
from lwlab.depth.scores import layer_weights, resample
from lwlab.errors import BadInput, LwlabError, UnknownName
from lwlab.stats import bootstrap

TEXTS = ["Mary and John went to the store and Mary gave a book to John",
         "Paris is the capital of France and Rome is the capital of Italy"]  # fmt: skip


def made(d: Any, o: Any = None) -> xr.Dataset:
    """Effects as `skip_effects` returns them, from D [prompt, skipped, layer] and O."""
    d = np.asarray(d, float)
    layers = list(range(d.shape[-1]))
    both = np.stack([d, d])
    coords = {"statistic": ["max", "mean"], "skipped": layers, "layer": layers}
    out = xr.Dataset({"effect": (("statistic", "prompt", "skipped", "layer"), both)}, coords)
    if o is not None:
        o = np.asarray(o, float)
        out["output_effect"] = (("statistic", "prompt", "skipped"), np.stack([o, o]))
    return out


def test_equal_effects_score_the_middle_and_a_single_layer_scores_itself() -> None:
    n = 7
    ones = np.triu(np.ones((n, n)), 1)
    ones[-1, -1] = 9.0  # the diagonal does not count, so the last layer weighs nothing
    r = depth_score(made([ones], [np.ones(n)]))
    assert float(r.score.sel(form="layers")) == pytest.approx(2.5)  # 0..5: none follows the last
    assert float(r.score.sel(form="logits")) == pytest.approx(3.0)
    assert r.attrs["uniform"] == 3.0
    one = np.zeros((n, n))
    one[4, 5:] = 0.3
    assert float(depth_score(made([one])).score.sel(form="layers")) == pytest.approx(4.0)
    assert np.isnan(float(r.low[0]))


def test_weights_divide_by_the_layers_that_follow(toy: Any) -> None:
    effects = skip_effects(toy("llama"), TEXTS)
    d = effects.effect.sel(statistic="max").values
    w = layer_weights(effects, "max").sel(form="layers").values
    for p in range(2):
        for s in range(3):
            assert w[p, s] == pytest.approx(d[p, s, s + 1 :].sum() / max(3 - 1 - s, 1))
    rows = row_means(effects)
    assert float(rows[0, 0]) == pytest.approx(d[0, 0, 1:].mean())
    assert bool(rows[:, 2].isnull().all())
    for over, reduce in (("mean", np.mean), ("max", np.max)):
        total = reduce(w, 0)
        got = depth_score(effects, statistic="max", over=over).score.sel(form="layers")
        assert float(got) == pytest.approx((total * np.arange(3)).sum() / total.sum())


def test_no_effect_at_all_has_no_score() -> None:
    with pytest.raises(BadInput, match="no layer has any effect"):
        depth_score(made(np.zeros((1, 3, 3))))


def test_halves_leave_layer_0_out_and_their_interval_is_over_prompts() -> None:
    values = xr.DataArray(
        [[99.0, 1, 1, 2, 2, 8], [99.0, 3, 3, 6, 6, 8]], dims=("prompt", "layer"),
        coords={"layer": range(6)},
    )  # fmt: skip
    h = halves(values, skip_last=True)
    assert (h.first.mean, h.second.mean, h.ratio.mean) == (2.0, 4.0, 2.0)
    assert (h.first.low, h.first.high) == (1.0, 3.0)
    assert h.ratio.low == h.ratio.high == 2.0
    assert halves(values).second.mean == pytest.approx(16 / 3)
    with pytest.raises(BadInput, match="half"):
        halves(values.sel(layer=[0, 5]), n_layers=6, skip_last=True)


def test_resampling_a_mean_is_the_bootstrap_of_the_mean() -> None:
    x = np.random.default_rng(0).normal(size=12)
    mine = resample(x[:, None], lambda r: float(r.mean()), 4000, 0, 0.95)
    theirs = bootstrap(x, n=4000)
    assert mine.mean == pytest.approx(theirs.mean)
    np.testing.assert_allclose(mine[1:], theirs[1:], atol=0.03)


def test_deepening_is_the_slope_of_the_scores() -> None:
    n = 6

    def at(layer: int) -> np.ndarray:
        d = np.zeros((n, n))
        d[layer, layer + 1 :] = 1.0
        return d

    effects = made([at(1), at(1), at(2), at(2), at(3), at(3)]).assign_coords(
        level=("prompt", [1, 1, 2, 2, 3, 3])
    )
    assert scores_by_level(effects).score.sel(form="layers").values.tolist() == [1, 2, 3]
    slope = deepening(effects)
    assert slope.mean == pytest.approx(1.0)
    assert slope.low == pytest.approx(1.0)
    with pytest.raises(BadInput, match="one level"):
        deepening(effects.isel(prompt=[0, 1]))


def test_question_effects_skip_before_the_answer_only(toy: Any) -> None:
    from lwlab.depth.texts import Question

    model = toy("llama")
    questions = [
        Question("Mary gave a book to", " John", 1, "x"),
        Question("the capital of France is", " Paris and Rome", 2, "y"),
    ]
    r = question_effects(model, questions, layers=[0, 1])
    assert r.attrs["t"] == [[5], [5]]
    assert r.level.values.tolist() == [1, 2]
    assert r.kind.values.tolist() == ["x", "y"]
    alone = skip_effects(model, questions[1].text, "future", t=5, layers=[0, 1])
    np.testing.assert_allclose(r.effect[:, 1], alone.effect[:, 0], atol=1e-6)
    with pytest.raises(BadInput, match="0 questions"):
        question_effects(model, [])


def test_overview_gathers_what_the_single_analyses_give(toy: Any) -> None:
    model = toy("gpt2")
    r = overview(model, TEXTS, t=6)
    np.testing.assert_allclose(r.current, skip_effects(model, TEXTS).effect, atol=1e-6)
    future = skip_effects(model, TEXTS, "future", t=6)
    np.testing.assert_allclose(r.future_output, future.output_effect, atol=1e-6)
    assert set(r.data_vars) == {
        "relative", "cosine", "current", "future", "local", "current_output", "future_output",
    }  # fmt: skip
    assert r.attrs["t"] == [[6], [6]]


@pytest.mark.parametrize("terms", [2, 3, 5])
def test_sums_are_right(terms: int) -> None:
    made = sums(terms, 20, seed=3)
    for q in made:
        digits = [int(x) for x in q.prompt.removesuffix(" = ").split(" + ")]
        assert len(digits) == terms
        assert str(sum(digits)) == q.answer
        assert q.level == terms - 1
    assert made == sums(terms, 20, seed=3)
    assert made != sums(terms, 20, seed=4)


@pytest.mark.parametrize("style", ["short", "plain", "paper"])
def test_word_problems_are_worked_out_right(style: Any) -> None:
    for steps in range(1, 7):
        for q in word_problems(steps, 10, style=style):
            worked = [s for s in q.answer.split(". ") if "=" in s]
            assert len(worked) == steps == q.level
            for line in worked:
                left, right = line.removesuffix(".").split("=")
                a, op, b = left.split()
                assert int(right) == (int(a) + int(b) if op == "+" else int(a) - int(b))
                assert int(right) >= 0
            if style != "short":
                assert q.answer.endswith(worked[-1].removesuffix(".").split("= ")[1])


def test_hops_ask_for_the_same_answers_by_longer_ways() -> None:
    one, two, three = (multi_hop(h, 8, seed=1) for h in (1, 2, 3))
    assert [q.answer for q in one] == [q.answer for q in two] == [q.answer for q in three]
    assert len({q.answer for q in one}) == 8
    assert all(len(a.prompt) < len(b.prompt) < len(c.prompt) for a, b, c in zip(one, two, three))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: sums(1), BadInput), (lambda: sums(2, 0), BadInput),
        (lambda: word_problems(0), BadInput), (lambda: word_problems(7), BadInput),
        (lambda: word_problems(2, style="long"), UnknownName),  # type: ignore[arg-type]
        (lambda: multi_hop(4), BadInput), (lambda: multi_hop(2, 9), BadInput),
        (lambda: from_hub("gsm9k"), UnknownName),
    ],
)  # fmt: skip
def test_generators_refuse_what_cannot_be_made(call: Any, error: Any) -> None:
    with pytest.raises(error):
        call()


def test_the_hub_without_the_package_says_what_to_install(monkeypatch: Any) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LwlabError, match="pip install datasets"):
        from_hub("gsm8k")


def test_rows_of_the_papers_data_become_its_prompts() -> None:
    from lwlab.depth.texts import _question

    q = _question("gsm8k", {"question": "How many?", "answer": "1 + 1 = 2\n#### 2"})
    assert q.text.startswith("Given the following problem")
    assert q.answer == "1 + 1 = 2 The final answer is 2"
    q = _question("mquake", {"questions": ["Who?"], "answer": "Ann", "orig_triples": [1, 2, 3]})
    assert (q.prompt, q.answer, q.level) == ("Question: Who?\nAnswer:", " Ann", 3)
    q = _question("math", {"problem": "x?", "solution": "y", "level": "Level 4"})
    assert (q.prompt, q.answer, q.level) == ("Problem: x?\nAnswer:", " y", 4)
