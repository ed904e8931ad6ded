"""Notebook pairs: `<id>.py` (py:percent) is the source, `<id>.ipynb` is built from it."""

from __future__ import annotations

from lwlab.notebook import record
from lwlab.notebook.build import bake, build, freeze
from lwlab.notebook.engine import Failure, Outcome, Progress, run_notebook
from lwlab.notebook.gate import is_stale, problems
from lwlab.notebook.parameters import Parameter, parameters, validate
from lwlab.notebook.source import (
    DOOR,
    ROOTS,
    Header,
    file_stem,
    load,
    parse_header,
    read_header,
    source_hash,
)

__all__ = [
    "DOOR", "ROOTS", "Failure", "Header", "Outcome", "Parameter", "Progress", "bake", "build",
    "file_stem", "freeze", "is_stale", "load", "parameters", "parse_header", "problems",
    "read_header", "record", "run_notebook", "source_hash", "validate",
]  # fmt: skip
