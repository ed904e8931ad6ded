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


@pytest.mark.parametrize("arch", ["gpt2"])
def test_exact_claims_hold_on_another_architecture(arch: str, tmp_path: Path) -> None:
    parameters = {"model": folder(arch, tmp_path), "n": 4, "tokens": 24, "draws": 3}
    run = execute("layerwise-quant", parameters, tmp_path / "out", html=False, timeout=300)
    exact = {c["id"]: c["verdict"] for c in run.claims if c["kind"] == "exact"}
    assert len(exact) == 7  # the eighth is about SmolLM2's own file
    assert set(exact.values()) == {"holds"}
    assert not any(c["changed"] for c in run.claims)  # verdicts are pinned for one model only


def test_a_model_that_predicts_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotebookFailed, match="decoder"):
        execute(
            "layerwise-quant", {"model": folder("bert", tmp_path)}, tmp_path / "out", html=False
        )
