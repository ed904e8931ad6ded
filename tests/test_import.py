"""`import lwlab` and the command line's help cost milliseconds: nothing heavy is loaded."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import lwlab

HEAVY = {
    "torch", "nnsight", "transformers", "xarray", "pandas", "altair", "numba", "papermill",
    "nbformat", "ipywidgets", "scipy", "sklearn", "numpy", "IPython",
}  # fmt: skip
IMPORT = "import lwlab"
HELP = """
import runpy, sys
sys.argv = ["lwlab", "--help"]
try:
    runpy.run_module("lwlab.cli.app", run_name="__test__")["main"]()
except SystemExit as end:
    assert not end.code
"""


def run(code: str) -> tuple[str, list[str], float]:
    """What `code` prints in a fresh interpreter, what it loads, and the process's CPU seconds."""
    tail = """
import json, sys, time
print()
print(json.dumps([sorted({name.partition(".")[0] for name in sys.modules}), time.process_time()]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code + tail], capture_output=True, text=True, check=True
    )
    *printed, last = done.stdout.splitlines()
    loaded, seconds = json.loads(last)
    return "\n".join(printed), loaded, seconds


def test_import_loads_nothing_heavy_within_half_a_second() -> None:
    _, loaded, seconds = run(IMPORT)
    assert "lwlab" in loaded
    assert not HEAVY & set(loaded)
    assert seconds < 0.5


def test_the_help_loads_nothing_heavy_within_half_a_second() -> None:
    said, loaded, seconds = run(HELP)
    assert "one notebook a paper" in said
    assert not HEAVY & set(loaded)
    assert seconds < 0.5


def test_every_public_name_is_there_when_asked_for() -> None:
    assert len(dir(lwlab)) > 25
    assert all(getattr(lwlab, name) is not None for name in dir(lwlab))
    with pytest.raises(AttributeError, match="module 'lwlab' has no attribute 'kache'"):
        lwlab.kache
