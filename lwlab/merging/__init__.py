"""Merging: what fine-tunes changed, added up, scaled by depth, or weighted by what is sure."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lwlab.merging.adamerging import learn, premise
    from lwlab.merging.lines import alpha_of, describe, merge, profile, scaled
    from lwlab.merging.measuring import measure
    from lwlab.merging.task_vectors import Vectors, combine, elect, outside, sizes, ties, vectors

_LAZY = {
    **dict.fromkeys(("learn", "premise"), "adamerging"),
    **dict.fromkeys(("alpha_of", "describe", "merge", "profile", "scaled"), "lines"),
    "measure": "measuring",
    **dict.fromkeys(
        ("Vectors", "combine", "elect", "outside", "sizes", "ties", "vectors"), "task_vectors"
    ),
}

__all__ = [
    "Vectors",
    "alpha_of",
    "combine",
    "describe",
    "elect",
    "learn",
    "measure",
    "merge",
    "outside",
    "premise",
    "profile",
    "scaled",
    "sizes",
    "ties",
    "vectors",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'lwlab.merging' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lwlab.merging.{_LAZY[name]}"), name)
