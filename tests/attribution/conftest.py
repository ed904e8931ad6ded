from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest

import lwlab as lw
from lwlab.tasks import Task

NAMES = [("Mary", "John"), ("Tom", "Anna")]


@pytest.fixture(scope="session")
def toy_ioi(toy: Callable[[str], lw.Model]) -> Callable[[str], tuple[lw.Model, Task]]:
    """A wrapped random model and four IOI prompts of fourteen tokens that it can read."""

    @cache
    def make(arch: str) -> tuple[lw.Model, Task]:
        model = toy(arch)
        return model, lw.tasks.ioi(model, n=4, names=NAMES)

    return make


@pytest.fixture
def unchanged(toy_ioi: Callable[[str], tuple[lw.Model, Task]]) -> tuple[lw.Model, Task]:
    """A task whose corrupt prompts are its clean ones."""
    model, task = toy_ioi("llama")
    return model, replace(task, corrupt=task.clean)
