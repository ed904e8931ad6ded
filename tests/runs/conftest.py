"""Toy notebooks in a folder of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from toybooks import CLAIM, HEADER, Toy


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    """Write a toy notebook of the given cells and return its source."""

    def write(*cells: str, id: str = "toy", header: str = HEADER) -> Path:
        path = tmp_path / "notebooks" / "depth" / f"{id.replace('-', '_')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        body = "".join(f"\n# %%\n{cell}\n" for cell in cells or (CLAIM,))
        path.write_text(header.format(id=id) + body)
        return path

    return write


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder: nothing may be written into the working tree."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
