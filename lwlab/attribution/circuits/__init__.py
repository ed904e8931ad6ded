"""Circuits: the edges between components that carry an answer."""

from lwlab.attribution.circuits.graph import Graph

__all__ = ["Graph"]
