"""How networks come to be what they are: features, stages and spectra during training."""

from __future__ import annotations

from lwlab.dynamics.li2_grokking import ascent, labelled, stages, stream, train
from lwlab.dynamics.modular import (
    Addition,
    addition,
    energy,
    energy_gradient,
    purity,
    spectrum,
)
from lwlab.dynamics.two_layer import Run

__all__ = [
    "Addition",
    "Run",
    "addition",
    "ascent",
    "energy",
    "energy_gradient",
    "labelled",
    "purity",
    "spectrum",
    "stages",
    "stream",
    "train",
]
