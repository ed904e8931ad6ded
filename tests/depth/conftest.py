from __future__ import annotations

from typing import Any

import pytest

from lwlab.models import Model, toys, wrap


@pytest.fixture(scope="session")
def tiny() -> Any:
    """tiny(arch) -> a small random Model with a tokenizer, made once."""
    made: dict[str, Model] = {}

    def make(arch: str) -> Model:
        if arch not in made:
            module, _ = toys.tiny(arch)
            made[arch] = wrap(module, tokenizer=toys.tokenizer(), name=f"tiny {arch}")
        return made[arch]

    return make
