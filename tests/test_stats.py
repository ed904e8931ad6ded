"""Statistics: intervals that cover, correlations equal to their formula, errors instead of NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr

from lwlab.errors import BadInput
from lwlab.stats import bootstrap, pearson, pearson_interval, spearman


def naive_pearson(a, b):
    a, b = np.ravel(a).astype(float), np.ravel(b).astype(float)
    top = sum((x - a.mean()) * (y - b.mean()) for x, y in zip(a, b))
    return top / math.sqrt(
        sum((x - a.mean()) ** 2 for x in a) * sum((y - b.mean()) ** 2 for y in b)
    )


def noisy(prompts=12, cells=30, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(prompts, cells)) + rng.normal(size=(prompts, 1))
    return a, a + noise * rng.normal(size=a.shape)


def test_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(1).exponential(size=60)
    mean, low, high = bootstrap(values, n=20_000, seed=3)
    reference = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile"
    ).confidence_interval
    assert mean == pytest.approx(values.mean(), abs=1e-12)
    assert low == pytest.approx(reference.low, abs=0.01)
    assert high == pytest.approx(reference.high, abs=0.01)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(300):
        _, low, high = bootstrap(rng.normal(size=40), n=500, seed=seed)
        hits += low <= 0 <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_groups_widen_the_interval_as_much_as_independence_is_lost():
    values = np.random.default_rng(2).normal(size=30)
    once = bootstrap(values, n=8000)
    twice = np.repeat(values, 4)
    naive = bootstrap(twice, n=8000)
    grouped = bootstrap(twice, n=8000, groups=np.repeat(np.arange(30), 4))
    assert grouped.mean == pytest.approx(once.mean)
    assert grouped.high - grouped.low == pytest.approx(once.high - once.low, rel=1e-9)
    assert naive.high - naive.low == pytest.approx((once.high - once.low) / 2, rel=0.1)


def test_seeds_repeat_and_level_widens():
    values = np.arange(10.0)
    assert bootstrap(values, seed=5) == bootstrap(values, seed=5)
    assert bootstrap(values, seed=5) != bootstrap(values, seed=6)
    assert bootstrap(values, level=0.5).low > bootstrap(values, level=0.99).low


def test_one_value_has_a_mean_and_no_interval_and_constants_have_a_point():
    mean, low, high = bootstrap([3.0])
    assert mean == 3.0
    assert math.isnan(low)
    assert math.isnan(high)
    assert bootstrap([2.0] * 5) == (2.0, 2.0, 2.0)
    assert math.isnan(bootstrap([1.0, 2.0], groups=["a", "a"]).low)


def test_tensors_with_gradients_are_values_too():
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    assert bootstrap(values).mean == pytest.approx(2.0)


@pytest.mark.parametrize("seed", range(3))
def test_pearson_is_its_formula(seed):
    a, b = noisy(seed=seed)
    assert pearson(a, b) == pytest.approx(naive_pearson(a, b), abs=1e-12)


def test_spearman_is_pearson_of_ranks():
    a, b = noisy()
    ranks = [scipy.stats.rankdata(m.ravel()) for m in (a, np.exp(b))]
    assert spearman(a, np.exp(b)) == pytest.approx(naive_pearson(*ranks), abs=1e-12)
    assert spearman(a, np.exp(b)) == pytest.approx(spearman(a, b), abs=1e-12)


@pytest.mark.parametrize("function", [pearson, spearman, pearson_interval])
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1.0, np.nan, 2.0], [1.0, 2.0, 3.0], "the first input holds 1 NaN"),
        ([1.0, 2.0, 3.0], [1.0, np.inf, 3.0], "the second input holds 1 NaN or infinite"),
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], "the first input is constant"),
        ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], "the second input is constant"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "equal shapes"),
        ([1.0], [1.0], "at least two"),
        ([], [], "is empty"),
    ],
)
def test_where_there_is_no_correlation_there_is_an_error(function, a, b, message):
    with pytest.raises(BadInput, match=message):
        function(a, b)


def test_data_arrays_are_aligned_by_name_not_by_order():
    a, b = noisy(6, 5)
    x = xr.DataArray(a, dims=("prompt", "layer"))
    y = xr.DataArray(b, dims=("prompt", "layer")).transpose("layer", "prompt")
    assert pearson(x, y) == pytest.approx(naive_pearson(a, b))
    assert pearson_interval(y, x, seed=1) == pytest.approx(pearson_interval(a, b, seed=1))
    with pytest.raises(BadInput, match="different dimensions"):
        pearson(x, y.rename(layer="head"))
    with pytest.raises(BadInput, match="labelled differently"):
        pearson(x.assign_coords(layer=range(5)), y.assign_coords(layer=range(1, 6)))
    with pytest.raises(BadInput, match="name another with `over`"):
        pearson_interval(x, x, over="example")


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("paired", [False, True])
def test_the_interval_resamples_prompts_as_a_slow_loop_does(average, paired):
    a, b = noisy(8, 15)
    b = b + 100  # location must not matter
    groups = np.arange(8) // 2 if paired else None
    got = pearson_interval(a, b, groups=groups, average=average, n=3000, seed=0)
    rng = np.random.default_rng(9)
    draws = []
    for _ in range(3000):
        if paired:
            rows = np.concatenate([[2 * g, 2 * g + 1] for g in rng.integers(0, 4, 4)])
        else:
            rows = rng.integers(0, 8, 8)
        x, y = (a[rows].mean(0), b[rows].mean(0)) if average else (a[rows], b[rows])
        draws.append(np.corrcoef(x.ravel(), y.ravel())[0, 1])
    centre = naive_pearson(a.mean(0), b.mean(0)) if average else naive_pearson(a, b)
    assert got.mean == pytest.approx(centre, abs=1e-9)
    assert got.low == pytest.approx(np.quantile(draws, 0.025), abs=0.02)
    assert got.high == pytest.approx(np.quantile(draws, 0.975), abs=0.02)


def test_constant_resamples_are_left_out():
    a = np.array([[0.0], [0.0], [0.0], [1.0]])
    got = pearson_interval(a, a)
    assert got == pytest.approx((1.0, 1.0, 1.0))


def test_wrong_labels_and_levels_are_named():
    with pytest.raises(BadInput, match="3 group labels for 2 values"):
        bootstrap([1.0, 2.0], groups=[0, 1, 2])
    with pytest.raises(BadInput, match="level is 95"):
        bootstrap([1.0, 2.0], level=95)
    with pytest.raises(BadInput, match="values holds 1 NaN"):
        bootstrap([1.0, float("nan")])
