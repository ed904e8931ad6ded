"""Concept depth on the real model: a word comes early, what must be found comes later."""

from __future__ import annotations

import numpy as np

import lwlab as lw
from lwlab.features import concept_depth as cd
from lwlab.tasks import concept


def test_a_feeling_in_a_word_is_read_long_before_a_feeling_turned_round_and_a_fact(
    smollm2: lw.Model,
) -> None:
    concepts = [concept(k, 64, seed=1) for k in ("cities", "sentiment", "negated")]
    found = cd.study(smollm2, concepts, draws=2, control_layers=[4, 12, 20], seed=1)
    curve = found.correct.isel(variant=0).mean("prompt")
    assert (curve.sel(layer=0) == 0.5).all()
    best = curve.max("layer")
    assert (best > 0.75).all()
    assert (abs(found.control.mean(("draw", "layer")) - 0.5) < 3 * (0.25 / 64) ** 0.5).all()
    half = cd.points(found, n=100).half.isel(variant=0, draw=0)
    assert half.sel(concept="sentiment") <= 4
    assert half.sel(concept="sentiment") < half.sel(concept="cities")
    assert half.sel(concept="sentiment") < half.sel(concept="negated")
    assert np.ptp(cd.states(smollm2, concepts[0].texts[:8], layers=[0]).values, axis=1).max() == 0
