"""In which order the modules of a model run: recorded once, by plain hooks on a short input."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.tracing import engine
from lwlab.tracing._nnsight import lock

Order = dict[tuple[str, str], int]
_KNOWN: WeakKeyDictionary[nn.Module, Order] = WeakKeyDictionary()


def module_order(model: Model) -> Order:
    """Return {(module path, "input" | "output"): rank} for the modules that a forward pass runs.

    Raises BadInput for a model whose kind of input is unknown.
    """
    from lwlab.models.identities import sample

    if model.module in _KNOWN:
        return _KNOWN[model.module]
    x = sample(model)
    if x is None:
        raise BadInput(
            f"{model.name}: no sample input is known, so the order of its modules is not either"
        )
    data = engine.batch(model, x)
    order: Order = {}

    def note(path: str, end: str) -> Any:
        def hook(*_: Any) -> None:  # a hook that returns a value would replace the tensor
            order.setdefault((path, end), len(order))

        return hook

    with lock(model), torch.no_grad():
        handles = []
        for path, module in model.module.named_modules():
            handles.append(module.register_forward_pre_hook(note(path, "input")))
            handles.append(module.register_forward_hook(note(path, "output")))
        try:
            model.module(*data.args, **data.inputs)
        finally:
            for handle in handles:
                handle.remove()
    _KNOWN[model.module] = order
    return order
