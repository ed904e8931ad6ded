"""What edge and node attribution refuse, before any forward pass, and what they say then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

import lwlab as lw
from lwlab.attribution import edges, nodes
from lwlab.errors import BadInput, MissingSite, UnknownName

SCORES = [edges.scores, nodes.scores]


@contextmanager
def idle(model: lw.Model) -> Iterator[None]:
    """Fail if the model runs inside."""
    ran: list[int] = []
    handle = model.module.register_forward_hook(lambda *_: ran.append(1))
    try:
        yield
    finally:
        handle.remove()
    assert not ran


@pytest.mark.parametrize("scores", SCORES)
def test_tasks_must_have_twins_of_one_length(scores: Any, toy_ioi: Any, toy: Any) -> None:
    model, task = toy_ioi("llama")
    ragged = lw.tasks.ioi(
        model, n=4, names=[("Mary", "John"), ("Tom", "Anna")], ragged=True,
        template=["store-drink", "{A} and {B} went to the store , {S} gave a drink to"],
    )  # fmt: skip
    longer = replace(task, corrupt=tuple(t + " the" for t in task.corrupt))
    with idle(model):
        with pytest.raises(BadInput, match="4 clean and 0 corrupt prompts"):
            scores(model, replace(task, corrupt=()))
        with pytest.raises(BadInput, match=r"clean and corrupt prompts, such as .*, not str"):
            scores(model, "When Mary and John went")
        with pytest.raises(BadInput, match=r"equal length, but prompt 0 has 14 tokens"):
            scores(model, ragged)
        with pytest.raises(BadInput, match="14 tokens and corrupt prompts 15"):
            scores(model, longer)


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize(
    ("arch", "error", "match"),
    [
        ("bert_mlm", BadInput, "no causal language model .*no graph of edges"),
        ("t5:decoder", BadInput, "no causal language model .*no graph of edges"),
        ("vit", BadInput, "no causal language model .*no graph of edges"),
        ("mamba", MissingSite, "no site 'q': it has a state-space mixer"),
        ("opt_post_norm", BadInput, "normalises the stream itself"),
    ],
)
def test_models_without_edges_are_refused(
    scores: Any, arch: str, error: Any, match: str, toy_ioi: Any, toy: Any
) -> None:
    with idle(toy(arch)), pytest.raises(error, match=match):
        scores(toy(arch), toy_ioi("llama")[1])


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("arch", ["mixtral", "qwen2_moe"])
def test_experts_have_edges_and_no_rules(scores: Any, arch: str, toy_ioi: Any) -> None:
    model, task = toy_ioi(arch)
    with idle(model), pytest.raises(BadInput, match=r"no backward rules .* mixture-of-experts"):
        scores(model, task, "relp")
    assert float(abs(scores(model, task)).max()) > 1e-3


@pytest.mark.parametrize("scores", SCORES)
def test_names_and_numbers_are_checked(scores: Any, toy_ioi: Any) -> None:
    model, task = toy_ioi("llama")
    with idle(model):
        with pytest.raises(UnknownName, match="did you mean 'relp'"):
            scores(model, task, "rlp")
        with pytest.raises(UnknownName, match="no rule 'lm'"):
            scores(model, task, "relp", rules=["lm"])
        with pytest.raises(BadInput, match="name each once, and at least one"):
            scores(model, task, [])
        with pytest.raises(BadInput, match="name each once, and at least one"):
            scores(model, task, ["relp", "relp"])
        with pytest.raises(BadInput, match=r"steps=0; .* at least one"):
            scores(model, task, steps=0)
        with pytest.raises(BadInput, match="steps=20, max_steps=10"):
            scores(model, task, steps=20, max_steps=10)
        for tolerance in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(BadInput, match=r"tolerance=.*positive share"):
                scores(model, task, tolerance=tolerance)
        with lw.rules(model) as view, pytest.raises(BadInput, match="give the ordinary model"):
            scores(view, task)


@pytest.mark.parametrize("scores", SCORES)
def test_no_effect_has_no_share(scores: Any, unchanged: Any) -> None:
    model, task = unchanged
    with pytest.raises(BadInput, match="score the same"):
        scores(model, task)
    assert float(abs(scores(model, task, normalise=False)).max()) == 0
