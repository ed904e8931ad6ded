"""How much of each matrix is lost at every bit-width, in one pass over the model's weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
import xarray as xr

from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.quantization.matrices import Matrix, matrices, module_names
from lwlab.results import provenance
from lwlab.tracing import lock


def error_table(
    model: Model,
    group: int | None = 64,
    bits: int | Iterable[int] = range(1, 9),
    *,
    symmetric: bool = True,
    weight: Mapping[tuple[int, str], torch.Tensor] | None = None,
    layers: Iterable[int] | int | None = None,
    modules: str | Iterable[str] | None = None,
) -> xr.Dataset:
    """Squared error of rounding each matrix of the blocks to each number of bits.

    error = sum_ij c_j (W_ij - W'_ij)^2, relative_error = error / sum_ij c_j W_ij^2, with W' rounded
    in groups of `group` inputs (None: whole rows) as `lwlab_kernels.quant` says. `weight` gives c
    by (layer, module): the mean square of each input (`input_squares`), so that the error is that
    of the outputs if inputs were uncorrelated; None: ones.

    Returns (layer, module, bits): `error`, `relative_error`, `megabytes` (packed, scales and
    offsets included, 10^6 bytes); and (layer, module): `weights` (how many), `outputs`, `inputs`.
    NaN where a block lacks a module that another has. Attributes name the backend.

    Raises BadInput for bits outside 1..8, a group that does not divide the inputs of a matrix, or
    inputs that `weight` lacks; UnknownName for a module: before any work.
    """
    from lwlab_kernels.quant import QuantErrors, quant_error_table

    chosen = matrices(model, layers, modules)
    widths: tuple[int, ...] = ()
    for m in chosen:
        widths, _ = checked(m, bits if isinstance(bits, int) else tuple(bits), group)
        if weight is not None and (m.layer, m.name) not in weight:
            raise BadInput(f"weight lacks ({m.layer}, {m.name!r}); make it with input_squares")
    at = list(dict.fromkeys(m.layer for m in chosen))
    names = module_names(chosen)
    shape = (len(at), len(names))
    error, norm, size = (np.full((*shape, len(widths)), np.nan) for _ in range(3))
    counts, outputs, inputs = (np.zeros(shape, int) for _ in range(3))
    used = ""
    for m in chosen:
        i = at.index(m.layer), names.index(m.name)
        c = None if weight is None else weight[m.layer, m.name]
        with lock(model):
            w = m.weight
            found: QuantErrors = quant_error_table(w, group, widths, c, symmetric)
        error[i], norm[i] = found.error.sum(0).cpu(), float(found.norm.sum())
        size[i] = [megabytes(w, b, group, symmetric) for b in widths]
        counts[i], outputs[i], inputs[i], used = w.numel(), *w.shape, found.backend
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(error == 0, 0.0, error / norm)
    dims, flat = ("layer", "module", "bits"), ("layer", "module")
    return xr.Dataset(
        {
            "error": (dims, error),
            "relative_error": (dims, relative),
            "megabytes": (dims, size, {"unit": "10^6 bytes"}),
            "weights": (flat, counts),
            "outputs": (flat, outputs),
            "inputs": (flat, inputs),
        },
        coords={"layer": at, "module": names, "bits": list(widths)},
        attrs=provenance(
            model, technique="quantisation error table", group=group or 0, symmetric=symmetric,
            weighted=weight is not None, backend=used,
        ),
    )  # fmt: skip


def checked(m: Matrix, bits: int | Iterable[int], group: int | None) -> tuple[tuple[int, ...], int]:
    """Check bits and group against one matrix; a BadInput says which matrix it was."""
    from lwlab_kernels.quant import check

    try:
        return check(m.weight, bits, group)
    except BadInput as error:
        raise BadInput(f"layer {m.layer}, {m.name}: {error}") from None


def megabytes(w: torch.Tensor, bits: int, group: int | None, symmetric: bool) -> float:
    """Size of `pack(w, bits, group, symmetric)`, which tests hold it to."""
    groups = w.shape[0] * (w.shape[1] // (group or w.shape[1]))
    return (-(-w.numel() * bits // 8) + 2 * groups * (1 if symmetric else 2)) / 1e6
