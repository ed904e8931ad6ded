"""Run notebooks, gather their claims, start new ones, and look after an installation."""

from __future__ import annotations

from lwlab.runs.run import Interrupted, NotebookFailed, Run, execute

__all__ = ["Interrupted", "NotebookFailed", "Run", "execute"]
