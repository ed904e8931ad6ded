"""Attribution: which parts of a model an answer came from."""

from lwlab.attribution import (
    af1,
    atp,
    circuits,
    dynamiclrp,
    edges,
    exact,
    ig,
    neuron_path,
    nodes,
    obsprop,
    oplrp,
    placebo,
    relp,
)
from lwlab.attribution.agreement import agreement, gain
from lwlab.attribution.pairs import COMPONENTS, Pair

__all__ = [
    "COMPONENTS", "Pair", "af1", "agreement", "atp", "circuits", "dynamiclrp", "edges", "exact",
    "gain", "ig", "neuron_path", "nodes", "obsprop", "oplrp", "placebo", "relp",
]  # fmt: skip
