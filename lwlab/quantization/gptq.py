"""GPTQ: round column by column, and let the columns still to come make up for the error."""

from __future__ import annotations

from typing import NamedTuple

import torch

from lwlab.errors import BadInput


class Rounded(NamedTuple):
    """`weight` [outputs, inputs]; layer `objective` tr(D H D^T), D = W - W', before damping."""

    weight: torch.Tensor
    objective: float


def gptq(
    w: torch.Tensor,
    hessian: torch.Tensor,
    bits: int,
    group: int | None = None,
    symmetric: bool = True,
    *,
    damp: float = 0.01,
    block: int = 128,
) -> Rounded:
    """Round `w` [outputs, inputs] so that the layer's output, not its weights, stays close.

    H is made safe first: an input that is never on (H_jj = 0) gets H_jj = 1 and weights 0, and
    damp mean(diag H) is added to the diagonal. With U the upper Cholesky factor of H^-1, for each
    column j in order: q = rounded w_j, e = (w_j - q) / U_jj, and w_k -= e U_jk for every k > j.
    A group's grid (formulas: `lwlab_kernels.quant`) is fixed when its first column is reached, from
    the weights as they are by then. H = c I gives plain rounding, bit for bit.

    The work is done on W^T, so that a column is a contiguous row, in blocks of `block` columns;
    float32 (float64 where w is).

    Raises BadInput for a shape, bits or group that do not fit, a hessian that is not finite or
    that stays indefinite after damping. Frantar et al. 2022 (arXiv:2210.17323).
    """
    from lwlab_kernels.quant import check
    from lwlab_kernels.quant.reference import levels

    (bits,), group = check(w, bits, group)
    n = w.shape[1]
    if hessian.shape != (n, n) or not hessian.is_floating_point() or hessian.device != w.device:
        raise BadInput(
            f"hessian is {hessian.dtype} {tuple(hessian.shape)} on {hessian.device}; it must be "
            f"floating, ({n}, {n}), on {w.device}"
        )
    if damp < 0 or block < 1:
        raise BadInput(f"damp={damp}, block={block}: damp is 0 or more, block is 1 or more")
    kind = torch.promote_types(w.dtype, torch.float32)
    h = hessian.detach().to(kind)
    if not bool(h.isfinite().all()) or not bool(w.isfinite().all()):
        raise BadInput("w or the hessian holds NaN or infinity")
    x = w.detach().to(kind).T.clone(memory_format=torch.contiguous_format)
    out = torch.empty_like(x)
    dead = h.diagonal() == 0
    x[dead] = 0
    u = _factor(h, dead, damp)
    snap = _Grid(x[:0], None, bits)
    for start in range(0, n, block):
        stop = min(start + block, n)
        errors = torch.empty(stop - start, x.shape[1], dtype=kind, device=w.device)
        for j in range(start, stop):
            if j % group == 0:
                # Columns of this group beyond the block have not had the block's errors yet.
                members = x[j : j + group]
                if j + group > stop and j > start:
                    late = u[start:j, stop : j + group].T @ errors[: j - start]
                    members = torch.cat([members[: stop - j], members[stop - j :] - late])
                scale, offset = levels(members.T, bits, symmetric)
                if not bool(scale.isfinite().all()):
                    raise BadInput("the scale or offset of a group exceeds float16")
                snap = _Grid(scale[:, 0], None if offset is None else offset[:, 0], bits)
            out[j] = snap(x[j])
            torch.sub(x[j], out[j], out=errors[j - start]).div_(u[j, j])
            x[j + 1 : stop].addr_(u[j, j + 1 : stop], errors[j - start], alpha=-1)
        x[stop:].addmm_(u[start:stop, stop:].T, errors, alpha=-1)
    weight = out.T.contiguous().to(w.dtype)
    d = (w.detach().to(kind) - weight.to(kind)).double()
    return Rounded(weight, float((d @ h.double() * d).sum()))


class _Grid:
    """A group's grid, ready for one column after another: `codes` and `values` of the kernel."""

    def __init__(self, scale: torch.Tensor, offset: torch.Tensor | None, bits: int) -> None:
        self.scale, self.offset, self.binary = scale, offset, offset is None and bits == 1
        self.inverse = torch.where(scale > 0, 1 / scale, 0 * scale)
        top = 2**bits - 1 if offset is not None else 2 ** (bits - 1) - 1
        self.low, self.top = 0 if offset is not None else -top, top

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """w' of one column [outputs]."""
        if self.binary:
            return torch.where(x >= 0, self.scale, -self.scale)
        if self.offset is None:
            return (x * self.inverse).clamp_(self.low, self.top).round_().mul_(self.scale)
        q = (x - self.offset).mul_(self.inverse).clamp_(self.low, self.top).round_()
        return q.mul_(self.scale).add_(self.offset)


def _factor(h: torch.Tensor, dead: torch.Tensor, damp: float) -> torch.Tensor:
    """Upper Cholesky factor of the inverse of the damped H."""
    safe = h.clone()
    diagonal = safe.diagonal()
    diagonal[dead] = 1
    diagonal += damp * diagonal.mean()
    lower, failed = torch.linalg.cholesky_ex(safe)
    if int(failed):
        raise BadInput(
            f"the hessian is not positive definite with damp={damp}: raise it, or calibrate on "
            "more tokens than there are inputs"
        )
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if int(failed):
        raise BadInput(f"the inverse hessian lost its positive sign with damp={damp}: raise it")
    return upper
