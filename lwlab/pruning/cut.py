"""Units really cut out: narrower matrices, fewer keys and values, a model that saves and loads."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from lwlab.depth.removal import clone, refuse_spread
from lwlab.errors import BadInput
from lwlab.models.anatomy import Anatomy
from lwlab.models.kept import KEY, adapt
from lwlab.models.loading import quiet, wrap
from lwlab.models.model import Model
from lwlab.models.sample import sample
from lwlab.pruning.units import DIMS, PARTS, Part, Slab, slabs
from lwlab.tracing import engine
from lwlab.tracing._nnsight import lock

_TOLERANCE = 1e-3  # relative, of the cut model's logits against the silenced model's
# Attention that notes how many heads it has, and the width at which one projection is split.
_COUNTS = ("num_heads", "num_attention_heads", "num_key_value_heads", "split_size", "all_head_size")


def prune(model: Model, keep: xr.Dataset, *, check: bool = True) -> Model:
    """Return the model with the units that `keep` marks, and without the others' weights.

    `keep`: booleans `attn` (layer, kv_head), `mlp` (layer, neuron) or one of them, as `allocate`
    gives. The matrices of a layer that loses units are copied, narrower; all others are shared with
    `model`, which does not change. Cut groups of heads leave no keys and values in the cache. The
    new model generates, is saved by `write_model` and loaded by `lw.load`. Sites by head, and
    neurons where their number varies, are no sites of it.

    With `check`, its last logits on a short prompt are compared with those of the whole model with
    the same units silenced, and the identities of its anatomy are measured.

    Raises, before anything is built: BadInput for a `keep` of another shape or type, a layer that
    would lose all units of a kind, a model without a configuration or spread over devices; and as
    `units.slabs`. BadInput where the check fails.
    """
    units = _checked(model, keep)
    if getattr(model.module, "config", None) is None:
        raise BadInput(f"{model.name} has no configuration that could say what its layers keep")
    changed = [p for p in units if not keep[p].values.all()]
    widths: dict[str, list[int]] = {p: keep[p].values.sum(1).tolist() for p in changed}
    with lock(model):
        refuse_spread(model)
        _let_go(model)
        module = clone(model.module)
        for part in changed:
            cut(module, model.anatomy, part, units[part], keep[part].values)
        if widths:
            setattr(module.config.get_text_config(), KEY, widths)  # type: ignore[union-attr, operator]
    count = sum(p.numel() for p in module.parameters())
    share = 1 - count / sum(p.numel() for p in model.module.parameters())
    name = f"{model.name} less {100 * share:.0f} % of its weights" if widths else model.name
    anatomy = adapt(model.anatomy, widths)
    try:
        small = wrap(module, anatomy, model.tokenizer, name=name, example=model.example,
                     check=check)  # fmt: skip
        if check:
            _same_as_silenced(model, small, keep)
    except (RuntimeError, ValueError, BadInput) as error:
        raise BadInput(
            f"{model.name} without these units is not what it is with them silenced: {error}"
        ) from error
    return replace(small, source=f"{model.name}, pruned")


def silence(model: Model, keep: xr.Dataset) -> Model:
    """Return the model with the same units silenced: what reads them (o, down) has zeros there.

    Its logits are those of `prune`, its size and speed those of `model`. Raises as `prune`.
    """
    units = _checked(model, keep)
    with lock(model):
        refuse_spread(model)
        _let_go(model)
        module = clone(model.module)
        for part, layers in units.items():
            for own, row in zip(layers, keep[part].values):
                for s in (s for s in own if not s.out):
                    at = module.get_submodule(s.path)
                    w = _weight(at).detach().clone()
                    w.index_fill_(s.axis, s.index[torch.from_numpy(~row)].flatten().to(w.device), 0)
                    at.weight = nn.Parameter(w, requires_grad=_weight(at).requires_grad)
    name = f"{model.name}, units silenced"
    return wrap(
        module, model.anatomy, model.tokenizer, name=name, example=model.example, check=False
    )


def write_model(model: Model, folder: str | Path) -> Path:
    """Save weights, configuration and tokenizer, for `lw.load(folder)`; also of a pruned model.

    Raises BadInput for a module that is not transformers', or a folder that holds something.
    """
    folder = Path(folder)
    if not hasattr(model.module, "save_pretrained"):
        raise BadInput(
            f"{model.name} is no transformers model; keep its state_dict with torch.save"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} holds something already; name a new folder")
    with lock(model), quiet():
        model.module.save_pretrained(folder)  # type: ignore[operator]
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    return folder


def cut(
    module: nn.Module, a: Anatomy, part: Part, layers: list[list[Slab]], keep: np.ndarray
) -> None:
    """Narrow the matrices of `part` in place: new parameters, old tensors untouched."""
    for layer, (own, row) in enumerate(zip(layers, keep)):
        if row.all():
            continue
        for s in own:
            _narrow(module.get_submodule(s.path), s, torch.from_numpy(row))
        if part == "attn":
            attention = module.get_submodule(a.taps["attn_in"].at(layer))
            left = int(row.sum())
            for name in _COUNTS:
                if isinstance(old := vars(attention).get(name), int):
                    vars(attention)[name] = old * left // len(row)


def _narrow(module: Any, s: Slab, row: torch.Tensor) -> None:
    entries = s.index[row].flatten().sort().values.to(module.weight.device)
    w = module.weight
    new = w.detach().index_select(s.axis, entries).contiguous()
    module.weight = nn.Parameter(new, requires_grad=w.requires_grad)
    if s.out and (b := getattr(module, "bias", None)) is not None:
        module.bias = nn.Parameter(b.detach()[entries].clone(), requires_grad=b.requires_grad)
    if isinstance(module, nn.Linear):
        setattr(module, "out_features" if s.out else "in_features", len(entries))
    elif s.out:
        module.nf = len(entries)
    else:
        module.nx = len(entries)


def _let_go(model: Model) -> None:
    """Free models that were cut before: a traced one refers to itself and waits to be collected."""
    if sum(p.nbytes for p in model.module.parameters()) > 1e8:  # else not worth the time
        gc.collect()


def _weight(module: nn.Module) -> nn.Parameter:
    found = module.weight
    assert isinstance(found, nn.Parameter)
    return found


def _checked(model: Model, keep: xr.Dataset) -> dict[Part, list[list[Slab]]]:
    parts = [p for p in PARTS if p in keep]
    if not parts:
        raise BadInput("keep has neither 'attn' nor 'mlp'; make it with pruning.allocate")
    units = {}
    for part in parts:
        found, marks = slabs(model, part), keep[part]
        want = (model.n_layers, len(found[0][0].index))
        if marks.dims != ("layer", DIMS[part]) or marks.shape != want or marks.dtype != bool:
            raise BadInput(
                f"keep[{part!r}] must be booleans (layer, {DIMS[part]}) of shape {want}; it is "
                f"{marks.dtype} {marks.dims} of shape {marks.shape}"
            )
        if not marks.values.any(1).all():
            layer = int((~marks.values.any(1)).argmax())
            what = "a neuron" if part == "mlp" else "a group of heads"
            raise BadInput(
                f"layer {layer} would keep no {part} unit; leave it {what} "
                "(lw.depth.remove takes whole sublayers out)"
            )
        units[part] = found
    return units


def _same_as_silenced(model: Model, small: Model, keep: xr.Dataset) -> None:
    x = sample(model)
    if x is None or "logits" not in model.anatomy.taps:
        return
    want, got = engine.run(silence(model, keep), x).logits, engine.run(small, x).logits
    assert want is not None
    assert got is not None
    error = float((got - want).abs().max() / want.abs().max())
    if not error < _TOLERANCE * (1.0 if small.dtype == torch.float32 else 100.0):
        raise BadInput(f"the logits differ by {error:.2g} of the largest")
