"""Sparse decode by embedding_bag against the dense product and a loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lwlab.errors import BadInput
from lwlab.features import Code, decode, dense, encode, pack


def made(n, m, d, density=0.2, seed=0, dtype=torch.float64):
    gen = torch.Generator().manual_seed(seed)
    z = torch.rand(n, m, generator=gen, dtype=dtype)
    z = z * (torch.rand(n, m, generator=gen) < density)
    return z, torch.randn(m, d, generator=gen, dtype=dtype), torch.randn(d, generator=gen).to(dtype)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 33), st.integers(1, 7), st.floats(0, 1), st.integers(0, 9))
def test_decode_is_the_dense_product(n, m, d, density, seed):
    z, w, b = made(n, m, d, density, seed)
    assert torch.allclose(decode(pack(z), w, b), z @ w + b, atol=1e-12)
    assert torch.equal(dense(pack(z)), z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_decode_in_other_types(dtype):
    z, w, _ = (t.to(dtype) for t in made(5, 40, 6))
    want = z.double() @ w.double()
    eps = torch.finfo(dtype).eps
    assert (decode(pack(z), w).double() - want).abs().max() < 30 * eps


def test_decode_is_a_loop_over_active_features():
    z, w, b = made(4, 11, 3)
    code = pack(z)
    for i in range(4):
        slow = b.clone()
        for e in range(int(code.offsets[i]), int(code.offsets[i + 1])):
            slow += code.values[e] * w[code.ids[e]]
        assert torch.allclose(decode(code, w, b)[i], slow, atol=1e-12)


def test_rows_without_features_and_no_rows_at_all():
    z, w, b = made(3, 5, 2)
    z[1] = 0
    assert torch.equal(decode(pack(z), w, b)[1], b)
    assert decode(pack(z[:0]), w, b).shape == (0, 2)
    assert torch.equal(decode(pack(torch.zeros_like(z)), w), torch.zeros(3, 2).double())


def test_a_feature_that_comes_twice_counts_twice():
    w = torch.eye(3)
    code = Code(torch.tensor([1, 1]), torch.tensor([2.0, 3.0]), torch.tensor([0, 2]), 3)
    assert torch.equal(decode(code, w), torch.tensor([[0.0, 5.0, 0.0]]))
    assert torch.equal(dense(code), torch.tensor([[0.0, 5.0, 0.0]]))


def test_nan_stays_in_its_row():
    z, w, _ = made(3, 5, 2)
    z[0, 0] = float("nan")
    out = decode(pack(z), w)
    assert out[0].isnan().all()
    assert out[1:].isfinite().all()


def test_encode_keeps_the_k_largest():
    gen = torch.Generator().manual_seed(0)
    x, w = torch.randn(6, 4, generator=gen), torch.randn(20, 4, generator=gen)
    b, c = torch.randn(20, generator=gen), torch.randn(4, generator=gen)
    z = ((x - c) @ w.T + b).relu()
    cut = z.sort(descending=True).values[:, 4:5]
    assert torch.allclose(dense(encode(x, w, b, 5, c)), z * (z >= cut), atol=1e-6)
    assert torch.allclose(dense(encode(x, w, None, 20)), (x @ w.T).relu(), atol=1e-6)


def test_gradients_are_those_of_the_dense_product():
    z, w, b = made(4, 9, 3)
    code = pack(z)
    values, w2 = code.values.clone().requires_grad_(), w.clone().requires_grad_()
    decode(code._replace(values=values), w2, b).square().sum().backward()
    z2, w3 = z.clone().requires_grad_(), w.clone().requires_grad_()
    (z2 @ w3 + b).square().sum().backward()
    assert torch.allclose(w2.grad, w3.grad, atol=1e-10)
    assert torch.allclose(values.grad, z2.grad[z != 0], atol=1e-10)


def test_what_does_not_fit_is_refused():
    z, w, _ = made(3, 5, 2)
    code = pack(z)
    for bad, why in [
        (lambda: decode(code, w[:4]), "5 features"),
        (lambda: decode(code, w.float()), "bring them together"),
        (lambda: decode(code._replace(ids=code.ids + 3), w), r"has 0\.\.4"),
        (lambda: encode(w, w, None, 9), "k=9"),
        (lambda: encode(w, z, None, 1), "want"),
        (lambda: pack(z[0]), "want"),
    ]:
        with pytest.raises(BadInput, match=why):
            bad()
