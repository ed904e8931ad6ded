"""GPTQ in which every column has a number of levels of its own, and what each column loses."""

from __future__ import annotations

from typing import NamedTuple

import torch

from lwlab.errors import BadInput
from lwlab.quantization.gptq import _factor


class Columns(NamedTuple):
    """`weight` [outputs, inputs] rounded; `losses` [inputs] float64; `objective` tr(D H D^T)."""

    weight: torch.Tensor
    losses: torch.Tensor
    objective: float


def round_columns(
    w: torch.Tensor,
    hessian: torch.Tensor,
    levels: torch.Tensor,
    *,
    damp: float = 0.01,
    block: int = 128,
) -> Columns:
    """Round column j of `w` [outputs, inputs] to levels[j] values a row, passing errors on.

    Row r has one range for all columns, taken from `w` and widened to hold 0:
    low_r = min(0, min w), high_r = max(0, max w). With n = levels[j] values,
    s_r = (high_r - low_r) / (n - 1), zero_r = rint(-low_r / s_r) and
    w' = s_r (clamp(rint(w / s_r) + zero_r, 0, n - 1) - zero_r). One level (0 bits) is the row's
    mean. With U the upper Cholesky factor of the inverse of the
    damped H, column j loses

        L_j = sum_r (w_rj - w'_rj)^2 / (2 U_jj^2),      w as earlier columns' errors have left it,

    and w_k -= (w_j - w'_j) U_jk / U_jj for every k > j. Inputs that are never on (H_jj = 0) get
    weights 0 and lose nothing.

    Raises BadInput for shapes that do not fit, levels under 1 or over 65536, a hessian or weights
    that are not finite, or a hessian that stays indefinite. arXiv:2506.05664, after GPTQ
    (arXiv:2210.17323); 0-bit columns as its code has them.
    """
    if w.ndim != 2 or not w.is_floating_point():
        raise BadInput(f"w is {w.dtype} {tuple(w.shape)}: give floats [outputs, inputs]")
    n = w.shape[1]
    if hessian.shape != (n, n) or not hessian.is_floating_point():
        raise BadInput(f"hessian is {tuple(hessian.shape)}; it must be floating, ({n}, {n})")
    if levels.shape != (n,) or levels.is_floating_point():
        raise BadInput(f"levels is {levels.dtype} {tuple(levels.shape)}: give {n} whole numbers")
    if int(levels.min()) < 1 or int(levels.max()) > 2**16:
        raise BadInput("levels: a column has from 1 (0 bits) to 65536 (16 bits) of them")
    if damp < 0 or block < 1:
        raise BadInput(f"damp={damp}, block={block}: damp is 0 or more, block is 1 or more")
    kind = torch.promote_types(w.dtype, torch.float32)
    h = hessian.detach().to(kind)
    if not bool(h.isfinite().all()) or not bool(w.isfinite().all()):
        raise BadInput("w or the hessian holds NaN or infinity")
    # The work is done on W^T, so that a column is a contiguous row.
    x = w.detach().to(kind).T.clone(memory_format=torch.contiguous_format)
    low, high = x.amin(0).clamp(max=0), x.amax(0).clamp(min=0)
    mean = x.mean(0)
    dead = h.diagonal() == 0
    x[dead] = 0
    u = _factor(h, dead, damp)
    out = torch.empty_like(x)
    losses = torch.zeros(n, dtype=torch.float64)
    counts, off = levels.tolist(), dead.tolist()
    grids = {k: _grid(low, high, k) for k in set(counts) - {1}}
    diagonal = u.diagonal().tolist()
    for start in range(0, n, block):
        stop = min(start + block, n)
        errors = torch.empty(stop - start, x.shape[1], dtype=kind, device=w.device)
        for j in range(start, stop):
            if off[j]:
                out[j] = 0
            elif counts[j] == 1:
                out[j] = mean
            else:
                scale, least, most = grids[counts[j]]
                torch.div(x[j], scale, out=out[j]).round_().clamp_(least, most).mul_(scale)
            e = torch.sub(x[j], out[j], out=errors[j - start]).div_(diagonal[j])
            x[j + 1 : stop].addr_(u[j, j + 1 : stop], e, alpha=-1)
        losses[start:stop] = 0.5 * errors.square().sum(1, dtype=torch.float64).cpu()
        x[stop:].addmm_(u[start:stop, stop:].T, errors, alpha=-1)
    weight = out.T.contiguous().to(w.dtype)
    d = (w.detach().to(kind) - weight.to(kind)).double()
    return Columns(weight, losses, float((d @ h.double() * d).sum()))


def _grid(
    low: torch.Tensor, high: torch.Tensor, n: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Step and ends, in steps from 0, of each row's `n` levels."""
    scale = (high - low) / (n - 1)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # a row of zeros
    zero = (-low / scale).round_()
    return scale, -zero, n - 1 - zero
