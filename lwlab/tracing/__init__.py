"""Tracers on nnsight: read, replace and differentiate activations, run layers in any order."""

from lwlab.tracing._nnsight import lock
from lwlab.tracing._sources import forget
from lwlab.tracing.chain import chain
from lwlab.tracing.edits import Edit
from lwlab.tracing.generate import generate
from lwlab.tracing.lens import lens
from lwlab.tracing.read import cache, grads
from lwlab.tracing.rules import rules
from lwlab.tracing.sweep import Plan, sweep, sweep_plan
from lwlab.tracing.write import ablate, patch

__all__ = [
    "Edit",
    "Plan",
    "ablate",
    "cache",
    "chain",
    "forget",
    "generate",
    "grads",
    "lens",
    "lock",
    "patch",
    "rules",
    "sweep",
    "sweep_plan",
]
