"""Instruments to touch: `lw.widgets.HeatMap` and its companions (see the package lwlab_widgets)."""

from __future__ import annotations

from lwlab_widgets import HeatMap, LabWidget, Pick

__all__ = ["HeatMap", "LabWidget", "Pick"]
