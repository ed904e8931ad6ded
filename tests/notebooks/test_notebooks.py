"""Every committed notebook is fit to publish, and still finds what it says it finds."""

from __future__ import annotations

import os
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest

from lwlab.claims import table
from lwlab.notebook import ROOTS, load, parameters, problems, read_header
from lwlab.runs import execute, registry

SOURCES = registry.sources()
each = pytest.mark.parametrize("source", SOURCES, ids=[p.stem for p in SOURCES])

# Machines differ: a run that takes this many times its stated cost is reported, not failed.
SLACK = 3.0

# Binder gives 2 GB to JupyterLab's server (150 MB) and the kernel together.
BINDER_MB = 1850


@each
def test_it_is_fit_to_publish(source: Path) -> None:
    assert problems(source) == []


@each
@pytest.mark.notebook
@pytest.mark.slow
def test_its_claims_hold_when_it_is_executed_anew(
    source: Path, tmp_path: Path, record_property: Any
) -> None:
    header = read_header(source)
    has = {p.name for p in parameters(load(source)) or []}
    kept = os.environ.get("LWLAB_NOTEBOOK_RUNS")  # CI reports over what was executed
    place = Path(kept) / source.stem if kept else tmp_path
    run = execute(source, {"profile": "quick"} if "profile" in has else {}, place, timeout=900)
    found = table(run.claims)
    record_property("seconds", run.seconds)
    record_property("peak_memory_mb", run.peak_memory_mb)
    assert found.ok, f"\n{found}"
    assert run.peak_memory_mb < BINDER_MB
    if header.id in ROOTS:
        return
    assert run.claims
    committed = table(source.with_suffix(".ipynb"))
    assert [c["id"] for c in found.records] == [c["id"] for c in committed.records]
    for what, spent, stated in (
        ("seconds", run.seconds, header.seconds),
        ("MB", run.peak_memory_mb, header.memory_mb),
    ):
        if spent > SLACK * stated:
            warnings.warn(
                f"{header.id}: {spent:.0f} {what}, its header says {stated:.0f}", stacklevel=1
            )


def test_no_notebook_lies_outside_the_notebooks_folder_or_without_its_source() -> None:
    root = registry.checkout()
    assert root is not None
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.ipynb"],
        cwd=root, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        assert name.startswith("notebooks/"), f"{name} lies outside notebooks/"
        assert (root / name).with_suffix(".py").exists(), f"{name} has no source"
