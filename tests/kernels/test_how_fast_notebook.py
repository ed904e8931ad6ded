"""The notebook on lwlab itself has no paper, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from lwlab.errors import BadInput
from lwlab.notebook import read_header
from lwlab.runs import door, registry


def test_a_notebook_on_lwlab_itself_says_that_it_has_no_paper(tmp_path: Path) -> None:
    source = registry.find("how-fast").source
    assert read_header(source).paper == ""
    row = next(line for line in door.contents().splitlines() if "how-fast" in line)
    assert "arxiv" not in row.lower()
    forgotten = tmp_path / source.name
    forgotten.write_text(source.read_text().replace('#     paper: ""\n', ""))
    with pytest.raises(BadInput, match="paper is None"):
        read_header(forgotten)
