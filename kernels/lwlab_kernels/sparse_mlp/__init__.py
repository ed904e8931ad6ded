"""A gated MLP that computes only some of its neurons, token by token: the decode step.

    a_i = f(gate_i . x),   y = sum_{i in S(x)} a_i (up_i . x) down_i

with one row a neuron in `gate`, `up` and `down_t` (W_down transposed). S(x) is given (`idx`), or is
where |a_i| reaches a threshold: then every gate_i is read, but up_i and down_i only where it pays.
One threshold for all neurons is CATS (arXiv:2404.08763), one a neuron is CHESS (arXiv:2409.01366).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab_kernels.choose import Backend, check_floats, choose
from lwlab_kernels.sparse_mlp.reference import ACTIVATIONS

__all__ = ["ACTIVATIONS", "SparseMLP", "sparse_mlp"]


class SparseMLP(NamedTuple):
    """`y` [tokens, d_out] (or [d_out]) in x's type; `active` [tokens] neurons (or one number)."""

    y: torch.Tensor
    active: torch.Tensor
    backend: Backend


def sparse_mlp(
    x: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    down_t: torch.Tensor,
    *,
    idx: torch.Tensor | None = None,
    threshold: torch.Tensor | float | None = None,
    act: str = "silu",
    backend: str | None = None,
) -> SparseMLP:
    """The MLP's output from some of its neurons (see the module for the equation).

    x: [tokens, d] or [d], few tokens (each walks through its own neurons; many tokens at once are
    faster dense). gate, up: [neurons, d]; down_t: [neurons, d_out]; any float types, float32
    arithmetic (float64, torch alone, where one of them is). Give one of
    idx: int64 [k] for all tokens or [tokens, k]; -1 is no neuron, one named twice counts twice.
    threshold: a number or [neurons]; neuron i is left out where |a_i| < threshold_i, so NaN stays
    in, and zero leaves nothing out.
    act: silu, gelu, gelu_tanh or relu.

    Backends agree to 1e-6 of sum_i |gate_i . x| |up_i . x| |down_i| (float32 sums in another order;
    an |a_i| that close to its threshold may fall on the other side). NaN or infinity in x or in
    the rows of neurons that are used comes out as IEEE arithmetic has it; rows of neurons left out
    are not looked at.

    Raises BadInput for shapes or types that do not fit, an index outside the neurons, a NaN
    threshold, both or neither of idx and threshold; UnknownName for an unknown act or backend.
    """
    rows = _check(x, gate, up, down_t, idx, threshold)
    if act not in ACTIVATIONS:
        raise UnknownName(f"unknown act {act!r}{suggest(str(act), ACTIVATIONS)}")
    limits = threshold if isinstance(threshold, torch.Tensor) else None
    chosen = choose(backend, x, gate, up, down_t, idx, limits)
    if any(t.dtype == torch.float64 for t in (x, gate, up, down_t)):
        if backend not in (None, "torch"):
            raise BadInput(f"backend={backend!r} works in float32; float64 runs on 'torch'")
        chosen = "torch"
    if chosen == "numba" and gate.numel():
        from lwlab_kernels.sparse_mlp.cpu import run
    elif chosen == "triton" and gate.numel():
        from lwlab_kernels.sparse_mlp.gpu import run
    else:
        from lwlab_kernels.sparse_mlp.reference import run
    tokens = rows.detach()
    limit = None
    if threshold is not None:
        limit = torch.as_tensor(threshold, dtype=torch.float32, device=x.device).detach()
        limit = limit.expand(len(gate))
    chosen_rows = None if idx is None else idx.expand(len(tokens), idx.shape[-1])
    y, active = run(tokens, gate.detach(), up.detach(), down_t.detach(), chosen_rows, limit, act)
    y = y.to(x.dtype)
    return SparseMLP(y, active, chosen) if x.ndim == 2 else SparseMLP(y[0], active[0], chosen)


def _check(
    x: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    down_t: torch.Tensor,
    idx: torch.Tensor | None,
    threshold: torch.Tensor | float | None,
) -> torch.Tensor:
    check_floats(x=x, gate=gate, up=up, down_t=down_t)
    if (idx is None) == (threshold is None):
        raise BadInput("give one of idx (the neurons) and threshold (the rule)")
    if x.ndim not in (1, 2) or gate.ndim != 2 or gate.shape[1] != x.shape[-1]:
        raise BadInput(
            f"x {tuple(x.shape)} and gate {tuple(gate.shape)} do not fit: [tokens, d] or [d], and "
            "[neurons, d]"
        )
    if up.shape != gate.shape or down_t.ndim != 2 or len(down_t) != len(gate):
        raise BadInput(
            f"gate {tuple(gate.shape)}, up {tuple(up.shape)} and down_t {tuple(down_t.shape)} must "
            "have a row for each neuron: is down_t W_down transposed?"
        )
    rows = x if x.ndim == 2 else x[None]
    n = len(gate)
    if isinstance(threshold, torch.Tensor):
        check_floats(threshold=threshold)
        if threshold.shape not in ((), (n,)):
            raise BadInput(f"threshold {tuple(threshold.shape)}: give a number, or ({n},)")
    if threshold is not None and bool(torch.as_tensor(threshold).isnan().any()):
        raise BadInput("threshold holds NaN")
    if idx is not None:
        if not isinstance(idx, torch.Tensor) or idx.dtype not in (torch.int64, torch.int32):
            raise BadInput("idx must be a tensor of whole numbers (int64 or int32)")
        if idx.ndim not in (1, 2) or (idx.ndim == 2 and len(idx) != len(rows)):
            raise BadInput(f"idx {tuple(idx.shape)}: give [k], or [tokens, k] = ({len(rows)}, k)")
        if idx.numel() and not -1 <= int(idx.min()) <= int(idx.max()) < n:
            raise BadInput(f"idx reaches from {int(idx.min())} to {int(idx.max())}; neurons are "
                           f"0..{n - 1}, and -1 for none")  # fmt: skip
    return rows
