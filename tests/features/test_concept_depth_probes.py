"""Probes: the minimum that scikit-learn finds, for every layer at once; splits that do not leak."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lwlab.errors import BadInput
from lwlab.features.probes import fit_probe, folds_of, held_out, shuffled
from lwlab.stats import auc


def data(n: int, d: int, layers: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(layers, n, d, generator=rng) * torch.logspace(-2, 3, d) + 5
    first = (x[0, :, 0] - x[0, :, 0].mean()) / x[0, :, 0].std()
    y = (torch.randn(n, generator=rng) + first > 0.1).long()
    return x, y


def peer(c: float) -> object:
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-10, max_iter=10_000))


@pytest.mark.parametrize(("n", "d"), [(40, 100), (40, 40), (90, 12), (3, 5)])
@pytest.mark.parametrize("c", [0.05, 1.0, 50.0])
def test_probes_are_those_of_scikit_learn(n: int, d: int, c: float) -> None:
    x, y = data(n, d)
    y[:2] = torch.tensor([0, 1])  # of three rows, too
    x[:, :, -1] = 7.0  # a unit that never varies
    probe = fit_probe(x, y, c)
    for layer in range(len(x)):
        rows = x[layer].double().numpy()
        theirs = peer(c).fit(rows, y)  # type: ignore[attr-defined]
        np.testing.assert_allclose(
            probe.score(x)[layer].numpy(), theirs.decision_function(rows), atol=1e-4
        )
        np.testing.assert_allclose(probe.weight[layer].numpy(), theirs[-1].coef_[0], atol=1e-4)
    assert float(probe.weight[:, -1].abs().max()) == 0


def test_a_layer_may_have_labels_of_its_own() -> None:
    x, y = data(30, 50)
    other = torch.stack([y, 1 - y, y.roll(1)])
    together = fit_probe(x, other)
    for i in range(3):
        alone = fit_probe(x[i : i + 1], other[i])
        torch.testing.assert_close(together.weight[i], alone.weight[0], atol=1e-8, rtol=0)


def test_rows_that_are_all_equal_give_exactly_the_base_rate() -> None:
    x = torch.full((1, 8, 20), 0.1)
    y = torch.tensor([0, 1] * 4)
    probe = fit_probe(x, y)
    assert float(probe.weight.abs().max()) == 0
    assert bool((probe.score(x) == 0).all())
    odds = fit_probe(x, torch.tensor([0, 1, 1, 1] * 2), c=1.0).probability(x)
    torch.testing.assert_close(odds, torch.full_like(odds, 0.75))


def test_held_out_scores_are_of_probes_that_never_saw_the_fold() -> None:
    x, y = data(40, 60)
    fold = folds_of(y.tolist(), list(range(40)), 4)
    score = held_out(x, y.numpy(), fold)
    for k in range(4):
        train, test = torch.as_tensor(fold != k), torch.as_tensor(fold == k)
        expected = fit_probe(x[:, train], y[train]).score(x[:, test])
        torch.testing.assert_close(score[:, test], expected, atol=1e-9, rtol=0)
    changed = x.clone()
    changed[:, fold == 0] += 100  # what is held out may not matter to its own probe's weights
    again = held_out(changed, y.numpy(), fold)
    kept = fit_probe(x[:, fold != 0], y[fold != 0])
    torch.testing.assert_close(
        again[:, fold == 0], kept.score(changed[:, fold == 0]), atol=1e-8, rtol=1e-8
    )
    many = held_out(x, np.stack([y.numpy(), 1 - y.numpy()]), fold)
    torch.testing.assert_close(many[0], score)
    torch.testing.assert_close(many[1], -score, atol=1e-7, rtol=0)


def test_groups_stay_whole_and_folds_are_even() -> None:
    labels, groups = [0, 1] * 30, [i // 4 for i in range(60)]
    fold = folds_of(labels, groups, 5, seed=2)
    for g in range(15):
        assert len(set(fold[4 * g : 4 * g + 4])) == 1
    assert np.bincount(fold).tolist() == [12] * 5
    assert (folds_of(labels, groups, 5, seed=2) == fold).all()
    assert (folds_of(labels, groups, 5, seed=3) != fold).any()


def test_shuffled_labels_keep_the_classes_of_each_fold() -> None:
    labels, groups = [0, 0, 1] * 20, [i // 3 for i in range(60)]
    fold = folds_of(labels, groups, 4)
    out = shuffled(labels, fold, 6, seed=1)
    assert out.shape == (6, 60)
    for k in range(4):
        assert (out[:, fold == k].sum(1) == np.array(labels)[fold == k].sum()).all()
    assert len({tuple(row) for row in out}) == 6


def test_area_under_the_curve_counts_ties_half() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 50)
    score = torch.as_tensor(rng.integers(0, 6, (3, 50)).astype(float))
    expected = [roc_auc_score(y, row) for row in score.numpy()]
    np.testing.assert_allclose(auc(score, y.tolist()), expected)


def test_what_a_probe_cannot_learn_from_is_refused() -> None:
    x, y = data(20, 10)
    with pytest.raises(BadInput, match="one class"):
        fit_probe(x, torch.ones(20))
    with pytest.raises(BadInput, match="0 and 1"):
        fit_probe(x, torch.arange(20))
    with pytest.raises(BadInput, match=r"\(19,\) labels for 20 rows"):
        fit_probe(x, y[1:])
    with pytest.raises(BadInput, match="NaN"):
        fit_probe(x.where(x != x[0, 0, 0], torch.nan), y)
    with pytest.raises(BadInput, match="c=0"):
        fit_probe(x, y, 0)
    with pytest.raises(BadInput, match=r"\[layers, n, d\]"):
        fit_probe(x[0], y)
    with pytest.raises(BadInput, match="folds=5 of 4 groups"):
        folds_of([0, 1] * 4, [0, 0, 1, 1, 2, 2, 3, 3], 5)
    with pytest.raises(BadInput, match=r"test half of fold . holds one class"):
        folds_of([0] * 4 + [1] * 4, [0, 0, 1, 1, 2, 2, 3, 3], 4)
