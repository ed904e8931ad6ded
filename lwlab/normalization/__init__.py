"""What a norm does to a model: without its mean, without its scale, without it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lwlab.normalization.freezing import fold, freeze, scales
    from lwlab.normalization.layers import CRMSNorm, FrozenNorm, RMSNorm
    from lwlab.normalization.ln_removal import (
        additivity,
        costs,
        direct_effects,
        disagreement,
        losses,
        swaps,
        twin,
    )
    from lwlab.normalization.places import Norm, norms, untied, writers
    from lwlab.normalization.pre_rmsnorm import compare, convert, sgd_step, shifted, stream_mean

_LAZY = {
    **dict.fromkeys(("fold", "freeze", "scales"), "freezing"),
    **dict.fromkeys(("CRMSNorm", "FrozenNorm", "RMSNorm"), "layers"),
    **dict.fromkeys(
        ("additivity", "costs", "direct_effects", "disagreement", "losses", "swaps", "twin"),
        "ln_removal",
    ),
    **dict.fromkeys(("Norm", "norms", "untied", "writers"), "places"),
    **dict.fromkeys(("compare", "convert", "sgd_step", "shifted", "stream_mean"), "pre_rmsnorm"),
}

__all__ = [
    "CRMSNorm",
    "FrozenNorm",
    "Norm",
    "RMSNorm",
    "additivity",
    "compare",
    "convert",
    "costs",
    "direct_effects",
    "disagreement",
    "fold",
    "freeze",
    "losses",
    "norms",
    "scales",
    "sgd_step",
    "shifted",
    "stream_mean",
    "swaps",
    "twin",
    "untied",
    "writers",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'lwlab.normalization' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lwlab.normalization.{_LAZY[name]}"), name)
