"""Models: names to weights (zoo), weights to a checked `Model`, where its sites are (anatomy).

Names are imported on first use: the command line asks the zoo without waiting for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lwlab.models.anatomy import Anatomy, Tap
    from lwlab.models.loading import load, wrap
    from lwlab.models.model import Model
    from lwlab.models.sites import SITES, Address
    from lwlab.models.tokens import Tokens

_LAZY = {
    "SITES": "sites",
    "Address": "sites",
    "Anatomy": "anatomy",
    "Model": "model",
    "Tap": "anatomy",
    "Tokens": "tokens",
    "load": "loading",
    "wrap": "loading",
}

__all__ = ["SITES", "Address", "Anatomy", "Model", "Tap", "Tokens", "load", "wrap"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'lwlab.models' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lwlab.models.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
