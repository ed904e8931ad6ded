"""Features: dictionaries of directions in activations, found without labels, and what they do."""

from __future__ import annotations

from lwlab.features import dictionaries, snmf
from lwlab.features.collect import collect
from lwlab.features.concept_words import Concepts, concepts
from lwlab.features.readout import (
    auc,
    cosine,
    purity,
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
    "concepts",
    "cosine",
    "decode",
    "dense",
    "dictionaries",
    "encode",
    "pack",
    "purity",
    "snmf",
    "steer",
    "top_contexts",
    "top_neurons",
    "train",
    "vocabulary",
    "written",
]
