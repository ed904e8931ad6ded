"""Bits under a budget: against every allocation there is, and what cannot be asked."""

from __future__ import annotations

import itertools

import pytest
import xarray as xr

from lwlab.errors import BadInput, UnknownName
from lwlab.quantization import allocate, error_table, fake_quantized


@pytest.fixture
def table(toy):
    return error_table(toy("llama"), 8, range(2, 9))


def spent(table: xr.Dataset, bits) -> tuple[float, float]:
    e, m = (table[v].sum("module") for v in ("error", "megabytes"))
    chosen = {"layer": table.layer, "bits": xr.DataArray(list(bits), dims="layer")}
    return float(e.sel(chosen).sum()), float(m.sel(chosen).sum())


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.8, 1.0])
def test_greedy_fits_and_is_what_trying_everything_finds_at_its_own_size(table, share):
    low, high = (float(table.megabytes.sel(bits=b).sum()) for b in (2, 8))
    budget = low + share * (high - low)
    found = allocate(table, budget, "greedy")
    error, size = spent(table, found.values)
    assert size <= budget + 1e-9
    assert (found.attrs["error"], found.attrs["megabytes"]) == pytest.approx((error, size))
    every = itertools.product(table.bits.values, repeat=table.sizes["layer"])
    best = min(e for e, m in (spent(table, b) for b in every) if m <= size + 1e-9)
    assert error == pytest.approx(best, rel=1e-6)


def test_greedy_loses_no_more_than_uniform_and_uniform_is_the_most_that_fits(table):
    five, six = (float(table.megabytes.sel(bits=b).sum()) for b in (5, 6))
    budget = 0.5 * (five + six)
    uniform, greedy = (allocate(table, budget, t) for t in ("uniform", "greedy"))
    assert set(uniform.values) == {5}
    assert greedy.attrs["error"] <= uniform.attrs["error"]


def test_the_size_is_what_the_rounded_model_reports(table, toy):
    found = allocate(table, float(table.megabytes.sel(bits=5).sum()))
    with fake_quantized(toy("llama"), found, 8) as rounded:
        assert rounded.megabytes == pytest.approx(found.attrs["megabytes"])


def test_what_cannot_be_asked(table):
    with pytest.raises(BadInput, match="too few: 2 bits everywhere take"):
        allocate(table, 0.0)
    with pytest.raises(BadInput, match="too few"):
        allocate(table, float("nan"))
    with pytest.raises(UnknownName, match="greedy"):
        allocate(table, 1.0, "gready")
