"""Instruments for notebooks: anywidget front ends in plain ES modules, each with a static twin.

Each is imported on first use, because most of them need torch and the library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_LAZY = {
    "BitBoard": "_bits",
    "Cancelled": "_live",
    "CircuitGraph": "_circuit",
    "DepthBoard": "_depth",
    "HeadGrid": "_heads",
    "HeatMap": "_heatmap",
    "Job": "_live",
    "LabWidget": "_base",
    "LayerMap": "_layermap",
    "Ledger": "_ledger",
    "LensExplorer": "_lens",
    "Live": "_live",
    "Pick": "_heatmap",
    "SteeringDial": "_steer",
    "TokenStrip": "_tokens",
    "TrainingMonitor": "_training",
    "atlas": "_ledger",
    "bits": "_bits",
    "circuit": "_circuit",
    "depth": "_depth",
    "ledger": "_ledger",
    "steer": "_steer",
    "training": "_training",
}

if TYPE_CHECKING:
    from lwlab_widgets._base import LabWidget
    from lwlab_widgets._bits import BitBoard, bits
    from lwlab_widgets._circuit import CircuitGraph, circuit
    from lwlab_widgets._depth import DepthBoard, depth
    from lwlab_widgets._heads import HeadGrid
    from lwlab_widgets._heatmap import HeatMap, Pick
    from lwlab_widgets._layermap import LayerMap
    from lwlab_widgets._ledger import Ledger, atlas, ledger
    from lwlab_widgets._lens import LensExplorer
    from lwlab_widgets._live import Cancelled, Job, Live
    from lwlab_widgets._steer import SteeringDial, steer
    from lwlab_widgets._tokens import TokenStrip
    from lwlab_widgets._training import TrainingMonitor, training

__all__ = [
    "BitBoard",
    "Cancelled",
    "CircuitGraph",
    "DepthBoard",
    "HeadGrid",
    "HeatMap",
    "Job",
    "LabWidget",
    "LayerMap",
    "Ledger",
    "LensExplorer",
    "Live",
    "Pick",
    "SteeringDial",
    "TokenStrip",
    "TrainingMonitor",
    "atlas",
    "bits",
    "circuit",
    "depth",
    "ledger",
    "steer",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(f"lwlab_widgets.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'lwlab_widgets' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
