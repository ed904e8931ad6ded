"""Features: dictionaries of directions in activations (sparse autoencoders)."""

from __future__ import annotations

from lwlab.features.sae import Code, decode, dense, encode, pack

__all__ = ["Code", "decode", "dense", "encode", "pack"]
