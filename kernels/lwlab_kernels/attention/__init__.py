"""Attention statistics: where each head looks, without a pattern of queries by keys."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from lwlab.errors import BadInput
from lwlab_kernels.attention.visible import visible
from lwlab_kernels.choose import Backend, check_floats, choose

__all__ = ["AttnStats", "Mask", "attn_stats"]

Mask = Literal["causal", "full"]


class AttnStats(NamedTuple):
    """Statistics of attention patterns A, [B, H, T, S]; see `attn_stats`. Without B for 3-d q."""

    entropy: torch.Tensor
    """[B, H, T]: -sum_j A_ij ln A_ij, nats."""
    sink: torch.Tensor
    """[B, H, T]: sum of A_ij over the first `sink` real keys."""
    distance: torch.Tensor
    """[B, H, T]: sum_j A_ij |i - j|, in tokens."""
    column: torch.Tensor
    """[B, H, S]: sum_i A_ij over the real queries, so that it sums to their number."""
    backend: Backend


@torch.no_grad()
def attn_stats(
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    scale: float | None = None,
    mask: Mask | torch.Tensor = "causal",
    window: int | None = None,
    keys: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    sink: int = 1,
    memory: int | None = None,
    backend: str | None = None,
) -> AttnStats:
    """Entropy, sink mass, mean distance and column mass of every head.

    A_ij = softmax_j(cap(scale q_i k_j) + bias_ij) over the keys that query i sees, with
    cap(x) = softcap tanh(x / softcap).

    q: [B, H, T, d] or [H, T, d]; k: [B, G, S, d] with G dividing H, head h reading k's head
    h G // H (grouped queries). Both as they are multiplied: after rotary embedding and QK norm.
    scale: d^-1/2 unless given. Query i stands at key i + S - T (T <= S).

    What query i sees, j being a key: mask "causal": j <= i; "full": all; or a boolean tensor
    ([T, S], [B, T, S] or [B, 1, T, S], true where seen). window: and |i - j| < window. keys:
    [B, S], true for real tokens: others are not seen, and as queries not counted. bias: floats that
    can be expanded to [B, H, T, S] (ALiBi, T5); -inf hides a key.

    Holds one block of scores besides inputs and results: `memory` bytes (4 MB on a CPU, 256 MB
    elsewhere), and at least one query's, so memory grows with S and not with T S. Causal and
    windowed queries cost the keys they see. A dense `mask` or `bias` is the caller's own T S.

    Computed in float32 (float64 for float64 inputs: torch alone). Against the patterns of
    smollm2-135m at T = 512: 2e-5 nats in entropy, 3e-6 in sink mass, 5e-6 relative in distance and
    column mass.

    NaN: a query that sees no key, or is padding, has NaN statistics and adds nothing to columns.
    One that sees a NaN or +inf score has NaN statistics, and its keys' column masses are NaN.

    Raises BadInput for shapes, types, devices, a window or a sink that do not fit, UnknownName for
    an unknown backend: before any work.
    """
    single = isinstance(q, torch.Tensor) and q.ndim == 3
    if single and isinstance(k, torch.Tensor) and k.ndim == 3:
        q, k = q[None], k[None]
    _check(q, k, bias, softcap, sink, memory)
    tensors = [q, k, bias, keys, mask if isinstance(mask, torch.Tensor) else None]
    double = any(t is not None and t.dtype == torch.float64 for t in tensors)
    if double and backend not in (None, "torch"):
        raise BadInput(f"backend={backend!r} has no float64; pass float32, or use 'torch'")
    chosen = choose("torch" if double else backend, *tensors)
    B, H, T, d = q.shape
    S = k.shape[2]
    see = visible(B, T, S, mask, window, keys, q.device)
    if bias is not None:
        bias = bias.expand(B, H, T, S)
    scale = d**-0.5 if scale is None else scale
    size = memory or (4_000_000 if q.device.type == "cpu" else 256_000_000)
    if chosen == "torch":
        from lwlab_kernels.attention.reference import reference as run
    else:
        from lwlab_kernels.attention.blocks import blockwise as run
    out = run(q, k, float(scale), see, bias, softcap, sink, size, chosen)
    if single:
        return AttnStats(out.entropy[0], out.sink[0], out.distance[0], out.column[0], chosen)
    return out


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    bias: torch.Tensor | None,
    softcap: float | None,
    sink: int,
    memory: int | None,
) -> None:
    """Raise BadInput for what cannot work."""
    check_floats(q=q, k=k, bias=bias)
    if q.ndim != 4 or k.ndim != 4:
        raise BadInput(
            f"q {tuple(q.shape)} and k {tuple(k.shape)}: give both as [batch, heads, positions, "
            "d_head], or both without batch"
        )
    (B, H, T, d), (Bk, G, S, dk) = q.shape, k.shape
    if (B, d) != (Bk, dk):
        raise BadInput(f"q {tuple(q.shape)} and k {tuple(k.shape)} differ in batch or d_head")
    if (not G and H) or (G and H % G):
        raise BadInput(f"{H} query heads do not share {G} key heads evenly")
    if T > S:
        raise BadInput(f"{T} queries and {S} keys: the queries must be among the keys")
    if bias is not None:
        try:
            bias.expand(B, H, T, S)
        except RuntimeError:
            raise BadInput(
                f"bias has shape {tuple(bias.shape)}; it must expand to {[B, H, T, S]}"
            ) from None
    if softcap is not None and not softcap > 0:
        raise BadInput(f"softcap={softcap} must be above 0, or None")
    if sink < 1:
        raise BadInput(f"sink={sink}: the number of first keys, at least 1")
    if memory is not None and memory < 1:
        raise BadInput(f"memory={memory}: bytes for the block of scores")
