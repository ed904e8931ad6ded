"""Perplexity and task scores equal what the plain model says, prompt by prompt; the digits."""

from __future__ import annotations

import math
import threading
import types

import numpy as np
import pytest
import torch

import lwlab
from lwlab import tasks
from lwlab.errors import BadInput
from lwlab.models import toys

TEXTS = [
    "Mary gave John a drink at the park",
    "The keys near the car are",
    "When Tom and Anna went to the store, Anna gave a book to",
    "the war",
    "The capital of France is Paris",
]


def hf_loss(model, text, max_tokens=256):
    ids = torch.tensor([model.tokenizer(text)["input_ids"][:max_tokens]])
    with torch.no_grad():
        return float(model.module(input_ids=ids, labels=ids).loss)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("max_tokens", [4, 64])
def test_nll_is_the_loss_of_hugging_face(tiny, batch, max_tokens):
    out = tasks.perplexity(tiny, TEXTS, max_tokens=max_tokens, batch=batch)
    expected = [hf_loss(tiny, t, max_tokens) for t in TEXTS]
    np.testing.assert_allclose(out["nll"], expected, atol=1e-5)
    lengths = [min(len(tiny.tokenizer(t)["input_ids"]), max_tokens) - 1 for t in TEXTS]
    assert out["tokens"].values.tolist() == lengths


def test_perplexity_weighs_every_token_the_same(tiny):
    out = tasks.perplexity(tiny, TEXTS)
    total = sum(hf_loss(tiny, t) * (len(tiny.tokenizer(t)["input_ids"]) - 1) for t in TEXTS)
    assert float(out["perplexity"]) == pytest.approx(math.exp(total / int(out["tokens"].sum())))
    assert float(out["perplexity_low"]) < float(out["perplexity"]) < float(out["perplexity_high"])
    assert out.attrs["n"] == 5
    assert out.attrs["model"] == tiny.name


def test_one_text_is_a_text(tiny):
    one = tasks.perplexity(tiny, TEXTS[0])
    assert float(one["nll"][0]) == pytest.approx(hf_loss(tiny, TEXTS[0]), abs=1e-5)
    assert math.isnan(float(one["perplexity_low"]))


@pytest.mark.parametrize("arch", ["gpt2", "gpt_neox", "opt", "gemma2", "mamba"])
def test_other_architectures_agree_with_their_own_loss(arch, make):
    tokenizer = make()
    size = {"n_positions": 128} if arch == "gpt2" else {"max_position_embeddings": 128}
    module, _ = toys.tiny(arch, vocab_size=len(tokenizer), **({} if arch == "mamba" else size))
    model = lwlab.wrap(module, tokenizer=tokenizer)
    got = tasks.perplexity(model, TEXTS, max_tokens=8, batch=5)["nll"]
    np.testing.assert_allclose(got, [hf_loss(model, t, 8) for t in TEXTS], atol=1e-4)


def test_what_cannot_be_scored_is_refused(tiny):
    with pytest.raises(BadInput, match=r"text 1 is 1 token\(s\) long \('Mary'\)"):
        tasks.perplexity(tiny, [TEXTS[0], "Mary"])
    with pytest.raises(BadInput, match="reads from 2 to 128"):
        tasks.perplexity(tiny, TEXTS, max_tokens=129)
    with pytest.raises(BadInput, match="no text to score"):
        tasks.perplexity(tiny, [])
    with pytest.raises(BadInput, match="batch is 0"):
        tasks.perplexity(tiny, TEXTS, batch=0)


def test_an_encoder_has_no_next_token(make):
    model = types.SimpleNamespace(name="bert", kind="encoder", max_tokens=64, tokenizer=make())
    with pytest.raises(BadInput, match="kind 'encoder' and does not predict the next token"):
        tasks.perplexity(model, TEXTS, max_tokens=8)


@pytest.mark.parametrize("ragged", [False, True])
def test_evaluate_is_one_plain_forward_a_prompt(tiny, ragged):
    template = ["store-drink", "found"] if ragged else "went"
    task = tasks.ioi(tiny, n=7, template=template, ragged=ragged)
    out = tasks.evaluate(tiny, task, batch=3)
    for which, texts in (("clean", task.clean), ("corrupt", task.corrupt)):
        for i, text in enumerate(texts):
            with torch.no_grad():
                ids = torch.tensor([tiny.tokenizer(text)["input_ids"]])
                last = tiny.module(input_ids=ids).logits[0, -1]
            expected = float(last[task.answer_ids[i]] - last[task.foil_ids[i]])
            assert float(out[which][i]) == pytest.approx(expected, abs=1e-4)
            if which == "clean":
                assert bool(out["top1"][i]) == (int(last.argmax()) == int(task.answer_ids[i]))
                assert bool(out["correct"][i]) == (expected > 0)
    assert out.attrs["mean_clean"] == pytest.approx(float(out["clean"].mean()))
    low, high = out.attrs["interval_clean"]
    assert low < out.attrs["mean_clean"] < high
    assert out.attrs["task"] == "ioi"
    assert out.attrs["metric"] == "logit_diff"


def test_evaluate_waits_for_the_lock_of_the_module(tiny):
    from lwlab.tracing import lock

    done = threading.Event()

    def score():
        tasks.evaluate(tiny, tasks.ioi(tiny, n=2))
        done.set()

    thread = threading.Thread(target=score)
    with lock(tiny):
        thread.start()
        assert not done.wait(1.0)
    thread.join(30)
    assert done.is_set()


def test_the_default_model_does_the_default_tasks(smollm2):
    for make_task in (
        tasks.ioi,
        tasks.greater_than,
        tasks.induction,
        tasks.arithmetic,
        tasks.country_capital,
        tasks.pronouns,
        tasks.agreement,
    ):
        out = tasks.evaluate(smollm2, make_task(smollm2, n=8))
        assert out.attrs["interval_clean"][0] > 0, out.lw.describe()
        assert out.attrs["interval_corrupt"][1] < 0, out.lw.describe()
        assert out.attrs["mean_correct"] >= 0.75, out.lw.describe()


def test_the_eight_prompts_of_the_relp_card(smollm2):
    task = tasks.ioi(smollm2, n=8, names=tasks.IOI_RELP_PAIRS, order="abba")
    assert task.lengths.tolist() == [14] * 8
    out = tasks.evaluate(smollm2, task)
    assert out.attrs["mean_clean"] == pytest.approx(5.19, abs=0.01)
    assert out.attrs["mean_corrupt"] == pytest.approx(-4.75, abs=0.01)


def test_pydoc_is_readable_to_the_default_model(smollm2):
    texts = tasks.corpus(n=4, tokens=64, model=smollm2)
    out = tasks.perplexity(smollm2, texts, max_tokens=64)
    np.testing.assert_allclose(out["nll"], [hf_loss(smollm2, t, 64) for t in texts], atol=1e-4)
    shuffled = [" ".join(reversed(t.split())) for t in texts]
    assert float(tasks.perplexity(smollm2, shuffled, max_tokens=64)["perplexity"]) > 3 * float(
        out["perplexity"]
    )


def test_digits_are_split_by_seed_with_every_class_on_both_sides():
    data = tasks.digits(test=0.2, seed=1)
    assert data.train_x.shape == (1437, 1, 8, 8)
    assert data.test_x.shape == (360, 1, 8, 8)
    assert data.train_x.dtype == torch.float32
    assert (float(data.train_x.min()), float(data.train_x.max())) == (0.0, 1.0)
    shares = torch.bincount(data.test_y) / torch.bincount(data.train_y)
    assert bool(((shares > 0.23) & (shares < 0.27)).all())
    assert torch.equal(tasks.digits(test=0.2, seed=1, flat=True).test_x, data.test_x.flatten(1))
    assert not torch.equal(tasks.digits(test=0.2, seed=2).test_y, data.test_y)
    both = torch.cat([data.train_x, data.test_x]).flatten(1)
    assert len(both) == 1797
    assert float(both.sum() * 16) == pytest.approx(561718, rel=1e-6)
    with pytest.raises(BadInput, match="test is 25"):
        tasks.digits(test=25)
