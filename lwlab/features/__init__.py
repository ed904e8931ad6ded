"""Features: dictionaries of directions in activations, found without labels, and what they do."""

from __future__ import annotations

from lwlab.features import concept_depth, dictionaries, snmf
from lwlab.features.collect import collect, collect_layers
from lwlab.features.concept_words import Concepts, concepts
from lwlab.features.readout import (
    auc,
    cosine,
    purity,
    reaches_stream,
    top_contexts,
    top_neurons,
    vocabulary,
    written,
)
from lwlab.features.sae import Code, decode, dense, encode, pack
from lwlab.features.sae_train import SAE, train
from lwlab.features.steering import steer

__all__ = [
    "SAE",
    "Code",
    "Concepts",
    "auc",
    "collect",
    "collect_layers",
    "concept_depth",
    "concepts",
    "cosine",
    "decode",
    "dense",
    "dictionaries",
    "encode",
    "pack",
    "purity",
    "reaches_stream",
    "snmf",
    "steer",
    "top_contexts",
    "top_neurons",
    "train",
    "vocabulary",
    "written",
]
