"""`attn_stats` on every backend, against float64 formulas and exact answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lwlab_kernels.attention import AttnStats, attn_stats, blocks

from lwlab.errors import BadInput, UnknownName

FIELDS = ("entropy", "sink", "distance", "column")


def oracle(
    q: torch.Tensor, k: torch.Tensor, seen: torch.Tensor, real: torch.Tensor, *,
    scale: float | None = None, bias: torch.Tensor | None = None, softcap: float | None = None,
    sink: int = 1,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """One query of one head at a time, in float64; seen [B, T, S], real [B, S] keys."""
    (B, H, T, d), (_, G, S, _) = q.shape, k.shape
    rows = {f: torch.full((B, H, T), math.nan, dtype=torch.float64) for f in FIELDS[:3]}
    column = torch.zeros(B, H, S, dtype=torch.float64)
    for b in range(B):
        first = int(real[b].int().argmax())
        for h in range(H):
            for t in range(T):
                z = k[b, h * G // H].double() @ q[b, h, t].double()
                z = z * (d**-0.5 if scale is None else scale)
                z = softcap * torch.tanh(z / softcap) if softcap else z
                z = z if bias is None else z + bias.expand(B, H, T, S)[b, h, t].double()
                j = [i for i in range(S) if seen[b, t, i] and z[i] > -math.inf]
                if not j or not real[b, S - T + t]:
                    continue
                A = z[j].softmax(0)
                rows["entropy"][b, h, t] = -(A * A.log()).sum()
                rows["sink"][b, h, t] = sum(
                    float(p) for p, i in zip(A, j) if first <= i < first + sink
                )
                rows["distance"][b, h, t] = sum(float(p) * abs(S - T + t - i) for p, i in zip(A, j))
                column[b, h, j] += A
    return {**rows, "column": column}


def agree(found: AttnStats, want: Mapping[str, torch.Tensor], atol: float = 2e-5) -> None:
    for f in FIELDS:
        got = getattr(found, f).cpu().double()
        torch.testing.assert_close(got, want[f], atol=atol, rtol=2e-5, equal_nan=True, msg=f)


def case(
    B: int,
    H: int,
    G: int,
    T: int,
    S: int,
    d: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    q, k = 2 * torch.randn(B, H, T, d, generator=g), torch.randn(B, G, S, d, generator=g)
    return q.to(dtype), k.to(dtype)


def sees(B: int, T: int, S: int, mask: Any, window: int | None, keys: Any) -> torch.Tensor:
    i, j = torch.arange(S - T, S)[:, None], torch.arange(S)
    if isinstance(mask, torch.Tensor):
        seen = mask
    else:
        seen = j <= i if mask == "causal" else torch.ones(T, S, dtype=torch.bool)
    seen = seen.expand(B, T, S)
    seen = seen if window is None else seen & ((i - j).abs() < window)
    return seen if keys is None else seen & keys[:, None]


PADDED = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]], dtype=torch.bool)
HOLES = torch.rand(2, 7, 7, generator=torch.Generator().manual_seed(3)) > 0.4
OPTIONS: list[dict[str, Any]] = [
    {},
    {"mask": "full", "sink": 2},
    {"window": 3},
    {"mask": "full", "window": 2, "softcap": 1.5},
    {"keys": PADDED},
    {"keys": PADDED, "mask": HOLES, "scale": 0.7},
    {"bias": torch.randn(4, 7, 7, generator=torch.Generator().manual_seed(4))},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o) or "causal")
def test_every_backend_agrees_with_float64(
    backend: str, device: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "QUERIES", 3)
    q, k = case(2, 4, 2, 7, 7, 5)
    mask, window, keys = (options.get(name) for name in ("mask", "window", "keys"))
    seen = sees(2, 7, 7, mask if mask is not None else "causal", window, keys)
    real = torch.ones(2, 7, dtype=torch.bool) if keys is None else keys
    other = {n: v for n, v in options.items() if n in ("scale", "bias", "softcap", "sink")}
    want = oracle(q, k, seen, real, **other)
    there = {n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in options.items()}
    found = attn_stats(q.to(device), k.to(device), backend=backend, **there)
    assert found.backend == backend
    agree(found, want)


@given(
    shape=st.tuples(*(st.integers(1, m) for m in (3, 2, 3, 9, 9, 6))),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    mask=st.sampled_from(["causal", "full", "random"]),
    window=st.none() | st.integers(1, 12),
    padded=st.booleans(),
    memory=st.integers(1, 3000),
    queries=st.integers(1, 9),
    options=st.fixed_dictionaries(
        {},
        optional={
            "softcap": st.floats(0.5, 30),
            "scale": st.floats(0.1, 2),
            "sink": st.integers(1, 5),
            "bias": st.just(True),
        },
    ),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_any_shape_type_and_mask(
    shape: tuple[int, ...], dtype: torch.dtype, mask: Any, window: int | None, padded: bool,
    memory: int, queries: int, options: dict[str, Any], seed: int,
) -> None:  # fmt: skip
    B, G, share, T, more, d = shape
    S, H = T + more - 1, G * share
    q, k = case(B, H, G, T, S, d, dtype, seed)
    g = torch.Generator().manual_seed(seed)
    if "bias" in options:
        options = {**options, "bias": torch.randn(B, H, T, S, generator=g)}
    mask = torch.rand(B, T, S, generator=g) > 0.4 if mask == "random" else mask
    keys = torch.rand(B, S, generator=g) > 0.3 if padded else None
    seen = sees(B, T, S, mask, window, keys)
    real = torch.ones(B, S, dtype=torch.bool) if keys is None else keys
    want = oracle(q, k, seen, real, **options)
    before = blocks.QUERIES
    blocks.QUERIES = queries
    try:
        for backend in ("torch", "numba"):
            agree(
                attn_stats(
                    q, k, mask=mask, window=window, keys=keys, memory=memory, backend=backend,
                    **options,
                ),
                want, 5e-5,
            )  # fmt: skip
    finally:
        blocks.QUERIES = before


def test_uniform_scores_are_exact(backend: str, device: str) -> None:
    T = 9
    q, k = torch.zeros(2, T, 4, device=device), torch.randn(1, T, 4, device=device)
    r = attn_stats(q, k, backend=backend)
    t = torch.arange(T, dtype=torch.float64)
    for head in range(2):
        torch.testing.assert_close(r.entropy[head].cpu().double(), (t + 1).log(), atol=1e-6, rtol=0)
        torch.testing.assert_close(r.sink[head].cpu().double(), 1 / (t + 1), atol=1e-7, rtol=0)
        torch.testing.assert_close(r.distance[head].cpu().double(), t / 2, atol=1e-6, rtol=0)
        harmonic = (1 / (t + 1)).flip(0).cumsum(0).flip(0)
        torch.testing.assert_close(r.column[head].cpu().double(), harmonic, atol=1e-6, rtol=0)


def test_a_head_that_looks_at_one_token(backend: str, device: str) -> None:
    q = torch.full((1, 6, 1), 100.0, device=device)
    k = torch.tensor([0.0, 0, 9, 0, 0, 0], device=device).view(1, 6, 1)
    r = attn_stats(q, k, scale=1.0, backend=backend)
    near = {"abs": 1e-30, "rel": 0}
    assert r.entropy[0, 2:].tolist() == pytest.approx([0] * 4, **near)
    assert r.distance[0, 2:].tolist() == pytest.approx([0, 1, 2, 3], **near)
    assert r.sink[0].tolist() == pytest.approx([1, 0.5, 0, 0, 0, 0], **near)
    assert r.column[0].tolist() == pytest.approx([1.5, 0.5, 4, 0, 0, 0], **near)


def test_columns_sum_to_the_queries(backend: str, device: str) -> None:
    q, k = (x.to(device) for x in case(2, 4, 2, 7, 7, 5))
    r = attn_stats(q, k, keys=PADDED.to(device), backend=backend)
    counts = PADDED.sum(1).double()[:, None].expand(2, 4)
    torch.testing.assert_close(r.column.sum(-1).cpu().double(), counts, atol=1e-5, rtol=0)
    assert r.entropy.isnan().cpu().equal(~PADDED[:, None].expand(2, 4, 7))
    assert float(r.column.cpu()[~PADDED[:, None].expand(2, 4, 7)].abs().max()) == 0


def test_padding_is_as_if_it_were_not_there(backend: str, device: str) -> None:
    q, k = (x.to(device) for x in case(2, 4, 2, 7, 7, 5))
    padded = attn_stats(q, k, keys=PADDED.to(device), backend=backend)
    for b in range(2):
        own = PADDED[b]
        alone = attn_stats(q[b][:, own], k[b][:, own], backend=backend)
        for f in FIELDS:
            torch.testing.assert_close(getattr(padded, f)[b][:, own], getattr(alone, f))


def test_nan_and_inf_stay_in_their_rows(backend: str, device: str) -> None:
    q, k = (x.to(device) for x in case(1, 2, 2, 6, 6, 3))
    clean = attn_stats(q, k, backend=backend)
    for value in (math.nan, math.inf):
        bad = q.clone()
        bad[0, 1, 3, 0] = value
        r = attn_stats(bad, k, backend=backend)
        for f in FIELDS[:3]:
            got, want = getattr(r, f), getattr(clean, f)
            lost = got.isnan()
            assert lost.nonzero().tolist() == [[0, 1, 3]]
            torch.testing.assert_close(got[~lost], want[~lost])
        assert r.column[0, 1].isnan().tolist() == [True] * 4 + [False] * 2
        torch.testing.assert_close(r.column[0, 0], clean.column[0, 0])


def test_a_key_at_minus_infinity_is_hidden(backend: str, device: str) -> None:
    q, k = (x.to(device) for x in case(1, 2, 1, 6, 6, 3))
    bias = torch.zeros(6, 6, device=device)
    bias[:, 2] = -math.inf
    seen = torch.ones(6, 6, dtype=torch.bool, device=device).tril()
    seen[:, 2] = False
    a = attn_stats(q, k, bias=bias, backend=backend)
    b = attn_stats(q, k, mask=seen, backend=backend)
    for f in FIELDS:
        torch.testing.assert_close(getattr(a, f), getattr(b, f))
    assert float(a.column[..., 2].abs().max()) == 0
    none = attn_stats(q, k, bias=torch.full_like(bias, -math.inf), backend=backend)
    assert none.entropy.isnan().all()
    assert float(none.column.abs().max()) == 0


def test_non_contiguous_single_and_empty(backend: str, device: str) -> None:
    q, k = (x.to(device) for x in case(1, 4, 2, 6, 6, 3))
    want = attn_stats(q, k, backend=backend)
    odd = attn_stats(
        q.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0), k.mT.contiguous().mT,
        backend=backend,
    )  # fmt: skip
    single = attn_stats(q[0], k[0], backend=backend)
    for f in FIELDS:
        torch.testing.assert_close(getattr(odd, f), getattr(want, f))
        torch.testing.assert_close(getattr(single, f), getattr(want, f)[0])
    one = attn_stats(q[:, :, :1], k[:, :, :1], backend=backend)
    assert one.entropy.flatten().tolist() == [0.0] * 4
    assert one.column.flatten().tolist() == [1.0] * 4
    none = attn_stats(q[:, :, :0], k[:, :, :0], backend=backend)
    assert none.entropy.shape == (1, 4, 0)
    later = attn_stats(q[:, :, :0], k, backend=backend)
    assert later.column.abs().sum() == 0
    empty = attn_stats(q[:0], k[:0], backend=backend)
    assert empty.column.shape == (0, 4, 6)


def test_later_queries_alone_give_their_own_rows(backend: str, device: str) -> None:
    q, k = (x.to(device) for x in case(1, 4, 2, 7, 7, 5))
    whole = attn_stats(q, k, backend=backend)
    last = attn_stats(q[:, :, 4:], k, backend=backend)
    for f in FIELDS[:3]:
        torch.testing.assert_close(getattr(last, f), getattr(whole, f)[..., 4:])


def test_inputs_are_left_alone_and_no_gradient(backend: str, device: str) -> None:
    q, k = (x.to(device) for x in case(1, 2, 2, 5, 5, 3))
    q.requires_grad_(True)
    before = q.detach().clone(), k.clone()
    assert not attn_stats(q, k, softcap=2.0, scale=1.0, backend=backend).entropy.requires_grad
    assert torch.equal(q, before[0])
    assert torch.equal(k, before[1])


def test_float64_is_exact_and_has_torch_alone() -> None:
    q, k = case(2, 4, 2, 7, 7, 5, torch.float64)
    r = attn_stats(q, k)
    assert r.backend == "torch"
    seen, real = sees(2, 7, 7, "causal", None, None), torch.ones(2, 7, dtype=torch.bool)
    agree(r, oracle(q, k, seen, real), 1e-12)
    with pytest.raises(BadInput, match="no float64"):
        attn_stats(q, k, backend="numba")


def test_its_memory_grows_with_the_keys_and_not_with_their_square() -> None:
    sizes = []
    plain = torch.Tensor.new_empty

    def seen(self: torch.Tensor, *shape: Any, **options: Any) -> torch.Tensor:
        out = plain(self, *shape, **options)
        sizes.append(out.nbytes)
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", seen)
        for T in (500, 1000):
            q, k = case(1, 4, 2, T, T, 2)
            attn_stats(q, k, memory=400_000)
    assert len(sizes) == 2
    assert max(sizes) <= 400_000  # a pattern at T = 1000 has 16 MB


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"q": torch.zeros(4, 5)}, "batch, heads, positions"),
        ({"q": torch.zeros(2, 5, 3), "k": torch.zeros(1, 2, 5, 3)}, "batch, heads, positions"),
        ({"q": torch.zeros(1, 4, 5, 3, dtype=torch.int)}, r"q is torch\.int32"),
        ({"k": torch.zeros(1, 2, 5, 4)}, "differ in batch or d_head"),
        ({"k": torch.zeros(1, 3, 5, 3)}, "do not share 3"),
        ({"k": torch.zeros(1, 2, 4, 3)}, "5 queries and 4 keys"),
        ({"k": torch.zeros(1, 2, 5, 3, device="meta")}, "different devices"),
        ({"mask": torch.zeros(5, 5)}, "give bool"),
        ({"mask": torch.zeros(4, 5, dtype=torch.bool)}, r"must be \[5, 5\]"),
        ({"window": 0}, "at least 1"),
        ({"keys": torch.ones(1, 5)}, r"must be bool \[1, 5\]"),
        ({"bias": torch.zeros(3, 5, 5)}, "must expand"),
        ({"softcap": -1.0}, "above 0"),
        ({"sink": 0}, "at least 1"),
        ({"memory": 0}, "bytes"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], match: str) -> None:
    arguments = {"q": torch.zeros(1, 4, 5, 3), "k": torch.zeros(1, 2, 5, 3), **change}
    with pytest.raises(BadInput, match=match):
        attn_stats(**arguments)


def test_unknown_names_are_named() -> None:
    q, k = case(1, 1, 1, 2, 2, 1)
    with pytest.raises(UnknownName, match="did you mean 'causal'"):
        attn_stats(q, k, mask="casual")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="unknown backend"):
        attn_stats(q, k, backend="cuda")


def test_triton_in_the_interpreter(interpreter: Callable[[str], str]) -> None:
    assert "passed" in interpreter(__file__)


def test_the_gpu_kernel_compiles(compiled: Callable[[Any, Mapping[str, Any]], int]) -> None:
    from lwlab_kernels.attention import gpu

    types = {n: "*i32" if n.endswith("_ptr") else "i32" for n in gpu._row.arg_names}
    floats = {"z_ptr": "*fp32", "rows_ptr": "*fp32"}
    assert compiled(gpu._row, {**types, **floats, "TILE": 1024}) > 1000
