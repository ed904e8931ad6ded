"""The low-data curve: scikit-learn's numbers, honest placebos; the panel that a user types into."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import lwlab as lw
from lwlab.attribution import obsprop
from lwlab.attribution.obsprop import Observable
from lwlab.attribution.obsprop_panel import EFFECT, NORM, ObservablePanel
from lwlab.errors import BadInput


def made(n: int = 60, d: int = 12, apart: float = 1.5, seed: int = 0) -> tuple[Any, Any, Any]:
    """Two clouds `apart` along the first axis, n examples of each, and that axis."""
    rng = np.random.default_rng(seed)
    labels = np.arange(2 * n) % 2 == 1
    x = rng.normal(size=(2 * n, d))
    x[:, 0] += apart * np.where(labels, 1, -1)
    axis = xr.DataArray(np.eye(d)[0], dims="d_model")
    return xr.DataArray(x, dims=("example", "d_model")), labels, axis


@pytest.mark.parametrize("seed", range(3))
def test_auc_is_that_of_scikit_learn_and_of_counting_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, 8, 40).astype(float), rng.random(40) < 0.4  # with ties
    got = obsprop.auc(scores, labels)
    assert got == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    pairs = [(p > q) + (p == q) / 2 for p in scores[labels] for q in scores[~labels]]
    assert got == pytest.approx(np.mean(pairs), abs=1e-12)


def test_probes_trained_on_everything_equal_scikit_learns() -> None:
    x, t, axis = made()
    q, truth, _ = made(seed=1)
    found = obsprop.low_data_curve(x, t, q, truth, {"axis": axis}, k=[60], draws=1)

    def rms(v: Any) -> Any:
        return v.values / np.sqrt((v.values**2).mean(1, keepdims=True))

    fit = LogisticRegression(max_iter=1000).fit(rms(x), t)
    expected = roc_auc_score(truth, fit.decision_function(rms(q)))
    got = found.isel(k=0, draw=0)
    assert float(got.sel(technique="logistic regression")) == pytest.approx(expected, abs=2e-3)
    mean = rms(x)[t].mean(0) - rms(x)[~t].mean(0)
    expected = roc_auc_score(truth, rms(q) @ mean)
    assert float(got.sel(technique="difference of means")) == pytest.approx(expected, abs=1e-9)
    expected = roc_auc_score(truth, rms(q)[:, 0])
    assert float(got.sel(technique="axis")) == pytest.approx(expected, abs=1e-9)


def test_more_examples_help_probes_and_placebos_stay_at_chance() -> None:
    x, t, axis = made(apart=0.7)
    q, truth, _ = made(n=300, apart=0.7, seed=1)
    found = obsprop.low_data_curve(x, t, q, truth, {"axis": axis}, k=[3, 10, 50], draws=20)
    assert found.dims == ("technique", "k", "draw")
    mean = found.mean("draw")
    for probe in ("logistic regression", "difference of means"):
        one = mean.sel(technique=probe).values
        assert one[0] < one[1] < one[2] < float(mean.sel(technique="axis", k=50)) + 0.01
    for placebo in ("shuffled labels", "random direction"):
        assert abs(float(mean.sel(technique=placebo).mean()) - 0.5) < 0.08
    again = obsprop.low_data_curve(x, t, q, truth, {"axis": axis}, k=[3, 10, 50], draws=20)
    assert again.identical(found)


def test_examples_that_do_not_do_are_refused() -> None:
    x, t, axis = made(n=8)
    good = (x, t, x, t, {"axis": axis})
    for k in ([9], [0], []):
        with pytest.raises(BadInput, match="8 examples of the rarer class"):
            obsprop.low_data_curve(*good, k=k)
    with pytest.raises(BadInput, match="one class only"):
        obsprop.low_data_curve(x, np.ones(16), x, t, {}, k=[2])
    with pytest.raises(BadInput, match="15 labels for 16 examples"):
        obsprop.low_data_curve(x, t[1:], x, t, {}, k=[2])
    with pytest.raises(BadInput, match="has 11 numbers, examples have 12"):
        obsprop.low_data_curve(x, t, x, t, {"axis": axis[1:]}, k=[2])
    with pytest.raises(BadInput, match="a probe's name"):
        obsprop.low_data_curve(x, t, x, t, {"random direction": axis}, k=[2])
    with pytest.raises(BadInput, match="example, d_model"):
        obsprop.low_data_curve(axis, t, x, t, {}, k=[2])
    with pytest.raises(BadInput, match="both classes"):
        obsprop.auc([1, 2], [1, 1])
    with pytest.raises(BadInput, match="NaN"):
        obsprop.auc([1, float("nan")], [1, 0])
    with pytest.raises(BadInput, match="3 scores for 2 labels"):
        obsprop.auc([1, 2, 3], [1, 0])


@pytest.fixture
def given(toy: Any) -> Any:
    model = toy("llama")
    return model, lw.tasks.pronouns(model, n=4, male=["John", "Tom"], female=["Mary", "Anna"])


def test_the_panel_shows_the_norms_and_the_patched_effects_of_what_is_typed(given: Any) -> None:
    model, task = given
    panel = ObservablePanel(model, task=task, text="Mary saw John in the park")
    for plus, minus in (("she", "he"), ("queen woman", "king, man")):
        panel.set(plus, minus)
        o = Observable.parse(model, plus, minus)
        norms, effects = obsprop.head_map(model, o), obsprop.direct_effects(model, o, task)
        size = np.abs((effects * effects.toward).mean("prompt"))
        assert panel.map.maps == [NORM, EFFECT]
        np.testing.assert_allclose(panel.map.array()[0], norms / norms.max(), atol=1e-6)
        np.testing.assert_allclose(panel.map.array()[1], size / size.max(), atol=1e-6)
        r = lw.stats.pearson(norms.values, size.values)
        assert f"<b>{r:.3f}</b>" in panel.numbers.value
        assert o.name in panel.map.title


def test_picking_a_head_names_its_tokens_and_colours_the_text(given: Any) -> None:
    model, _ = given
    panel = ObservablePanel(model, text="Mary saw John in the park")
    assert panel.map.maps == [""]
    panel.pick(1, 2)
    y = obsprop.head_vectors(model, Observable.parse(model, "she", "he")).sel(layer=1, head=2)
    x = lw.cache(model, "Mary saw John in the park", "resid_pre", layers=1).resid_pre.values[0, 0]
    expected = [float(v @ y.values / np.sqrt((v**2).mean())) for v in x]
    np.testing.assert_allclose(panel.strip.array()[0], expected, atol=1e-5)
    assert panel.strip.tokens == ["Mary", "saw", "John", "in", "the", "park"]
    top = obsprop.nearest_tokens(model, y, k=6).token.sel(side="top").values[0]
    assert "head 1.2" in panel.map.answer
    assert "head 1.2" in panel.reading.value
    assert str(top) in panel.reading.value
    panel.set("king", "queen")  # the text is coloured anew, for the longest vector
    assert panel.strip.title.startswith(f"what head {panel.head[0]}.{panel.head[1]}")
    data, _ = panel._repr_mimebundle_()
    assert data["image/png"]
    assert "king - queen" in data["text/plain"]
    with pytest.raises(BadInput, match=r"head is 0\.\.3"):
        panel.pick(1, 7)


def test_what_cannot_be_observed_is_said_and_the_last_map_stays(given: Any) -> None:
    model, task = given
    panel = ObservablePanel(model, task=task)
    before = panel.map.array().copy()
    panel.plus.value = "zebra"
    assert "does not know the word ' zebra'" in panel.map.error
    assert panel.observable == Observable.parse(model, "she", "he")
    np.testing.assert_array_equal(panel.map.array(), before)
    panel.plus.value = "queen"
    assert panel.map.error == ""
    assert panel.observable == Observable.parse(model, "queen", "he")
    with pytest.raises(BadInput, match="empty"):
        panel.set("", "")
    with pytest.raises(BadInput, match="zero everywhere"):
        ObservablePanel(model, "he", "he")
