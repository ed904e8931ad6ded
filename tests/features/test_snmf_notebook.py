"""The notebook takes another model by one parameter; its exact claims hold there too."""

from __future__ import annotations

from pathlib import Path

import pytest

from lwlab.features import concepts
from lwlab.features.concept_words import NEUTRAL, TEMPLATES
from lwlab.models import toys
from lwlab.runs import NotebookFailed, execute

pytestmark = [pytest.mark.notebook, pytest.mark.slow]
FEW = {"n": 3, "k": 8, "sparsity": 0.2}


def folder(arch: str, path: Path) -> str:
    words = concepts(toys.tokenizer(), n=3).words
    said = " ".join((*TEMPLATES, *NEUTRAL[:3])).replace("{word}", "").replace(":", " :").split()
    module, _ = toys.tiny(arch)
    module.save_pretrained(path / arch)
    toys.tokenizer([*words, *said]).save_pretrained(path / arch)
    return str(path / arch)


@pytest.mark.parametrize(("arch", "exact"), [("bert", 7)])
def test_exact_claims_hold_on_another_architecture(arch: str, exact: int, tmp_path: Path) -> None:
    """A decoder with biases and no gate; an encoder, which is not steered."""
    parameters = {**FEW, "model": folder(arch, tmp_path)}
    run = execute("snmf", parameters, tmp_path / "out", html=False, timeout=300)
    found = {c["id"]: c["verdict"] for c in run.claims if c["kind"] == "exact"}
    assert len(found) == exact
    assert set(found.values()) == {"holds"}
    assert any(c["id"] == "snmf.steers" for c in run.claims) == (arch != "bert")
    assert not any(c["changed"] for c in run.claims)  # verdicts are pinned for one model only


def test_a_model_without_neurons_stops_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(NotebookFailed, match="no site 'neurons': it is fused inside the experts"):
        execute("snmf", {**FEW, "model": folder("mixtral", tmp_path)}, tmp_path / "o", html=False)
