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
    Ledger,
    LensExplorer,
    Pick,
    SteeringDial,
    TokenStrip,
    atlas,
    bits,
    circuit,
    depth,
    ledger,
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
    "Ledger",
    "LensExplorer",
    "Pick",
    "SteeringDial",
    "TokenStrip",
    "atlas",
    "bits",
    "circuit",
    "depth",
    "heads",
    "ledger",
    "lens",
    "map",
    "steer",
    "tokens",
]
