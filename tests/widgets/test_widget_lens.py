"""The lens explorer's Python side: it follows the prompt, and refuses in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

import lwlab as lw
from lwlab.errors import BadInput, MissingSite
from lwlab.widgets import LensExplorer


@pytest.fixture
def lens(toy: Callable[[str], lw.Model]) -> Iterator[LensExplorer]:
    widget = LensExplorer(toy("llama"), "the cat sat on")
    assert widget.wait(60)
    yield widget
    widget.close()


def test_the_cells_are_the_models_own_lens(lens, toy):
    model = toy("llama")
    found = lw.lens(model, "the cat sat on", k=10).isel(prompt=0)
    np.testing.assert_allclose(lens.array()[0], np.exp(found.log_prob.isel(top=0)), rtol=1e-5)
    last = torch.softmax(
        torch.as_tensor(lw.cache(model, "the cat sat on", "logits").logits[0, -1].values), -1
    )
    lens.pick(model.n_layers, 3)
    shown = [float(r[2]) for r in lens.table["rows"]]
    np.testing.assert_allclose(shown, last.topk(10).values, atol=6e-4)
    assert lens.column_labels[3] == "3: on"
    assert len(lens.texts) == (model.n_layers + 1) * 4


def test_colours_follow_entropy_kl_and_the_rank_of_a_target(lens):
    lens.colour = "kl"
    np.testing.assert_allclose(lens.array()[0][-1], 0, atol=1e-5)  # the last layer from itself
    lens.colour = "rank"
    assert lens.error == "name a target word to see its rank"
    lens.target = "cat"
    assert lens.wait(60)
    lens.colour = "rank"
    np.testing.assert_allclose(lens.array()[0], np.log10(1 + lens.result["rank"]), rtol=1e-5)
    assert "number" in lens.table["caption"]
    lens.target = "cat dog"
    assert lens.wait(60)
    assert "is 2 tokens" in lens.error
    lens.target = ""
    assert lens.wait(60)
    assert (lens.colour, lens.error) == ("probability", "")


def test_bad_prompts_are_refused_in_words_and_the_map_stays(lens):
    before = lens.values
    for prompt, words in (
        ("", "empty"),
        ("  ", "empty"),
        ("cat " * 10_000, "at most"),
        ("cat " * 100, "at most"),
    ):
        lens.prompt = prompt
        assert lens.wait(60)
        assert words in lens.error
        assert lens.values == before
    for prompt in ("😀 cat", "שלום עולם", "cat"):
        lens.prompt = prompt
        assert lens.wait(60)
        assert lens.error == ""
        assert lens.array().shape[2] == len(prompt.split())


def test_ten_fast_prompts_show_the_last(lens):
    for k in range(1, 11):
        lens.prompt = "cat " * k
    assert lens.wait(60)
    assert len(lens.column_labels) == 10
    assert not lens.busy


def test_two_explorers_on_one_model_and_a_closed_one(lens, toy):
    other = LensExplorer(toy("llama"), "the dog")
    lens.prompt, other.prompt = "the old city", "a boy"
    assert lens.wait(60)
    assert other.wait(60)
    assert [len(w.column_labels) for w in (lens, other)] == [3, 2]
    other.close()
    other.prompt = "the year"
    assert other.wait(5)
    assert "closed" in other.error


def test_models_and_colours_that_do_not_fit(toy):
    with pytest.raises(MissingSite):
        LensExplorer(toy("bert"), "the cat")
    with pytest.raises(BadInput, match="one of probability"):
        LensExplorer(toy("llama"), "the cat", colour="heat")


def test_the_static_twin(lens):
    assert lens.static_png()[:4] == b"\x89PNG"
    assert "the cat sat on" in lens.static_text()
    assert "goes on with" in lens.static_text()


@pytest.mark.slow
def test_smollm2_finds_paris_late(smollm2):
    lens = LensExplorer(smollm2, "The capital of France is", " Paris", colour="rank")
    assert lens.wait(120)
    assert lens.table["rows"][0][1] == "Paris"
    rank = lens.result["rank"].values[:, -1]
    assert rank[-1] == 0
    assert rank[0] > 100
    lens.close()
