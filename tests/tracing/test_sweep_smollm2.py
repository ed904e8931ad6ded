"""Sweeps of the default model: every site against whole forward passes, and what they save."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sweep_by_hand import all_sites, check_cells

import lwlab as lw


@pytest.fixture(scope="module")
def task(smollm2: lw.Model) -> lw.tasks.Task:
    """Two IOI prompts of fourteen tokens whose twins differ in one of them."""
    return lw.tasks.ioi(smollm2, n=2, seed=0)


def test_cells_of_every_site_equal_whole_forward_passes(
    smollm2: lw.Model, task: lw.tasks.Task
) -> None:
    sites = all_sites(smollm2)
    few: dict[str, Any] = {"layers": [2, 29], "positions": [4, 9, 13], "neuron_blocks": 3}
    got = lw.sweep(smollm2, task, sites, skip=False, **few)
    assert got.attrs["engine"] == "packed"
    for site in sites:
        check_cells(smollm2, task, got, site, 0)  # the cell with the largest effect of all
    quick = lw.sweep(smollm2, task, sites, **few)
    for site in sites:
        np.testing.assert_allclose(quick[site].values, got[site].values, atol=1e-4)
        assert (quick[site].values[:, :, 0] == 0).all()


def test_the_whole_map_and_its_arithmetic(smollm2: lw.Model, task: lw.tasks.Task) -> None:
    one = task.subset([0])
    plan = lw.sweep_plan(smollm2, one, skip=False)
    assert plan.cells == 30 * 14
    assert plan.naive_flops / plan.flops > 3.8
    assert plan.rows == sum(m * n for m in range(1, 15) for n in range(1, 31))
    lean = lw.sweep_plan(smollm2, one)
    assert lean.flops * 7 < plan.flops
    assert plan.bytes < 100e6
    got = lw.sweep(smollm2, one)
    assert (got.attrs["rows"], got.attrs["flops"]) == (lean.rows, lean.flops)
    gap = got.attrs["donor_metric"][0] - float(got.base_metric[0])
    changed = int(one.positions["S2"][0])
    # The changed token carries everything at layer 0, the last one everything at the end.
    assert float(got.resid_pre[0, 0, changed]) == pytest.approx(gap, abs=1e-3)
    assert abs(float(got.resid_pre[0, 29, -1])) > 0.7 * abs(gap)
    assert float(np.abs(got.resid_pre[0, 0, changed + 1 :]).max()) == 0
    check_cells(smollm2, one, got, "resid_pre", 4)
