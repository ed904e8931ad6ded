"""What sweeps are read with: shares, cells run again, the arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

import lwlab as lw
from lwlab.attribution import exact_sweeps
from lwlab.errors import BadInput
from lwlab.tasks import Task

Made = Callable[[str], tuple[lw.Model, Task]]


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_the_first_stream_at_the_only_changed_token_restores_all(arch: str, toy_ioi: Made) -> None:
    model, task = toy_ioi(arch)
    result = exact_sweeps.sweep(model, task, layers=0)
    share = exact_sweeps.restored(model, task, result).resid_pre.mean("prompt").sel(layer=0)
    s2 = int(task.positions["S2"][0])
    np.testing.assert_allclose(share.isel(position=s2), 1, rtol=1e-4)
    assert float(abs(share.isel(position=slice(0, s2))).max()) == 0.0
    other = exact_sweeps.restored(model, task, exact_sweeps.sweep(model, task, into="clean"))
    taken = other.resid_pre.mean("prompt").sel(layer=0).isel(position=s2)
    np.testing.assert_allclose(taken, -1, rtol=1e-4)
    ends = exact_sweeps.gap(model, task)
    np.testing.assert_allclose(ends.corrupt, result.base_metric, rtol=1e-5)
    assert other.attrs["whole_effect"] == pytest.approx(float((ends.clean - ends.corrupt).mean()))


def test_no_effect_has_no_shares(unchanged: tuple[lw.Model, Task], toy_ioi: Made) -> None:
    model, task = toy_ioi("llama")
    result = exact_sweeps.sweep(model, task, layers=0)
    with pytest.raises(BadInput, match="score the same"):
        exact_sweeps.restored(*unchanged, result)


@pytest.mark.parametrize("into", ["corrupt", "clean"])
def test_cells_run_again_are_what_they_were(into: str, toy_ioi: Made) -> None:
    model, task = toy_ioi("llama")
    sites = ["resid_pre", "head_out", "k", "neurons"]
    result = exact_sweeps.sweep(model, task, sites, into=into, layers=[0, 1])  # type: ignore[arg-type]
    again = exact_sweeps.verify(model, task, result, n=24)
    assert set(again.site.values) == set(sites)
    assert float(again.difference.max()) < 1e-4
    wrong = result.assign(resid_pre=result.resid_pre + 0.01 * (result.resid_pre != 0))
    again = exact_sweeps.verify(model, task, wrong[["resid_pre", "base_metric"]], n=3)
    np.testing.assert_allclose(again.difference, 0.01, atol=1e-4)


def test_functions_can_be_run_again_and_means_cannot(toy_ioi: Made) -> None:
    model, task = toy_ioi("gpt2")

    def half(cells: torch.Tensor) -> torch.Tensor:
        return cells / 2

    result = exact_sweeps.sweep(model, task, "mlp_out", edit=half, positions=["S2", "END"])
    assert float(exact_sweeps.verify(model, task, result, n=4, edit=half).difference.max()) < 1e-4
    with pytest.raises(BadInput, match="half' cannot be checked"):
        exact_sweeps.verify(model, task, result)
    mean = exact_sweeps.sweep(model, task, "mlp_out", edit="mean", layers=0)
    with pytest.raises(BadInput, match="edit='mean' cannot be checked"):
        exact_sweeps.verify(model, task, mean)
    nothing = replace(task, positions=task.positions)
    zero = exact_sweeps.sweep(model, nothing, "mlp_out", layers=0, positions=[0])
    with pytest.raises(BadInput, match="every cell of this sweep is zero"):
        exact_sweeps.verify(model, task, zero)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2"])
def test_the_arithmetic_is_a_sum_over_cells(arch: str, toy_ioi: Made) -> None:
    model, _ = toy_ioi(arch)
    config = model.module.config
    d, f, h, w = model.d_model, model.d_mlp, model.n_heads, model.d_head
    kv = getattr(config, "num_key_value_heads", None) or h
    gated = arch != "gpt2"
    length, layers = 7, model.n_layers
    row = 2 * d * h * w + 4 * d * kv * w + 2 * h * w * d + (6 if gated else 4) * d * f
    row += 4 * h * w * length
    sums = np.zeros(3)
    for layer in range(layers):
        for p in range(length):
            sums += [layers * length * row, (layers - layer) * length * row,
                     (layers - layer) * (length - p) * row]  # fmt: skip
    found = exact_sweeps.arithmetic(model, [length, 20])
    np.testing.assert_allclose(found.sel(length=length), sums / 1e9, rtol=1e-12)
    with pytest.raises(BadInput, match="lengths"):
        exact_sweeps.arithmetic(model, [])
