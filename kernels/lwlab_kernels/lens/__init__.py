"""Lens statistics: what each layer's stream predicts, without ever holding its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from lwlab.errors import BadInput
from lwlab_kernels.choose import Backend, check_floats, choose, same_device
from lwlab_kernels.lens.norms import Norm

__all__ = ["LensStats", "Norm", "lens_stats"]

Head = Callable[[torch.Tensor], torch.Tensor]


class LensStats(NamedTuple):
    """Statistics of p_lt = softmax(z_lt); see `lens_stats`."""

    ids: torch.Tensor
    """[L, T, k] int64: the tokens of highest probability, highest first; ties by lower id."""
    log_prob: torch.Tensor
    """[L, T, k]: their log-probabilities, nats."""
    entropy: torch.Tensor
    """[L, T]: -sum p ln p, nats."""
    kl: torch.Tensor | None
    """[L, T]: KL(p_lt || p_ref,t), nats; None without `ref`."""
    rank: torch.Tensor | None
    """[L, T(, n)] int64: the targets' places in the order of `ids`, 0 for the first."""
    target_log_prob: torch.Tensor | None
    """[L, T(, n)]: the targets' log-probabilities, nats."""
    backend: Backend


@torch.no_grad()
def lens_stats(
    h: torch.Tensor,
    norm: Head | None,
    W_U: torch.Tensor | Head,
    targets: torch.Tensor | None = None,
    *,
    ref: int | None = -1,
    k: int = 5,
    bias: torch.Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    memory: int | None = None,
    backend: str | None = None,
) -> LensStats:
    """Top-k, entropy, KL and target ranks of the logit lens at every layer and position.

    z_lt = cap(scale * W_U norm(h_lt) + bias), cap(z) = softcap tanh(z / softcap), p = softmax(z).

    h: [L, T, d], streams by layer (or by anything) and position. norm: a `Norm`, a module or any
    function [..., d] -> [..., d]; None for none. W_U: [V, d], or a function [rows, d] -> [rows, V]
    for a head that is more than a matrix (then `bias` is its own business, and so is its memory:
    some rows' logits at a time). targets: [T] or [T, n] token ids. ref: the layer that `kl`
    compares with, or None.

    Besides its inputs and results it holds one block of logits, some positions at all layers times
    some of the vocabulary: `memory` bytes (16 MB on a CPU, 256 MB elsewhere), whatever T and V are.

    Products of values as stored are summed in float32, also for half and bfloat16 inputs; the
    reductions in float32 within a block of the vocabulary and float64 across; float64 inputs are
    float64 throughout (torch alone). Against float64 on streams of smollm2-135m (V = 49152): 5e-6
    nats in entropy, 3e-5 in KL, 6e-5 in log-probabilities, where the logits' own rounding is seen.
    Entropy and KL are not below 0. A rank can be off by the number of tokens whose logits lie
    within rounding (1e-6 of their size) of the target's.

    NaN and inf: a row with a NaN or +inf logit, or with none above -inf, has NaN statistics, ids
    and ranks -1. Logits of -inf are tokens of probability 0; KL is +inf where p > 0 and p_ref = 0.

    Raises BadInput for shapes, types, devices, k or targets that do not fit, UnknownName for an
    unknown backend: before any work. Logit lens: nostalgebraist 2020.
    """
    L, _, V = _check(h, norm, W_U, targets, ref, k, bias, softcap, memory)
    tensors = [h, targets, bias, W_U if isinstance(W_U, torch.Tensor) else None]
    double = any(t is not None and t.dtype == torch.float64 for t in tensors)
    if double and backend not in (None, "torch"):
        raise BadInput(f"backend={backend!r} has no float64; pass float32, or use 'torch'")
    chosen = choose("torch" if double else backend, *tensors)
    many = None if targets is None else (targets if targets.ndim == 2 else targets[:, None]).long()
    if chosen == "torch":
        from lwlab_kernels.lens.reference import reference as run
    else:
        from lwlab_kernels.lens.blocks import blockwise as run
    if ref is not None and L:
        ref %= L
    size = memory or (16_000_000 if h.device.type == "cpu" else 256_000_000)
    out = run(h, norm, W_U, many, ref, k, V, bias, scale, softcap, size, chosen)
    if targets is not None and targets.ndim == 1:
        assert out.rank is not None
        assert out.target_log_prob is not None
        out = out._replace(rank=out.rank[..., 0], target_log_prob=out.target_log_prob[..., 0])
    return out


def _check(
    h: torch.Tensor,
    norm: Head | None,
    W_U: torch.Tensor | Head,
    targets: torch.Tensor | None,
    ref: int | None,
    k: int,
    bias: torch.Tensor | None,
    softcap: float | None,
    memory: int | None,
) -> tuple[int, int, int]:
    """Return (L, T, V), or raise BadInput."""
    check_floats(h=h, bias=bias)
    if h.ndim != 3:
        raise BadInput(f"h has shape {tuple(h.shape)}; it must be [layers, positions, d_model]")
    L, T, d = h.shape
    if norm is not None and not isinstance(norm, Norm):
        d = norm(h.new_zeros(1, d)).shape[-1]  # OPT's projects to another width
    if isinstance(W_U, torch.Tensor):
        check_floats(W_U=W_U)
        if W_U.ndim != 2 or W_U.shape[1] != d or not len(W_U):
            raise BadInput(
                f"W_U has shape {tuple(W_U.shape)}; for h {tuple(h.shape)} it must be "
                f"[vocabulary, {d}]" + (" (pass W_U.T)" if W_U.shape[:1] == (d,) else "")
            )
        V = len(W_U)
        same_device(h, W_U)
    else:
        if bias is not None:
            raise BadInput("bias goes with a matrix W_U; a function adds its own")
        V = W_U(h.new_zeros(1, d)).shape[-1]
    if bias is not None and bias.shape != (V,):
        raise BadInput(f"bias has shape {tuple(bias.shape)}; it must be [{V}]")
    if not 1 <= k <= V:
        raise BadInput(f"k={k} must be in 1..{V}, the vocabulary")
    if ref is not None and L and not -L <= ref < L:
        raise BadInput(f"ref={ref}: h has {L} layers, so ref is 0..{L - 1}, or None")
    if softcap is not None and not softcap > 0:
        raise BadInput(f"softcap={softcap} must be above 0, or None")
    if memory is not None and memory < 1:
        raise BadInput(f"memory={memory}: bytes for the block of logits")
    if targets is not None:
        _check_targets(targets, T, V)
    return L, T, V


def _check_targets(targets: torch.Tensor, T: int, V: int) -> None:
    whole = isinstance(targets, torch.Tensor) and not (
        targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool
    )
    if not whole:
        raise BadInput("targets must be token ids, a tensor of whole numbers")
    if targets.ndim not in (1, 2) or len(targets) != T:
        raise BadInput(f"targets has shape {tuple(targets.shape)}; it must be [{T}] or [{T}, n]")
    if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < V:
        wrong = int(targets.min()) if int(targets.min()) < 0 else int(targets.max())
        raise BadInput(f"target {wrong} is outside the vocabulary, 0..{V - 1}")
