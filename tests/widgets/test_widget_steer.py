"""The steering dial: both texts are `lw.generate`'s, they stream, and cancelling works."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import xarray as xr

import lwlab as lw
from lwlab.errors import BadInput
from lwlab.widgets import SteeringDial, steer

WORDS = "the cat sat on"


@pytest.fixture
def model(toy):
    return toy("llama")


@pytest.fixture
def push(model):
    return torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def dial(model, push):
    made = steer(model, push, 1, WORDS, tokens=6)
    assert made.wait(60)
    yield made
    made.close()


def test_both_texts_are_what_generate_says(dial, model, push):
    plain = lw.generate(model, WORDS, 6).text.values[0]
    assert dial.error == ""
    assert dial.base == dial.steered == plain
    dial.strength = 8.0
    assert dial.wait(60)
    edited = lw.generate(model, WORDS, 6, {"resid_post.1": lambda h: h + 8.0 * push})
    assert dial.steered == edited.text.values[0] != plain
    assert dial.base == plain
    stream = lw.cache(model, WORDS, "resid_post", layers=1).resid_post
    norm = np.median(np.linalg.norm(stream.values.squeeze(), axis=-1))
    assert dial.share == pytest.approx(8 * float(push.norm()) / norm, rel=0.3)


def test_the_text_grows_token_by_token(dial):
    seen = []
    dial.observe(lambda change: seen.append(change["new"]), "steered")
    dial.strength = 4.0
    assert dial.wait(60)
    grown = [s for s in seen if s]
    assert len(grown) >= 3
    assert all(b.startswith(a[: len(a) - 1]) for a, b in pairwise(grown))


def test_cancel_stops_between_tokens_and_the_dial_goes_on(dial):
    def stop(change):
        if change["new"]:
            dial.unobserve(stop, "steered")
            dial.cancel += 1

    dial.observe(stop, "steered")
    dial.tokens = 40
    dial.observe(stop, "steered")
    dial.strength = 4.0
    assert dial.wait(60)
    assert (dial.error, dial.busy) == ("", False)
    dial.tokens, dial.strength = 3, 0.0
    assert dial.wait(60)
    assert dial.base == lw.generate(dial.model, WORDS, 3).text.values[0]


def test_a_direction_with_one_row_a_layer_uses_its_layers_own(model):
    rows = np.random.default_rng(0).normal(size=(model.n_layers, model.d_model))
    given = xr.DataArray(rows, dims=("layer", "d_model"))
    dial = steer(model, given.transpose(), 0, WORDS, tokens=4, strength=5.0)
    assert dial.wait(60)
    edit = {"resid_post.0": lambda h: h + torch.as_tensor(5.0 * rows[0]).to(h)}
    assert dial.steered == lw.generate(model, WORDS, 4, edit).text.values[0]
    dial.close()


@pytest.mark.parametrize(
    ("direction", "said"),
    [
        (lambda d: np.ones(d + 1), "has shape"),
        (lambda d: np.zeros(d), "points nowhere"),
        (lambda d: np.full(d, np.nan), "NaN"),
        (lambda d: "up", "not an array"),
    ],
)
def test_a_direction_that_cannot_be_is_refused(model, direction, said):
    with pytest.raises(BadInput, match=said):
        SteeringDial(model, direction(model.d_model), 0, WORDS)


def test_bad_settings_are_refused_or_a_message(dial):
    for name, value in (("layer", 99), ("strength", float("nan")), ("tokens", 0)):
        with pytest.raises(BadInput):
            setattr(dial, name, value)
    for prompt, said in (("", "empty"), ("cat " * 10_000, "10000 tokens")):
        dial.prompt = prompt
        assert dial.wait(60)
        assert said in dial.error
    dial.prompt = "שלום 👋🏽"
    assert dial.wait(60)
    assert dial.error == ""


def test_ten_fast_turns_and_two_dials_end_with_the_last(dial, model, push):
    other = steer(model, push, 0, WORDS, tokens=6)
    for k in range(10):
        dial.strength, other.strength = float(k), float(-k)
    assert dial.wait(60)
    assert other.wait(60)
    for each, layer, s in ((dial, 1, 9.0), (other, 0, -9.0)):
        edit = {f"resid_post.{layer}": lambda h, s=s: h + s * push}
        assert each.steered == lw.generate(model, WORDS, 6, edit).text.values[0]
    other.close()


def test_static_twin_shows_both_texts(dial):
    data, _ = dial._repr_mimebundle_()
    assert repr(dial.base) in data["text/plain"]
    assert dial.static_png().startswith(b"\x89PNG")
