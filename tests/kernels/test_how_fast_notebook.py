"""The notebook on lwlab itself: no paper, and its equalities hold on another model."""

from __future__ import annotations

from pathlib import Path

import pytest

from lwlab.errors import BadInput
from lwlab.models import toys
from lwlab.notebook import read_header
from lwlab.runs import door, execute, registry


def test_a_notebook_on_lwlab_itself_says_that_it_has_no_paper(tmp_path: Path) -> None:
    source = registry.find("how-fast").source
    assert read_header(source).paper == ""
    row = next(line for line in door.contents().splitlines() if "how-fast" in line)
    assert "arxiv" not in row.lower()
    forgotten = tmp_path / source.name
    forgotten.write_text(source.read_text().replace('#     paper: ""\n', ""))
    with pytest.raises(BadInput, match="paper is None"):
        read_header(forgotten)


@pytest.mark.notebook
@pytest.mark.slow
def test_its_equalities_hold_on_another_model(tmp_path: Path) -> None:
    module, _ = toys.tiny("gpt2")
    module.save_pretrained(tmp_path / "gpt2")
    toys.tokenizer().save_pretrained(tmp_path / "gpt2")
    parameters = {"model": str(tmp_path / "gpt2"), "rounds": 1}
    run = execute("how-fast", parameters, tmp_path / "out", html=False, timeout=600)
    assert {c["verdict"] for c in run.claims} == {"holds"}
    assert len(run.claims) == 10
