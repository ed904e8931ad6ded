"""SNMF against its mathematics, a loop, non-negative least squares and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from sklearn.decomposition import NMF, PCA

from lwlab.errors import BadInput
from lwlab.features import dictionaries, snmf
from lwlab.results import label


def matrix(n=40, d=30, seed=0, negative=True):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) if negative else rng.random((n, d))
    return label(x, ("sample", "neuron"))


def planted(k=12, block=16, n=300, seed=0):
    rng = np.random.default_rng(seed)
    z = np.kron(np.eye(k), np.ones(block)) * rng.normal(size=(k, k * block))
    y = rng.random((n, k)) * (rng.random((n, k)) < 0.3)
    return label(y @ z, ("sample", "neuron")), z


def by_loops(x, y, support, rounds):
    """The updates of the paper, one number at a time."""
    (n, d), k = x.shape, y.shape[1]
    y, errors = y.copy(), []
    for _ in range(rounds):
        z = np.linalg.inv(y.T @ y + 1e-6 * np.eye(k)) @ y.T @ x
        for j in range(k):
            for i in sorted(range(d), key=lambda i: -abs(z[j, i]))[support:]:
                z[j, i] = 0.0
        for j in range(k):
            size = sum(v * v for v in y[:, j]) ** 0.5
            y[:, j] /= size
            z[j] *= size
        new = np.empty_like(y)
        q = [[float(z[i] @ z[j]) for j in range(k)] for i in range(k)]
        for s in range(n):
            for j in range(k):
                p = float(x[s] @ z[j])
                up, down = max(p, 0), max(-p, 0)
                for i in range(k):
                    up += y[s, i] * max(-q[i][j], 0)
                    down += y[s, i] * max(q[i][j], 0)
                new[s, j] = y[s, j] * (up / (down + 1e-6)) ** 0.5
        y = new
        errors.append(((x - y @ z) ** 2).sum() / (x**2).sum())
    return y, z, errors


@pytest.mark.parametrize("sparsity", [1.0, 0.2])
def test_the_library_is_the_loop(sparsity):
    a = matrix(14, 20)
    y0 = np.random.default_rng(3).random((14, 4)).clip(1e-6)
    y, z, errors = by_loops(a.values, y0, int(np.ceil(sparsity * 20)), 8)
    found = snmf.factorise(a, 4, sparsity=sparsity, iterations=8, seed=3)
    assert np.allclose(found.error.values, errors, rtol=1e-9)
    if int(np.argmin(errors)) == 7:
        mine = found.coefficient.values @ found.direction.values
        assert np.allclose(mine, y @ z, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 99), st.sampled_from(["random", "svd", "kmeans"]))
def test_without_the_cut_the_error_never_rises(seed, init):
    a = matrix(25, 18, seed)
    found = snmf.factorise(
        a, 5, sparsity=1, iterations=60, patience=60, tolerance=0, init=init, seed=seed
    )
    assert found.attrs["rises"] == 0
    assert np.all(np.diff(found.error) <= 1e-6 * found.error[:-1].values)


@pytest.mark.parametrize(("sparsity", "support"), [(0.01, 16), (0.05, 77), (0.1, 154), (1, 1536)])
def test_amounts_are_not_negative_and_features_keep_their_share(sparsity, support):
    a = matrix(30, 1536).astype("float32")
    found = snmf.factorise(a, 4, sparsity=sparsity, iterations=5)
    assert found.coefficient.min() >= 0
    assert ((found.direction != 0).sum("neuron") == support).all()
    assert found.attrs["support"] == support
    sizes = np.linalg.norm(found.coefficient, axis=0) * np.linalg.norm(found.direction, axis=1)
    assert np.all(np.diff(sizes) <= 0)


@pytest.mark.parametrize("refit", [False, True])
def test_planted_features_are_found(refit):
    a, z = planted()
    found = snmf.factorise(a, 12, sparsity=16 / 192, init="svd", refit=refit).direction.values
    match = found @ z.T / np.outer(np.linalg.norm(found, axis=1), np.linalg.norm(z, axis=1))
    assert (match.max(0) > 0.99).mean() >= 0.9  # with their sign: amounts are positive


def test_a_random_start_finds_most_of_them_and_shuffled_data_none():
    a, z = planted()
    rng = np.random.default_rng(0)
    for data, low, high in (
        (a, 0.6, 1.0),
        (label(rng.permuted(a.values, axis=1), ("sample", "neuron")), 0.0, 0.1),
    ):
        found = snmf.factorise(data, 12, sparsity=16 / 192).direction.values
        match = found @ z.T / np.outer(np.linalg.norm(found, axis=1), np.linalg.norm(z, axis=1))
        assert low <= (match.max(0) > 0.99).mean() <= high


def test_no_factorisation_beats_the_svd_and_the_cut_costs():
    a = matrix(60, 40)
    floor = dictionaries.svd_error(a, 6)
    error = {
        p: snmf.factorise(a, 6, sparsity=p, iterations=150).attrs["explained_error"]
        for p in (1.0, 0.2, 0.05)
    }
    assert floor <= error[1.0] < error[0.2] < error[0.05] < 1


def test_refitting_is_least_squares_on_what_is_kept():
    rng = np.random.default_rng(1)
    x, y = torch.from_numpy(rng.normal(size=(30, 12))), torch.from_numpy(rng.random((30, 5)))
    keep = torch.from_numpy(rng.random((5, 12)) < 0.5)
    z = snmf.on_support(y.T @ y, y.T @ x, keep)
    for i in range(12):
        rows = keep[:, i]
        want = np.zeros(5)
        if rows.any():
            want[rows.numpy()] = np.linalg.lstsq(y[:, rows].numpy(), x[:, i].numpy(), rcond=None)[0]
        assert np.allclose(z[:, i].numpy(), want, atol=1e-5)


def test_encoding_is_non_negative_least_squares():
    a, z = matrix(20, 25), matrix(6, 25, seed=1).rename(sample="feature")
    y = snmf.encode(a, z)
    for row, got in zip(a.values, y.values):
        assert np.allclose(got, nnls(z.values.T, row)[0], atol=1e-6)


def test_semi_nmf_of_nonnegative_data_errs_no_more_than_nmf():
    """Letting Z have both signs can only help: scikit-learn's NMF is a point we may start from."""
    a = matrix(50, 30, negative=False)
    made = NMF(5, init="nndsvda", max_iter=1000, tol=1e-4)
    y = made.fit_transform(a.values)
    theirs = ((a.values - y @ made.components_) ** 2).sum()
    x, ours = torch.from_numpy(a.values), torch.from_numpy(y.clip(1e-6))
    for _ in range(50):
        ours, z = snmf.step(x, ours, 30)
    assert float(((x - ours @ z) ** 2).sum()) <= theirs * (1 + 1e-6)


def test_pca_is_scikit_learns():
    a = matrix(50, 30)
    ours, theirs = dictionaries.pca(a, 4), PCA(4).fit(a.values)
    dots = np.abs((ours.direction.values[:4] * theirs.components_).sum(1))
    assert np.allclose(dots, 1, atol=1e-6)
    assert np.allclose(ours.direction[:4].values, -ours.direction[4:].values)
    y = theirs.transform(a.values)
    assert np.allclose(ours.coefficient.values[:, :4] + ours.coefficient.values[:, 4:], np.abs(y))


def test_the_tree_joins_features_that_share_neurons():
    """Three cores of 20 neurons; four features each: the core and 10 neurons of their own."""
    rng = np.random.default_rng(0)
    z = np.zeros((12, 180))
    for f in range(12):
        c = f // 4
        z[f, 20 * c : 20 * c + 20] = 1 + 0.1 * rng.normal(size=20)
        z[f, 60 + 10 * f : 70 + 10 * f] = rng.normal(size=10)
    fit = snmf.factorise(matrix(30, 180), 12, sparsity=0.2, iterations=2)
    fit["direction"] = (("feature", "neuron"), z)
    # A random start may merge two of the three: the best of a few, as anyone would.
    trees = [snmf.hierarchy(fit, [3], sparsity=0.2, iterations=200, seed=s) for s in range(5)]
    tree = min(trees, key=lambda t: -len(np.unique(t.parent_1)))
    parents = tree.parent_1.values.reshape(3, 4)
    assert (parents == parents[:, :1]).all()
    assert len(np.unique(parents)) == 3
    assert tree.weight_1.min() >= 0
    assert np.array_equal(tree.ancestor_1, tree.parent_1)


def test_two_levels_of_a_tree_name_each_leafs_forebears():
    fit = snmf.factorise(matrix(60, 50), 12, sparsity=0.2, iterations=20)
    tree = snmf.hierarchy(fit, [6, 2], iterations=20)
    assert np.array_equal(tree.ancestor_2, tree.parent_2.values[tree.parent_1.values])
    assert tree.sizes["level_1"] == 6
    with pytest.raises(BadInput, match="fewer parents at each level"):
        snmf.hierarchy(fit, [6, 6])


def bad(change):
    a = matrix(20, 10)
    a.values[3, 4] = change
    return a


@pytest.mark.parametrize(
    ("data", "options", "match"),
    [
        (bad(np.nan), {}, "1 of 200 values are NaN or infinite, the first in row 3"),
        (bad(np.inf), {}, "NaN or infinite"),
        (matrix(20, 10), {"k": 11}, "rank is at most 10; take 1 <= k <= 10"),
        (matrix(8, 10), {"k": 9}, "rank is at most 8"),
        (matrix(20, 10), {"k": 0}, "k=0"),
        (matrix(20, 10), {"sparsity": 0}, "sparsity=0"),
        (matrix(20, 10), {"sparsity": 1.5}, "sparsity=1.5"),
        (matrix(20, 10), {"init": "nndsvd"}, "'random', 'svd' or 'kmeans'"),
        (matrix(20, 10), {"iterations": 0}, "iterations=0"),
        (matrix(20, 10) * 0, {}, "all values are zero"),
        (np.zeros((3, 3)), {}, "labelled array"),
        (matrix(20, 10).T, {}, "dimensions \\('sample', 'neuron'\\)"),
    ],
)
def test_bad_input_is_refused(data, options, match):
    with pytest.raises(BadInput, match=match):
        snmf.factorise(data, **{"k": 3, **options})
