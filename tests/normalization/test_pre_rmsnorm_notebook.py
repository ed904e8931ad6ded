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


@pytest.mark.parametrize("arch", ["opt", "gpt_neox"])
def test_exact_claims_hold_on_another_architecture(arch: str, tmp_path: Path) -> None:
    parameters = {"model": folder(arch, tmp_path), "rms_model": "", "n": 2, "length": 48}
    run = execute("pre-rmsnorm", parameters, tmp_path / "out", html=False, timeout=300)
    exact = {c["id"]: c["verdict"] for c in run.claims if c["kind"] == "exact"}
    assert len(exact) == 8
    assert set(exact.values()) == {"holds"}
    assert not any(c["changed"] for c in run.claims)  # verdicts are pinned for one model only


def test_a_model_with_rmsnorm_stops_with_the_recipe_that_applies(tmp_path: Path) -> None:
    with pytest.raises(NotebookFailed, match="normalises by RMSNorm"):
        execute("pre-rmsnorm", {"model": folder("llama", tmp_path), "rms_model": ""},
                tmp_path / "out", html=False)  # fmt: skip
