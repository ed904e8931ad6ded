"""The notebook takes another pair of models by parameters; its exact claims hold there too."""

from __future__ import annotations

from pathlib import Path

import pytest

from lwlab.models import toys
from lwlab.runs import NotebookFailed, execute

pytestmark = [pytest.mark.notebook, pytest.mark.slow]


def folders(path: Path) -> tuple[str, str]:
    """A random GPT-2 with LayerNorm, and one kept as the released LN-free models are."""
    module, _ = toys.tiny("gpt2")
    for name in ("with", "free"):
        if name == "free":
            for p, part in module.named_modules():
                if p.rpartition(".")[2] in ("ln_1", "ln_2", "ln_f"):
                    part.weight.data *= 1e6  # S = 1
            module.config.layer_norm_epsilon = 1e12
        module.save_pretrained(path / name)
        toys.characters(64).save_pretrained(path / name)
    return str(path / "free"), str(path / "with")


def test_exact_claims_hold_on_another_pair(tmp_path: Path) -> None:
    free, with_ln = folders(tmp_path)
    parameters = {"model": free, "twin": with_ln, "rms_model": "", "n": 4}
    run = execute("ln-removal", parameters, tmp_path / "out", html=False, timeout=300)
    exact = {c["id"]: c["verdict"] for c in run.claims if c["kind"] == "exact"}
    assert len(exact) == 5
    assert set(exact.values()) == {"holds"}
    assert not any(c["changed"] for c in run.claims)  # verdicts are pinned for one model only


def test_a_model_without_a_known_twin_stops_and_says_what_to_give(tmp_path: Path) -> None:
    free, _ = folders(tmp_path)
    with pytest.raises(NotebookFailed, match="has no known twin"):
        execute("ln-removal", {"model": free}, tmp_path / "out", html=False)
