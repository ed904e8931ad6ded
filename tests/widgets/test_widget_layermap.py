"""The map that runs the patch: the number under a click is the sweep's, regions are labelled."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import xarray as xr

import lwlab as lw
from lwlab.errors import BadInput, UnknownName
from lwlab.tasks.base import Task
from lwlab.widgets import LayerMap


@pytest.fixture(scope="module")
def task() -> Task:
    return Task(
        name="pets", clean=("the cat sat on", "the dog sat on"),
        corrupt=("the boy sat on", "the year sat on"), answers=("a", "a"), foils=("old", "old"),
        answer_sets=torch.tensor([[5], [5]]), foil_sets=torch.tensor([[9], [9]]),
        positions={"last": torch.tensor([3, 3]), "odd": torch.tensor([1, 2])},
        changed=("", ""), groups=torch.arange(2), templates=("", ""), lengths=torch.tensor([4, 4]),
    )  # fmt: skip


def result(n_layers: int, columns: int = 4, **coords: object) -> xr.DataArray:
    values = np.arange(2.0 * n_layers * columns).reshape(2, n_layers, columns) - 3
    return xr.DataArray(
        values, dims=("technique", "layer", "position"),
        coords={"technique": ["exact", "AtP"], **coords}, name="score",
    )  # fmt: skip


@pytest.fixture
def shown(toy: Callable[[str], lw.Model], task: Task) -> Iterator[LayerMap]:
    model = toy("llama")
    widget = LayerMap(result(model.n_layers), model, task)
    yield widget
    widget.close()


def test_a_click_measures_what_the_sweep_measures(shown, task):
    swept = lw.sweep(shown.model, task, "resid_pre")["resid_pre"].mean("prompt")
    for layer, position in ((1, 1), (2, 3)):
        shown.pick(layer, position)
        assert shown.wait(60)
        assert shown.error == ""
        want = float(swept.sel(layer=layer, position=position))
        assert shown.measured["change"] == pytest.approx(want, abs=1e-5)
    assert shown.measured["change"] != 0
    assert shown.handled == shown.picked["n"] == 2
    assert "exact patch at resid_pre, layer 2" in shown.answer
    clean = torch.as_tensor(lw.cache(shown.model, task.corrupt[0], "logits").logits[0, -1].values)
    first = clean.softmax(-1).max()
    assert float(shown.table["rows"][0][1]) == pytest.approx(float(first), abs=6e-4)


def test_heads_are_patched_where_the_columns_are_heads(toy, task):
    model = toy("llama")
    grid = xr.DataArray(np.zeros((model.n_layers, model.n_heads)), dims=("layer", "head"), name="s")
    widget = LayerMap(grid, model, task)
    widget.pick(1, 2)
    assert widget.wait(60)
    assert widget.error == ""
    clean = torch.as_tensor(
        lw.cache(model, list(task.clean), "head_out", [1]).head_out[:, 0, :, 2].values
    )
    run = lw.patch(model, list(task.corrupt), {"head_out.1.2": clean})
    want = task.metric(torch.as_tensor(run.logits.values)).mean()
    assert widget.measured["after"] == pytest.approx(float(want), abs=1e-5)


def test_results_by_name_share_one_scale(toy):
    one = result(3).isel(technique=0, drop=True)
    widget = LayerMap({"exact": one, "AtP": -2 * one, "RelP": one.where(one != 0)})
    assert widget.maps == ["exact", "AtP", "RelP"]
    high = float(abs(2 * one).max())
    assert widget.domain == (-high, high)
    assert np.isnan(widget.array()[2]).sum() == 1
    assert widget.static_png()[:4] == b"\x89PNG"
    with pytest.raises(BadInput, match="one shape"):
        LayerMap({"exact": one, "AtP": one.isel(layer=slice(2))})


def test_a_region_is_read_and_set_from_python(shown):
    with pytest.raises(BadInput, match="no region"):
        shown.selected()
    shown.brush((1, 2), (0, 1))
    assert shown.region == {"rows": [1, 2], "columns": [0, 1]}
    part = shown.selected()
    np.testing.assert_array_equal(part.sel(technique="exact"), shown.array()[0, 1:3, :2])
    assert "Region: layer 1 to 2" in shown.static_text()
    with pytest.raises(BadInput, match="no region of the"):
        shown.brush((0, 99), (0, 0))
    shown.update(result(2, 2))
    assert shown.region == {}


def test_any_other_answer_by_on_pick():
    widget = LayerMap(result(3)).on_pick(lambda pick: f"layer {pick['layer']}: {pick.value:g}")
    widget.pick(1, 1)
    assert widget.answer == "layer 1: 2"
    assert widget.table == {}


def test_named_positions_and_ten_fast_clicks(toy, task):
    model = toy("llama")
    grid = result(model.n_layers, 3, position=["last", "odd", "nowhere"])
    widget = LayerMap(grid, model, task)
    for column, words in ((1, "differs between prompts"), (2, "no position called 'nowhere'")):
        widget.pick(0, column)
        assert widget.wait(60)
        assert words in widget.error
    for k in range(10):
        widget.pick(k % 3, 0)
    assert widget.wait(60)
    assert widget.error == ""
    assert "layer 0, position last" in widget.answer
    assert not widget.busy


@pytest.mark.parametrize("given", ["rows", "only a task", "layers", "site"])
def test_what_cannot_be_patched_is_refused_at_once(toy, task, given):
    model = toy("llama")
    grid = result(model.n_layers)
    calls = {
        "rows": (lambda: LayerMap(grid.rename(layer="prompt_"), model, task), BadInput),
        "only a task": (lambda: LayerMap(grid, task=task), BadInput),
        "layers": (lambda: LayerMap(result(99), model, task), BadInput),
        "site": (lambda: LayerMap(grid, model, task, site="resid_pree"), UnknownName),
    }
    call, error = calls[given]
    with pytest.raises(error):
        call()
