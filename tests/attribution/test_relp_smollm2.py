"""The paper's finding on the default model, with the numbers measured for the catalogue's card."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import lwlab as lw
from lwlab.attribution import Pair, agreement, gain, relp

pytestmark = pytest.mark.slow

#: Card, section "Small setting": residual stream, attention output, MLP output.
MEAN_MAPS = {
    "atp": (0.728, 0.970, 0.666),
    "ln": (0.790, 0.977, 0.802),
    "half": (0.873, 0.989, 0.822),
    "identity": (0.719, 0.981, 0.551),
    "ln+identity": (0.843, 0.987, 0.870),
    "relp": (0.951, 0.983, 0.935),
    "relp+attention": (0.833, 0.886, 0.898),
    "ig": (0.988, 0.983, 0.983),
}
ACTIVE = {"relp": (0.943, 0.983, 0.935)}
POOLED = {"relp": (0.894, 0.961, 0.853), "atp": (0.666, 0.951, 0.600)}


@pytest.fixture(scope="module")
def card(smollm2: lw.Model) -> Pair:
    """The card's prompts: four pairs of names in both orders, the second name always the giver.

    They are not each other's corruption (their twins have the first name give), so the mean
    metrics of clean and corrupt prompts differ: 5.19 and -4.75.
    """
    names = [("Mary", "John"), ("Tom", "James"), ("Dan", "Sarah"), ("Anna", "Paul")]
    both = [pair for a, b in names for pair in ((a, b), (b, a))]
    return Pair.of(smollm2, lw.tasks.ioi(smollm2, n=16, names=both).subset(slice(0, 16, 2)))


@pytest.fixture(scope="module")
def maps(smollm2: lw.Model, card: Pair) -> xr.Dataset:
    return relp.study(smollm2, card, ["exact", *MEAN_MAPS])


def test_prompts_are_those_of_the_card(card: Pair) -> None:
    clean, corrupt = (float(d.mean()) for d in card.metrics())
    assert clean == pytest.approx(5.19, abs=0.01)
    assert corrupt == pytest.approx(-4.75, abs=0.01)
    assert (card.width, card.begin) == (14, 9)


@pytest.mark.parametrize(
    ("kind", "numbers"), [("mean", MEAN_MAPS), ("active", ACTIVE), ("pooled", POOLED)]
)
def test_correlations_agree_with_the_card(
    kind: str, numbers: dict[str, tuple[float, ...]], maps: xr.Dataset
) -> None:
    found = agreement(maps, n=10).r.sel(kind=kind)
    for technique, expected in numbers.items():
        np.testing.assert_allclose(found.sel(technique=technique), expected, atol=0.005)


def test_relp_beats_atp_in_the_stream_and_in_mlps_and_not_in_attention(maps: xr.Dataset) -> None:
    better = gain(maps, "relp", "atp", n=200).sel(component=["resid_pre", "attn_out", "mlp_out"])
    assert float(better.r[0]) > 0.1
    assert float(better.r[1]) > -0.05
    assert float(better.r[2]) > 0.1
    assert float(better.low[0]) > 0
    assert float(better.low[2]) > 0


def test_relevance_is_conserved_with_four_rules_and_not_with_three(
    smollm2: lw.Model, card: Pair
) -> None:
    assert float(relp.conservation(smollm2, card).error.max()) < 1e-4
    lost = relp.conservation(smollm2, card, rules=relp.RULES)
    ratio = lost.relevance.mean("prompt") / lost.metric.mean()
    assert abs(float(ratio[0])) > 2


def test_the_first_changed_token_carries_all_at_layer_zero_and_the_last_token_at_the_end(
    maps: xr.Dataset,
) -> None:
    exact = maps.score.sel(technique="exact", component="resid_pre").mean("prompt")
    assert float(exact.sel(layer=0, position=9)) == pytest.approx(1, abs=1e-5)
    assert float(np.abs(exact.sel(layer=29, position=slice(9, 12))).max()) < 0.1
    assert float(np.abs(exact.sel(position=slice(0, 8))).max()) == 0
