"""One thread, the default model once, and toy models of every architecture."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
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


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what each executed notebook took: Binder has 2 GB, a reader has a minute."""
    ran = [
        (dict(report.user_properties), report)
        for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
        if report.when == "call" and "peak_memory_mb" in dict(report.user_properties)
    ]
    if not ran:
        return
    terminalreporter.section("executed notebooks")
    for took, report in sorted(ran, key=lambda r: -r[0]["peak_memory_mb"]):
        name = report.nodeid.partition("[")[2].rstrip("]")
        terminalreporter.line(
            f"{name:28} {took['seconds']:5.0f} s {took['peak_memory_mb']:6.0f} MB"
        )
