"""Metrics: equal to loops over the formula, antisymmetric, differentiable, strict about shapes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import xarray as xr

from lwlab.errors import BadInput, UnknownName
from lwlab.tasks import kl, log_prob, logit, logit_diff, prob_diff, top1
from lwlab.tasks.metrics import measure

N, V = 5, 11
ANSWER = torch.tensor([0, 3, 3, 7, 10])
FOIL = torch.tensor([1, 2, 4, 0, 9])
SETS = torch.tensor([[1, 2, 3], [4, -1, -1], [0, 10, -1], [5, 6, -1], [9, 8, 7]])
OTHERS = torch.tensor([[0, 4], [1, 2], [3, -1], [7, -1], [0, 1]])


@pytest.fixture
def logits():
    return 3 * torch.randn(N, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def probability(row, members):
    total = sum(math.exp(float(x)) for x in row)
    return sum(math.exp(float(row[i])) for i in members if i >= 0) / total


def test_single_tokens_are_the_plain_formula(logits):
    for i in range(N):
        a, f = int(ANSWER[i]), int(FOIL[i])
        row = logits[i]
        assert logit_diff(ANSWER, FOIL)(logits)[i] == row[a] - row[f]
        assert logit(ANSWER)(logits)[i] == row[a]
        p, q = probability(row, [a]), probability(row, [f])
        assert float(prob_diff(ANSWER, FOIL)(logits)[i]) == pytest.approx(p - q, abs=1e-12)
        assert float(log_prob(ANSWER)(logits)[i]) == pytest.approx(math.log(p), abs=1e-12)


def test_sets_are_events(logits):
    for i in range(N):
        p, q = probability(logits[i], SETS[i].tolist()), probability(logits[i], OTHERS[i].tolist())
        odds = float(logit_diff(SETS, OTHERS)(logits)[i])
        assert odds == pytest.approx(math.log(p / q), abs=1e-12)
        assert float(prob_diff(SETS, OTHERS)(logits)[i]) == pytest.approx(p - q, abs=1e-12)
        assert float(log_prob(SETS)(logits)[i]) == pytest.approx(math.log(p), abs=1e-12)


@pytest.mark.parametrize("metric", [logit_diff, prob_diff])
@pytest.mark.parametrize(("a", "f"), [(ANSWER, FOIL), (SETS, OTHERS)])
def test_swapping_answer_and_foil_flips_the_sign(logits, metric, a, f):
    torch.testing.assert_close(metric(a, f)(logits), -metric(f, a)(logits), rtol=0, atol=1e-12)


def test_kl_is_its_sum_and_zero_at_itself(logits):
    other = logits.flip(0)
    for i in range(N):
        p = [probability(logits[i], [v]) for v in range(V)]
        q = [probability(other[i], [v]) for v in range(V)]
        expected = sum(a * math.log(a / b) for a, b in zip(p, q))
        assert float(kl(logits)(other)[i]) == pytest.approx(expected, abs=1e-10)
    assert float(kl(logits)(logits).abs().max()) < 1e-12


def test_top1_looks_at_the_whole_vocabulary():
    z = torch.zeros(2, V)
    z[0, 3], z[1, 4] = 1.0, 1.0
    assert top1([3, 3])(z).tolist() == [1.0, 0.0]
    assert top1([[2, 3], [0, 4]])(z).tolist() == [1.0, 1.0]
    assert top1([[2, 5], [0, -1]])(z).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", ["logit_diff", "prob_diff", "logit", "log_prob"])
@pytest.mark.parametrize(("a", "f"), [(ANSWER, FOIL), (SETS, OTHERS)])
def test_gradients_are_those_of_finite_differences(logits, name, a, f):
    assert torch.autograd.gradcheck(measure(name, a, f), logits.requires_grad_())


def test_prompts_do_not_see_each_other(logits):
    changed = logits.clone()
    changed[0] += torch.randn(V, dtype=torch.float64)
    for name in ("logit_diff", "prob_diff", "log_prob", "top1"):
        metric = measure(name, SETS, OTHERS)
        torch.testing.assert_close(metric(changed)[1:], metric(logits)[1:], rtol=0, atol=0)


def test_one_answer_serves_any_number_of_prompts(logits):
    assert torch.equal(logit_diff(3, 4)(logits), logits[:, 3] - logits[:, 4])
    assert torch.equal(logit_diff([3], [4])(logits[:2]), logits[:2, 3] - logits[:2, 4])


def test_labelled_logits_give_a_labelled_metric(logits):
    stacked = torch.stack([logits, 2 * logits])
    array = xr.DataArray(
        stacked.numpy(), dims=("layer", "prompt", "token"), coords={"layer": [4, 9]}
    ).transpose("token", "prompt", "layer")
    out = logit_diff(ANSWER, FOIL)(array)
    assert out.dims == ("layer", "prompt")
    assert out.name == "logit_diff"
    assert list(out.layer.values) == [4, 9]
    np.testing.assert_array_equal(out.sel(layer=4), logit_diff(ANSWER, FOIL)(logits).numpy())
    with pytest.raises(BadInput, match="dimensions prompt and token"):
        logit_diff(3, 4)(array.rename(token="vocabulary"))


def test_wrong_shapes_and_ids_are_named(logits):
    metric = logit_diff(ANSWER, FOIL)
    with pytest.raises(BadInput, match=r"take \[:, -1\]"):
        metric(torch.zeros(N, 4, V))
    with pytest.raises(BadInput, match="about 5 prompts and got logits of 4"):
        metric(logits[:4])
    with pytest.raises(BadInput, match="token id 10 is outside these 8 logits"):
        metric(logits[:, :8])
    with pytest.raises(BadInput, match="must be token ids"):
        logit_diff([1.0, 2.0], [0, 1])
    with pytest.raises(BadInput, match="without any token id"):
        logit_diff([[1, 2], [-1, -1]], [0, 1])
    with pytest.raises(BadInput, match="different numbers of prompts"):
        logit_diff([1, 2, 3], [1, 2])
    with pytest.raises(BadInput, match="against reference"):
        kl(logits)(logits[:, :4])
    with pytest.raises(UnknownName, match="did you mean 'logit_diff'"):
        measure("logitdiff", ANSWER, FOIL)
