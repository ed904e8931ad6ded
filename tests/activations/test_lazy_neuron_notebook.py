"""The notebook takes another gated model by one parameter; its exact claims hold there too."""

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


def test_exact_claims_hold_on_another_architecture(tmp_path: Path) -> None:
    parameters = {"model": folder("gemma2", tmp_path), "length": 24}
    run = execute("lazy-neuron", parameters, tmp_path / "out", html=False, timeout=300)
    exact = {c["id"]: c["verdict"] for c in run.claims if c["kind"] == "exact"}
    assert len(exact) == 7
    assert set(exact.values()) == {"holds"}
    assert not any(c["changed"] for c in run.claims)


def test_a_model_without_gates_stops_with_the_reason(tmp_path: Path) -> None:
    parameters = {"model": folder("gpt2", tmp_path), "length": 24}
    with pytest.raises(NotebookFailed, match="mlp_gate"):
        execute("lazy-neuron", parameters, tmp_path / "out", html=False)
