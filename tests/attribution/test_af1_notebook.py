"""The notebook takes another model by one parameter; what is known of that model comes out."""

from __future__ import annotations

from pathlib import Path

import pytest

from lwlab.runs import NotebookFailed, execute

pytestmark = [pytest.mark.notebook, pytest.mark.slow]


def test_exact_claims_and_the_known_subgraph_hold_for_the_toy_that_adds(tmp_path: Path) -> None:
    run = execute("af1", {"model": "toys/arithmetic"}, tmp_path / "out", html=False, timeout=300)
    exact = {c["id"]: c["verdict"] for c in run.claims if c["kind"] == "exact"}
    assert len(exact) == 6
    assert set(exact.values()) == {"holds"}
    found = {c["id"]: c for c in run.claims}
    assert found["af1.known-subgraph-is-found"]["verdict"] == "reproduced"
    assert found["af1.transfer-in-few-blocks"]["measured"] == 2
    assert not any(c["changed"] for c in run.claims)


def test_operands_that_the_tokenizer_splits_stop_it_with_the_reason(tmp_path: Path) -> None:
    parameters = {"model": "toys/char-gpt2", "first": 12}
    with pytest.raises(NotebookFailed, match="numbers that the tokenizer splits"):
        execute("af1", parameters, tmp_path / "out", html=False, timeout=300)
