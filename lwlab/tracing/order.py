"""In which order the modules of a model run: recorded once, by plain hooks on a short input."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.models.sample import sample
from lwlab.models.sites import SITES, Address
from lwlab.tracing._nnsight import lock
from lwlab.tracing.batch import batch
from lwlab.tracing.pattern import exposed

Order = dict[tuple[str, str], int]
_KNOWN: WeakKeyDictionary[nn.Module, Order] = WeakKeyDictionary()
_SITES = {site: i for i, site in enumerate(SITES)}


def module_order(model: Model) -> Order:
    """Return {(module path, "input" | "output"): rank} for the modules that a forward pass runs.

    Raises BadInput for a model whose kind of input is unknown. Empty for one without weights that
    cannot be run on shapes alone (GPT-2 looks at its mask's values).
    """
    with lock(model.module):
        if model.module not in _KNOWN:
            _KNOWN[model.module] = _record(model)
        return _KNOWN[model.module]


def _record(model: Model) -> Order:
    x = sample(model)
    if x is None:
        raise BadInput(
            f"{model.name}: no sample input is known, so the order of its modules is not either; "
            "pass example= to lw.wrap"
        )
    args, inputs = batch(model, x).fresh()
    skeleton = any(p.is_meta for p in model.module.parameters())
    if model.remote and skeleton:
        inputs = {k: v.to("meta") for k, v in inputs.items() if k == "input_ids"}
    order: Order = {}

    def note(path: str, end: str) -> Any:
        def hook(*_: Any) -> None:  # a hook that returns a value would replace the tensor
            order.setdefault((path, end), len(order))

        return hook

    handles = []
    try:
        for path, module in model.module.named_modules():
            handles.append(module.register_forward_pre_hook(note(path, "input")))
            handles.append(module.register_forward_hook(note(path, "output")))
        with torch.no_grad(), exposed(model.module, "attn_pattern" in model.anatomy.taps):
            model.module(*args, **inputs)
    except RuntimeError:
        if not skeleton:
            raise
        return {}
    finally:
        for handle in handles:
            handle.remove()
    return order


def rank(model: Model, address: Address) -> tuple[int, ...]:
    """Sort key that puts addresses in the order of the forward pass.

    As recorded; where that could not be, in the order of the vocabulary, layer by layer.
    """
    tap, recorded = model.anatomy.taps[address.site], _KNOWN.get(model.module)
    if recorded is None and (sample(model) is not None):
        recorded = module_order(model)
    if recorded:
        return (recorded.get((tap.at(address.layer), tap.end), -1), _SITES[address.site])
    phase = {"embed": 0, "final_norm": 2, "logits": 2}.get(address.site, 1)
    return phase, address.layer or 0, _SITES[address.site]
