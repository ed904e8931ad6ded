"""GPTQ against a loop over columns, and the Walsh-Hadamard transform against scipy's matrix."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from lwlab_kernels.quant import fake_quant
from lwlab_kernels.quant.reference import codes, levels, values

import lwlab as lw
from lwlab.errors import BadInput
from lwlab.quantization import gptq, hadamard_matrix, hessians, matrices, walsh_hadamard


def problem(outputs: int, inputs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=g, dtype=torch.float64)
    x = torch.randn(4 * inputs, inputs, generator=g, dtype=torch.float64) @ mix
    return torch.randn(outputs, inputs, generator=g, dtype=torch.float64), x.T @ x / len(x)


def naive(
    w: torch.Tensor, h: torch.Tensor, bits: int, group: int, symmetric: bool, damp: float
) -> torch.Tensor:
    """Optimal brain surgeon as it is written: invert what is left after every column."""
    w, n = w.clone(), w.shape[1]
    h = h + damp * h.diagonal().mean() * torch.eye(n, dtype=h.dtype)
    out = torch.zeros_like(w)
    for j in range(n):
        if j % group == 0:
            scale, offset = levels(w[:, j : j + group], bits, symmetric)
        q, _ = codes(w[:, j : j + 1], scale, offset, bits)
        out[:, j] = values(q, scale, offset)[:, 0]
        left = torch.linalg.inv(h[j:, j:])
        w[:, j:] -= torch.outer((w[:, j] - out[:, j]) / left[0, 0], left[0])
    return out


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(3, 24), (2, 8), (4, 12), (1, 6)])
@pytest.mark.parametrize("block", [1, 5, 16, 128])
def test_it_is_the_loop_over_columns(bits: int, group: int, symmetric: bool, block: int) -> None:
    w, h = problem(7, 24)
    found = gptq(w, h, bits, group, symmetric, block=block)
    assert torch.equal(found.weight, naive(w, h, bits, group, symmetric, 0.01))
    d = w - found.weight
    assert found.objective == pytest.approx(float(torch.trace(d @ h @ d.T)))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_it_beats_rounding_on_what_it_optimises(bits: int) -> None:
    for seed in range(5):
        w, h = (t.float() for t in problem(32, 48, seed))
        d = w - fake_quant(w, bits, 24).weight
        plain = float((d @ h * d).sum())
        assert gptq(w, h, bits, 24).objective < 0.9 * plain


def test_without_correlations_it_is_rounding() -> None:
    w = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    for bits, symmetric in ((3, True), (4, False), (1, True)):
        found = gptq(w, 3.0 * torch.eye(64), bits, 16, symmetric)
        assert torch.equal(found.weight, fake_quant(w, bits, 16, symmetric).weight)


def test_dead_inputs_get_no_weight() -> None:
    w, h = problem(5, 12)
    h[:, 4], h[4, :] = 0, 0
    found = gptq(w, h, 4, 6)
    assert bool((found.weight[:, 4] == 0).all())
    assert found.objective < float((w @ h * w).sum())


def test_types_and_strides() -> None:
    w, h = problem(5, 12)
    half = gptq(w.bfloat16(), h.float(), 4, 6)
    assert half.weight.dtype == torch.bfloat16
    turned = gptq(w.T.contiguous().T, h, 4, 6)
    assert torch.equal(turned.weight, gptq(w, h, 4, 6).weight)


def test_bad_hessians_are_refused() -> None:
    w, h = problem(5, 12)
    with pytest.raises(BadInput, match="must be floating, \\(12, 12\\)"):
        gptq(w, h[:4, :4], 4, 6)
    with pytest.raises(BadInput, match="positive definite"):
        gptq(w, h - 2 * h.diagonal().mean() * torch.eye(12).double(), 4, 6, damp=0.0)
    with pytest.raises(BadInput, match="NaN"):
        gptq(w, h * float("nan"), 4, 6)
    with pytest.raises(BadInput, match="does not divide"):
        gptq(w, h, 4, 5)
    with pytest.raises(BadInput, match="damp"):
        gptq(w, h, 4, 6, damp=-1)


def test_on_the_real_model_the_layer_error_falls(smollm2: lw.Model) -> None:
    """What GPTQ is for, at 3 bits, by the layer's own objective."""
    texts = lw.tasks.corpus(n=6, tokens=128, model=smollm2)
    names = ("q_proj", "up_proj")
    moments = hessians(smollm2, texts, layers=5, modules=names)
    for m in matrices(smollm2, 5, names):
        h = moments[m.layer, m.name]
        d = m.weight - fake_quant(m.weight, 3, 64).weight
        plain = float((d @ h * d).sum())
        assert gptq(m.weight, h, 3, 64).objective < 0.8 * plain, m.name


@pytest.mark.parametrize("n", [1, 2, 4, 8, 64, 512])
def test_the_transform_is_the_matrix(n: int) -> None:
    x = torch.randn(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    want = x.numpy() @ scipy.linalg.hadamard(n) / np.sqrt(n)
    np.testing.assert_allclose(walsh_hadamard(x), want, atol=1e-12)
    np.testing.assert_array_equal(hadamard_matrix(n), scipy.linalg.hadamard(n))


@pytest.mark.parametrize("shape", [(576,), (2, 3, 576), (4, 96), (0, 8), (5, 7)])
def test_it_undoes_itself_and_keeps_lengths(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = walsh_hadamard(x)
    torch.testing.assert_close(walsh_hadamard(y), x)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    if shape[-1] % 8 == 0 and x.numel():
        parts = x.reshape(*shape[:-1], -1, 8)
        torch.testing.assert_close(walsh_hadamard(x, 8), walsh_hadamard(parts).reshape(shape))
    assert walsh_hadamard(x.float().requires_grad_()).requires_grad


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(BadInput, match="powers of two"):
        hadamard_matrix(12)
    with pytest.raises(BadInput, match="such as 64"):
        walsh_hadamard(torch.zeros(576), 128)
    with pytest.raises(BadInput, match="such as 4"):
        walsh_hadamard(torch.zeros(12), 6)
    with pytest.raises(BadInput, match="give floats"):
        walsh_hadamard(torch.zeros(4, dtype=torch.int64))
