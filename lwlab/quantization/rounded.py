"""A model that runs with rounded weights for a while, and has its own back afterwards."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import xarray as xr

from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.quantization.error import checked, megabytes
from lwlab.quantization.matrices import Matrix, matrices
from lwlab.tracing import lock

Bits = int | Mapping[int, int] | xr.DataArray


@dataclass(frozen=True)
class Quantized:
    """What `fake_quantized` yields.

    `model` shares the module and says in its name that it is rounded: results made with it carry
    that name. `megabytes`: packed size of the rounded matrices; `dense_megabytes`: their size as
    stored; `rest_megabytes`: the model's other parameters (embeddings, norms, biases, layers left
    out) as stored, tied ones once. `bits_per_weight` counts scales and offsets. `changed`: weights
    that rounding moved; `relative_error`: |W - W'|^2 / |W|^2 over all of them.
    """

    model: Model
    bits: Mapping[tuple[int, str], int]
    megabytes: float
    dense_megabytes: float
    rest_megabytes: float
    bits_per_weight: float
    changed: int
    relative_error: float


@contextlib.contextmanager
def fake_quantized(
    model: Model,
    bits: Bits,
    group: int | None = 64,
    *,
    symmetric: bool = True,
    layers: Iterable[int] | int | None = None,
    modules: str | Iterable[str] | None = None,
    spill: bool = False,
) -> Iterator[Quantized]:
    """Within the block, the matrices of `layers` hold W', rounded to `bits` and back.

    bits: one number; a mapping of layer to bits (layers it lacks stay as they are); or a DataArray
    over layer, or layer and module (as picked from `error_table`; NaN leaves a matrix alone).
    group, symmetric and the formulas: `lwlab_kernels.quant`. Weights are written in place and come
    back bit for bit at the end, also after an exception; the model's lock is held throughout, so
    other threads wait. The originals are kept meanwhile: as much memory again, or with `spill` as
    much room in the folder for temporary files (about a second a gigabyte each way).

    Raises BadInput for bits outside 1..8, a group that does not divide the inputs of a matrix,
    layers that do not exist, weights on the meta device or not finite; UnknownName for a module.
    """
    from lwlab_kernels.quant import fake_quant

    plan = _plan(model, bits, matrices(model, _layers(bits, layers), modules))
    for m, b in plan:
        checked(m, b, group)
        if m.weight.is_meta:
            raise BadInput(f"layer {m.layer}, {m.name}: its weights are not loaded (meta device)")
    kept: list[tuple[torch.Tensor, torch.Tensor | Path]] = []
    folder = tempfile.TemporaryDirectory(prefix="lwlab-weights-") if spill else None
    done: set[int] = set()
    changed, lost, norm = 0, 0.0, 0.0
    with lock(model), torch.no_grad():
        try:
            for m, b in plan:
                w = m.weight
                if w.data_ptr() in done:  # a block that is used twice has one set of weights
                    continue
                done.add(w.data_ptr())
                found = fake_quant(w, b, group, symmetric)
                if not bool(found.scale.isfinite().all()):
                    raise BadInput(
                        f"layer {m.layer}, {m.name}: a group holds NaN or infinity, or its scale "
                        "or offset exceeds float16"
                    )
                if folder is None:
                    kept.append((w, w.clone()))
                else:
                    path = Path(folder.name, f"{len(kept)}.pt")
                    torch.save(w.detach().clone(), path)  # a clone: not all of a shared storage
                    kept.append((w, path))
                changed += int((found.weight != w).sum())
                lost += float((found.weight - w).double().square().sum())
                norm += float(w.double().square().sum())
                w.copy_(found.weight)
            yield _report(model, plan, group, symmetric, changed, lost / norm if norm else 0.0)
        finally:
            for w, old in reversed(kept):
                w.copy_(torch.load(old, weights_only=True) if isinstance(old, Path) else old)
            if folder is not None:
                folder.cleanup()


def _layers(bits: Bits, layers: Iterable[int] | int | None) -> Iterable[int] | int | None:
    if layers is not None or isinstance(bits, int):
        return layers
    if isinstance(bits, xr.DataArray):
        if "layer" not in bits.dims or set(bits.dims) - {"layer", "module"}:
            raise BadInput(f"bits over {bits.dims}: give it over 'layer', or 'layer' and 'module'")
        return [int(i) for i in bits.coords["layer"].values]
    return list(bits)


def _plan(model: Model, bits: Bits, chosen: list[Matrix]) -> list[tuple[Matrix, int]]:
    """Pair matrices with their bits; those without are left out."""
    out = []
    for m in chosen:
        b: float | None
        if isinstance(bits, xr.DataArray):
            here = {"layer": m.layer} | ({"module": m.name} if "module" in bits.dims else {})
            try:
                b = float(bits.sel(here))
            except KeyError:
                b = None
        elif isinstance(bits, Mapping):
            b = bits.get(m.layer, bits.get(m.layer - model.n_layers))
        else:
            b = bits
        if b is None or b != b:
            continue
        if b != int(b):
            raise BadInput(f"bits={b} at layer {m.layer}, {m.name}: give whole numbers from 1 to 8")
        out.append((m, int(b) if not isinstance(b, bool) else b))
    if not out:
        raise BadInput("bits names no matrix of the chosen layers and modules")
    return out


def _report(
    model: Model,
    plan: list[tuple[Matrix, int]],
    group: int | None,
    symmetric: bool,
    changed: int,
    error: float,
) -> Quantized:
    once = {m.weight.data_ptr(): (m, b) for m, b in plan}
    packed = sum(megabytes(m.weight, b, group, symmetric) for m, b in once.values())
    dense = sum(m.weight.nbytes for m, _ in once.values()) / 1e6
    count = sum(m.weight.numel() for m, _ in once.values())
    total = sum(p.nbytes for p in model.module.parameters()) / 1e6  # tied ones come once
    widths = sorted({b for _, b in plan})
    word = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]}..{widths[-1]}"
    name = f"{model.name} ({word}-bit, group {group or 'row'}{'' if symmetric else ', asymmetric'})"
    return Quantized(
        replace(model, name=name, checksum=""),
        {(m.layer, m.name): b for m, b in plan},
        packed,
        dense,
        total - dense,
        packed * 8e6 / count,
        changed,
        error,
    )
