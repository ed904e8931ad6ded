"""The notebook takes another model by one parameter; its exact claims hold there too."""

from __future__ import annotations

from pathlib import Path

import pytest

from lwlab.models import toys
from lwlab.runs import execute

pytestmark = [pytest.mark.notebook, pytest.mark.slow]


@pytest.mark.parametrize(("arch", "claims"), [("mixtral", 8)])
def test_exact_claims_hold_on_another_architecture(arch: str, claims: int, tmp_path: Path) -> None:
    module, _ = toys.tiny(arch)
    module.save_pretrained(tmp_path / arch)
    toys.tokenizer().save_pretrained(tmp_path / arch)
    parameters = {"model": str(tmp_path / arch), "n": 4, "points": 3}
    run = execute("dynamiclrp", parameters, tmp_path / "out", html=False, timeout=300)
    exact = {c["id"]: c["verdict"] for c in run.claims if c["kind"] == "exact"}
    assert len(exact) == claims
    assert set(exact.values()) == {"holds"}
    assert not any(c["changed"] for c in run.claims)  # verdicts are pinned for one model only
