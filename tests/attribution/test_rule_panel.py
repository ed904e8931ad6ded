"""The panel runs the model at each switch and shows what it finds, with and without a browser."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lwlab as lw
from lwlab.attribution import COMPONENTS, Pair, relp
from lwlab.attribution.panel import RulePanel
from lwlab.errors import UnknownName


@pytest.fixture
def given(toy_ioi: Any) -> Any:
    model, task = toy_ioi("llama")
    pair = Pair.of(model, task)
    return model, pair, relp.study(model, pair, ["exact", "atp"])


def test_each_switch_recolours_the_map_and_renews_the_correlations(given: Any) -> None:
    model, pair, maps = given
    panel = RulePanel(model, pair, maps, component="attn_out")
    truth = maps.score.sel(technique="exact").mean("prompt")
    for rules in [("ln", "identity", "half"), ("ln", "identity"), (), ("attention",)]:
        panel.set(**{k: k in rules for k in relp.EVERY})
        assert panel.rules == rules
        expected = relp.scores(model, pair, rules=rules).mean("prompt")
        shown = panel.map.array()
        for map_, found in zip(shown, (expected, truth)):
            seen = found.sel(component="attn_out", position=slice(8, None))
            np.testing.assert_allclose(map_, seen, atol=1e-6)
        for c, r in panel.agreement().items():
            pair_of = truth.sel(component=c).values, expected.sel(component=c).values
            assert r == pytest.approx(lw.stats.pearson(*pair_of), abs=1e-6)
            assert f"{c} <b>{r:.3f}</b>" in panel.numbers.value
    panel.component.value = "mlp_out"
    seen = truth.sel(component="mlp_out", position=slice(8, None))
    np.testing.assert_allclose(panel.map.array()[1], seen, atol=1e-6)


def test_a_setting_seen_before_does_not_run_the_model(given: Any) -> None:
    model, pair, maps = given
    panel = RulePanel(model, pair, maps)
    runs: list[int] = []
    handle = model.module.register_forward_hook(lambda m, a, o: runs.append(1))
    try:
        panel.set(half=False)
        assert len(runs) == 1
        panel.set(half=True).set(half=False)
        panel.component.value = COMPONENTS[0]
        assert len(runs) == 1
    finally:
        handle.remove()


def test_a_picked_cell_is_compared_with_the_truth(given: Any) -> None:
    model, pair, maps = given
    panel = RulePanel(model, pair, maps, component="resid_pre")
    panel.map.pick(1, 5)
    truth = maps.score.sel(technique="exact", component="resid_pre", layer=1, position=13).mean()
    assert f"exact {float(truth):+.3f}" in panel.map.answer
    assert "layer 1 at 'to'" in panel.map.answer
    assert "LN+Identity+Half" in panel.map.answer


def test_rules_without_work_cannot_be_switched(toy_ioi: Any) -> None:
    model, task = toy_ioi("gpt2")
    panel = RulePanel(model, task, relp.study(model, task))
    assert [k for k, s in panel.switches.items() if s.disabled] == ["half"]


def test_the_saved_form_is_a_picture_and_a_sentence(given: Any) -> None:
    model, pair, maps = given
    data, _ = RulePanel(model, pair, maps)._repr_mimebundle_()
    assert data["image/png"].startswith("iVBOR")
    assert "Pearson r with exact patching: resid_pre" in data["text/plain"]
    assert "text/html" not in data


def test_what_does_not_exist_is_named(given: Any) -> None:
    model, pair, maps = given
    with pytest.raises(UnknownName, match="'lnn'"):
        RulePanel(model, pair, maps, rules=("lnn",))
    with pytest.raises(UnknownName, match="'halff'; did you mean 'half'"):
        RulePanel(model, pair, maps).set(halff=True)
    with pytest.raises(UnknownName, match="no technique 'exact'"):
        RulePanel(model, pair, maps.sel(technique=["atp"]))
