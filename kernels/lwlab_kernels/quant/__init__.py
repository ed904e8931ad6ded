"""Rounding weights to a few bits: the error of every bit-width in one read, and one bit-width.

A row of W is cut into groups of `group` columns. A group is stored as b-bit codes and one float16
scale s (and, asymmetric, one float16 offset z). With q_max = 2^(b-1) - 1:

    symmetric,  b >= 2:  s = max|w| / q_max,         w' = s clamp(rint(w / s), -q_max, q_max)
    symmetric,  b = 1:   s = mean|w|,                w' = s if w >= 0 else -s   (least squares)
    asymmetric:          z = min w, s = (max w - min w) / (2^b - 1),
                         w' = z + s clamp(rint((w - z) / s), 0, 2^b - 1)

s and z are rounded to float16 before they are used, because that is what is stored: w' is exactly
what `pack` followed by `unpack` gives. Ties round to even. w / s is w (1 / s) in float32, in every
backend, so all backends agree bit for bit. s = 0 (a constant or tiny group) gives w' = z or 0.
Weights on such a grid with float16 s and z (GGUF's Q4_1 and Q8_0, for example) come back unchanged.

NaN, infinity, or a scale or offset beyond float16 (65504) make their own group NaN, and in the
table their row; nothing else is touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from lwlab.errors import BadInput
from lwlab_kernels.choose import Backend, check_floats, choose
from lwlab_kernels.quant.pack import Packed, bits_per_weight, pack, unpack

__all__ = [
    "BITS",
    "FakeQuant",
    "Packed",
    "QuantErrors",
    "bits_per_weight",
    "check",
    "fake_quant",
    "pack",
    "quant_error_table",
    "unpack",
]

BITS = tuple(range(1, 9))


class FakeQuant(NamedTuple):
    """`weight` [rows, columns] in W's type; float16 `scale`, `offset` [rows, groups]."""

    weight: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None
    backend: Backend


class QuantErrors(NamedTuple):
    """Squared errors [rows, bits] and norms [rows], float64; bits and storage a weight, [bits]."""

    error: torch.Tensor
    norm: torch.Tensor
    bits: tuple[int, ...]
    bits_per_weight: tuple[float, ...]
    backend: Backend


def fake_quant(
    w: torch.Tensor,
    bits: int,
    group: int | None = None,
    symmetric: bool = True,
    *,
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> FakeQuant:
    """Round `w` [rows, columns] to `bits` bits and back (see the module for the formulas).

    group: columns that share a scale, None for the whole row. out: where to write the weights,
    which may be `w` itself (fresh memory costs more time than the rounding). The work is done in
    float32 (float64 for a float64 `w`, torch alone) and the result has w's type: half and bfloat16
    round once more. Backends agree bit for bit; against float64 arithmetic an element whose w / s
    is within 1e-5 of a tie may land one step away.

    Raises BadInput for a `w` that is no float matrix, bits outside 1..8, a group that does not
    divide the columns, an `out` of another shape, type or device, or a backend that cannot run
    here; UnknownName for one that does not exist.
    """
    (bits,), group = check(w, bits, group)
    if out is not None and (out.shape, out.dtype) != (w.shape, w.dtype):
        raise BadInput(
            f"out is {out.dtype} {tuple(out.shape)}; it must be as w, {w.dtype} {tuple(w.shape)}"
        )
    chosen = _backend(backend, w, out)
    if chosen == "numba" and w.numel():
        from lwlab_kernels.quant.cpu import fake_quant as run
    elif chosen == "triton" and w.numel():
        from lwlab_kernels.quant.gpu import fake_quant as run
    else:
        from lwlab_kernels.quant.reference import fake_quant as run
    found = run(w.detach(), bits, group, symmetric, None if out is None else out.detach())
    return FakeQuant(*found, chosen)


def quant_error_table(
    w: torch.Tensor,
    group: int | None = None,
    bits: int | Iterable[int] = BITS,
    weight: torch.Tensor | None = None,
    symmetric: bool = True,
    *,
    backend: str | None = None,
) -> QuantErrors:
    """Squared rounding error of `w` [rows, columns] at every bit-width, in one read of `w`.

    error[r, b] = sum_j weight_j (w_rj - w'_rj(b))^2 and norm[r] = sum_j weight_j w_rj^2, with w' as
    `fake_quant` has it before it returns to w's type. weight: [columns], not negative, such as
    the mean square of each input (a diagonal Hessian); None for ones. Backends agree to 1e-5
    relative to the error plus 1e-12 of the norm.

    Raises BadInput as `fake_quant` does, and for a weight that does not fit or is negative or not
    finite.
    """
    wanted, group = check(w, bits, group)
    if weight is not None:
        _check_weight(w, weight)
    chosen = _backend(backend, w, weight)
    if chosen == "numba" and w.numel():
        from lwlab_kernels.quant.cpu import error_table as run
    elif chosen == "triton" and w.numel():
        from lwlab_kernels.quant.gpu import error_table as run
    else:
        from lwlab_kernels.quant.reference import error_table as run
    error, norm = run(w.detach(), wanted, group, symmetric, weight)
    stored = tuple(bits_per_weight(b, group, symmetric) for b in wanted)
    return QuantErrors(error, norm, wanted, stored, chosen)


def check(
    w: torch.Tensor, bits: int | Iterable[int], group: int | None
) -> tuple[tuple[int, ...], int]:
    """Return bits as a tuple and the group as a number of columns; raise BadInput (see above)."""
    check_floats(w=w)
    if w.ndim != 2:
        raise BadInput(f"w has shape {tuple(w.shape)}; quantisation wants [rows, columns]")
    wanted = tuple(bits) if isinstance(bits, Iterable) else (bits,)
    for b in wanted:
        if isinstance(b, bool) or not isinstance(b, int) or b not in BITS:
            raise BadInput(f"bits={b!r}: give whole numbers from 1 to 8")
    if not wanted:
        raise BadInput("bits is empty; give whole numbers from 1 to 8")
    columns = w.shape[1]
    size = max(columns, 1) if group is None else group
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise BadInput(f"group={group!r}: give a number of columns, or None for whole rows")
    if columns % size:
        fits = [g for g in (32, 64, 96, 128, 192, 256) if columns % g == 0]
        raise BadInput(
            f"group={size} does not divide the {columns} columns; "
            + (f"for example {', '.join(map(str, fits))} do" if fits else "None takes whole rows")
        )
    return wanted, size


def _check_weight(w: torch.Tensor, weight: torch.Tensor) -> None:
    check_floats(weight=weight)
    if weight.shape != w.shape[1:]:
        raise BadInput(
            f"weight has shape {tuple(weight.shape)}; one number for each of w's columns is "
            f"({w.shape[1]},)"
        )
    if not bool((weight.isfinite() & (weight >= 0)).all()):
        raise BadInput("weight holds a negative number, NaN or infinity")


def _backend(backend: str | None, w: torch.Tensor, *others: torch.Tensor | None) -> Backend:
    if w.dtype != torch.float64:
        return choose(backend, w, *others)
    if backend not in (None, "torch"):
        choose(backend, w, *others)  # an unknown name says so first
        raise BadInput(f"backend={backend!r} works in float32; a float64 w runs on 'torch'")
    return choose("torch", w, *others)
