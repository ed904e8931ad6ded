"""The notebook takes another model by one parameter; its exact claims hold there too."""

from __future__ import annotations

from pathlib import Path

import pytest

from lwlab.models import toys
from lwlab.runs import NotebookFailed, execute

pytestmark = [pytest.mark.notebook, pytest.mark.slow]


def folder(arch: str, path: Path) -> str:
    module, _ = toys.tiny(arch)
    module.save_pretrained(path / arch)
    toys.tokenizer().save_pretrained(path / arch)
    return str(path / arch)


@pytest.mark.parametrize("arch", ["gpt2", "gemma2", "gpt_neox"])
def test_exact_claims_hold_on_another_architecture(arch: str, tmp_path: Path) -> None:
    parameters = {"model": folder(arch, tmp_path), "n": 4, "steps": 2}
    run = execute("relp", parameters, tmp_path / "out", html=False, timeout=300)
    exact = {c["id"]: c["verdict"] for c in run.claims if c["kind"] == "exact"}
    assert len(exact) == 9
    assert set(exact.values()) == {"holds"}
    assert not any(c["changed"] for c in run.claims)  # verdicts are pinned for one model only


def test_an_architecture_without_rules_stops_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(NotebookFailed, match="no backward rules for this architecture: mixture"):
        execute("relp", {"model": folder("mixtral", tmp_path)}, tmp_path / "out", html=False)
