"""Instruments to touch: `lw.widgets.HeatMap` and its companions (see the package lwlab_widgets)."""

from __future__ import annotations

from lwlab_widgets import (
    BitBoard,
    DepthBoard,
    HeadGrid,
    HeatMap,
    LabWidget,
    LayerMap,
    LensExplorer,
    Pick,
    TokenStrip,
    bits,
    depth,
)

lens = LensExplorer
map = LayerMap
tokens = TokenStrip
heads = HeadGrid

__all__ = [
    "BitBoard",
    "DepthBoard",
    "HeadGrid",
    "HeatMap",
    "LabWidget",
    "LayerMap",
    "LensExplorer",
    "Pick",
    "TokenStrip",
    "bits",
    "depth",
    "heads",
    "lens",
    "map",
    "tokens",
]
