"""Agreement between maps: known correlations, paired intervals, placebos that predict nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from lwlab import stats
from lwlab.attribution import Pair, agreement, atp, gain, placebo, relp
from lwlab.errors import BadInput, UnknownName
from lwlab.models.sites import Address


def maps_of(noise: float, seed: int = 0) -> xr.Dataset:
    """An exact map, a scaled copy of it, and one with noise: 6 prompts in 3 groups."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(2, 6, 4, 5))
    truth[..., :2] = 0
    spoiled = truth + noise * rng.normal(size=truth.shape) * (truth != 0)
    return xr.Dataset(
        {
            "score": xr.DataArray(
                np.stack([truth, 3 * truth + 0.0, spoiled]),
                dims=("technique", "component", "prompt", "layer", "position"),
                coords={
                    "technique": ["exact", "scaled", "noisy"],
                    "component": ["a", "b"],
                    "group": ("prompt", [0, 0, 1, 1, 2, 2]),
                },
            )
        },
        attrs={"first_position": 2},
    )


def test_r_is_that_of_the_flattened_maps() -> None:
    maps = maps_of(1.0)
    found = agreement(maps, n=50)
    truth, noisy = (maps.score.sel(technique=t, component="b").values for t in ("exact", "noisy"))
    expected = {
        "mean": stats.pearson(truth.mean(0), noisy.mean(0)),
        "active": stats.pearson(truth.mean(0)[:, 2:], noisy.mean(0)[:, 2:]),
        "pooled": stats.pearson(truth[..., 2:], noisy[..., 2:]),
    }
    for kind, r in expected.items():
        at = {"kind": kind, "technique": "noisy", "component": "b"}
        assert float(found.r.sel(at)) == pytest.approx(r, abs=1e-12)
        assert float(found.low.sel(at)) <= float(found.high.sel(at))
    assert np.allclose(found.r.sel(technique="scaled"), 1)
    assert found.r.attrs["long_name"] == "Pearson r with exact"


def test_a_gain_is_a_difference_of_correlations_on_the_same_prompts() -> None:
    maps = maps_of(1.0)
    r = agreement(maps, n=20).r.sel(kind="mean")
    found = gain(maps, "scaled", "noisy", n=200)
    expected = r.sel(technique="scaled") - r.sel(technique="noisy")
    np.testing.assert_allclose(found.r.values, expected.values, atol=1e-12)
    assert bool((found.low > 0).all())
    none = gain(maps, "noisy", "noisy", n=20)
    assert float(np.abs(none.to_dataarray()).max()) == 0
    again = gain(maps, "scaled", "noisy", n=200)
    assert again.identical(found)


def test_what_is_missing_is_named() -> None:
    maps = maps_of(1.0)
    with pytest.raises(UnknownName, match="'nosy'; did you mean 'noisy'"):
        gain(maps, "nosy", "noisy")
    with pytest.raises(UnknownName, match="kind"):
        gain(maps, "noisy", "scaled", kind="meen")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="truth"):
        agreement(maps, reference="truth")
    with pytest.raises(BadInput, match="before any mean over prompts"):
        agreement(maps.mean("prompt"))


def test_the_size_placebo_is_the_length_of_the_difference(toy_ioi: Any) -> None:
    model, task = toy_ioi("llama")
    pair = Pair.of(model, task)
    got = placebo.size(model, pair, ["mlp_out"], [1])
    at = Address("mlp_out", 1)
    a, b = pair.read([at])
    expected = (a[at] - b[at]).norm(dim=-1)
    np.testing.assert_allclose(got.values[0, :, 0, pair.begin :], expected, atol=1e-6)
    assert float(got.min()) == 0


def test_random_directions_keep_the_length_of_the_gradient_and_follow_the_seed(
    toy_ioi: Any,
) -> None:
    model, task = toy_ioi("llama")
    one, same, other = (placebo.random_direction(model, task, seed=s) for s in (0, 0, 1))
    assert one.identical(same)
    assert float(np.abs(one - other).max()) > 0
    real = atp.scores(model, task, normalise=False)
    bound = placebo.size(model, task)
    slope = np.abs(real).max() / bound.where(bound > 0).min()
    assert float(np.abs(one).max()) < 10 * float(slope * bound.max())
    draws = [placebo.random_direction(model, task, seed=s) for s in range(30)]
    rs = [stats.pearson(real.values, d.values) for d in draws]
    assert abs(np.mean(rs)) < 0.15


def test_shuffled_labels_ask_for_another_pairs_names(toy_ioi: Any) -> None:
    model, task = toy_ioi("llama")
    other = placebo.shuffled_labels(task)
    assert other.answers == (" Tom", " Anna", " Mary", " John")
    assert torch.equal(other.answer_ids, task.answer_ids[[2, 3, 0, 1]])
    assert other.clean == task.clean
    assert "shuffled" in relp.scores(model, other, normalise=False).attrs["task"]
    with pytest.raises(BadInput, match="at least two"):
        placebo.shuffled_labels(task.subset([0, 1]))
    with pytest.raises(BadInput, match="one size"):
        placebo.shuffled_labels(task.subset([0, 1, 2]))
