"""The command line, `lwlab`: each module here holds the commands of one kind.

Heavy modules are imported inside the commands, so that `lwlab --help` answers at once.
"""

from __future__ import annotations

from lwlab.cli.app import app, main, notebooks_app

# Imported for their commands, in the order in which `lwlab --help` lists them.
from lwlab.cli import notebooks, sweeps, models, benchmarks  # isort: skip

__all__ = ["app", "benchmarks", "main", "models", "notebooks", "notebooks_app", "sweeps"]
