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


def test_exact_claims_hold_on_another_architecture(tmp_path: Path) -> None:
    parameters = {"model": "toys/char-llama"}
    run = execute("prefixkv", parameters, tmp_path / "out", html=False, timeout=300)
    exact = {c["id"]: c["verdict"] for c in run.claims if c["kind"] == "exact"}
    assert len(exact) == 6
    assert set(exact.values()) == {"holds"}
    assert not any(c["changed"] for c in run.claims)  # verdicts are pinned for one model only


@pytest.mark.parametrize(
    ("arch", "says"), [("gemma2", "sliding windows"), ("bert", "keeps no keys and values")]
)
def test_a_model_without_such_a_cache_stops_with_the_reason(
    arch: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(NotebookFailed, match=says):
        execute("prefixkv", {"model": folder(arch, tmp_path)}, tmp_path / "out", html=False)
