"""Attention heads: where they look, and which keys and values they can do without."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lwlab.attention.stats import stats

if TYPE_CHECKING:
    from lwlab.attention import prefixkv, prefixkv_cache, prefixkv_measure, prefixkv_needles

_MODULES = ("prefixkv", "prefixkv_cache", "prefixkv_measure", "prefixkv_needles")
__all__ = ["prefixkv", "prefixkv_cache", "prefixkv_measure", "prefixkv_needles", "stats"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"lwlab.attention.{name}")
    raise AttributeError(f"module 'lwlab.attention' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
