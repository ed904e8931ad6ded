"""All pairs at once against one pair at a time, from the definitions, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lwlab as lw
from lwlab.depth import similarity
from lwlab.depth.similarity import CorpusCKA, angular_distance, hsic, linear_cka
from lwlab.errors import BadInput
from lwlab.tracing.rows import features_of


def features(n_layers, n, d, seed=0, shift=0.0):
    gen = torch.Generator().manual_seed(seed)
    base = torch.randn(n, d, generator=gen, dtype=torch.float64)
    own = torch.randn(n_layers, n, d, generator=gen, dtype=torch.float64)
    return base + own * torch.linspace(0.1, 2, n_layers)[:, None, None] + shift


def slow_hsic(x, y, unbiased):
    """Song et al. 2012, eq. 5, and the biased trace form, with centring matrices written out."""
    n = len(x)
    k, m = x @ x.T, y @ y.T
    if not unbiased:
        h = torch.eye(n, dtype=x.dtype) - 1 / n
        return torch.trace(k @ h @ m @ h) / (n - 1) ** 2
    k, m = k - k.diag().diag(), m - m.diag().diag()
    one = torch.ones(n, dtype=x.dtype)
    middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    last = 2 / (n - 2) * (one @ k @ m @ one)
    return (torch.trace(k @ m) + middle - last) / (n * (n - 3))


def slow_cka(x, unbiased):
    n = len(x)
    h = torch.tensor([[slow_hsic(x[i], x[j], unbiased) for j in range(n)] for i in range(n)])
    return h / (h.diagonal()[:, None] * h.diagonal()[None]).sqrt()


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 4), st.integers(5, 17), st.integers(1, 9), st.booleans(),
    st.sampled_from([None, "gram", "feature"]), st.integers(0, 5),
)  # fmt: skip
def test_every_pair_is_the_definition(n_layers, n, d, unbiased, form, seed):
    x = features(n_layers, n, d, seed)
    want = slow_cka(x, unbiased)
    got = linear_cka(x, unbiased=unbiased, form=form)
    # An unbiased self-term may come out at or below zero in tiny samples; then there is no CKA.
    known = want.isfinite()
    assert torch.allclose(got[known], want[known], atol=1e-9)
    assert got[~known].isnan().all()


def test_gram_blocks_do_not_change_the_result(monkeypatch):
    x = features(3, 40, 6)
    want = linear_cka(x, form="gram")
    monkeypatch.setattr(similarity, "BLOCK", 3 * 40 * 7)
    assert torch.allclose(linear_cka(x, form="gram"), want, atol=1e-12)


@pytest.mark.parametrize("unbiased", [False, True])
def test_identities(unbiased):
    x = features(1, 30, 5)[0]
    gen = torch.Generator().manual_seed(3)
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=gen, dtype=torch.float64))
    same = torch.stack([x, 7 * x @ turn + 100.0])  # rotated, scaled, moved: CKA does not see it
    assert torch.allclose(linear_cka(same, unbiased=unbiased), torch.ones(2, 2).double())


def test_unbiased_is_zero_on_average_where_biased_is_far_from_it():
    gen = torch.Generator().manual_seed(0)
    draws = [torch.randn(2, 12, 30, generator=gen, dtype=torch.float64) for _ in range(300)]
    plain = torch.stack([linear_cka(x)[0, 1] for x in draws])
    honest = torch.stack([hsic(x, unbiased=True)[0, 1] for x in draws])
    assert plain.mean() > 0.6
    assert honest.mean().abs() < 4 * honest.std() / math.sqrt(300)


def test_a_massive_activation_costs_float32_digits_and_float64_none():
    x = features(4, 64, 16, shift=0.5)
    x[2:, 3, 5] += 1e4
    want = slow_cka(x, True)
    assert (linear_cka(x.float(), unbiased=True).double() - want).abs().max() < 5e-3
    assert (linear_cka(x, unbiased=True) - want).abs().max() < 1e-9


def test_half_types_are_computed_in_float32():
    x = features(3, 20, 8).to(torch.bfloat16)
    assert linear_cka(x).dtype == torch.float32
    assert torch.allclose(linear_cka(x).double(), slow_cka(x.double(), False), atol=1e-5)


def test_constant_rows_have_no_cka():
    x = features(3, 20, 8)
    x[1] = 4.2
    got = linear_cka(x)
    assert got[1].isnan().all()
    assert got[:, 1].isnan().all()
    assert got[0, 2].isfinite()


def test_corpus_is_the_mean_of_batches_and_merges():
    batches = [features(3, n, 6, seed=n) for n in (8, 8, 20)]
    h = sum(
        torch.tensor([[slow_hsic(b[i], b[j], True) for j in range(3)] for i in range(3)])
        for b in batches
    )
    want = h / (h.diagonal()[:, None] * h.diagonal()[None]).sqrt()
    whole, first, second = CorpusCKA(), CorpusCKA(), CorpusCKA()
    for b in batches:
        whole.add(b)
    first.add(batches[0])
    for b in batches[1:]:
        second.add(b)
    first.merge(second)
    first.merge(CorpusCKA())
    assert torch.allclose(whole.result(), want, atol=1e-10)
    assert torch.allclose(first.result(), want, atol=1e-10)
    assert (whole.batches, whole.rows, first.rows) == (3, 36, 36)


def test_minibatches_tend_to_the_whole():
    x = features(3, 4000, 6)
    parts = CorpusCKA()
    for piece in x.split(40, dim=1):
        parts.add(piece)
    assert torch.allclose(parts.result(), linear_cka(x), atol=0.02)


def test_angles_are_arccos_of_cosines_pair_by_pair():
    x = features(4, 7, 5)
    for i in range(4):
        for j in range(4):
            cosine = torch.nn.functional.cosine_similarity(x[i], x[j], dim=1).clamp(-1, 1)
            want = cosine.arccos() / math.pi if i != j else torch.zeros(7).double()
            assert torch.allclose(angular_distance(x)[:, i, j], want, atol=1e-7)


def test_known_angles():
    x = torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]], [[-2.0, 0.0]], [[1.0, 1.0]], [[5.0, 0.0]]])
    got = angular_distance(x)[0]
    want = torch.tensor([0.0, 0.5, 1.0, 0.25, 0.0])
    assert torch.allclose(got[0], want, atol=2e-4)
    assert torch.equal(got.diagonal(), torch.zeros(5))
    x[1] = 0
    assert angular_distance(x)[0, 1].isnan().all()


@pytest.mark.parametrize(
    ("x", "why"),
    [
        (torch.zeros(3, 4), "must be floating-point"),
        (torch.zeros(2, 3, 4, dtype=torch.long), "must be floating-point"),
        (torch.zeros(2, 0, 4), "must be floating-point"),
        (torch.zeros(2, 1, 4), "1 rows; this needs at least 2"),
        (torch.full((2, 3, 4), math.nan), "NaN"),
    ],
)
def test_what_is_no_set_of_features_is_refused(x, why):
    with pytest.raises(BadInput, match=why):
        linear_cka(x)
    with pytest.raises(BadInput):
        linear_cka(x, unbiased=True)


def test_on_a_model_rows_are_own_positions(toy):
    model = toy("llama")
    texts = ["the cat sat on the mat and saw a dog", "a dog ran to the cat", "the mat"]
    got = similarity.layer_cka(model, texts, "resid_post", unbiased=False)
    kept = lw.cache(model, texts, "resid_post").resid_post
    rows = kept.transpose("layer", "prompt", "position", "d_model").values[:, :, 1:]
    rows = rows[:, np.isfinite(rows[0]).all(-1)]
    want = slow_cka(torch.tensor(rows, dtype=torch.float64), False)
    assert np.allclose(got.values, want, atol=1e-4)
    assert got.dims == ("layer", "other_layer")
    assert got.attrs["rows"] == rows.shape[1]
    angles = similarity.layer_angles(model, texts, "resid_post")
    slow = angular_distance(torch.tensor(rows)).mean(0)
    assert np.allclose(angles.values, slow, atol=1e-5)
    assert features_of(model, texts, "head_out", [0], 1).shape[2] == model.anatomy.d_model


def test_a_corpus_in_batches_on_a_model(toy):
    model = toy("llama")
    texts = ["the cat sat on the mat and saw a dog", "a dog ran to the cat"] * 5
    whole = features_of(model, texts, "resid_post", model.anatomy.layers(None), 1)
    got = similarity.layer_cka(model, texts, "resid_post", batch=16)
    want = CorpusCKA()
    for piece in whole.split(16, dim=1):
        if piece.shape[1] >= 4:
            want.add(piece)
    assert np.allclose(got.values, want.result(), atol=1e-4)
    assert got.attrs["batches"] == want.batches > 1


def test_bad_requests_to_a_model(toy):
    model = toy("llama")
    for call, why in [
        (lambda: similarity.layer_cka(model, "the cat", front=9), "leaves no position"),
        (lambda: similarity.layer_cka(model, "the cat", front=-1), "counted from 0"),
        (lambda: similarity.layer_cka(model, "the cat", "attn_pattern"), "no vector"),
        (lambda: similarity.layer_cka(model, "the cat", "embed"), "no vector"),
        (lambda: similarity.layer_cka(model, "the cat", batch=3), "at least 4"),
        (lambda: similarity.layer_cka(model, "the cat", batch=8, unbiased=False), "unbiased"),
    ]:
        with pytest.raises(BadInput, match=why):
            call()


def test_on_smollm2_neighbours_are_most_alike(smollm2):
    text = lw.tasks.corpus(tokens=64, model=smollm2, n=2)
    cka = similarity.layer_cka(smollm2, text, unbiased=True)
    angle = similarity.layer_angles(smollm2, text, "resid_post")
    for i in range(5, 19):
        assert float(cka[i, i + 1]) > float(cka[i, i + 10])
        assert float(angle[i, i + 1]) < float(angle[i, i + 10])
    assert np.mean([float(angle[i, i + 1]) for i in range(5, 28)]) < 0.15
