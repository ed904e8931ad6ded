"""Exact sweeps: every cell of a site edited, one at a time, without computing anything twice."""

from lwlab.tracing.sweep.plan import Plan
from lwlab.tracing.sweep.run import sweep, sweep_plan

__all__ = ["Plan", "sweep", "sweep_plan"]
