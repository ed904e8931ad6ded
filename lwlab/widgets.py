"""Instruments to touch: `lw.widgets.HeatMap` and its companions (see the package lwlab_widgets)."""

from __future__ import annotations

from lwlab_widgets import (
    BitBoard,
    CircuitGraph,
    DepthBoard,
    HeadGrid,
    HeatMap,
    LabWidget,
    LayerMap,
    LensExplorer,
    Pick,
    SteeringDial,
    TokenStrip,
    bits,
    circuit,
    depth,
    steer,
)

lens = LensExplorer
map = LayerMap
tokens = TokenStrip
heads = HeadGrid

__all__ = [
    "BitBoard",
    "CircuitGraph",
    "DepthBoard",
    "HeadGrid",
    "HeatMap",
    "LabWidget",
    "LayerMap",
    "LensExplorer",
    "Pick",
    "SteeringDial",
    "TokenStrip",
    "bits",
    "circuit",
    "depth",
    "heads",
    "lens",
    "map",
    "steer",
    "tokens",
]
