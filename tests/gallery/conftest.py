from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "runs"))
from toybooks import CLAIM, HEADER

from lwlab.runs import registry


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of notebooks with one toy in it, in place of the project's; returns its source."""
    source = tmp_path / "notebooks" / "depth" / "toy_one.py"
    source.parent.mkdir(parents=True)
    link = "\n# %% [markdown]\n# See [the door](../index.ipynb) and $$\\frac{a}{b}$$\n"
    source.write_text(HEADER.format(id="toy-one") + f"\n# %%\n{CLAIM}\n" + link)
    monkeypatch.setattr(registry, "notebooks_dir", lambda: tmp_path / "notebooks")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return source
