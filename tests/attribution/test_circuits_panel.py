"""The circuit panel: a slider that really cuts edges."""

from __future__ import annotations

import pytest

import lwlab as lw
from lwlab.attribution import circuits, edges
from lwlab.attribution.circuits.panel import CircuitPanel
from lwlab.errors import BadInput
from lwlab.models import handmade


def test_a_setting_runs_the_circuit_it_shows() -> None:
    made = handmade.reverse()
    task = made.task(4)
    scores = edges.scores(made.model, task, ["relp", "eap-ig-inputs"])
    panel = CircuitPanel(made.model, task, scores, keep=(2, 5, 400))
    assert panel.keep.options == (2, 5, 46)  # no more than there are
    for technique in ("relp", "eap-ig-inputs"):
        for keep in (5, 46):
            panel.set(technique, keep)
            want = lw.circuit(scores.sel(technique=technique), keep=keep)
            assert (panel.circuit().edges == want.edges).all()
            f = circuits.faithfulness(made.model, task, want).faithfulness.item()
            assert panel.faithfulness() == pytest.approx(f, abs=1e-6)
            assert f"faithfulness {f:.3f}" in panel.numbers.value


def test_a_click_lists_the_edges_of_a_component_and_the_saved_form_says_the_number() -> None:
    made = handmade.reverse()
    task = made.task(4)
    panel = CircuitPanel(made.model, task, edges.scores(made.model, task, ["relp"]), keep=(5, 46))
    panel.set(keep=5)
    panel.map.pick(1, 0)
    assert panel.map.answer == "a1.h0 reads input→a1.kv0<v>, m0→a1.h0<q>; writes to logits."
    panel.map.pick(1, 1)
    assert panel.map.answer == "a1.h1 has no kept edge."
    ran = panel.cutter.rows_run
    panel.set(keep=46).set(keep=5)
    assert panel.cutter.rows_run == ran  # seen before
    data, _ = panel._repr_mimebundle_()
    assert "5 of 46 edges" in data["text/plain"]
    assert data["image/png"]


def test_bad_input() -> None:
    made = handmade.reverse()
    task = made.task(2)
    scores = edges.scores(made.model, task, ["relp"])
    with pytest.raises(BadInput, match="dimension technique"):
        CircuitPanel(made.model, task, scores.isel(technique=0))
    with pytest.raises(BadInput, match="none of the choices"):
        CircuitPanel(made.model, task, scores, keep=(5,)).set("eap")
