"""The notebook takes another model and observable by parameters; its exact claims hold there."""

from __future__ import annotations

from pathlib import Path

import pytest

from lwlab.models import toys
from lwlab.runs import execute

pytestmark = [pytest.mark.notebook, pytest.mark.slow]


@pytest.mark.parametrize("arch", ["gpt2"])
def test_exact_claims_hold_on_another_architecture(arch: str, tmp_path: Path) -> None:
    module, _ = toys.tiny(arch)
    module.save_pretrained(tmp_path / arch)
    toys.tokenizer().save_pretrained(tmp_path / arch)
    parameters = {
        "model": str(tmp_path / arch), "n": 4, "plus": ["she"], "minus": ["he"],
        "second": ["queen", "king"], "control": ["book", "ball"],
    }  # fmt: skip
    run = execute("obsprop", parameters, tmp_path / "out", html=False, timeout=300)
    exact = {c["id"]: c["verdict"] for c in run.claims if c["kind"] == "exact"}
    assert len(exact) == 5
    assert set(exact.values()) == {"holds"}
    assert not any(c["changed"] for c in run.claims)  # verdicts are pinned for one model only
