"""Layer-wise relevance propagation over the autograd graph: one rule an operation, no module names.

`propagate` is the engine; `lwlab.attribution.dynamiclrp` asks it of models and tasks.
"""

from lwlab.attribution.oplrp.graph import Graph, op
from lwlab.attribution.oplrp.layout import layout
from lwlab.attribution.oplrp.ops import OPS
from lwlab.attribution.oplrp.promises import Promise, Values
from lwlab.attribution.oplrp.recording import recording
from lwlab.attribution.oplrp.rules import SETS, Rules, rules_of
from lwlab.attribution.oplrp.walk import Relevance, propagate, uncovered

__all__ = [
    "OPS", "SETS", "Graph", "Promise", "Relevance", "Rules", "Values", "layout", "op", "propagate",
    "recording", "rules_of", "uncovered",
]  # fmt: skip
