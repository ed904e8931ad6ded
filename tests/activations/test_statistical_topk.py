"""Statistical top-k: its invariances, its count on normal scores, and numpy's formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from lwlab.activations import statistical_topk
from lwlab.errors import BadInput


@pytest.mark.parametrize("shape", [(2,), (5, 9), (3, 4, 33), (0, 4), (1, 1536)])
def test_it_is_the_formula(shape: tuple[int, ...]) -> None:
    s = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    d = shape[-1]
    for k in {1, d // 2, d - 1}:
        x = s.numpy()
        if x.size:
            theta = x.mean(-1, keepdims=True)
            theta = theta + x.std(-1, keepdims=True) * scipy.stats.norm.ppf(1 - k / d)
            np.testing.assert_allclose(statistical_topk(s, k), np.maximum(x - theta, 0), atol=1e-12)
        else:
            assert statistical_topk(s, k).shape == shape


def test_it_keeps_about_k_of_normal_scores() -> None:
    """8 % of 1536, 2,000 draws: the mean within seven standard errors, the worst by theorem 1."""
    s = torch.randn(2000, 1536, generator=torch.Generator().manual_seed(0))
    count = (statistical_topk(s, 123) > 0).sum(1).float()
    assert abs(float(count.mean()) - 123) <= 1
    assert float((count - 123).abs().max()) / 1536 <= math.sqrt(math.log(1536) / 1536)


def test_it_is_not_calibrated_for_laplace_scores() -> None:
    s = torch.distributions.Laplace(0.0, 1.0)
    torch.manual_seed(0)
    count = (statistical_topk(s.sample((500, 1536)), 123) > 0).sum(1).float().mean()
    assert 100 < float(count) < 112  # 14 % fewer than asked


def test_shift_scale_and_order() -> None:
    s = torch.randn(4, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out = statistical_topk(s, 8)
    torch.testing.assert_close(statistical_topk(s + 1e3, 8), out, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(statistical_topk(3 * s, 8), 3 * out)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(statistical_topk(s[:, order], 8), out[:, order])
    # What stays is the top of the list.
    for row, kept in zip(s, out > 0):
        assert row[kept].min() > row[~kept].max()


def test_far_from_zero_it_does_not_cancel() -> None:
    s = torch.randn(4, 512, generator=torch.Generator().manual_seed(3))
    near = statistical_topk(s.double(), 40).float()
    far = statistical_topk(s + 1000, 40)
    torch.testing.assert_close(far, near, atol=2e-3, rtol=0)  # mean(x^2) - mean(x)^2 would be lost


def test_gradients_go_through_mean_and_std() -> None:
    s = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    assert torch.autograd.gradcheck(lambda x: statistical_topk(x, 3), s.requires_grad_())
    (g,) = torch.autograd.grad(statistical_topk(s, 3).sum(), s)
    assert bool((g != 0).all())


@pytest.mark.parametrize("k", [0, 6, -1, 1.5, True])
def test_a_bad_k_is_refused(k: object) -> None:
    with pytest.raises(BadInput, match="from 1 to 5"):
        statistical_topk(torch.zeros(2, 6), k)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="floating"):
        statistical_topk(torch.zeros(2, 6, dtype=torch.int64), 2)
