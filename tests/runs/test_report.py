from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from toybooks import CLAIM, Toy

import lwlab as lw
from lwlab.errors import BadInput
from lwlab.runs import NotebookFailed, execute
from lwlab.runs.report import collect, report


def executed(
    folder: Path, id: str, *claims: lw.claims.Claim, when: int = 0, model: str = "gpt2"
) -> Path:
    """Write what an executed notebook looks like, without executing one."""
    cells = [
        {
            "cell_type": "code", "source": "", "metadata": {}, "execution_count": 1,
            "outputs": [{"output_type": "display_data", "metadata": {},
                         "data": c.bundle()}],
        }
        for c in claims
    ]  # fmt: skip
    header = {"id": id, "family": "depth", "title": f"The {id} paper", "paper": "2501.00001"}
    nb = {"cells": cells, "metadata": {"lwlab": header}, "nbformat": 4, "nbformat_minor": 5}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{id}.ipynb"
    path.write_text(json.dumps(nb))
    if when:
        record = {
            "notebook": path.name, "status": "ok", "model": model, "seconds": 3.0,
            "started": f"2026-01-0{when}T00:00:00+00:00",
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(record))
    return path


def claim(id: str, measured: Any, **kw: Any) -> lw.claims.Claim:
    return lw.claim(id, measured=measured, expect="> 0", kind="paper", statement="it is", **kw)


def test_a_report_gathers_real_runs_whole_and_partial(toy: Toy) -> None:
    execute(toy(id="good"), html=False)
    with pytest.raises(NotebookFailed):
        execute(toy(CLAIM, "1/0", id="bad"), html=False)
    result = report()
    assert [(e.id, e.status, e.ok) for e in result.entries] == [
        ("bad", "failed", False),
        ("good", "ok", True),
    ]
    assert not result.ok
    page, data = result.html.read_text(), json.loads(result.json.read_text())
    assert "ZeroDivisionError: division by zero" in page
    assert data["failed"] == ["bad"]
    assert data["verdicts"] == {"reproduced": 2}
    assert data["runs"][1]["claims"][0]["id"] == "toy.n"
    assert data["runs"][1]["model"] == "tiny"


def test_the_page_stands_alone_and_is_escaped(tmp_path: Path) -> None:
    executed(tmp_path / "runs", "a", claim("a.x", 1, note="<script>alert(1)</script>"))
    result = report([tmp_path / "runs"], tmp_path / "out")
    page = result.html.read_text()
    assert "<script" not in page
    assert "<link" not in page
    assert "@import" not in page
    assert "href='../runs/a.ipynb'" in page
    assert "prefers-color-scheme" in page or "color-scheme: light dark" in page
    assert result.html.parent == tmp_path / "out"


def test_the_latest_run_of_each_technique_and_model_counts(tmp_path: Path) -> None:
    executed(tmp_path / "1", "a", claim("a.x", 1), when=1)
    executed(tmp_path / "2", "a", claim("a.x", 2), when=3)
    executed(tmp_path / "3", "a", claim("a.x", 3), when=2)
    executed(tmp_path / "4", "a", claim("a.x", 4), when=1, model="opt")
    entries = collect([tmp_path])
    assert [(e.model, e.claims[0]["measured"]) for e in entries] == [("gpt2", 2), ("opt", 4)]


def test_a_changed_claim_makes_the_report_fail(tmp_path: Path) -> None:
    executed(tmp_path, "a", claim("a.x", -1, model="gpt2", pinned="reproduced"))
    result = report([tmp_path])
    assert not result.ok
    assert json.loads(result.json.read_text())["changed"] == ["a: a.x"]
    assert "CHANGED" in result.html.read_text()


def test_a_finding_that_does_not_reproduce_is_a_result_not_a_failure(tmp_path: Path) -> None:
    executed(tmp_path, "a", claim("a.x", -1, model="gpt2", pinned="not reproduced"))
    assert report([tmp_path]).ok


def test_without_runs_the_committed_notebooks_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executed(tmp_path / "notebooks", "a", claim("a.x", 1, model="gpt2"))
    monkeypatch.setattr("lwlab.runs.registry.notebooks_dir", lambda: tmp_path / "notebooks")
    result = report()
    assert [(e.id, e.model) for e in result.entries] == [("a", "gpt2")]
    assert result.html == Path.cwd() / "lwlab-runs" / "report.html"


def test_other_notebooks_and_checkpoints_are_passed_over(tmp_path: Path) -> None:
    executed(tmp_path / ".ipynb_checkpoints", "a", claim("a.x", 1))
    executed(tmp_path, "index")
    (tmp_path / "own.ipynb").write_text('{"cells": [], "metadata": {}}')
    (tmp_path / "broken.ipynb").write_text("{")
    assert collect([tmp_path]) == []


def test_nothing_to_report_is_an_error_that_says_how_to_get_something(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="`lwlab run ID` makes one"):
        report([tmp_path])
    with pytest.raises(BadInput, match="there is no folder"):
        report([tmp_path / "missing"])


def test_a_claim_made_twice_stops_the_report(tmp_path: Path) -> None:
    executed(tmp_path, "a", claim("a.x", 1), claim("a.x", 2))
    with pytest.raises(BadInput, match="made twice"):
        report([tmp_path])


def test_links_stay_relative_so_that_a_folder_can_be_moved(tmp_path: Path) -> None:
    path = executed(tmp_path / "lwlab-runs" / "a" / "now", "a", claim("a.x", 1))
    path.with_suffix(".html").write_text("page")
    page = report([tmp_path / "lwlab-runs"], tmp_path / "lwlab-runs").html.read_text()
    assert f"href='{os.path.join('a', 'now', 'a.html')}'" in page
    assert str(tmp_path) not in page
