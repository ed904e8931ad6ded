"""Massive activations: found where they were put, changed as said; curves fitted and refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lwlab as lw
from lwlab.activations import Place, change, controls, curve, emergence, fit, massive, peak, places
from lwlab.activations.emergence import first_order, logarithm
from lwlab.errors import BadInput
from lwlab.models import toys

TEXTS = ["the cat sat on the mat", "a dog went to the park and saw a man"]


@pytest.fixture
def model(toy):
    return toy("llama")


@pytest.fixture
def planted():
    """A GPT-2 whose first position has 5000 in dimension 3; its own, since toys are shared."""
    module, _ = toys.tiny("gpt2")
    with torch.no_grad():
        module.transformer.wpe.weight[0, 3] = 5000.0
    return lw.wrap(module, tokenizer=toys.tokenizer(), name="planted")


def test_ratio_and_place_equal_a_loop(model):
    found = massive(model, TEXTS)
    h = lw.cache(model, TEXTS, "resid_post").resid_post
    for i in range(2):
        for layer in range(model.n_layers):
            values = h.isel(prompt=i, layer=layer).dropna("position").values
            assert values.shape[0] == len(model.tokens([TEXTS[i]]).ids[0])
            row = found.isel(prompt=i, layer=layer)
            assert float(row.largest) == np.abs(values).max()
            assert float(row["median"]) == pytest.approx(np.median(np.abs(values)))
            assert float(row.ratio) == pytest.approx(float(row.largest) / float(row["median"]))
            assert float(row.value) == values[int(row.position), int(row.dimension)]
            assert str(row.token.values) == str(h.token_str.values[i, int(row.position)])


def test_a_planted_one_is_found_and_only_that(planted, model):
    (place,) = places(massive(planted, TEXTS))
    assert (place.position, place.dimension, place.layer) == (0, 3, 0)
    assert place.until == planted.n_layers - 1
    assert place.value == pytest.approx(5000, rel=0.05)
    assert places(massive(model, TEXTS)) == []


def test_changes_are_the_edits_they_say(planted):
    where = places(massive(planted, TEXTS))
    base = change(planted, TEXTS, where, "nothing")
    plain = lw.tasks.perplexity(planted, TEXTS)
    assert np.allclose(base.nll, plain.nll, atol=1e-5)
    zero = change(planted, TEXTS, where, "zero")
    by_hand = lw.patch(
        planted, TEXTS, {"resid_post.0": lambda h: h * (torch.arange(h.shape[-1]) != 3)},
        positions=[0], logits="all",
    )  # fmt: skip
    for i, text in enumerate(TEXTS):
        ids = torch.tensor(planted.tokenizer(text)["input_ids"])
        z = torch.tensor(by_hand.logits.isel(prompt=i).values[: len(ids) - 1])
        said = torch.nn.functional.cross_entropy(z, ids[1:])
        assert float(zero.nll[i]) == pytest.approx(float(said), abs=1e-5)
    same = change(planted, TEXTS[:1], where, "mean")
    assert np.allclose(same.nll, base.nll[:1], atol=1e-5), "the mean of one text is its own value"
    held = change(planted, TEXTS, where, "bound", bound=1e9)
    assert np.allclose(held.nll, base.nll, atol=1e-5)
    assert not np.allclose(change(planted, TEXTS, where, "bound").nll, base.nll, atol=1e-5)
    other = change(planted, TEXTS, where, "zero", dimensions=[5])
    assert not np.allclose(other.nll, zero.nll, atol=1e-6)
    assert zero.sink.dims == ("prompt", "layer")


def test_controls_never_take_the_place_itself(model):
    where = [Place(0, 1, 0, 3, 1.0)]
    drawn = controls(model, where, 40)
    assert all(len(d) == 1 and d[0] != 3 for d in drawn)
    assert len({d[0] for d in drawn}) > 5


def test_the_peak_is_lamberts():
    t = np.linspace(0, 30, 300_001)
    assert abs(t[curve(t, 1, 0.08, 0.5, 1, 0).argmax()] - peak(0.08, 0.5, 1)) < 1e-3
    assert peak(0.08, 0.5, 1) == pytest.approx(11.2314, abs=1e-4)
    assert peak(5.0, 1.0, 10.0) < 0, "it lies before the start"


@pytest.mark.parametrize(
    "truth", [(1, 0.08, 0.5, 1, 0), (5, 0.5, 0.05, 1, 3), (20, 0.01, 0.1, 1, 5)]
)
def test_a_curve_without_noise_is_found_again(truth):
    steps = np.unique(np.geomspace(1, 1000, 37).round())
    y = curve(steps, *truth)
    found = fit(steps, y)
    off = found.fitted.sel(rival="emergence").values - y
    assert np.sqrt((off**2).mean()) < 1e-4 * y.std()
    assert float(found.r2.sel(rival="emergence")) > 0.9999
    again = curve(steps, *found.parameters.values)
    assert np.allclose(again, y, rtol=1e-3, atol=1e-3 * y.std()), "scaled back to steps and ratios"


def test_noise_and_rivals():
    rng = np.random.default_rng(0)
    steps = np.unique(np.geomspace(1, 1000, 37).round())
    y = curve(steps, 5, 0.5, 0.05, 1, 3)
    noisy = fit(steps, y + 0.05 * y.std() * rng.normal(size=len(y)))
    assert float(noisy.r2.sel(rival="emergence")) > 0.95
    assert noisy.aic.idxmin() == "emergence"
    step = fit(steps, first_order(steps, 4.0, 100.0, 2.0))
    assert float(step.r2.sel(rival="first order")) > 0.9999
    rise = fit(steps, logarithm(steps, 1.0, 2.0, 5.0))
    assert float(rise.r2.sel(rival="logarithm")) > 0.9999
    assert float(rise.r2.sel(rival="constant")) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: change(m, TEXTS, []), "no massive activation to change"),
        (lambda m: change(m, TEXTS, [Place(0, 1, 0, 3, 1.0)], "double"), "to='double'"),
        (lambda m: change(m, TEXTS, [Place(0, 1, 0, 3, 1.0)], dimensions=[99]), "has 0 to 31"),
        (lambda m: emergence("toys/char-llama", [0, 1], TEXTS), "has no {step} in it"),
        (lambda m: fit([1, 2, 3], [1, 2, 3]), "8 steps or more"),
        (lambda m: fit(range(9), [1.0] * 9), "all equal"),
        (lambda m: fit(range(9), [np.nan] * 9), "NaN"),
        (lambda m: fit([0, 0, *range(7)], range(9)), "steps must grow"),
        (lambda m: peak(0.0, 1.0, 1.0), "lambda and gamma above 0"),
        (lambda m: curve([0.0], 1, 1, 1, -1, 0), "must be above 0"),
    ],
)
def test_what_cannot_work_is_refused(model, call, words):
    with pytest.raises(BadInput, match=words):
        call(model)


@pytest.mark.slow
def test_smollm2_has_one_at_its_first_token(smollm2):
    texts = lw.tasks.corpus("pydoc", tokens=32, model=smollm2, n=3, seed=0)
    (place,) = places(massive(smollm2, texts))
    assert (place.layer, place.position) == (11, 0)
    assert place.until in (27, 28)
    base = change(smollm2, texts, [place], "nothing")
    assert float((change(smollm2, texts, [place], "zero").nll - base.nll).mean()) > 3
    (drawn,) = controls(smollm2, [place], 1)
    off = change(smollm2, texts, [place], "zero", dimensions=drawn)
    assert abs(float((off.nll - base.nll).mean())) < 0.1
