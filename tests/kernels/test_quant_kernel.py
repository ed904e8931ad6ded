"""Rounding to a few bits: every backend against the formula written out in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lwlab_kernels.choose import interpreted
from lwlab_kernels.quant import (
    BITS,
    bits_per_weight,
    fake_quant,
    pack,
    quant_error_table,
    unpack,
)

from lwlab.errors import BadInput, UnknownName

EXAMPLES = settings(
    max_examples=4 if interpreted() else 40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 5), st.integers(1, 13))


def by_hand(row: np.ndarray, bits: int, symmetric: bool) -> tuple[np.ndarray, float]:
    """w' of one group and its step, in float64, one number at a time."""
    x = row.astype(np.float64)
    if symmetric and bits == 1:
        s = float(np.float16(np.float32(np.abs(x).sum() / len(x))))
        return np.array([s if v >= 0 else -s for v in x]), 0.0
    top = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    low = -top if symmetric else 0
    span = np.float32(np.abs(row).max()) if symmetric else np.float32(row.max() - row.min())
    z = 0.0 if symmetric else float(np.float16(row.min()))
    s = float(np.float16(np.float32(span / np.float32(top))))
    out = []
    for v in x:
        q = 0 if s == 0 else round(min(max((v - z) / s, low), top))  # Python rounds ties to even
        out.append(z + s * q)
    return np.array(out), s


def sample(seed: int, rows: int, groups: int, group: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, groups * group, generator=g) * 10 ** (
        torch.rand(rows, 1, generator=g) * 4 - 3
    )
    return w + torch.randn(1, 1, generator=g) * 0.1


@EXAMPLES
@given(SHAPES, st.booleans(), st.integers(0, 10**6))
def test_each_weight_is_the_formulas(
    backend: str, device: str, shape: tuple[int, int, int], symmetric: bool, seed: int
) -> None:
    rows, groups, group = shape
    w = sample(seed, rows, groups, group)
    for bits in BITS:
        found = fake_quant(w.to(device), bits, group, symmetric, backend=backend)
        assert found.backend == backend
        assert found.weight.dtype == torch.float32
        assert found.scale.shape == (rows, groups)
        assert (found.offset is None) == symmetric
        got = found.weight.cpu().double().view(rows, groups, group).numpy()
        for r in range(rows):
            for k in range(groups):
                x = w.view(rows, groups, group)[r, k].numpy()
                want, s = by_hand(x, bits, symmetric)
                # One step away is right only where float64 itself is at a tie.
                off = np.abs(got[r, k] - want) > 1e-12
                z = 0.0 if symmetric else float(found.offset[r, k])
                if off.any():
                    part = np.abs((x.astype(float) - z) / s % 1 - 0.5)
                    assert (part[off] < 1e-4).all(), (bits, symmetric, x, got[r, k], want)


@EXAMPLES
@given(SHAPES, st.booleans(), st.booleans(), st.integers(0, 10**6))
def test_the_table_is_the_sum_of_squared_differences(
    backend: str, device: str, shape: tuple[int, int, int], symmetric: bool, weighted: bool,
    seed: int,
) -> None:  # fmt: skip
    rows, groups, group = shape
    w = sample(seed, rows, groups, group)
    c = torch.rand(w.shape[1], generator=torch.Generator().manual_seed(seed)) if weighted else None
    table = quant_error_table(
        w.to(device), group, weight=None if c is None else c.to(device), symmetric=symmetric,
        backend=backend,
    )  # fmt: skip
    assert table.backend == backend
    factor = np.ones(w.shape[1]) if c is None else c.double().numpy()
    x = w.double().numpy()
    norm = (factor * x**2).sum(1)
    np.testing.assert_allclose(table.norm.cpu(), norm, rtol=1e-5)
    for i, bits in enumerate(BITS):
        want = [
            sum(
                (factor[g * group : (g + 1) * group]
                 * (x[r, g * group : (g + 1) * group]
                    - by_hand(w[r, g * group : (g + 1) * group].numpy(), bits, symmetric)[0])
                 ** 2).sum()
                for g in range(groups)
            )
            for r in range(rows)
        ]  # fmt: skip
        np.testing.assert_allclose(table.error[:, i].cpu(), want, rtol=2e-4, atol=1e-9 * norm.max())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("shape", "group"), [((33, 96), 32), ((5, 63), 63), ((1, 1), 1)])
def test_backends_agree_bit_for_bit(
    backend: str, device: str, shape: tuple[int, int], group: int, symmetric: bool
) -> None:
    w = sample(3, shape[0], shape[1] // group, group)
    w[0, 0] = 0.0
    for bits in BITS:
        found = fake_quant(w.to(device), bits, group, symmetric, backend=backend)
        truth = fake_quant(w, bits, group, symmetric, backend="torch")
        assert torch.equal(found.weight.cpu(), truth.weight), bits
        assert torch.equal(found.scale.cpu(), truth.scale)
        assert symmetric or torch.equal(found.offset.cpu(), truth.offset)
    found = quant_error_table(w.to(device), group, symmetric=symmetric, backend=backend)
    truth = quant_error_table(w.double(), group, symmetric=symmetric)
    assert truth.backend == "torch"
    slack = 1e-12 * float(truth.norm.max())
    torch.testing.assert_close(found.error.cpu(), truth.error, rtol=2e-4, atol=slack)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_weights_on_the_grid_come_back_unchanged(
    backend: str, device: str, bits: int, symmetric: bool
) -> None:
    g = torch.Generator().manual_seed(bits)
    s = (torch.rand(6, 1, generator=g) + 0.01).half().float()
    if symmetric:
        top = max(2 ** (bits - 1) - 1, 1)
        q = torch.randint(-top, top + 1, (6, 40), generator=g)
        q[:, 0] = -top
        if bits == 1:
            q = torch.where(q < 0, -1, 1)
        w = s * q
    else:
        q = torch.randint(0, 2**bits, (6, 40), generator=g)
        q[:, 0], q[:, 1] = 0, 2**bits - 1
        w = s * q - (3 * torch.rand(6, 1, generator=g)).half().float()
    found = fake_quant(w.to(device), bits, 40, symmetric, backend=backend)
    assert torch.equal(found.weight.cpu(), w)
    error = quant_error_table(w.to(device), 40, symmetric=symmetric, backend=backend).error
    assert bool((error[:, bits - 1] == 0).all())
    if bits > 2:  # nothing smaller holds it: the zero above is not a zero everywhere
        assert bool((error[:, 0] > 0).all())


def test_ties_round_to_even(backend: str, device: str) -> None:
    w = torch.tensor([[7.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.0]], device=device)
    out = fake_quant(w, 4, None, backend=backend).weight.cpu()
    assert out.tolist() == [[7.0, 0.0, 2.0, 2.0, 0.0, -2.0, -2.0, 0.0]]
    w = torch.tensor([[0.0, 15.0, 0.5, 1.5, 2.5, 14.5]], device=device)
    out = fake_quant(w, 4, None, False, backend=backend).weight.cpu()
    assert out.tolist() == [[0.0, 15.0, 0.0, 2.0, 2.0, 14.0]]


def test_one_bit_is_the_least_squares_sign(backend: str, device: str) -> None:
    w = torch.tensor([[1.0, -3.0, 2.0, -2.0, 0.0, 4.0]])
    out = fake_quant(w.to(device), 1, None, backend=backend).weight.cpu()
    assert out.tolist() == [[2.0, -2.0, 2.0, -2.0, 2.0, 2.0]]
    best = min(float((w - a * w.sign().where(w != 0, 1)).square().sum())
               for a in np.linspace(0, 4, 401))  # fmt: skip
    table = quant_error_table(w.to(device), None, 1, backend=backend)
    assert float(table.error) == pytest.approx(best)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_spoils_its_own_group_alone(
    backend: str, device: str, value: float, symmetric: bool
) -> None:
    w = sample(5, 3, 4, 8)
    clean = fake_quant(w, 3, 8, symmetric, backend="torch").weight
    w[1, 17] = value
    for bits in (1, 3):
        out = fake_quant(w.to(device), bits, 8, symmetric, backend=backend)
        assert bool(out.weight[1, 16:24].isnan().all())
        assert bool(out.scale[1, 2].isnan())
        assert int(out.weight.isnan().sum()) == 8
    rest = torch.ones(3, 32, dtype=torch.bool)
    rest[1, 16:24] = False
    assert torch.equal(out.weight.cpu()[rest], clean[rest])
    table = quant_error_table(w.to(device), 8, symmetric=symmetric, backend=backend)
    assert table.error.isnan().any(1).tolist() == [False, True, False]
    assert bool(table.error[1].isnan().all())
    assert table.norm.isnan().tolist() == [False, True, False]
    with pytest.raises(BadInput, match="NaN, infinity"):
        pack(w, 3, 8, symmetric)


def test_what_float16_cannot_scale_is_nan_or_zero(backend: str, device: str) -> None:
    w = torch.tensor([[1e6, -1e6], [1e-9, -1e-9], [0.0, 0.0], [2e4, -1e4]], device=device)
    out = fake_quant(w, 2, None, backend=backend).weight.cpu()
    assert bool(out[0].isnan().all())  # scale 1e6 > 65504
    assert out[1:3].abs().max() == 0  # scale 1e-9 < 2^-25
    assert bool(out[3].isfinite().all())
    table = quant_error_table(w, None, [2, 8], backend=backend).error.cpu()
    assert table.isnan().tolist() == [[True, False]] + [[False, False]] * 3  # 1e6 / 127 fits
    flat = torch.full((1, 5), 0.3, device=device)
    kept = fake_quant(flat, 5, None, False, backend=backend).weight.cpu()
    assert bool((kept == torch.tensor(0.3).half().float()).all())


@pytest.mark.parametrize("symmetric", [True, False])
def test_subnormal_scales_are_clamped(backend: str, device: str, symmetric: bool) -> None:
    w = sample(11, 8, 2, 16) * 2e-6
    w += torch.linspace(0, 40, 8)[:, None] * (0 if symmetric else 1)  # a small range far from zero
    for bits in BITS:
        found = fake_quant(w.to(device), bits, 16, symmetric, backend=backend).weight.cpu()
        assert torch.equal(found, fake_quant(w, bits, 16, symmetric, backend="torch").weight)
    found = quant_error_table(w.to(device), 16, symmetric=symmetric, backend=backend).error.cpu()
    truth = quant_error_table(w.double(), 16, symmetric=symmetric).error
    torch.testing.assert_close(found, truth, rtol=1e-2, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_in_its_type(
    backend: str, device: str, dtype: torch.dtype
) -> None:
    w = sample(7, 5, 3, 8).to(dtype)
    out = fake_quant(w.to(device), 4, 8, backend=backend).weight.cpu()
    assert out.dtype == dtype
    assert torch.equal(out, fake_quant(w.float(), 4, 8, backend="torch").weight.to(dtype))
    found = quant_error_table(w.to(device), 8, backend=backend).error.cpu()
    truth = quant_error_table(w.double(), 8).error
    torch.testing.assert_close(found, truth, rtol=2e-4, atol=1e-9)


def test_strides_and_empty_matrices(backend: str, device: str) -> None:
    w = sample(9, 12, 3, 8).to(device)
    turned = w.T.contiguous().T
    assert not turned.is_contiguous()
    for a, b in ((turned, w), (w[::2], w[::2].clone())):
        x, y = (fake_quant(v, 3, 8, backend=backend).weight for v in (a, b))
        assert torch.equal(x, y)
        x, y = (quant_error_table(v, 8, backend=backend).error for v in (a, b))
        torch.testing.assert_close(x, y, rtol=1e-5, atol=0)
    for shape in ((0, 8), (3, 0), (0, 0)):
        empty = torch.zeros(shape, device=device)
        assert fake_quant(empty, 3, backend=backend).weight.shape == shape
        table = quant_error_table(empty, backend=backend)
        assert table.error.shape == (shape[0], 8)
        assert float(table.error.sum()) == 0.0
        assert unpack(pack(empty, 3)).shape == shape


def test_arguments_are_left_alone(backend: str, device: str) -> None:
    w = sample(1, 4, 2, 8).to(device).requires_grad_()
    before = w.detach().clone()
    assert not fake_quant(w, 2, 8, backend=backend).weight.requires_grad
    quant_error_table(w, 8, backend=backend)
    assert torch.equal(w, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_out_takes_the_weights(backend: str, device: str, dtype: torch.dtype) -> None:
    w = sample(2, 4, 2, 8).to(device, dtype)
    want = fake_quant(w, 3, 8, backend=backend).weight
    for out in (torch.empty_like(w), torch.empty(16, 4, device=device, dtype=dtype).T, w):
        found = fake_quant(w, 3, 8, out=out, backend=backend)
        assert found.weight.data_ptr() == out.data_ptr()
        assert torch.equal(out, want)
    with pytest.raises(BadInput, match="must be as w"):
        fake_quant(w, 3, 8, out=out[:2])


def test_threads_change_nothing() -> None:
    w = sample(4, 37, 3, 8)
    one = quant_error_table(w, 8), fake_quant(w, 4, 8, False)
    torch.set_num_threads(3)
    try:
        three = quant_error_table(w, 8), fake_quant(w, 4, 8, False)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one[0].error, three[0].error)
    assert torch.equal(one[1].weight, three[1].weight)
    assert torch.equal(one[1].scale, three[1].scale)


def test_triton_in_the_interpreter(interpreter: Callable[[str], str]) -> None:
    interpreter(__file__)


@EXAMPLES
@given(SHAPES, st.integers(1, 8), st.booleans(), st.integers(0, 10**6))
def test_packing_loses_nothing_that_rounding_did_not(
    shape: tuple[int, int, int], bits: int, symmetric: bool, seed: int
) -> None:
    rows, groups, group = shape
    w = sample(seed, rows, groups, group)
    packed = pack(w, bits, group, symmetric)
    assert torch.equal(unpack(packed), fake_quant(w, bits, group, symmetric).weight)
    scales = 2 * rows * groups * (1 if symmetric else 2)
    assert packed.nbytes == math.ceil(w.numel() * bits / 8) + scales
    stated = bits_per_weight(bits, group, symmetric) * w.numel() / 8
    assert 0 <= packed.nbytes - stated < 1


def test_known_sizes() -> None:
    assert bits_per_weight(4, 32, symmetric=False) == 5.0  # GGUF's Q4_1
    assert bits_per_weight(4, 32) == 4.5  # Q4_0
    assert bits_per_weight(8, 32) == 8.5  # Q8_0
    w = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    assert pack(w, 3, 64).nbytes == 64 * 128 * 3 // 8 + 64 * 2 * 2
    table = quant_error_table(w, 64, [3, 5])
    assert (table.bits, table.bits_per_weight) == ((3, 5), (3.25, 5.25))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 0}, "from 1 to 8"),
        ({"bits": 9}, "from 1 to 8"),
        ({"bits": 2.5}, "from 1 to 8"),
        ({"bits": True}, "from 1 to 8"),
        ({"group": 7}, "does not divide the 64 columns; for example 32, 64"),
        ({"group": 0}, "number of columns"),
        ({"w": torch.zeros(4)}, "wants \\[rows, columns\\]"),
        ({"w": torch.zeros(4, 64, dtype=torch.int8)}, "int8"),
        ({"w": [[1.0]]}, "list"),
        ({"backend": "triton"}, "CUDA"),
        ({"w": torch.zeros(4, 64).double(), "backend": "numba"}, "float64"),
        ({"weight": torch.ones(63)}, "one number for each"),
        ({"weight": -torch.ones(64)}, "negative"),
        ({"weight": torch.full((64,), math.nan)}, "negative number, NaN"),
    ],
)
def test_bad_input_is_refused(change: dict[str, object], message: str) -> None:
    if interpreted() and change.get("backend") == "triton":
        pytest.skip("the interpreter takes CPU tensors")
    given_ = {"w": torch.zeros(4, 64), "bits": 4, "group": 32, "weight": None, "backend": None}
    given_ |= change
    with pytest.raises(BadInput, match=message):
        quant_error_table(**given_)
    if "weight" not in change:
        given_.pop("weight")
        with pytest.raises(BadInput, match=message):
            fake_quant(**given_)


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(UnknownName, match="numba"):
        fake_quant(torch.zeros(2, 4), 4, backend="nunba")
    with pytest.raises(BadInput, match="empty"):
        quant_error_table(torch.zeros(2, 4), None, [])


def test_the_default_on_a_cpu_is_numba() -> None:
    assert fake_quant(torch.zeros(2, 4), 4).backend == "numba"
    assert fake_quant(torch.zeros(2, 4).double(), 4).backend == "torch"
