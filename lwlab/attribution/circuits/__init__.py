"""Circuits: the edges between components that carry an answer, and what they are worth.

Names are imported on first use: edge scores need the graph, and circuits need edge scores.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lwlab.attribution.circuits.cut import Cutter, metrics
    from lwlab.attribution.circuits.graph import Graph
    from lwlab.attribution.circuits.pruning import prune
    from lwlab.attribution.circuits.select import random_edges, trim
    from lwlab.attribution.circuits.subgraph import Circuit, circuit
    from lwlab.attribution.circuits.worth import (
        SIZES,
        areas,
        completeness,
        curve,
        faithfulness,
        minimality,
    )

_LAZY = {
    "Graph": "graph",
    "Circuit": "subgraph",
    "circuit": "subgraph",
    "Cutter": "cut",
    "metrics": "cut",
    "prune": "pruning",
    "random_edges": "select",
    "trim": "select",
    "SIZES": "worth",
    "areas": "worth",
    "completeness": "worth",
    "curve": "worth",
    "faithfulness": "worth",
    "minimality": "worth",
}

__all__ = [
    "SIZES",
    "Circuit",
    "Cutter",
    "Graph",
    "areas",
    "circuit",
    "completeness",
    "curve",
    "faithfulness",
    "metrics",
    "minimality",
    "prune",
    "random_edges",
    "trim",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'lwlab.attribution.circuits' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
