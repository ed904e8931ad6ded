"""Run notebooks, one or a grid of them, gather their claims, compare runs, start new ones."""

from __future__ import annotations

from lwlab.runs.diff import Change, Diff, diff
from lwlab.runs.draw import chart
from lwlab.runs.drive import SweepStopped
from lwlab.runs.run import Interrupted, NotebookFailed, Run, execute
from lwlab.runs.sweep import Sweep, SweepInterrupted, sweep
from lwlab.runs.table import read as results
from lwlab.runs.table import wide

__all__ = [
    "Change", "Diff", "Interrupted", "NotebookFailed", "Run", "Sweep", "SweepInterrupted",
    "SweepStopped", "chart", "diff", "execute", "results", "sweep", "wide",
]  # fmt: skip
