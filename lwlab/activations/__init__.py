"""Activations: which neurons work, and running a model on those alone."""

from lwlab.activations.chess import calibrate, losses
from lwlab.activations.chess_speed import decode_times, mlp_times
from lwlab.activations.emergence import curve, emergence, fit, peak
from lwlab.activations.lazy_mlp import noisy, top_k, train_two_layer
from lwlab.activations.lazy_neuron import (
    activity,
    course,
    energy,
    first_move,
    rectified,
    rectifies,
)
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
    "activity",
    "calibrate",
    "change",
    "controls",
    "core_set",
    "course",
    "curve",
    "decode_times",
    "emergence",
    "energy",
    "first_move",
    "fit",
    "fixed_neurons",
    "gated_mlps",
    "losses",
    "massive",
    "mlp_times",
    "noisy",
    "peak",
    "places",
    "rectified",
    "rectifies",
    "sparse_decode",
    "statistical_topk",
    "thresholds",
    "top_k",
    "train_two_layer",
]
