"""The explorer, headless: the slider runs the model, cells speak, mistakes are shown."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from depth_by_hand import TEXT

from lwlab.depth import skip_effects
from lwlab.depth.explorer import SkipExplorer, bars_svg
from lwlab.errors import BadInput


def test_moving_t_and_the_switch_show_what_the_model_gives(toy: Any) -> None:
    model = toy("llama")
    explorer = SkipExplorer(model, TEXT, t=6)
    for mode, t in (("future", 6), ("future", 9), ("local", 9), ("current", 9), ("future", 6)):
        explorer.show(mode, t)
        want = skip_effects(model, TEXT, mode, t=None if mode == "current" else t)
        want = want.effect.sel(statistic="max")[0]
        np.testing.assert_allclose(explorer.map.array()[0], want, atol=1e-6)
        assert mode in explorer.map.title
    assert explorer.map.error == ""
    assert len(explorer._seen) == 4  # the last setting was seen before


def test_known_effects_need_no_run(toy: Any, monkeypatch: Any) -> None:
    import lwlab.depth.explorer as module

    model = toy("llama")
    known = skip_effects(model, [TEXT, "the king saw the queen in Paris"], "future", t=5)
    monkeypatch.setattr(module, "skip_effects", lambda *_, **__: pytest.fail("the model ran"))
    explorer = SkipExplorer(model, TEXT, t=5, known=known)
    np.testing.assert_allclose(explorer.map.array()[0], known.effect[0, 0])
    with pytest.raises(BadInput, match="another text"):
        SkipExplorer(model, "the king saw the queen", known=known)


def test_a_picked_cell_says_what_it_means_and_marks_its_layers(toy: Any) -> None:
    explorer = SkipExplorer(toy("gpt2"), TEXT, t=6)
    before = explorer.bars.value
    explorer.map.pick(0, 2)
    value = float(explorer.map.array()[0, 0, 2])
    assert "Without layer 0" in explorer.map.answer
    assert f"{value:.0%}" in explorer.map.answer
    assert explorer.bars.value != before
    assert explorer.bars.value.count("#d55e00") == 4  # two layers in two charts
    explorer.show("current")
    value = float(explorer.map.array()[0, 0, 2])
    assert f"{value:.0%}" in explorer.map.answer, "another mode, another sentence"
    explorer.map.pick(2, 0)
    assert "cannot reach" in explorer.map.answer


def test_a_failing_run_is_shown_and_not_swallowed(toy: Any, monkeypatch: Any) -> None:
    import lwlab.depth.explorer as module

    explorer = SkipExplorer(toy("gpt2"), TEXT, t=6)

    def fail(*_: Any, **__: Any) -> None:
        raise BadInput("no such layer")

    monkeypatch.setattr(module, "skip_effects", fail)
    explorer.show(t=7)
    assert explorer.map.error == "no such layer"


def test_the_saved_form_is_a_picture_and_a_sentence(toy: Any) -> None:
    found = SkipExplorer(toy("gpt2"), TEXT, t=6)._repr_mimebundle_()
    data = found[0] if isinstance(found, tuple) else found
    assert base64.b64decode(data["image/png"])[:4] == b"\x89PNG"
    assert "largest" in data["text/plain"]
    assert "text/html" not in data


def test_the_explorer_refuses_what_cannot_work(toy: Any) -> None:
    with pytest.raises(BadInput, match="at least 4"):
        SkipExplorer(toy("gpt2"), "the king saw")
    with pytest.raises(BadInput, match=r"2\.\.13"):
        SkipExplorer(toy("gpt2"), TEXT).show(t=14)


def test_bars_are_cut_marked_and_labelled() -> None:
    svg = bars_svg(np.array([9.0, 0.5, -0.25]), "cosine <x>", marked=[1], top=1.5)
    assert "layer 0: 9.00 (cut)" in svg
    assert "layer 2: -0.25" in svg
    assert "cosine &lt;x&gt;" in svg
    assert svg.count("#d55e00") == 1
