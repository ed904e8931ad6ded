"""What attribution refuses, before any run, and what it says then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import lwlab as lw
from lwlab.attribution import Pair, atp, exact, ig, relp
from lwlab.errors import BadInput, UnknownName

SCORES = [exact.scores, atp.scores, relp.scores, ig.scores]


@pytest.fixture
def given(toy_ioi: Any) -> Any:
    return toy_ioi("llama")


@pytest.mark.parametrize("scores", SCORES)
def test_prompts_of_unequal_length_are_refused_by_name(scores: Any, toy: Any) -> None:
    model = toy("llama")
    names = [("Mary", "John"), ("Tom", "Anna")]
    task = lw.tasks.ioi(
        model, n=4, names=names, ragged=True,
        template=["store-drink", "{A} and {B} went to the store , {S} gave a drink to"],
    )  # fmt: skip
    with pytest.raises(BadInput, match=r"equal length, but prompt 0 has 14 tokens .* prompt 2"):
        scores(model, task)


@pytest.mark.parametrize("scores", SCORES)
def test_twins_of_unequal_length_are_refused(scores: Any, given: Any) -> None:
    model, task = given
    longer = replace(task, corrupt=tuple(t + " the" for t in task.corrupt))
    with pytest.raises(BadInput, match="14 tokens and corrupt prompts 15"):
        scores(model, longer)


@pytest.mark.parametrize("scores", SCORES)
def test_a_task_without_corrupt_prompts_is_refused(scores: Any, given: Any) -> None:
    model, task = given
    with pytest.raises(BadInput, match="4 clean and 0 corrupt prompts"):
        scores(model, replace(task, corrupt=()))
    with pytest.raises(BadInput, match=r"clean and corrupt prompts, such as .*, not str"):
        scores(model, "When Mary and John went")


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("arch", ["bert_mlm", "t5:decoder", "vit"])
def test_only_causal_language_models_are_taken(
    scores: Any, arch: str, given: Any, toy: Any
) -> None:
    with pytest.raises(BadInput, match="no causal language model"):
        scores(toy(arch), given[1])


@pytest.mark.parametrize("scores", SCORES)
def test_components_and_layers_are_checked(scores: Any, given: Any, toy_ioi: Any) -> None:
    model, task = given
    with pytest.raises(UnknownName, match="did you mean 'mlp_out'"):
        scores(model, task, ["mlp_uot"])
    with pytest.raises(BadInput, match="no value at each layer and position"):
        scores(model, task, ["attn_pattern"])
    with pytest.raises(BadInput, match="no value at each layer and position"):
        scores(model, task, ["embed"])
    with pytest.raises(BadInput, match=r"layer is 0\.\.2"):
        scores(model, task, layers=[3])
    model, task = toy_ioi("mamba")
    with pytest.raises(BadInput, match="state-space mixer"):
        scores(model, task)


def test_sizes_of_work_must_be_positive(given: Any) -> None:
    model, task = given
    with pytest.raises(BadInput, match="memory"):
        exact.scores(model, task, memory=0)
    with pytest.raises(BadInput, match="batch_size=0"):
        atp.scores(model, task, batch_size=0)
    with pytest.raises(BadInput, match="steps=0"):
        ig.scores(model, task, steps=0)


def test_a_pair_belongs_to_its_model(given: Any, toy_ioi: Any) -> None:
    pair = Pair.of(*given)
    assert Pair.of(given[0], pair) is pair
    with pytest.raises(BadInput, match="made with llama, not with gpt2"):
        atp.scores(toy_ioi("gpt2")[0], pair)


def test_what_a_pair_has_computed_is_not_computed_again(given: Any) -> None:
    model, task = given
    calls: list[int] = []
    handle = model.module.register_forward_hook(lambda m, a, o: calls.append(1))
    try:
        pair = Pair.of(model, task)
        prefix = len(calls)
        relp.scores(model, pair)
        assert (
            len(calls) - prefix == 3
        )  # clean, corrupt, and the corrupt run with its backward pass
        relp.scores(model, pair, rules=("ln",))
        assert len(calls) - prefix == 4
        atp.scores(model, pair)
        assert len(calls) - prefix == 5
    finally:
        handle.remove()
