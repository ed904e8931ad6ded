"""The notebook takes another model by one parameter; its exact claims hold there too."""

from __future__ import annotations

from pathlib import Path

import pytest

from lwlab.runs import execute

pytestmark = [pytest.mark.notebook, pytest.mark.slow]


def test_exact_claims_hold_on_another_architecture(tmp_path: Path) -> None:
    run = execute("nirvana", {"model": "toys/char-gpt2"}, tmp_path, html=False, timeout=300)
    exact = {c["id"]: c["verdict"] for c in run.claims if c["kind"] == "exact"}
    assert len(exact) == 7
    assert set(exact.values()) == {"holds"}
    assert not any(c["changed"] for c in run.claims)
