"""Intervals of whole results: cell by cell what the bootstrap of one cell gives."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import lwlab as lw
from lwlab import stats
from lwlab.errors import BadInput

VALUES = np.random.default_rng(0).normal(size=(6, 3, 2))
GROUPS = [0, 0, 1, 1, 2, 2]


def result() -> xr.DataArray:
    coords = {"group": ("prompt", GROUPS), "layer": [3, 4, 5]}
    return lw.results.label(VALUES, ("prompt", "layer", "position"), coords, name="score")


def test_every_cell_is_the_bootstrap_of_its_values() -> None:
    got = result().lw.interval(seed=3)
    assert got.dims == ("layer", "position", "estimate")
    assert got.layer.values.tolist() == [3, 4, 5]
    for i in range(3):
        for j in range(2):
            want = stats.bootstrap(VALUES[:, i, j], seed=3, groups=GROUPS)
            np.testing.assert_allclose(got.values[i, j], want, rtol=1e-12)


def test_groups_of_prompts_make_the_interval_wider_than_prompts_alone() -> None:
    twice = result().copy(data=np.repeat(VALUES[::2], 2, 0))
    grouped = stats.interval(twice)
    alone = stats.interval(twice, groups=range(6))
    width = [
        float((x.sel(estimate="high") - x.sel(estimate="low")).mean()) for x in (grouped, alone)
    ]
    assert width[0] > 1.2 * width[1]


def test_absent_cells_are_left_out_and_lone_ones_have_no_bounds() -> None:
    values = VALUES.copy()
    values[4:, 0, 0] = np.nan
    values[2:, 1, 0] = np.nan
    values[:, 2, 0] = np.nan
    got = stats.interval(result().copy(data=values))
    np.testing.assert_allclose(got.values[0, 0, 0], values[:4, 0, 0].mean())
    assert np.isfinite(got.values[0, 0]).all()
    np.testing.assert_allclose(got.values[1, 0, 0], values[:2, 1, 0].mean())
    assert np.isnan(got.values[1, 0, 1:]).all()
    assert np.isnan(got.values[2, 0]).all()


def test_a_dataset_keeps_the_variables_that_have_prompts() -> None:
    data = xr.Dataset({"a": result(), "b": ("layer", [1.0, 2.0, 3.0])})
    assert list(data.lw.interval()) == ["a"]
    with pytest.raises(BadInput, match="no variable"):
        data.lw.interval("token")
    with pytest.raises(BadInput, match="not among"):
        result().lw.interval("token")
    with pytest.raises(BadInput, match="infinity"):
        stats.interval(result().copy(data=VALUES * np.inf))
