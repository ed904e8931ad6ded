"""One thread, the default model once, and toy models of every architecture."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import lwlab as lw
from lwlab.models import toys

torch.set_num_threads(1)
logging.getLogger("transformers").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def smollm2() -> lw.Model:
    """The default model, loaded once."""
    return lw.load("smollm2-135m")


@cache
def _toy(name: str) -> lw.Model:
    arch, _, stack = name.partition(":")
    module, _ = toys.tiny(arch)
    tokenizer = None if arch == "vit" else toys.tokenizer()
    return lw.wrap(module, tokenizer=tokenizer, stack=stack or None, name=name)


@pytest.fixture(scope="session")
def toy() -> Callable[[str], lw.Model]:
    """A wrapped random model by architecture ("gpt2", "t5:decoder"), made once a session."""
    return _toy


_SAID: list[str] = []


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI, report over the notebooks that were executed; a changed claim fails the session."""
    runs = os.environ.get("LWLAB_NOTEBOOK_RUNS")
    if hasattr(session.config, "workerinput") or not runs or not any(Path(runs).rglob("*.ipynb")):
        return
    lwlab = Path(sys.executable).with_name("lwlab")
    command = [str(lwlab), "report", runs, "--out", runs, "--fail-on-change"]
    done = subprocess.run(command, capture_output=True, text=True)
    _SAID.extend((done.stdout + done.stderr).splitlines())
    if done.returncode:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what each executed notebook took: Binder has 2 GB, a reader has a minute."""
    ran = [
        (dict(report.user_properties), report)
        for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
        if report.when == "call" and "peak_memory_mb" in dict(report.user_properties)
    ]
    if _SAID:
        terminalreporter.section("lwlab report --fail-on-change")
        for line in _SAID:
            terminalreporter.line(line)
    if not ran:
        return
    terminalreporter.section("executed notebooks")
    for took, report in sorted(ran, key=lambda r: -r[0]["peak_memory_mb"]):
        name = report.nodeid.partition("[")[2].rstrip("]")
        terminalreporter.line(
            f"{name:28} {took['seconds']:5.0f} s {took['peak_memory_mb']:6.0f} MB"
        )
