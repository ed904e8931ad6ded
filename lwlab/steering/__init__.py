"""Steering: change what a model says by moving its activations, and what that costs elsewhere."""

from __future__ import annotations

from lwlab.steering import examples, lineas, repe_reasoning
from lwlab.steering.distance import quantiles, wasserstein
from lwlab.steering.effects import Lists, doses, log_odds, losses, price

__all__ = [
    "Lists",
    "doses",
    "examples",
    "lineas",
    "log_odds",
    "losses",
    "price",
    "quantiles",
    "repe_reasoning",
    "wasserstein",
]
