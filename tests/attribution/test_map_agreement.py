"""Agreement between maps: known correlations, paired intervals, placebos that predict nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import lwlab as lw
from lwlab import stats
from lwlab.attribution import Pair, agreement, gain, placebo, relp
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
    for kind in ("mean", "active", "pooled"):
        r = agreement(maps, n=20).r.sel(kind=kind)
        expected = r.sel(technique="scaled") - r.sel(technique="noisy")
        found = gain(maps, "scaled", "noisy", kind=kind, n=200)
        np.testing.assert_allclose(found.r.values, expected.values, atol=1e-12)
    found = gain(maps, "scaled", "noisy", n=200)
    assert bool((found.low > 0).all())
    none = gain(maps, "noisy", "noisy", n=20)
    assert float(np.abs(none.to_dataarray()).max()) == 0
    again = gain(maps, "scaled", "noisy", n=200)
    assert again.identical(found)


@pytest.mark.parametrize(("kind", "rank"), [("mean", False), ("active", True), ("pooled", False)])
def test_the_interval_is_that_of_resampled_groups_taken_one_by_one(kind: Any, rank: bool) -> None:
    maps = maps_of(1.0)
    found = gain(maps, "scaled", "noisy", kind=kind, rank=rank, n=400, seed=3)
    cells = maps.score.sel(component="a").isel(position=slice(0 if kind == "mean" else 2, None))
    rng, draws = np.random.default_rng(9), []
    for _ in range(400):
        rows = [2 * g + k for g in rng.integers(3, size=3) for k in (0, 1)]
        t, x, y = (
            m[rows].ravel() if kind == "pooled" else m[rows].mean(0).ravel() for m in cells.values
        )
        r = stats.spearman if rank else stats.pearson
        draws.append(r(t, x) - r(t, y))
    low, high = np.quantile(draws, [0.025, 0.975])
    width = high - low
    assert float(found.low[0]) == pytest.approx(low, abs=0.3 * width)
    assert float(found.high[0]) == pytest.approx(high, abs=0.3 * width)


def test_controls_for_one_large_cell() -> None:
    maps = maps_of(0.5)
    score = maps.score.copy()
    score[0, :, :, 0, 4] = 100.0  # one cell towers in the truth, and only "scaled" sees it
    score[1, :, :, 0, 4] = 300.0
    tall = maps.assign(score=score)
    led_by_one = gain(tall, "scaled", "noisy", n=20).r.values
    assert (led_by_one > 0.7).all()
    without = gain(tall, "scaled", "noisy", drop=1, n=20).r.values
    plain = gain(maps.isel(layer=slice(1, None)), "scaled", "noisy", n=20).r.values
    assert (without < 0.5).all()
    assert np.abs(without - plain).max() < 0.3
    ranked = gain(tall, "scaled", "noisy", rank=True, n=20).r.values
    truth, noisy = (
        tall.score.sel(technique=t, component="a").mean("prompt") for t in ("exact", "noisy")
    )
    assert ranked[0] == pytest.approx(1 - stats.spearman(truth.values, noisy.values), abs=1e-12)
    with pytest.raises(BadInput, match="ranks need averaged maps"):
        gain(maps, "scaled", "noisy", rank=True, kind="pooled")
    with pytest.raises(BadInput, match="constant"):
        gain(maps.assign(score=maps.score * (maps.technique != "noisy")), "scaled", "noisy")
    with pytest.raises(BadInput, match="drop=20 of 20"):
        gain(maps, "scaled", "noisy", drop=20)


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
    one, same, other = (
        placebo.random_direction(model, task, draws=60, seed=s, batch_size=3) for s in (0, 0, 1)
    )
    assert one.identical(same)
    assert float(np.abs(one - other).max()) > 0
    assert one.dims == ("draw", "component", "prompt", "layer", "position")
    pair = Pair.of(model, task)
    at = Address("mlp_out", 1)
    clean, corrupt = pair.read([at])
    length = pair.slopes(model, torch.arange(4), [at])[at].norm(dim=-1)
    bound = ((clean[at] - corrupt[at]).norm(dim=-1) * length).numpy()
    drawn = one.sel(component="mlp_out", layer=1).values[..., pair.begin :]
    # <u, g>, g a random direction in d dimensions, has the standard deviation |u| |g| / sqrt d
    np.testing.assert_allclose(drawn.std(0) / bound, 1 / np.sqrt(model.d_model or 1), rtol=0.4)
    assert np.abs(drawn.mean(0) / bound).max() < 0.15
    with pytest.raises(BadInput, match="draws=0"):
        placebo.random_direction(model, task, draws=0)


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


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2", "qwen2", "gpt_neox"])
def test_an_untrained_model_is_of_the_same_kind_and_knows_nothing(arch: str, toy: Any) -> None:
    model = toy(arch)
    state = torch.get_rng_state()
    blank = placebo.untrained(model, layers=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert (blank.n_layers, blank.d_model, blank.d_vocab) == (2, model.d_model, model.d_vocab)
    assert placebo.untrained(model).n_layers == 3
    assert blank.name == f"{arch}, untrained"
    same = [dict(placebo.untrained(model, seed=s).module.named_parameters()) for s in (0, 0, 1)]
    key = next(k for k in same[0] if k.endswith("weight") and same[0][k].std() > 0)
    assert torch.equal(same[0][key], same[1][key])
    assert not torch.equal(same[0][key], same[2][key])
    assert not torch.equal(same[0][key], model.module.get_parameter(key))


def test_only_a_transformers_model_can_be_made_again() -> None:
    model = lw.wrap(torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3))), check=False)
    with pytest.raises(BadInput, match="not made by transformers"):
        placebo.untrained(model)
