"""The head grid's Python side: pattern and write of a head are the model's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import xarray as xr

import lwlab as lw
from lwlab.errors import BadInput
from lwlab.widgets import HeadGrid

PROMPT = "the cat sat on"


def scores(layers: int, heads: int) -> xr.DataArray:
    values = np.arange(float(layers * heads)).reshape(layers, heads) - 2
    return xr.DataArray(values, dims=("layer", "head"), name="score")


@pytest.fixture
def grid(toy: Callable[[str], lw.Model]) -> Iterator[HeadGrid]:
    model = toy("llama")
    widget = HeadGrid(scores(model.n_layers, model.n_heads), model, PROMPT)
    yield widget
    widget.close()


def test_a_click_shows_the_models_own_pattern(grid):
    grid.pick(1, 2)
    assert grid.wait(60)
    assert grid.error == ""
    want = lw.cache(grid.model, PROMPT, "attn_pattern", [1]).attn_pattern[0, 0, 2].values
    np.testing.assert_allclose(grid.attention(), want, atol=1e-6)
    assert grid.pattern_labels[3] == "3: on"
    assert grid.handled == grid.picked["n"]


def test_the_writes_of_a_layers_heads_add_up_to_what_attention_writes(grid):
    """Their tokens come from the same vectors: an independent sum checks the decoded one."""
    from lwlab.attribution.wiring import Wiring

    kept = lw.cache(grid.model, PROMPT, ["head_out", "attn_out"], [1])
    z = torch.as_tensor(kept.head_out.values[:, 0, -1:])
    shares = Wiring(grid.model).shares(1, z)[0, :, 0]
    np.testing.assert_allclose(shares.sum(0), kept.attn_out.values[0, 0, -1], atol=1e-5)
    grid.pick(1, 0)
    assert grid.wait(60)
    with torch.no_grad():
        logits = grid.model.unembed(shares[0])
    logits = logits - logits.mean()
    assert float(grid.table["rows"][0][1]) == pytest.approx(float(logits.max()), abs=0.006)
    assert float(grid.table["rows"][0][3].replace("−", "-")) == pytest.approx(
        float(logits.min()), abs=0.006
    )


def test_a_new_prompt_opens_the_same_head_again_and_a_bad_one_is_told(grid):
    grid.prompt = "the dog"
    assert grid.wait(60)
    assert grid.pattern == b""  # nothing was opened yet
    grid.pick(0, 0)
    assert grid.wait(60)
    assert grid.attention().shape == (2, 2)
    for prompt, words in (("", "empty"), ("cat " * 10_000, "at most")):
        grid.prompt = prompt
        assert grid.wait(60)
        assert words in grid.error
    grid.prompt = "😀 שלום"
    assert grid.wait(60)
    assert (grid.error, grid.attention().shape) == ("", (2, 2))


def test_ten_fast_clicks_show_the_last(grid):
    for k in range(10):
        grid.pick(k % 3, k % 2)
    assert grid.wait(60)
    assert grid.pattern_title.startswith("Layer 0, head 1")
    assert not grid.busy


def test_without_a_model_it_is_a_map(toy):
    widget = HeadGrid(scores(3, 4).where(scores(3, 4) > 0))
    widget.pick(2, 3)
    assert widget.wait(1)
    assert (widget.error, widget.pattern) == ("", b"")
    assert widget.static_png()[:4] == b"\x89PNG"


def test_wrong_dimensions_and_heads_are_refused(toy):
    model = toy("llama")
    with pytest.raises(BadInput, match="layer and head"):
        HeadGrid(scores(3, 4).rename(head="position"))
    with pytest.raises(BadInput, match="heads 0"):
        HeadGrid(scores(model.n_layers, 99), model, PROMPT)
    with pytest.raises(BadInput):
        HeadGrid(scores(99, model.n_heads), model, PROMPT)


def test_the_static_twin(grid):
    plain = grid.static_png()
    grid.pick(0, 1)
    assert grid.wait(60)
    assert grid.static_png() != plain
    assert "Raised: " in grid.static_text()
