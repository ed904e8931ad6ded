"""Bits for columns in closed form: against optimisers, slow loops and other people's code."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lwlab as lw
from lwlab.errors import BadInput, UnknownName
from lwlab.quantization import baq, error_table, fake_quantized, hessians, matrices
from lwlab.quantization import layerwise_quant as lq


def columns(n: int = 24, seed: int = 0, spread: float = 2.0) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(0, spread, n))


def problem(outputs: int, inputs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=g, dtype=torch.float64)
    x = torch.randn(4 * inputs, inputs, generator=g, dtype=torch.float64) @ mix
    return torch.randn(outputs, inputs, generator=g, dtype=torch.float64), x.T @ x / len(x)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40),
    st.floats(1, 8),
)
def test_the_closed_form_is_level_and_meets_the_mean(c: list[float], rate: float) -> None:
    bits, gain = baq.allocation(c, rate)
    loss = np.array(c) * 4.0**-bits
    assert bits.mean() == pytest.approx(rate, abs=1e-9)
    np.testing.assert_allclose(loss, loss[0], rtol=1e-9)
    share = np.exp(np.log(c).mean()) / np.mean(c)
    assert loss.sum() == pytest.approx(share * (np.array(c) * 4.0**-rate).sum(), rel=1e-9)
    assert gain == pytest.approx(share, rel=1e-9)
    assert baq.gain(c) == pytest.approx(share, rel=1e-9)
    assert gain <= 1 + 1e-12


def test_no_other_allocation_is_better() -> None:
    c = columns()
    bits, _ = baq.allocation(c, 3)
    best = (c * 4.0**-bits).sum()
    rng = np.random.default_rng(1)
    for size in (1e-3, 0.1, 1.0):
        for _ in range(100):
            d = rng.normal(0, size, len(c))
            assert (c * 4.0 ** -(bits + d - d.mean())).sum() > best


def test_equal_columns_get_equal_bits() -> None:
    bits, gain = baq.allocation(np.full(7, 0.3), 2.5)
    np.testing.assert_allclose(bits, 2.5, atol=1e-12)
    assert gain == pytest.approx(1, abs=1e-12)
    assert baq.gain([0.3] * 7) == pytest.approx(1, abs=1e-12)
    assert set(baq.levels([0.3] * 7, 3)) == {8}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("least", "most"), [(None, None), (0.0, None), (1.0, 4.0), (0.0, 5.0)])
def test_it_is_what_an_optimiser_finds(
    weighted: bool, least: float | None, most: float | None
) -> None:
    c = columns(8, 3)
    w = np.random.default_rng(0).integers(1, 5, 8).astype(float) if weighted else np.ones(8)
    found, gain = baq.allocation(c, 3, weights=w, least=least, most=most)
    ends = (-30.0 if least is None else least, 30.0 if most is None else most)
    done = scipy.optimize.minimize(
        lambda r: (c * 4.0**-r).sum(), np.full(8, 3.0), bounds=[ends] * 8, method="SLSQP",
        jac=lambda r: -math.log(4) * c * 4.0**-r, options={"ftol": 1e-14, "maxiter": 500},
        constraints={"type": "eq", "fun": lambda r: w @ (r - 3), "jac": lambda r: w},
    )  # fmt: skip
    assert done.success
    assert w @ found / w.sum() == pytest.approx(3, abs=1e-9)
    assert (c * 4.0**-found).sum() == pytest.approx(done.fun, rel=1e-6)
    assert (c * 4.0**-found).sum() <= done.fun * (1 + 1e-9)
    np.testing.assert_allclose(found, done.x, atol=2e-3)
    assert gain == pytest.approx(done.fun / (c * 4.0**-3).sum(), rel=1e-6)


@pytest.mark.parametrize("rate", [2, 3, 4])
@pytest.mark.parametrize("theta", [2.0, 1.95])
def test_levels_as_they_are_coded(rate: int, theta: float) -> None:
    losses = columns(200, 5, 1.5)
    want = []
    target = math.exp(sum(math.log(x) for x in losses) / len(losses))
    for x in losses:
        n = (x / target * 2 ** (theta * rate)) ** (1 / theta)
        want.append(round(max(1.0, n)))
    assert baq.levels(losses, rate, theta=theta, fit=False).tolist() == want
    fitted = np.log2(baq.levels(losses, rate, theta=theta))
    assert rate - 0.02 < fitted.mean() <= rate
    ideal = baq.allocation(losses, rate, least=0).bits
    if theta == 2:
        assert np.abs(fitted - ideal).max() < 0.6  # whole numbers of levels: 1, 2, 3, ...


def test_dead_columns_take_no_part() -> None:
    losses = np.array([0.0, 4.0, 1.0, 0.0, 0.25])
    assert baq.gain(losses) == pytest.approx(1 / 1.75)
    found = baq.levels(losses, 3, theta=2, fit=False)
    assert found.tolist() == [1, 16, 8, 1, 4]
    assert baq.gain([0.0, 0.0]) == 1


def naive(
    w: torch.Tensor, h: torch.Tensor, counts: list[int], damp: float
) -> tuple[torch.Tensor, list[float]]:
    """Invert what is left after every column; torch's own quantiser on torch's own ranges."""
    from torch.ao.quantization.observer import PerChannelMinMaxObserver

    grids = {}
    for n in set(counts) - {1}:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            see = PerChannelMinMaxObserver(
                quant_min=0, quant_max=n - 1, dtype=torch.quint8, eps=1e-12
            )
        see(w.float())
        grids[n] = see.calculate_qparams()
    mean, w, size = w.mean(1), w.clone(), w.shape[1]
    h = h + damp * h.diagonal().mean() * torch.eye(size, dtype=h.dtype)
    out, losses = torch.zeros_like(w), []
    for j, n in enumerate(counts):
        if n == 1:
            out[:, j] = mean
        else:
            scale, zero = grids[n]
            q = torch.fake_quantize_per_channel_affine(
                w[:, j : j + 1].float(), scale, zero.int(), 0, 0, n - 1
            )
            out[:, j] = q[:, 0]
        left = torch.linalg.inv(h[j:, j:])
        d = w[:, j] - out[:, j]
        losses.append(float(d @ d / (2 * left[0, 0])))
        w[:, j:] -= torch.outer(d / left[0, 0], left[0])
    return out, losses


@pytest.mark.parametrize("block", [1, 5, 128])
@pytest.mark.parametrize("kind", ["uniform", "mixed"])
def test_columns_are_rounded_as_by_a_loop(block: int, kind: str) -> None:
    w, h = problem(7, 24)
    w = w.float().double()
    counts = [8] * 24 if kind == "uniform" else ([1, 2, 3, 5, 8, 13, 64, 255] * 3)
    found = baq.round_columns(w, h, torch.tensor(counts), block=block)
    want, losses = naive(w, h, counts, 0.01)
    torch.testing.assert_close(found.weight, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-3, atol=1e-9)
    d = w - found.weight
    assert found.objective == pytest.approx(float(torch.trace(d @ h @ d.T)))


def test_losses_add_up_to_the_objective() -> None:
    """With the Cholesky factor of H^-1, tr(D H D^T) / 2 is the sum of the columns' losses."""
    w, h = problem(9, 30, 2)
    for counts in ([4] * 30, [1, 3, 9] * 10):
        found = baq.round_columns(w, h, torch.tensor(counts), damp=0.0)
        assert float(found.losses.sum()) == pytest.approx(found.objective / 2, rel=1e-9)


def test_uniform_levels_are_llmcompressors() -> None:
    gptq = pytest.importorskip("llmcompressor.modifiers.gptq.gptq_quantize")
    schemes = pytest.importorskip("compressed_tensors.quantization")
    w, h = (t.float() for t in problem(12, 48, 3))
    for bits in (2, 3, 4, 8):
        low, high = w.amin(1, keepdim=True).clamp(max=0), w.amax(1, keepdim=True).clamp(min=0)
        scale = (high - low) / (2**bits - 1)
        zero = (-low / scale).round() - 2 ** (bits - 1)
        scheme = schemes.QuantizationArgs(
            num_bits=bits, type="int", symmetric=False,
            strategy=schemes.QuantizationStrategy.CHANNEL,
        )  # fmt: skip
        theirs, loss, _ = gptq.quantize_weight(
            w[None].clone(), h[None].clone(), scale[None], zero[None], None, scheme, 16, 0.01
        )
        ours = baq.round_columns(w, h, torch.full((48,), 2**bits))
        torch.testing.assert_close(ours.weight, theirs[0], rtol=1e-5, atol=1e-5)
        assert float(ours.losses.sum()) == pytest.approx(float(loss), rel=1e-4)


def test_rows_ranges_hold_zero_and_dead_inputs_get_none() -> None:
    w, h = problem(5, 12)
    w = w.abs() + 3  # without zero in the range, the grid would be fine and the codes shifted
    found = baq.round_columns(w, torch.eye(12).double(), torch.full((12,), 4))
    step = w.amax(1, keepdim=True) / 3
    torch.testing.assert_close(found.weight / step, (found.weight / step).round())
    h[:, 4], h[4, :] = 0, 0
    dead = baq.round_columns(w, h, torch.full((12,), 4))
    assert not dead.weight[:, 4].any()
    assert dead.losses[4] == 0
    zeros = baq.round_columns(torch.zeros(3, 12), torch.eye(12), torch.full((12,), 4))
    assert not zeros.weight.any()


@pytest.fixture
def gpt2(toy):
    return toy("gpt2")


TEXTS = ["the cat sat on the mat and the dog ran to the cat", "a dog and a cat sat on a mat"]


def test_the_study_is_the_passes_written_out(gpt2: lw.Model) -> None:
    before = [m.weight.clone() for m in matrices(gpt2)]
    moments = hessians(gpt2, TEXTS, layers=[0, 2])
    found = baq.study(gpt2, moments, 3, baq.ALLOCATIONS, seed=1)
    assert all(torch.equal(m.weight, w) for m, w in zip(matrices(gpt2), before))
    assert found.table.layer.values.tolist() == [0, 2]
    for m in matrices(gpt2, [0, 2]):
        h = moments[m.layer, m.name]
        c = found.columns(m.layer, m.name)
        first = baq.round_columns(m.weight, h, torch.full((m.weight.shape[1],), 8))
        np.testing.assert_allclose(c.loss.sel(allocation="uniform"), first.losses)
        counts = baq.levels(first.losses.numpy(), 3)
        np.testing.assert_allclose(c.bits.sel(allocation="baq"), np.log2(counts))
        second = baq.round_columns(m.weight, h, torch.from_numpy(counts))
        assert torch.equal(found.weights["baq"][m.layer, m.name], second.weight)
        here = found.table.sel(layer=m.layer, module=m.name)
        assert float(here.loss.sel(allocation="baq")) == pytest.approx(float(second.losses.sum()))
        assert float(here.objective.sel(allocation="baq")) == pytest.approx(second.objective)
        assert float(here.gain) == pytest.approx(baq.gain(first.losses.numpy()))
        assert float(here.gain) <= 1
        dealt = c.bits.sel(allocation="shuffled").values
        assert sorted(dealt) == sorted(np.log2(counts))
        assert not np.array_equal(dealt, np.log2(counts))
        diagonal = baq.levels(h.diagonal().numpy(), 3)
        np.testing.assert_allclose(c.bits.sel(allocation="diagonal"), np.log2(diagonal))
        coded = baq.levels(first.losses.numpy(), 3, fit=False)
        np.testing.assert_allclose(c.bits.sel(allocation="coded"), np.log2(coded))
    weights = found.table.weights
    for a in baq.ALLOCATIONS:
        rates = found.table.rate.sel(allocation=a)
        assert found.rate(a) == pytest.approx(float((rates * weights).sum() / weights.sum()))
    assert found.rate("uniform") == 3
    assert 2.95 < found.rate("baq") <= 3
    scorer = lq.Scorer(gpt2, TEXTS)
    with lq.installed(gpt2, found.weights["baq"]) as first_layer:
        assert first_layer == 0
        assert np.abs(scorer.nll(0) - scorer.nll(3)).max() > 0
    assert all(torch.equal(m.weight, w) for m, w in zip(matrices(gpt2), before))


def test_an_ill_balanced_matrix_gains_what_is_foretold(gpt2: lw.Model) -> None:
    moments = hessians(gpt2, TEXTS, layers=1, modules="c_fc")
    key = (1, "mlp.c_fc")
    loud = torch.ones(len(moments[key]))
    loud[::8] = 100.0
    moments[key] = loud[:, None] * moments[key] * loud
    table = baq.study(gpt2, moments, 4, modules="c_fc").table.squeeze()
    ratio = table.loss / table.loss.sel(allocation="uniform")
    assert float(table.gain) < 0.1
    assert 0.5 < float(ratio.sel(allocation="baq") / table.gain) < 2
    assert float(ratio.sel(allocation="shuffled")) > 1


def test_bits_for_layers_fit_and_are_the_optimum_of_their_model(toy) -> None:
    model = toy("llama")
    table = error_table(model, 8, range(2, 9))
    low, high = (float(table.megabytes.sel(bits=b).sum()) for b in (2, 8))
    for share in (0.0, 0.2, 0.5, 0.9, 1.0, 2.0):
        budget = low + share * (high - low)
        found = baq.layer_bits(table, budget)
        with fake_quantized(model, found, 8) as q:
            assert q.megabytes == pytest.approx(found.attrs["megabytes"])
            assert q.megabytes <= budget + 1e-9
    assert set(baq.layer_bits(table, high).values) == {8}
    # A layer that loses 4^2 as much as the others gets two bits more.
    cost = np.array([1.0, 16.0, 1.0]) * table.weights.sum("module")
    sizes = float(table.megabytes.sum("module").sel(bits=3).isel(layer=[0, 2]).sum())
    sizes += float(table.megabytes.sum("module").sel(bits=5).isel(layer=1))
    assert baq.layer_bits(table, sizes, cost=cost).values.tolist() == [3, 5, 3]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: baq.allocation([1.0, 0.0], 3), "positive"),
        (lambda: baq.allocation([], 3), "positive"),
        (lambda: baq.allocation([1.0], math.nan), "cannot be met"),
        (lambda: baq.allocation([1.0, 2.0], 5, least=0, most=4), "mean of 5 bits cannot be met"),
        (lambda: baq.allocation([1.0, 2.0], 3, weights=[1.0]), "weights has shape"),
        (lambda: baq.levels([1.0, -1.0], 3), "0 or more"),
        (lambda: baq.levels([0.0, 0.0], 3), "not all zero"),
        (lambda: baq.levels([1.0], 0.5), "1 to 16"),
        (lambda: baq.levels([1.0], 17), "1 to 16"),
        (lambda: baq.levels([1.0], True), "1 to 16"),
        (lambda: baq.levels([1.0], 3, theta=0), "theta"),
        (lambda: baq.gain([1.0, math.inf]), "not finite"),
    ],
)
def test_bad_numbers_are_refused(call, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        call()


def test_bad_matrices_are_refused(gpt2: lw.Model) -> None:
    w, h = problem(5, 12)
    eight = torch.full((12,), 8)
    for change, said in (
        ({"w": w[0]}, "outputs, inputs"),
        ({"hessian": h[:4, :4]}, "must be floating, \\(12, 12\\)"),
        ({"hessian": h * math.nan}, "NaN"),
        (
            {"hessian": h - 2 * h.diagonal().mean() * torch.eye(12), "damp": 0.0},
            "positive definite",
        ),
        ({"levels": eight[:3]}, "12 whole numbers"),
        ({"levels": eight.float()}, "whole numbers"),
        ({"levels": 0 * eight}, "from 1"),
        ({"levels": 2**17 + eight}, "to 65536"),
        ({"damp": -1.0}, "damp"),
    ):
        given = {"w": w, "hessian": h, "levels": eight} | change
        with pytest.raises(BadInput, match=said):
            baq.round_columns(**given)
    moments = hessians(gpt2, TEXTS, layers=0)
    with pytest.raises(BadInput, match="moments lack \\(1"):
        baq.study(gpt2, moments, layers=[0, 1])
    with pytest.raises(BadInput, match="1 to 16"):
        baq.study(gpt2, moments, 0)
    with pytest.raises(BadInput, match="whole bits"):
        baq.study(gpt2, moments, 2.5)
    with pytest.raises(UnknownName, match="'shuffled'"):
        baq.study(gpt2, moments, 3, ["shufled"])
    with pytest.raises(UnknownName, match="c_prj"):
        baq.study(gpt2, moments, 3, modules="c_prj")
    found = baq.study(gpt2, moments, 3, ["uniform"], modules="c_fc")
    with pytest.raises(UnknownName, match=r"0 mlp\.c_fc"):
        found.columns(0, "c_fk")
    table = error_table(gpt2, 8, [2, 4])
    for size in (0.0, math.nan):
        with pytest.raises(BadInput, match="too few: 2 bits everywhere take"):
            baq.layer_bits(table, size)
    with pytest.raises(BadInput, match="one positive number a layer"):
        baq.layer_bits(table, 1.0, cost=[1.0, 2.0])


def test_the_sink_of_the_real_model_rests_on_few_columns(smollm2: lw.Model) -> None:
    """Layer 11 writes SmolLM2's massive activation; position 0 is in these moments."""
    texts = lw.tasks.corpus(n=2, tokens=128, model=smollm2, seed=1)
    moments = hessians(smollm2, texts, layers=11, modules=["down_proj"], skip=0)
    table = baq.study(smollm2, moments, 3, modules="down_proj").table.squeeze()
    loss = {a: float(table.loss.sel(allocation=a)) for a in table.allocation.values}
    assert float(table.gain) < 0.2
    assert min(loss["uniform"], loss["shuffled"]) > 2 * loss["baq"]
    rates = table.rate
    assert abs(float(rates.sel(allocation="baq")) - 3) < 0.05
