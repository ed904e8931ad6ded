"""Instruments to touch: `lw.widgets.HeatMap` and its companions (see the package lwlab_widgets)."""

from __future__ import annotations

from lwlab_widgets import HeadGrid, HeatMap, LabWidget, LayerMap, LensExplorer, Pick, TokenStrip

lens = LensExplorer
map = LayerMap
tokens = TokenStrip
heads = HeadGrid

__all__ = [
    "HeadGrid",
    "HeatMap",
    "LabWidget",
    "LayerMap",
    "LensExplorer",
    "Pick",
    "TokenStrip",
    "heads",
    "lens",
    "map",
    "tokens",
]
