"""The finding on the real model: moods turn, the closed form costs more; few steps, few layers."""

from __future__ import annotations

import numpy as np
import pytest

import lwlab as lw
from lwlab.steering import examples, lineas, log_odds, losses
from lwlab.steering import repe_reasoning as rr

pytestmark = pytest.mark.slow


def test_maps_and_vector_turn_the_mood_and_the_closed_form_pays_more(smollm2: lw.Model) -> None:
    texts = examples.moods(8)
    lists = texts.unseen(examples.FEELING)
    layers = list(range(2, 29, 3))  # as in the notebook: maps near the top carry most of it
    maps = lineas.learn(smollm2, texts.source, texts.target, layers, steps=18, rate=1.5e-3)
    assert maps.loss.values[-1] < 0.8 * maps.loss.values[0]
    closed = lineas.lin_act(smollm2, texts.source, texts.target, layers)
    prose = lw.tasks.corpus("pydoc", n=4, tokens=20, model=smollm2)
    base, nll = log_odds(smollm2, lists), losses(smollm2, prose)
    vector = rr.vectors(smollm2, texts.target, texts.source)
    rise = {}
    for name, edits in {
        "maps": lineas.edits(maps), "closed": lineas.edits(closed),
        "vector": rr.edits(vector, 15, 0.5),
    }.items():  # fmt: skip
        rise[name] = float((losses(smollm2, prose, edits) - nll).mean())
        if name != "closed":
            assert float((log_odds(smollm2, lists, edits) - base).mean()) > 0.1
    assert rise["maps"] < rise["closed"]


def test_divergence_grows_like_a_square(smollm2: lw.Model) -> None:
    asked = examples.opposites(smollm2, 12)
    fit, ask = asked.part(0, 6), asked.part(6, 12)
    vector = rr.vectors(smollm2, fit.answered(), fit.mistaken())
    found = rr.sweep(
        smollm2, ask.prompts, ask.answers, asked.choices, vector, 15, [-0.2, -0.1, 0, 0.1, 0.2]
    )
    kl = found.kl.mean("prompt").values
    assert kl[2] == 0
    assert (np.diff(kl[:3]) < 0).all()
    assert 2.5 < kl[0] / kl[1] < 6
    assert 2.5 < kl[4] / kl[3] < 6
