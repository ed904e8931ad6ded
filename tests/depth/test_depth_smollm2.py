"""The paper's findings on the default model, with the numbers measured for the catalogue's card."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import lwlab as lw
from lwlab.depth import (
    future_share,
    halves,
    integrated_gradients,
    layer_contributions,
    lens_distance,
    row_means,
    skip_effects,
    word_problems,
)

pytestmark = pytest.mark.slow
SKIPS = {"dim": "skipped", "n_layers": 30, "skip_last": True}


@pytest.fixture(scope="module")
def problems() -> list[str]:
    return [q.text for q in word_problems(2, n=3)]


@pytest.fixture(scope="module")
def effects(smollm2: lw.Model) -> dict[str, xr.Dataset]:
    texts = [q.text for q in word_problems(1, n=2, style="short")]
    layers = [*range(1, 30, 2), 28]
    return {
        "current": skip_effects(smollm2, texts, "current", layers=layers),
        "future": skip_effects(smollm2, texts, "future", layers=layers, t=11),
    }


def test_contributions_are_those_of_the_card_and_do_not_fall(
    smollm2: lw.Model, problems: list[str]
) -> None:
    r = layer_contributions(smollm2, problems)
    assert float(r.identity_error.max()) == 0.0
    relative = r.relative.sel(part="layer")
    h = halves(relative)
    assert h.first.mean == pytest.approx(0.342, abs=0.03)
    assert h.second.mean == pytest.approx(0.391, abs=0.03)
    by_layer = relative.mean(("prompt", "position"))
    assert float(by_layer[0]) == pytest.approx(16.7, abs=1.5)
    card = [0.92, 0.42, 0.25, 0.29, 0.29, 0.28, 0.30, 0.36, 0.29, 0.30, 0.28, 0.27, 0.26, 0.27,
            0.31, 0.29, 0.26, 0.33, 0.35, 0.37, 0.40, 0.39, 0.41, 0.68, 0.29, 0.29, 0.40, 0.36,
            0.75]  # fmt: skip
    assert np.corrcoef(by_layer[1:], card)[0, 1] > 0.95
    cosine = r.cosine.mean(("prompt", "position")).sel(part="layer")
    assert float(cosine[11]) == pytest.approx(-0.22, abs=0.05)
    attention = r.cosine.mean(("prompt", "position")).sel(part="attention")
    assert set(attention.argsort()[-2:].values.tolist()) <= {21, 25, 27}


def test_the_lens_comes_near_the_prediction_late(smollm2: lw.Model, problems: list[str]) -> None:
    r = lens_distance(smollm2, problems, every=6).mean(("prompt", "position"))
    for layer, kl, overlap in ((16, 6.5, 0.18), (24, 3.2, 0.36), (29, 1.2, 0.60)):
        assert float(r.kl.sel(layer=layer)) == pytest.approx(kl, abs=1.8)
        assert float(r.overlap.sel(layer=layer)) == pytest.approx(overlap, abs=0.12)
    assert float(r.kl.sel(layer=30)) == 0.0


def test_diagonals_are_exact(effects: dict[str, xr.Dataset]) -> None:
    for mode, value in (("current", 1.0), ("future", 0.0)):
        d = effects[mode].effect.sel(layer=effects[mode].skipped)
        assert float(abs(d - value).max()) == 0.0


def test_late_layers_matter_less_to_later_tokens_but_not_to_their_own(
    effects: dict[str, xr.Dataset],
) -> None:
    future, current = effects["future"], effects["current"]
    assert halves(row_means(future), **SKIPS).ratio.mean < 0.75
    assert halves(future.output_effect.sel(statistic="max"), **SKIPS).ratio.mean < 0.75
    assert halves(current.output_effect.sel(statistic="max"), **SKIPS).ratio.mean > 0.75
    share = future_share(current, future)
    assert halves(share, **SKIPS).ratio.mean < 0.75
    assert float(share.sel(skipped=28).mean()) < 0.1


def test_a_random_vector_as_long_does_about_as_much(
    smollm2: lw.Model, effects: dict[str, xr.Dataset]
) -> None:
    """The placebo that keeps the claim above honest: were it to fail, its text must change."""
    future = effects["future"]
    noise = skip_effects(
        smollm2, future.text.values.tolist(), "future", t=11, removed="random", outputs=False,
        layers=[s for s in future.skipped.values.tolist() if s < 29],
    )  # fmt: skip
    own, random = xr.align(row_means(future), row_means(noise), join="inner")
    assert 0.7 < float(own.mean() / random.mean()) < 1.5


def test_integrated_gradients_are_those_of_the_card(smollm2: lw.Model) -> None:
    r = integrated_gradients(
        smollm2, "The spouse of the performer of Imagine is", " Yoko Ono", parts="mlp",
        layers=[5, 20, 28],
    )  # fmt: skip
    np.testing.assert_allclose(r.difference[0], [-0.195, 0.053, 1.010], atol=0.002)
    assert float((abs(r.gap) / (0.02 + 0.05 * abs(r.difference))).max()) <= 1.0
