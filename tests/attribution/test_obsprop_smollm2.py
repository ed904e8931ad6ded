"""The paper's finding on the default model, and a placebo beside it."""

from __future__ import annotations

import numpy as np
import pytest

import lwlab as lw
from lwlab.attribution import obsprop
from lwlab.attribution.obsprop import Observable
from lwlab.errors import BadInput

pytestmark = pytest.mark.slow


def test_norms_from_weights_find_the_heads_that_patching_finds(smollm2: lw.Model) -> None:
    she = Observable.of(smollm2, " she", " he")
    task = lw.tasks.pronouns(smollm2, n=6, template="because")
    effects = obsprop.direct_effects(smollm2, she, task)
    size = np.abs((effects * effects.toward).mean("prompt")).values
    norms = obsprop.head_map(smollm2, she).values
    assert lw.stats.pearson(norms, size) > 0.6
    control = obsprop.head_map(smollm2, Observable.of(smollm2, " car", " tree")).values
    assert lw.stats.pearson(control, size) < 0.5
    first, second = (set(np.argsort(-x.ravel())[:3].tolist()) for x in (norms, size))
    assert len(first & second) >= 2


def test_related_observables_share_the_features_of_the_strong_heads(smollm2: lw.Model) -> None:
    she, her, car = (
        Observable.of(smollm2, *w) for w in ((" she", " he"), (" her", " him"), (" car", " tree"))
    )
    v, w, c = (obsprop.head_vectors(smollm2, o) for o in (she, her, car))
    top = np.argsort(-np.linalg.norm(v.values, axis=-1).ravel())[:5]
    together, apart = (obsprop.cosine(v, x).values.ravel()[top] for x in (w, c))
    output = float(obsprop.cosine(*(obsprop.vector(smollm2, o) for o in (she, her))))
    assert together.min() > output + 0.1
    assert np.abs(apart).max() < 0.5


def test_words_of_several_tokens_are_refused_with_their_pieces(smollm2: lw.Model) -> None:
    with pytest.raises(BadInput, match=r"' hippopotamus' is \d tokens.*' h"):
        Observable.of(smollm2, " hippopotamus", " he")
    with pytest.raises(BadInput, match="' hippopotamus' is"):
        Observable.parse(smollm2, "hippopotamus", "he")
    with pytest.raises(BadInput, match=r"layer is 0\.\.29"):
        obsprop.head_map(smollm2, Observable.of(smollm2, " she"), 30)
    with pytest.raises(BadInput, match=r"head is 0\.\.8"):
        obsprop.path_vector(smollm2, Observable.of(smollm2, " she"), ["head_out.26.9"])
