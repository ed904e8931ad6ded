"""The notebook takes another model by one parameter; its exact claims hold on every engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from lwlab.models import toys
from lwlab.runs import execute

pytestmark = [pytest.mark.notebook, pytest.mark.slow]


def folder(arch: str, path: Path) -> str:
    module, _ = toys.tiny(arch)
    module.save_pretrained(path / arch)
    names = ("James", "Robert", "Michael", "William")  # fresh names for the other corruption
    toys.tokenizer([*names, *toys.WORDS[: -len(names)]]).save_pretrained(path / arch)
    return str(path / arch)


@pytest.mark.parametrize("arch", ["gpt_neox", "mixtral"])
def test_exact_claims_hold_on_another_architecture(arch: str, tmp_path: Path) -> None:
    """Parallel blocks with an adapter; a mixture of experts, which has none and is resumed."""
    parameters = {"model": folder(arch, tmp_path), "n": 4, "n_heads": 2}
    run = execute("exact-sweeps", parameters, tmp_path / "out", html=False, timeout=300)
    exact = {c["id"]: c["verdict"] for c in run.claims if c["kind"] == "exact"}
    assert len(exact) == 8
    assert set(exact.values()) == {"holds"}
    assert not any(c["changed"] for c in run.claims)  # verdicts are pinned for one model only
