"""Lens statistics block by block: a plain matrix product, reduced before the next one.

The product belongs to the library that multiplies best (MKL, cuBLAS); what is ours is that its
result, some positions at all layers times some of the vocabulary, is reduced to a few numbers a
row while it is still in the cache. The sums carry on from block to block (online softmax).

A target's logit is computed before the first block, for its rank counts the logits above it in
every block; the block that holds the target takes over that very value, so that ranks, top-k and
probabilities agree with each other to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from lwlab_kernels.choose import Backend
from lwlab_kernels.lens import LensStats
from lwlab_kernels.lens.reference import capped, streams

Head = Callable[[torch.Tensor], torch.Tensor]
WHOLE = ("ids", "rank")
WIDTH = 4096
"""Tokens in a block of the vocabulary: a row of them, and its reference's, stay in the L1 cache."""


@dataclass
class State:
    """Running sums of rows over the vocabulary, rows = layers x positions, layer by layer.

    With m the highest logit so far: `s` = sum e^(z - m), `a` = sum e^(z - m) (z - m),
    `b` = sum e^(z - m) (z - z_ref). `key`, `id`: the k best in no order, as `ordered` integers of
    their logits. `count`: logits before the target in the order of rank, `target` its key.
    `wrong`: has a NaN or +inf; `apart`: p > 0 where p_ref = 0.
    """

    m: torch.Tensor
    s: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    key: torch.Tensor
    id: torch.Tensor
    count: torch.Tensor
    target: torch.Tensor
    target_id: torch.Tensor
    wrong: torch.Tensor
    apart: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor, ids: torch.Tensor, k: int) -> State:
        """Empty sums; logits, ids: [rows, n] of the targets."""
        rows, device = len(logits), logits.device
        s, a, b = torch.zeros(3, rows, dtype=torch.float64, device=device)
        # Empty places have keys of their own, below that of any logit.
        empty = torch.arange(k, dtype=torch.int32, device=device) - 2**31 + 1
        wrong, apart = torch.zeros(2, rows, dtype=torch.int32, device=device)
        return cls(
            torch.full_like(s, -torch.inf), s, a, b,
            empty.repeat(rows, 1), torch.full((rows, k), -1, dtype=torch.int32, device=device),
            torch.zeros(logits.shape, dtype=torch.int32, device=device),
            ordered(logits), ids.int().contiguous(), wrong, apart,
        )  # fmt: skip


class Reduce(Protocol):
    """Add logits z [rows, v], of tokens first, first + 1, ..., to the sums of `state`.

    Row l * columns + c is compared with row ref * columns + c (ref < 0: with none).
    """

    def __call__(self, z: torch.Tensor, first: int, columns: int, ref: int, state: State) -> None:
        """Update `state` in place."""
        ...


def ordered(z: torch.Tensor) -> torch.Tensor:
    """int32 in the order of float32 z, -0 and +0 equal; NaNs are beyond both infinities."""
    bits = z.float().contiguous().view(torch.int32)
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def unordered(key: torch.Tensor) -> torch.Tensor:
    """The float32 that `ordered` made a key of."""
    return torch.where(key < 0, key.neg() | -(2**31), key).view(torch.float32)


def blockwise(
    h: torch.Tensor,
    norm: Head | None,
    W_U: torch.Tensor | Head,
    targets: torch.Tensor | None,
    ref: int | None,
    k: int,
    V: int,
    bias: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    memory: int,
    backend: Backend,
) -> LensStats:
    """Lens statistics by blocks, reduced by numba or triton; arguments as in `lens_stats`."""
    reduce = reducer(backend)
    L, T, _ = h.shape
    W = W_U if isinstance(W_U, torch.Tensor) else None
    width = V if W is None else min(V, WIDTH if h.device.type == "cpu" else 8 * WIDTH)
    columns = max(1, min(T, memory // max(1, L * width * 4)))
    cells = 0 if W is None else L * columns * width
    buffer = torch.empty(cells, dtype=torch.float32, device=h.device)
    n = 0 if targets is None else targets.shape[1]
    shapes = {"ids": (k,), "log_prob": (k,), "entropy": (), "kl": (), "rank": (n,), "target": (n,)}
    out = {
        name: h.new_empty(L, T, *more, dtype=torch.long if name in WHOLE else torch.float32)
        for name, more in shapes.items()
    }
    for p in range(0, T if L else 0, columns):
        here = slice(p, min(p + columns, T))
        c = here.stop - p
        x = streams(h[:, here], norm, scale, torch.float32)
        own = h.new_zeros(c, n, dtype=torch.long) if targets is None else targets[here]
        at = own.repeat(L, 1)
        if callable(W_U) and W is None:
            z = W_U(x.to(h.dtype)).float()
            z = capped(z.clone(memory_format=torch.contiguous_format), softcap)
            value = z.gather(1, at)
        else:
            assert W is not None
            z, value = buffer, _at(x, W, own, bias, softcap)
        state = State.of(value, at, k)
        for first in range(0, V, width):
            v = min(width, V - first)
            if W is not None:
                z = buffer[: L * c * v].view(L * c, v)
                torch.mm(x, W[first : first + v].float().T, out=z)
                if bias is not None:
                    z += bias[first : first + v]
                _take_over(capped(z, softcap), state, first)
            reduce(z, first, c, -1 if ref is None else ref, state)
        for whole, part in zip(out.values(), _finish(state, L, c, ref)):
            whole[:, here] = part.view(L, c, *part.shape[1:])
    return LensStats(
        out["ids"], out["log_prob"], out["entropy"], None if ref is None else out["kl"],
        None if targets is None else out["rank"], None if targets is None else out["target"],
        backend,
    )  # fmt: skip


def reducer(backend: Backend) -> Reduce:
    """The reduction of a block, compiled on first use."""
    if backend == "numba":
        from lwlab_kernels.lens.cpu import reduce
    else:
        from lwlab_kernels.lens.gpu import reduce
    return reduce


def _at(
    x: torch.Tensor,
    W_U: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    softcap: float | None,
) -> torch.Tensor:
    """Logits of the targets [c, n] of rows x [L * c, d]: [L * c, n]."""
    c, n = targets.shape
    if not n:
        return x.new_zeros(len(x), 0)
    z = torch.einsum("lcd,cnd->lcn", x.view(-1, c, x.shape[-1]), W_U[targets].float())
    z = z if bias is None else z + bias[targets]
    return capped(z.reshape(-1, n).float(), softcap)


def _take_over(z: torch.Tensor, state: State, first: int) -> None:
    """Put the targets' logits, as computed before, where the block holds the targets."""
    at = state.target_id.long() - first
    inside = (at >= 0) & (at < z.shape[1])
    rows = torch.arange(len(z), device=z.device)[:, None].expand_as(at)
    z[rows[inside], at[inside]] = unordered(state.target)[inside]


def _finish(state: State, L: int, c: int, ref: int | None) -> tuple[torch.Tensor, ...]:
    """ids, log_prob, entropy, kl, rank, target_log_prob of [L * c] rows."""
    wrong = (state.wrong != 0) | (state.s == 0)
    log_s = state.s.log()
    lse = state.m + log_s
    nan = torch.where(wrong, torch.nan, 0.0)
    # Higher keys first, then lower ids: one integer holds both.
    places = state.key.long() * 2**32 - state.id.long()
    order = places.sort(1, descending=True).indices
    ids = state.id.long().gather(1, order)
    log_prob = unordered(state.key).double().gather(1, order) - lse[:, None] + nan[:, None]
    entropy = (log_s - state.a / state.s).clamp(min=0) + nan
    to = slice(0, c) if ref is None else slice(ref * c, (ref + 1) * c)
    kl = (state.b / state.s - lse).view(L, c) + lse[to]
    kl = kl.clamp(min=0).masked_fill(state.apart.view(L, c) != 0, torch.inf)
    kl = (kl + nan.view(L, c) + nan[to]).reshape(-1)
    rank = state.count.long().masked_fill(wrong[:, None], -1)
    target = unordered(state.target).double() - lse[:, None] + nan[:, None]
    return ids.masked_fill(wrong[:, None], -1), log_prob, entropy, kl, rank, target
