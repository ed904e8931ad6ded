"""What SNMF finds in the MLPs of the real model."""

from __future__ import annotations

import numpy as np
import pytest

import lwlab as lw
from lwlab.features import auc, collect, concepts, cosine, dictionaries, purity, snmf, steer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def early(smollm2):
    words = concepts(smollm2, n=9, seed=1)
    return words, collect(smollm2, words, 4)


def test_features_are_about_concepts_and_the_cut_makes_them_so(early):
    _, a = early
    fit = {p: snmf.factorise(a, 30, sparsity=p, iterations=100, seed=1) for p in (0.05, 1.0)}
    pure = {p: float(purity(f.coefficient, top=9).mean()) for p, f in fit.items()}
    assert pure[0.05] > pure[1.0] + 0.1
    assert pure[0.05] > float(purity(dictionaries.neurons(a, 30).coefficient, top=9).mean())
    assert float(auc(cosine(a, fit[0.05].direction)).max("feature").mean()) > 0.93
    assert fit[1.0].attrs["rises"] == 0


def test_a_feature_of_days_makes_the_model_say_days(smollm2, early):
    words, a = early
    old = a.sel(sample=~a.held_out)
    fit = snmf.factorise(old, 30, sparsity=0.05, iterations=100, seed=1)
    best = auc(cosine(old, fit.direction)).argmax("feature")
    lists = {c: words.ids()[c] for c in ("days", "food", "colours")}
    found = fit.direction.isel(feature=best.sel(concept=list(lists)).values)
    out = steer(smollm2, ["I think that the", "Here is a"], found, 4, lists, tolerance=0.1)
    gain = out.gain.mean("prompt").values
    assert out.reached.all()
    assert np.mean(np.diag(gain)) > np.mean(gain[~np.eye(3, dtype=bool)])


def test_adding_to_neurons_is_adding_to_the_stream(smollm2, early):
    from lwlab.features import written

    _, a = early
    z = a[:1].rename(sample="feature").drop_vars(list(a.coords))
    f = written(smollm2, z, 4).values[0]
    runs = [
        lw.patch(smollm2, "I think that", {at: lambda h, v=v: h + h.new_tensor(v)}, compare=False)
        for at, v in (("neurons.4", z.values[0]), ("resid_post.4", f))
    ]
    assert np.allclose(runs[0].logits, runs[1].logits, atol=1e-3)
