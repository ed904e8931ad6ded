"""The sparse gated MLP: every backend against the dense MLP with a mask, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lwlab_kernels.choose import interpreted
from lwlab_kernels.sparse_mlp import ACTIVATIONS, sparse_mlp

from lwlab.errors import BadInput, UnknownName

EXAMPLES = settings(
    max_examples=5 if interpreted() else 40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 70), st.integers(1, 37), st.integers(1, 68))


def weights(seed: int, tokens: int, d: int, n: int, out: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=g) for s in ((tokens, d), (n, d), (n, d), (n, out))]


def by_hand(
    x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down_t: torch.Tensor,
    sets: list[list[int]], act: str,
) -> torch.Tensor:  # fmt: skip
    """Neuron by neuron, in float64."""
    y = torch.zeros(len(x), down_t.shape[1], dtype=torch.float64)
    f = {
        "silu": lambda v: v / (1 + math.exp(-v)),
        "gelu": lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))),
        "gelu_tanh": lambda v: (
            0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))
        ),
        "relu": lambda v: max(v, 0.0),
    }[act]
    for t, chosen in enumerate(sets):
        for i in chosen:
            a = f(float(gate[i].double() @ x[t].double()))
            y[t] += a * float(up[i].double() @ x[t].double()) * down_t[i].double()
    return y


def close(found: torch.Tensor, want: torch.Tensor, *tensors: torch.Tensor) -> None:
    """Within 1e-6 of what the neurons could add up to, |gate.x| |up.x| |down|."""
    x, gate, up, down_t = (t.cpu().double() for t in tensors)
    size = ((x @ gate.T).abs() * (x @ up.T).abs()) @ down_t.abs()
    assert bool(((found.cpu().double() - want).abs() <= 1e-6 * size + 1e-12).all())


@EXAMPLES
@given(SIZES, st.sampled_from(sorted(ACTIVATIONS)), st.integers(0, 10**6), st.data())
def test_a_given_set_is_those_neurons(
    backend: str, device: str, sizes: tuple[int, int, int, int], act: str, seed: int, data: Any
) -> None:
    tensors = weights(seed, *sizes)
    k = data.draw(st.integers(1, sizes[2]))
    idx = torch.stack(
        [torch.randperm(sizes[2], generator=torch.Generator().manual_seed(seed + t))[:k]
         for t in range(sizes[0])]
    )  # fmt: skip
    idx[0, 0] = -1
    sets = [[i for i in row.tolist() if i >= 0] for row in idx]
    found = sparse_mlp(
        *(t.to(device) for t in tensors), idx=idx.to(device), act=act, backend=backend
    )
    assert found.backend == backend
    assert found.active.tolist() == [len(s) for s in sets]
    close(found.y, by_hand(*tensors, sets, act), *tensors)


@EXAMPLES
@given(SIZES, st.sampled_from(sorted(ACTIVATIONS)), st.integers(0, 10**6), st.floats(0, 0.95))
def test_a_threshold_keeps_what_reaches_it(
    backend: str, device: str, sizes: tuple[int, int, int, int], act: str, seed: int, q: float
) -> None:
    x, gate, up, down_t = weights(seed, *sizes)
    gate = gate / math.sqrt(sizes[1])
    a = ACTIVATIONS[act](x.double() @ gate.double().T).abs()
    limit = (a.quantile(q, dim=0) * 1.0001).float()
    near = ((a - limit).abs() < 1e-5) & (a > 1e-12)
    limit = torch.where(near.any(0), limit * 0.5 + 1.0, limit)  # not within rounding of a tie
    sets = [[i for i in range(sizes[2]) if not row[i] < limit[i]] for row in a]
    found = sparse_mlp(
        *(t.to(device) for t in (x, gate, up, down_t)), threshold=limit.to(device), act=act,
        backend=backend,
    )  # fmt: skip
    assert found.active.tolist() == [len(s) for s in sets]
    close(found.y, by_hand(x, gate, up, down_t, sets, act), x, gate, up, down_t)


@pytest.mark.parametrize("act", sorted(ACTIVATIONS))
def test_all_neurons_are_the_dense_mlp(backend: str, device: str, act: str) -> None:
    x, gate, up, down_t = (t.to(device) for t in weights(1, 2, 24, 40, 24))
    dense = (ACTIVATIONS[act](x @ gate.T) * (x @ up.T)) @ down_t
    for how in ({"threshold": 0.0}, {"idx": torch.arange(40, device=device)}):
        found = sparse_mlp(x, gate, up, down_t, **how, act=act, backend=backend)
        assert found.active.tolist() == [40, 40]
        close(found.y, dense.cpu().double(), x, gate, up, down_t)
    none = sparse_mlp(x, gate, up, down_t, threshold=math.inf, act=act, backend=backend)
    assert none.active.tolist() == [0, 0]
    assert float(none.y.abs().max()) == 0.0


def test_exact_answers_and_ties(backend: str, device: str) -> None:
    eye = torch.eye(3, device=device)
    x = torch.tensor([2.0, -1.0, 3.0], device=device)
    found = sparse_mlp(x, eye, eye, eye, threshold=2.0, act="relu", backend=backend)
    assert found.y.tolist() == [4.0, 0.0, 9.0]  # relu(x) x; the tie at 2 stays in
    assert int(found.active) == 2
    twice = sparse_mlp(
        x, eye, eye, eye, idx=torch.tensor([2, -1, 2], device=device), act="relu", backend=backend
    )
    assert twice.y.tolist() == [0.0, 0.0, 18.0]
    assert int(twice.active) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(backend: str, device: str, dtype: torch.dtype) -> None:
    tensors = [t.to(dtype) for t in weights(2, 2, 33, 20, 17)]
    tensors[1][0, 0] = 1e-7 if dtype == torch.float16 else 1e-39  # a subnormal
    idx = torch.tensor([0, 3, 19])
    want = by_hand(*tensors, [idx.tolist()] * 2, "silu")
    moved = [t.to(device) for t in tensors]
    found = sparse_mlp(*moved, idx=idx.to(device), backend=backend)
    assert found.y.dtype == dtype
    torch.testing.assert_close(found.y.cpu().double(), want, rtol=1e-2, atol=1e-2)
    single = sparse_mlp(moved[0].float(), *moved[1:], idx=idx.to(device), backend=backend)
    close(single.y, want, *tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nan_and_infinity_follow_arithmetic(backend: str, device: str, dtype: torch.dtype) -> None:
    x, gate, up, down_t = weights(3, 2, 8, 6, 5)
    gate[2, 1], up[3, 0], down_t[4, 2] = math.nan, math.inf, -math.inf
    gate, up, down_t = (t.to(dtype).to(device) for t in (gate, up, down_t))
    x = x.to(device)

    def y(idx: list[int]) -> torch.Tensor:
        chosen = torch.tensor(idx, device=device)
        return sparse_mlp(x, gate, up, down_t, idx=chosen, backend=backend).y.cpu()

    assert bool(y([0, 1, 5]).isfinite().all())  # rows left out are not looked at
    assert bool(y([0, 2]).isnan().all())
    assert bool(y([3]).isinf().all())
    assert y([4]).isfinite().all(0).tolist() == [True, True, False, True, True]
    kept = sparse_mlp(x, gate, up, down_t, threshold=1e9, backend=backend)
    assert kept.active.tolist() == [1, 1]  # NaN is not below any threshold
    assert bool(kept.y.isnan().all())
    x[1, 0] = math.nan
    assert y([0, 1]).isnan().all(1).tolist() == [False, True]


def test_strides_single_and_empty(backend: str, device: str) -> None:
    x, gate, up, down_t = (t.to(device) for t in weights(4, 3, 16, 12, 16))
    idx = torch.tensor([5, 0, 11], device=device)
    want = sparse_mlp(x, gate, up, down_t, idx=idx, backend=backend).y
    turned = sparse_mlp(
        x.T.contiguous().T, gate.T.contiguous().T, up.T.contiguous().T, down_t.T.contiguous().T,
        idx=idx, backend=backend,
    )  # fmt: skip
    torch.testing.assert_close(turned.y, want)
    one = sparse_mlp(x[1], gate, up, down_t, idx=idx, backend=backend)
    assert (one.y.shape, one.active.shape) == ((16,), ())
    torch.testing.assert_close(one.y, want[1], rtol=1e-5, atol=1e-5)
    nothing = sparse_mlp(x, gate, up, down_t, idx=idx[:0], backend=backend)
    assert float(nothing.y.abs().sum()) == 0.0
    nobody = sparse_mlp(x[:0], gate, up, down_t, threshold=0.1, backend=backend)
    assert (nobody.y.shape, nobody.active.shape) == ((0, 16), (0,))
    none = sparse_mlp(x, gate[:0], up[:0], down_t[:0], threshold=0.1, backend=backend)
    assert none.y.shape == (3, 16)
    assert none.active.tolist() == [0, 0, 0]


def test_triton_in_the_interpreter(interpreter: Callable[[str], str]) -> None:
    interpreter(__file__)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": None}, "one of idx"),
        ({"idx": torch.tensor([0])}, "one of idx"),
        ({"x": torch.zeros(2, 5)}, "do not fit"),
        ({"down_t": torch.zeros(4, 6)}, "W_down transposed"),
        ({"up": torch.zeros(5, 4)}, "a row for each neuron"),
        ({"threshold": torch.zeros(3)}, "threshold \\(3,\\)"),
        ({"threshold": math.nan}, "NaN"),
        ({"threshold": None, "idx": torch.tensor([6])}, "neurons are 0..5"),
        ({"threshold": None, "idx": torch.tensor([-2])}, "-1 for none"),
        ({"threshold": None, "idx": torch.tensor([0.5])}, "whole numbers"),
        ({"threshold": None, "idx": torch.zeros(3, 1).long()}, "\\[tokens, k\\]"),
        ({"gate": torch.zeros(6, 4).int()}, "gate is torch.int32"),
        ({"x": torch.zeros(2, 4).double(), "backend": "numba"}, "float64"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], message: str) -> None:
    given_: dict[str, Any] = {
        "x": torch.zeros(2, 4), "gate": torch.zeros(6, 4), "up": torch.zeros(6, 4),
        "down_t": torch.zeros(6, 4), "threshold": 0.1,
    }  # fmt: skip
    given_ |= change
    tensors = [given_.pop(n) for n in ("x", "gate", "up", "down_t")]
    with pytest.raises(BadInput, match=message):
        sparse_mlp(*tensors, **given_)


def test_unknown_names_are_named() -> None:
    tensors = weights(0, 1, 4, 6, 4)
    with pytest.raises(UnknownName, match="did you mean 'silu'"):
        sparse_mlp(*tensors, threshold=0.0, act="sillu")
    with pytest.raises(UnknownName, match="numba"):
        sparse_mlp(*tensors, threshold=0.0, backend="nunba")
    assert sparse_mlp(*tensors, threshold=0.0).backend == "numba"
