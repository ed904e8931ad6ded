"""Norms with a constant scale: measured, put in, and folded into the weights.

A LayerNorm whose standard deviation is a constant S is affine, y = g (x - mean x) / S + b, so it
can be multiplied into the matrix that reads it (arXiv:2507.02559).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import xarray as xr
from torch import nn

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.models.model import Model, Prompts
from lwlab.normalization import places
from lwlab.normalization.layers import FrozenNorm
from lwlab.results import label, provenance
from lwlab.tracing import engine
from lwlab.tracing.labels import own_positions

PAPER = "2507.02559"


def scales(model: Model, prompts: Prompts) -> xr.Dataset:
    """Measure what each norm divides by: sqrt(var x + eps), or sqrt(mean x^2 + eps) in an RMSNorm.

    Returns over (norm): `scale`, the mean over all positions but each prompt's first; `first`, the
    mean over first positions, which are far longer where they are an attention sink; `spread`, the
    standard deviation of `scale` over positions, as a share of it. Raises BadInput for prompts
    of one token, and as `norms` does.
    """
    found = places.norms(model)
    data = engine.batch(model, prompts)
    if data.tokens is None or int(data.tokens.lengths.min()) < 2:
        raise BadInput("scales are measured after the first position: give two tokens or more")
    values = engine.run(model, data, [n.reads for n in found], logits=None).values
    rows = []
    for norm in found:
        x = own_positions(values[norm.reads], data.tokens).double()
        h = x if norm.kind == "RMSNorm" else x - x.mean(-1, keepdim=True)
        eps = 1e-5 if norm.kind == "frozen" else norm.eps  # the eps of a frozen norm is its scale
        s = (h.square().mean(-1) + eps).sqrt()
        rest = s[:, 1:][~s[:, 1:].isnan()]
        rows.append((float(rest.mean()), float(s[:, 0].mean()), float(rest.std() / rest.mean())))
    names = {"norm": [n.name for n in found]}
    out = {
        k: label([r[i] for r in rows], ("norm",), names)
        for i, k in enumerate(("scale", "first", "spread"))
    }
    return xr.Dataset(out, attrs=provenance(model, technique="ln-removal", paper=PAPER))


def freeze(
    model: Model,
    scales: xr.Dataset | Mapping[str, float],
    which: str | Iterable[str] | None = None,
    *,
    first: bool = False,
    check: bool = True,
) -> Model:
    """Return a view of a model in which norms divide by a constant; `model` stays as it is.

    `scales` is what `scales()` measured, or S by name of norm; `which` names the norms to freeze
    (all by default, those that are frozen already stay). With `first`, the first position keeps a
    constant of its own (`scales.first`): an attention sink is hundreds of times longer than what
    follows. Such a model reads whole prompts only, not on from kept keys and values. The view
    shares its weights with `model`. Works for LayerNorm and RMSNorm. `check=False` spares the
    checks of `lw.wrap`.

    Raises UnknownName for a norm that does not exist, BadInput for a scale that is missing, not
    finite or not above 0, and as `norms` does.
    """
    found = {n.name: n for n in places.norms(model)}
    names = list(found) if which is None else [which] if isinstance(which, str) else list(which)
    for name in names:
        if name not in found:
            raise UnknownName(f"{model.name} has no norm {name!r}{suggest(name, found, limit=70)}")
    if first and not isinstance(scales, xr.Dataset):
        raise BadInput("first=True needs the first position's scales: pass what scales() measured")
    constants = {name: _constant(scales, "scale", name) for name in names}
    firsts = {name: _constant(scales, "first", name) if first else None for name in names}
    module = places.shared(model)
    width = int(model.d_model or 0)
    for name in names:
        norm = found[name]
        if norm.kind == "frozen":
            continue
        old: Any = module.get_submodule(norm.path)
        new = FrozenNorm(
            places.gain(old, norm, width), getattr(old, "bias", None), constants[name],
            firsts[name], centred=norm.kind == "LayerNorm",
        )  # fmt: skip
        module.set_submodule(norm.path, new.to(model.device).eval())
    if first:
        module.register_forward_pre_hook(_whole_prompts, with_kwargs=True)
    return places.rewrapped(model, module, f"({len(names)} norms frozen)", check=check)


def fold(model: Model) -> Model:
    """Return a model without norms that computes what an LN-free `model` does.

    Each frozen norm y = A x + b, A = diag(g / S) (I - 1 1^T / d), goes into what reads it:
    W <- W A, c <- c + W b. In place of the norm stands the identity. The unembedding gets weights
    of its own.

    Raises BadInput where a norm still normalises or treats the first position apart, or where no
    matrix reads it.
    """
    found = places.norms(model)
    real = [n.name for n in found if n.kind != "frozen"]
    if real:
        raise BadInput(
            f"{model.name} still normalises at {', '.join(real[:6])}"
            f"{' ...' if len(real) > 6 else ''}: a norm whose scale depends on its input cannot be "
            "folded. Freeze it first, or load a model that was tuned without LayerNorm"
        )
    module = places.copied(model)
    width = int(model.d_model or 0)
    eye = torch.eye(width, device=model.device, dtype=model.dtype)
    for norm in found:
        old: Any = module.get_submodule(norm.path)
        if getattr(old, "first", None) is not None:
            raise BadInput(
                f"the norm {norm.name} has a scale of its own at the first position, which no "
                "single matrix has; freeze with first=False"
            )
        with torch.no_grad():
            b = old(torch.zeros_like(eye[0]))
            a = (old(eye) - b).T  # column i is what the norm makes of the unit vector i
        if not norm.readers:
            raise BadInput(f"no matrix reads the norm {norm.name}, so it cannot be folded")
        for path in norm.readers:
            reader: Any = module.get_submodule(path)
            w = places.matrix(reader)
            bias = w @ b + (0 if reader.bias is None else reader.bias.data)
            places.set_matrix(reader, w @ a, bias)
        module.set_submodule(norm.path, nn.Identity())
    return places.rewrapped(model, module, "folded")


def _constant(given: xr.Dataset | Mapping[str, float], key: str, name: str) -> float:
    if isinstance(given, xr.Dataset):
        table = given[key]
        known = [str(n) for n in table.norm.values]
        value = float(table.sel(norm=name)) if name in known else None
    else:
        value = None if name not in given else float(given[name])
    if value is None:
        raise BadInput(f"no scale was given for the norm {name}")
    if not (math.isfinite(value) and value > 0):
        raise BadInput(
            f"the norm {name} would divide by {value}: a frozen scale is finite, above 0"
        )
    return value


def _whole_prompts(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    kept = kwargs.get("past_key_values")
    if kept is not None and kept.get_seq_length() > 0:
        raise BadInput(
            "this model's first position has a scale of its own, so it cannot go on from kept keys "
            "and values; freeze with first=False, or run whole prompts"
        )
