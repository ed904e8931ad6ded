"""Instruments for notebooks: anywidget front ends in plain ES modules, each with a static twin."""

from __future__ import annotations

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
    "atlas",
    "bits",
    "circuit",
    "depth",
    "ledger",
    "steer",
]
