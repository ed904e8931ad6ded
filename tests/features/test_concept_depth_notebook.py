"""The notebook takes another model by one parameter; its exact claims hold there too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lwlab.models import toys
from lwlab.runs import execute
from lwlab.tasks import CONCEPTS, concept

pytestmark = [pytest.mark.notebook, pytest.mark.slow]


@pytest.mark.parametrize("arch", ["bert"])
def test_exact_claims_hold_on_another_architecture(arch: str, tmp_path: Path) -> None:
    texts = [t for k in CONCEPTS for t in concept(k, 32).texts]
    words = sorted({w for t in texts for w in re.findall(r"\w+|[^\w\s]", t)})
    module, _ = toys.tiny(arch, vocab_size=len(words) + 4)
    module.save_pretrained(tmp_path / arch)
    toys.tokenizer(words).save_pretrained(tmp_path / arch)
    parameters = {"model": str(tmp_path / arch), "n": 32}
    run = execute("concept-depth", parameters, tmp_path / "out", html=False, timeout=300)
    found = {c["id"]: c["verdict"] for c in run.claims if c["kind"] == "exact"}
    assert len(found) == 5  # to the toy every city is one token, so BERT's positions agree too
    assert set(found.values()) == {"holds"}
    assert not any(c["changed"] for c in run.claims)  # verdicts are pinned for one model only
