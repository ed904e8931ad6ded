"""One thread, the default model once, and toy models of every architecture."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

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
