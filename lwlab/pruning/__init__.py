"""Parts cut out of a model for good: which, how many where, and what is left."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lwlab.pruning.allocation import allocate, rates
    from lwlab.pruning.cut import prune, silence, write_model
    from lwlab.pruning.measure import calibrations, pruned_losses
    from lwlab.pruning.nirvana import kernel, scores

_LAZY = {
    **dict.fromkeys(("allocate", "rates"), "allocation"),
    **dict.fromkeys(("prune", "silence", "write_model"), "cut"),
    **dict.fromkeys(("calibrations", "pruned_losses"), "measure"),
    **dict.fromkeys(("kernel", "scores"), "nirvana"),
}
__all__ = [
    "allocate",
    "calibrations",
    "kernel",
    "prune",
    "pruned_losses",
    "rates",
    "scores",
    "silence",
    "write_model",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'lwlab.pruning' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lwlab.pruning.{_LAZY[name]}"), name)
