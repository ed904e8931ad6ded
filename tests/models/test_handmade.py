"""Handmade models do what they are named after, exactly, and say truly what is connected."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

import lwlab as lw
from lwlab.errors import BadInput, UnknownName
from lwlab.models import handmade
from lwlab.models.compiled import Compiled
from lwlab.models.programs import Head


@pytest.mark.parametrize("name", handmade.NAMES)
def test_weights_are_integers_and_answers_are_right(name: str) -> None:
    made = handmade.build(name)
    for weight in made.model.module.parameters():
        assert torch.equal(weight, weight.round())
    task = made.task(12, seed=3)
    found = lw.tasks.evaluate(made.model, task)
    if name != "frac_prevs":
        assert found.top1.values.all()
        assert (found.corrupt < 0).all()  # the twin's answer is the foil
    assert max(made.model.checks.values()) == 0.0  # the anatomy's identities, in integers


def test_frac_prevs_is_the_share_at_every_position() -> None:
    made = handmade.frac_prevs()
    task = made.task(8)
    logits = lw.cache(made.model, list(task.clean), "logits").logits
    token = made.model.token_id(handmade.X)
    for i, text in enumerate(task.clean):
        words = text.split()
        shares = [Fraction(words[: p + 1].count("x"), p + 1) for p in range(len(words))]
        np.testing.assert_allclose(
            logits[i].sel(token=token).values, [float(s) for s in shares], atol=1e-6
        )


def test_reverse_gives_the_words_back_one_by_one() -> None:
    made = handmade.reverse()
    logits = lw.cache(made.model, ["cat dog Mary king sep king Mary"], "logits").logits
    said = made.model.tokenizer.convert_ids_to_tokens(logits.argmax("token").values[0].tolist())
    assert said[4:] == ["king", "Mary", "dog"]


def test_induction_copies_what_came_after() -> None:
    made = handmade.induction()
    for text, answer in (("start cat dog Mary cat", "dog"), ("start cat dog Mary dog", "Mary")):
        z = lw.cache(made.model, [text], "logits").logits[0, -1]
        assert int(z.argmax("token")) == made.model.token_id(answer)


@pytest.mark.parametrize("name", handmade.NAMES)
def test_what_a_cut_edge_carries_decides_which_edges_matter(name: str) -> None:
    made = handmade.build(name)
    patch, zero = set(made.circuit()), set(made.circuit("zero"))
    assert patch <= zero
    wired = {(w.sender, w.receiver) for w in made.wires}
    assert zero < wired  # there is always something real beside the circuit
    assert all(sender != "input" or receiver != "logits" for sender, receiver in wired)


@pytest.mark.parametrize("groups", [1, 2])
def test_induction_with_shared_and_with_own_keys_has_the_same_logits(groups: int) -> None:
    one, other = handmade.induction(groups), handmade.induction(2)
    task = one.task(3)
    a, b = (lw.tasks.evaluate(m.model, task).clean.values for m in (one, other))
    np.testing.assert_allclose(a, b, atol=1e-6)
    assert one.model.n_kv_heads == groups


def test_bad_requests() -> None:
    with pytest.raises(UnknownName, match="did you mean 'reverse'"):
        handmade.build("revers")
    with pytest.raises(BadInput, match="read different values"):
        handmade.build("frac_prevs", groups=1)
    with pytest.raises(BadInput, match="at least one prompt"):
        handmade.reverse().task(0)
    with pytest.raises(BadInput, match="compiled for at most 7"):
        handmade.reverse().model.module(torch.zeros(1, 8, dtype=torch.long))


def test_heads_of_a_group_cannot_ask_for_different_values() -> None:
    program = handmade.induction().program
    first, second = program.heads[0]
    assert first is not None
    assert second is not None
    odd = Head(second.parts, "previous", "same")
    with pytest.raises(BadInput, match="share values"):
        Compiled(replace(program, heads=((first, odd), program.heads[1]), slots={}))
