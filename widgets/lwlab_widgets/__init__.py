"""Instruments for notebooks: anywidget front ends in plain ES modules, each with a static twin."""

from __future__ import annotations

from lwlab_widgets._base import LabWidget
from lwlab_widgets._heatmap import HeatMap, Pick
from lwlab_widgets._live import Cancelled, Job, Live

__all__ = ["Cancelled", "HeatMap", "Job", "LabWidget", "Live", "Pick"]
