"""The notebook takes another model by one parameter; its exact claims hold there too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lwlab.models import toys
from lwlab.runs import execute
from lwlab.steering import examples
from lwlab.tasks import RELATIONS, concept

pytestmark = [pytest.mark.notebook, pytest.mark.slow]


def words() -> list[str]:
    """All that the notebook's texts, lists and questions are made of."""
    m, f = examples.moods(8), examples.FEELING
    texts = [*m.source, *m.target, *m.held_source, *m.held_target, *f.prompts]
    texts += [*f.wanted, *f.unwanted, *concept("sentiment", 32).texts]
    texts += [w for pair in RELATIONS["opposite"].pairs.items() for w in pair]
    return sorted({w for t in texts for w in re.findall(r"\w+|[^\w\s]", t)})


@pytest.mark.parametrize("arch", ["gpt2"])
def test_exact_claims_hold_on_another_architecture(arch: str, tmp_path: Path) -> None:
    known = words()
    module, _ = toys.tiny(arch, vocab_size=len(known) + 4)
    module.save_pretrained(tmp_path / arch)
    toys.tokenizer(known).save_pretrained(tmp_path / arch)
    parameters = {"model": str(tmp_path / arch), "n": 4, "steps": 5}
    run = execute("lineas", parameters, tmp_path / "out", html=False, timeout=300)
    exact = {c["id"]: c["verdict"] for c in run.claims if c["kind"] == "exact"}
    assert len(exact) == 5
    assert set(exact.values()) == {"holds"}
    assert not any(c["changed"] for c in run.claims)  # verdicts are pinned for one model only
