"""Instruments that share a model, or lose it: messages in the widget, nothing hangs."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from lwlab_widgets import Live

import lwlab as lw
from lwlab.models import toys
from lwlab.models.model import Model

PROMPT = "the cat sat"
Make = Callable[[Model], Live]


def lens(model: Model) -> Live:
    return lw.widgets.lens(model, PROMPT)


def depth(model: Model) -> Live:
    return lw.widgets.depth(model, PROMPT, "the cat sat on the mat")


def bits(model: Model) -> Live:
    return lw.widgets.bits(model, "the cat sat on the mat", group=4)


def steer(model: Model) -> Live:
    return lw.widgets.steer(
        model, torch.ones(model.d_model or 0), 1, PROMPT, strength=1.0, tokens=3
    )


def heads(model: Model) -> Live:
    scores = xr.DataArray(
        np.zeros((model.n_layers, model.n_heads or 0)), dims=("layer", "head"), name="score"
    )
    return lw.widgets.heads(scores, model, PROMPT)


EVERY: dict[str, Make] = {f.__name__: f for f in (lens, depth, bits, steer, heads)}

#: Something that makes the instrument run its model once more.
AGAIN: dict[str, Callable[[Any], None]] = {
    "lens": lambda w: setattr(w, "prompt", "the mat sat"),
    "depth": lambda w: setattr(w, "steps", [0, 1, 1]),
    "bits": lambda w: setattr(w, "bits", [4, 8, 6]),
    "steer": lambda w: setattr(w, "prompt", "the mat sat"),
    "heads": lambda w: w.pick(1, 1),
}


def fresh() -> Model:
    module, _ = toys.tiny("llama")
    return lw.wrap(module, tokenizer=toys.tokenizer(), name="mine")


@pytest.fixture
def shown() -> Iterator[list[Live]]:
    every: list[Live] = []
    yield every
    for widget in every:
        widget.close()


@pytest.mark.parametrize("name", EVERY)
def test_a_live_instrument_keeps_the_model_its_user_let_go(name: str, shown: list[Live]) -> None:
    model = fresh()
    kept = weakref.ref(model.module)
    widget = EVERY[name](model)
    shown.append(widget)
    del model
    gc.collect()
    assert widget.wait(60)
    AGAIN[name](widget)
    assert widget.wait(60)
    assert (widget.error, widget.busy) == ("", False)
    assert kept() is not None


@pytest.mark.parametrize("name", EVERY)
def test_a_model_without_its_weights_is_a_message(name: str, shown: list[Live]) -> None:
    model = fresh()
    widget = EVERY[name](model)
    shown.append(widget)
    assert widget.wait(60)
    model.module.to("meta")  # what `del` cannot do, some people do to make room
    AGAIN[name](widget)
    assert widget.wait(60)
    assert widget.error
    assert not widget.busy


def test_different_instruments_on_one_model_all_answer(shown: list[Live]) -> None:
    model = fresh()
    alone = lw.chain(model, PROMPT, [0, 1, 1]).logits.values
    weights = [p.clone() for p in model.module.parameters()]
    shown += [make(model) for make in EVERY.values()]
    for _ in range(3):
        for name, widget in zip(EVERY, shown, strict=True):
            AGAIN[name](widget)
    for widget in shown:
        assert widget.wait(120)
        assert widget.error == ""
    np.testing.assert_array_equal(lw.chain(model, PROMPT, [0, 1, 1]).logits.values, alone)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.module.parameters(), strict=True))
