"""Activations: which neurons work, and running a model on those alone."""

from lwlab.activations.emergence import curve, emergence, fit, peak
from lwlab.activations.massive_dynamics import Place, change, controls, massive, places
from lwlab.activations.mlps import GatedMLP, gated_mlps
from lwlab.activations.packed import core_set, fixed_neurons
from lwlab.activations.sparse import sparse_decode, thresholds
from lwlab.activations.swap import Swapped
from lwlab.activations.topk import statistical_topk

__all__ = [
    "GatedMLP",
    "Place",
    "Swapped",
    "change",
    "controls",
    "core_set",
    "curve",
    "emergence",
    "fit",
    "fixed_neurons",
    "gated_mlps",
    "massive",
    "peak",
    "places",
    "sparse_decode",
    "statistical_topk",
    "thresholds",
]
