"""The index notebook's panel runs a notebook and shows what it claims."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from toybooks import CLAIM, Toy

from lwlab.claims import read_claims
from lwlab.runs import door, registry


def _wait(done: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:  # type: ignore[operator]
        time.sleep(0.05)
    assert done()  # type: ignore[operator]


def test_contents_link_to_notebooks_that_exist() -> None:
    links = re.findall(r"\]\(([^)]+\.ipynb)\)", door.contents())
    assert len(links) == len(registry.techniques())
    assert all((registry.notebooks_dir() / link).is_file() for link in links)


def test_the_verdicts_are_those_of_every_notebook() -> None:
    rows = [line.strip("| ").split(" | ") for line in door.verdicts().splitlines()[2:]]
    found = {row[0]: [int(n) for n in row[1:]] for row in rows}
    for t in registry.techniques():
        claims = read_claims(t.notebook)
        assert sum(found.get(t.header.id, [])) == len(claims)
    assert found["relp"][0] > 5


@pytest.mark.parametrize(("cell", "shown"), [(CLAIM, "toy.n"), ("1 / 0", "ZeroDivisionError")])
def test_a_click_runs_the_notebook_and_shows_claims_or_the_error(
    toy: Toy, cell: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = toy(cell).parents[1]
    monkeypatch.setattr(registry, "notebooks_dir", lambda: folder)
    monkeypatch.chdir(tmp_path)
    panel = door.launcher()
    which, _ = panel.children[0].children
    button, status = panel.children[2].children
    assert len(which.options) == 1
    panel.children[0].children[1].value = "tiny"
    button.click()
    assert button.disabled
    _wait(lambda: not button.disabled)
    assert shown in str(panel.children[3].outputs) + status.value
