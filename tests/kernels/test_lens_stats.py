"""`lens_stats` on every backend, against float64 formulas and exact answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lwlab_kernels.lens import LensStats, Norm, blocks, lens_stats

from lwlab.errors import BadInput, UnknownName

FIELDS = ("log_prob", "entropy", "kl", "target_log_prob")


def oracle(z: torch.Tensor, targets: torch.Tensor, ref: int, k: int) -> dict[str, torch.Tensor]:
    """The statistics of float64 logits [L, T, V], one row and one token at a time."""
    L, T, _ = z.shape
    out: dict[str, Any] = {f: [] for f in ("ids", "rank", *FIELDS)}
    for layer in range(L):
        for t in range(T):
            logp = z[layer, t] - z[layer, t].logsumexp(0)
            to = z[ref, t] - z[ref, t].logsumexp(0)
            row = z[layer, t].tolist()
            order = sorted(range(len(row)), key=lambda i, row=row: (-row[i], i))
            out["ids"].append(order[:k])
            out["log_prob"].append([float(logp[i]) for i in order[:k]])
            live = [i for i in range(len(row)) if row[i] > -math.inf]
            out["entropy"].append(-sum(math.exp(logp[i]) * float(logp[i]) for i in live))
            out["kl"].append(sum(math.exp(logp[i]) * float(logp[i] - to[i]) for i in live))
            out["rank"].append([order.index(int(i)) for i in targets[t]])
            out["target_log_prob"].append([float(logp[i]) for i in targets[t]])
    shaped = {f: torch.tensor(v, dtype=torch.float64) for f, v in out.items()}
    return {f: v.reshape(L, T, *v.shape[1:]) for f, v in shaped.items()}


def agree(found: LensStats, want: Mapping[str, torch.Tensor], atol: float = 2e-5) -> None:
    assert (found.ids.cpu() == want["ids"]).all()
    assert found.rank is not None
    assert (found.rank.cpu() == want["rank"]).all()
    for field in FIELDS:
        torch.testing.assert_close(
            getattr(found, field).cpu().double(), want[field], atol=atol, rtol=1e-5, msg=field
        )


def case(
    L: int, T: int, d: int, V: int, n: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    h, W = torch.randn(L, T, d, generator=g), torch.randn(V, d, generator=g)
    return h.to(dtype), W.to(dtype), torch.randint(V, (T, n), generator=g)


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of the vocabulary also where it is small."""
    monkeypatch.setattr(blocks, "WIDTH", 24)


@pytest.mark.parametrize(
    ("L", "T", "d", "V", "k", "n"),
    [(3, 4, 7, 61, 4, 1), (2, 3, 1, 25, 25, 2), (1, 1, 5, 1, 1, 1), (4, 1, 16, 24, 3, 3)],
)
def test_every_backend_agrees_with_float64(
    backend: str, device: str, L: int, T: int, d: int, V: int, k: int, n: int
) -> None:
    h, W, targets = case(L, T, d, V, n)
    z = h.double() @ W.double().T
    where = [x.to(device) for x in (h, W, targets)]
    found = lens_stats(where[0], None, where[1], where[2], k=k, memory=600, backend=backend)
    assert found.backend == backend
    agree(found, oracle(z, targets, L - 1, k))


@given(
    shape=st.tuples(*(st.integers(1, m) for m in (4, 5, 9, 120, 3))),
    k=st.integers(1, 8),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    ref=st.integers(-4, 3),
    memory=st.integers(1, 10_000),
    options=st.fixed_dictionaries(
        {},
        optional={"softcap": st.floats(0.5, 30), "scale": st.floats(0.1, 4), "bias": st.just(True)},
    ),
    seed=st.integers(0, 99),
)
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_shape_type_and_option(
    shape: tuple[int, ...], k: int, dtype: torch.dtype, ref: int, memory: int,
    options: dict[str, Any], seed: int,
) -> None:  # fmt: skip
    L, T, d, V, n = shape
    h, W, targets = case(L, T, d, V, n, seed, dtype)
    k, ref = min(k, V), ref % L
    given_ = dict(options)
    if "bias" in given_:
        given_["bias"] = W.float().sum(1).to(dtype)
    z = (h.double() @ W.double().T) * given_.get("scale", 1.0)
    z = z + given_["bias"].double() if "bias" in given_ else z
    cap = given_.get("softcap")
    z = cap * torch.tanh(z / cap) if cap else z
    want = oracle(z, targets, ref, k)
    for backend in ("torch", "numba"):
        found = lens_stats(
            h, None, W, targets, ref=ref, k=k, memory=memory, backend=backend, **given_
        )
        for field in FIELDS[1:]:
            value = getattr(found, field).double()
            torch.testing.assert_close(value, want[field], atol=5e-5, rtol=1e-5, msg=field)
        torch.testing.assert_close(found.log_prob.double(), want["log_prob"], atol=5e-5, rtol=1e-5)
        # whichever of two near-equal tokens comes first, its logit is the one at that place
        rows = z.gather(-1, found.ids)
        torch.testing.assert_close(rows, z.gather(-1, want["ids"].long()), atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms_equal_torchs_own(kind: Any) -> None:
    x = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1))
    w, b = torch.randn(2, 8, generator=torch.Generator().manual_seed(2))
    if kind == "rms":
        module: torch.nn.Module = torch.nn.RMSNorm(8, eps=1e-5)
        ours = Norm("rms", w)
    else:
        module, ours = torch.nn.LayerNorm(8), Norm("layer", w, b)
        module.bias.data = b
    module.weight.data = w
    torch.testing.assert_close(ours(x), module(x))
    module.weight.data = 1 + w  # Gemma
    gemma = Norm(kind, w, ours.bias, plus_one=True)
    torch.testing.assert_close(gemma(x), module(x))
    with pytest.raises(BadInput, match="norm kind"):
        Norm("batch")  # type: ignore[arg-type]


def test_a_module_and_a_head_that_is_a_function_do(backend: str, device: str) -> None:
    h, W, targets = (x.to(device) for x in case(2, 3, 8, 30))
    norm = Norm("rms", torch.rand(8, device=device))
    plain = lens_stats(h, norm, W, targets, backend=backend)
    head = lens_stats(h, norm, lambda x: x @ W.T, targets, backend=backend)
    inside = lens_stats(norm(h), None, W, targets, backend=backend)
    for a, b, c in zip(plain[:6], head[:6], inside[:6]):
        assert isinstance(a, torch.Tensor)
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(a, c)


def test_a_zero_stream_is_uniform_exactly(backend: str, device: str) -> None:
    V = 50
    h, W = torch.zeros(2, 3, 4, device=device), torch.randn(V, 4, device=device)
    targets = torch.tensor([[0, 7], [49, 1], [3, 2]], device=device)
    r = lens_stats(h, None, W, targets, k=4, backend=backend)
    assert r.entropy.flatten().tolist() == pytest.approx([math.log(V)] * 6, abs=1e-6)
    assert r.ids.cpu().tolist() == [[[0, 1, 2, 3]] * 3] * 2  # ties by lower id
    assert r.rank is not None
    assert r.rank.cpu().tolist() == [targets.tolist()] * 2
    assert r.kl is not None
    assert float(r.kl.abs().max()) == 0


def test_a_layer_is_at_no_distance_from_itself_and_its_best_has_rank_0(
    backend: str, device: str
) -> None:
    h, W, _ = (x.to(device) for x in case(3, 4, 8, 60))
    h[1] = h[2]
    best = lens_stats(h, None, W, ref=2, k=3, backend=backend)
    r = lens_stats(h, None, W, best.ids[2], ref=2, k=3, backend=backend)
    assert r.kl is not None
    assert float(r.kl[1:].abs().max()) == 0
    assert float(r.kl[0].min()) > 0
    assert r.rank is not None
    assert r.rank[2].cpu().tolist() == [[0, 1, 2]] * 4
    assert r.target_log_prob is not None
    assert torch.equal(r.target_log_prob[2], r.log_prob[2])


def test_equal_tokens_rank_by_id(backend: str, device: str) -> None:
    h = torch.tensor([[[1.0]]], device=device)
    W = torch.tensor([2.0, 5, 5, -1, 5, 2], device=device)[:, None]
    r = lens_stats(h, None, W, torch.tensor([[5, 4, 0]], device=device), k=4, backend=backend)
    assert r.ids.flatten().tolist() == [1, 2, 4, 0]
    assert r.rank is not None
    assert r.rank.flatten().tolist() == [4, 2, 3]
    zeros = torch.tensor([[-0.0, -1.0, 0.0, -0.0, 0.0]], device=device)  # -0 and +0 are equal
    mixed = lens_stats(h, None, lambda x: zeros.expand(len(x), -1), k=4, backend=backend)
    assert mixed.ids.flatten().tolist() == [0, 2, 3, 4]


def test_nan_and_inf_stay_in_their_rows(backend: str, device: str) -> None:
    h, W, targets = (x.to(device) for x in case(3, 5, 4, 60))
    clean = lens_stats(h, None, W, targets, ref=0, k=2, backend=backend)
    for value in (math.nan, math.inf, -math.inf):
        bad = h.clone()
        bad[1, 2, 0] = value
        bad[0, 4, 1] = value  # the reference
        r = lens_stats(bad, None, W, targets, ref=0, k=2, backend=backend)
        for found, want in zip(r[:6], clean[:6]):
            assert isinstance(found, torch.Tensor)
            assert isinstance(want, torch.Tensor)
            lost = torch.zeros(3, 5, dtype=torch.bool)
            lost[1, 2] = lost[0, 4] = True
            if found is r.kl:
                lost[:, 4] = True
            gone = found.isnan() if found.is_floating_point() else found == -1
            gone = gone.flatten(2).all(-1) if gone.ndim > 2 else gone
            assert torch.equal(gone.cpu(), lost)
            assert torch.equal(found.cpu()[~lost], want.cpu()[~lost])


def test_tokens_at_minus_infinity_have_no_probability(backend: str, device: str) -> None:
    h, W, targets = (x.to(device) for x in case(2, 3, 4, 60))
    bias = torch.zeros(60, device=device)
    bias[10:50] = -math.inf
    r = lens_stats(h, None, W, targets, k=21, bias=bias, backend=backend)
    kept = torch.cat([W[:10], W[50:]])
    few = lens_stats(h, None, kept, k=20, backend=backend)
    assert r.kl is not None
    assert few.kl is not None
    torch.testing.assert_close(r.entropy, few.entropy, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(r.kl, few.kl, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(r.log_prob[..., :20], few.log_prob, atol=1e-5, rtol=1e-5)
    assert (r.ids[..., 20] == 10).all()
    assert (r.log_prob[..., 20] == -math.inf).all()
    none = lens_stats(h, None, W, bias=torch.full_like(bias, -math.inf), backend=backend)
    assert none.entropy.isnan().all()
    assert (none.ids == -1).all()


def test_kl_is_infinite_where_the_reference_has_no_probability(backend: str, device: str) -> None:
    h = torch.tensor([[[1.0, 1.0]], [[1.0, 0.0]]], device=device)

    def head(x: torch.Tensor) -> torch.Tensor:
        z = torch.stack([x[:, 0], -x[:, 0], x[:, 1]], 1)
        return torch.where(z == 0, -math.inf, z)

    r = lens_stats(h, None, head, ref=1, k=1, backend=backend)
    assert r.kl is not None
    assert r.kl.flatten().tolist() == [math.inf, 0.0]


def test_non_contiguous_empty_and_one_position(backend: str, device: str) -> None:
    h, W, targets = (x.to(device) for x in case(3, 4, 6, 31, 2))
    want = lens_stats(h, None, W, targets, backend=backend)
    strided = h.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not strided.is_contiguous()
    found = lens_stats(strided, None, W.T.contiguous().T, targets.T.contiguous().T, backend=backend)
    for a, b in zip(found[:6], want[:6]):
        assert isinstance(a, torch.Tensor)
        torch.testing.assert_close(a, b)
    single = lens_stats(h[:, 1:2], None, W, targets[1:2, 0], ref=None, backend=backend)
    assert single.kl is None
    assert single.rank is not None
    assert want.rank is not None
    assert torch.equal(single.rank, want.rank[:, 1:2, 0])
    for empty in (h[:, :0], h[:0]):
        t = targets[: empty.shape[1], 0]
        r = lens_stats(empty, None, W, t, backend=backend)
        assert r.ids.shape == (*empty.shape[:2], 5)
        assert r.rank is not None
        assert r.rank.shape == r.entropy.shape == empty.shape[:2]


def test_no_gradient_and_inputs_untouched(backend: str, device: str) -> None:
    h, W, targets = (x.to(device) for x in case(2, 2, 4, 30))
    h.requires_grad_(True)
    before = h.detach().clone(), W.clone()
    r = lens_stats(h, Norm("rms"), W, targets, softcap=3.0, scale=2.0, backend=backend)
    assert not r.entropy.requires_grad
    assert torch.equal(h, before[0])
    assert torch.equal(W, before[1])


def test_float64_is_exact_and_has_torch_alone() -> None:
    h, W, targets = case(2, 3, 8, 60, dtype=torch.float64)
    r = lens_stats(h, None, W, targets)
    assert r.backend == "torch"
    assert r.entropy.dtype == torch.float64
    agree(r, oracle(h @ W.T, targets, 1, 5), atol=1e-12)
    with pytest.raises(BadInput, match="no float64"):
        lens_stats(h, None, W, backend="numba")


def test_several_threads_give_the_same() -> None:
    h, W, targets = case(3, 17, 8, 60)
    one = lens_stats(h, None, W, targets)
    torch.set_num_threads(3)
    try:
        three = lens_stats(h, None, W, targets)
    finally:
        torch.set_num_threads(1)
    for a, b in zip(one[:6], three[:6]):
        assert isinstance(a, torch.Tensor)
        torch.testing.assert_close(a, b)


def test_its_memory_depends_on_neither_positions_nor_vocabulary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocks, "WIDTH", 4096)
    sizes = []
    plain = torch.empty

    def seen(*shape: Any, **options: Any) -> torch.Tensor:
        out = plain(*shape, **options)
        sizes.append(out.nbytes)
        return out

    monkeypatch.setattr(torch, "empty", seen)
    for T, V in ((40, 5000), (160, 5000), (40, 20000)):
        h, W, _ = case(3, T, 2, V)
        lens_stats(h, None, W, k=1, memory=1_000_000)
    assert max(sizes) <= 1_000_000
    assert sizes.count(max(sizes)) == 3  # the block of logits, the same each time


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"h": torch.zeros(3, 4)}, "layers, positions"),
        ({"h": torch.zeros(3, 4, 8, dtype=torch.long)}, r"h is torch\.int64"),
        ({"W_U": torch.zeros(8, 30)}, r"pass W_U\.T"),
        ({"W_U": torch.zeros(0, 8)}, "vocabulary, 8"),
        ({"W_U": torch.zeros(30, 8, device="meta")}, "different devices"),
        ({"k": 0}, r"1\.\.30"),
        ({"k": 31}, r"1\.\.30"),
        ({"ref": 3}, r"0\.\.2"),
        ({"bias": torch.zeros(29)}, r"must be \[30\]"),
        ({"W_U": lambda x: x, "bias": torch.zeros(8)}, "goes with a matrix"),
        ({"softcap": 0.0}, "above 0"),
        ({"memory": 0}, "bytes"),
        ({"targets": torch.zeros(4)}, "whole numbers"),
        ({"targets": torch.zeros(5, dtype=torch.long)}, r"must be \[4\]"),
        ({"targets": torch.tensor([0, 1, 2, 30])}, "target 30 is outside"),
        ({"targets": torch.tensor([0, 1, 2, -1])}, "target -1 is outside"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], match: str) -> None:
    arguments = {"h": torch.zeros(3, 4, 8), "norm": None, "W_U": torch.zeros(30, 8), **change}
    with pytest.raises(BadInput, match=match):
        lens_stats(**arguments)


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(UnknownName, match="did you mean 'triton'"):
        lens_stats(torch.zeros(1, 1, 2), None, torch.zeros(3, 2), k=1, backend="tritn")


def test_triton_in_the_interpreter(interpreter: Callable[[str], str]) -> None:
    assert "passed" in interpreter(__file__)


def test_the_gpu_kernel_compiles(compiled: Callable[[Any, Mapping[str, Any]], int]) -> None:
    from lwlab_kernels.lens import gpu

    names = gpu._row.arg_names
    doubles = dict.fromkeys(["m_ptr", "s_ptr", "a_ptr", "b_ptr"], "*fp64")
    types = {n: "*i32" if n.endswith("_ptr") else "i32" for n in names}
    assert compiled(gpu._row, {**types, **doubles, "z_ptr": "*fp32", "K": 8, "TILE": 1024}) > 1000
