"""Two runs compared: what moved, by how much, and what else was not the same."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from toybooks import Toy

import lwlab as lw
from lwlab.errors import BadInput
from lwlab.notebook import build
from lwlab.runs import Change, diff, execute

CELLS = """\
import lwlab as lw
lw.claim("toy.n", measured=n, expect=">= 3", kind="paper", pinned="reproduced", model=model)
lw.claim("toy.half", measured=n / 2, expect="> 0", kind="paper", interval=(n / 2 - 1, n / 2 + 1))
lw.claim("toy.always", measured=True, expect="true", kind="exact")
if n > 4:
    lw.claim("toy.large", measured=n, expect="> 4", kind="paper")
"""


def run(source: Path, out: str, **params: Any) -> Path:
    return execute(source, params, out, html=False).notebook.parent


def states(found: lw.runs.Diff) -> dict[str, str]:
    return {c.claim: c.state for c in found.changes}


def test_a_run_compared_with_itself_is_the_same(toy: Toy) -> None:
    folder = run(toy(CELLS), "a")
    found = diff(folder, folder)
    assert set(states(found).values()) == {"same"}
    assert found.ok
    assert found.context == []
    assert str(found) == "3 claims: 3 the same"


def test_claims_that_moved_are_shown_with_how_much(toy: Toy) -> None:
    source = toy(CELLS)
    found = diff(run(source, "a", n=4), run(source, "b", n=5))
    assert states(found) == {
        "toy.n": "moved", "toy.half": "within", "toy.always": "same", "toy.large": "new",
    }  # fmt: skip
    moved = {c.claim: (c.delta, c.relative) for c in found.changes}
    assert moved["toy.n"] == (1, 0.25)
    assert moved["toy.half"] == (0.5, 0.25)
    assert moved["toy.large"] == (None, None)
    assert found.ok
    assert ("toy (tiny)", "parameter n", 4, 5) in found.context
    assert all(what == "parameter n" for _, what, _, _ in found.context)
    text = str(found)
    assert "+1 (+25.0%)" in text
    assert "4 claims: 1 the same, 1 moved within the interval, 1 moved" in text
    assert found.changes[0].state == "new", "what needs a look comes first"
    assert found.records()[0]["verdict_after"] == "reproduced"


def test_a_changed_verdict_and_a_missing_claim_are_not_ok(toy: Toy) -> None:
    source = toy(CELLS)
    three, two, five = (run(source, f"{n}", n=n) for n in (3, 2, 5))
    changed = diff(three, two)
    assert states(changed)["toy.n"] == "verdict"
    assert not changed.ok
    assert "VERDICT CHANGED" in str(changed)
    gone = diff(five, three)
    assert states(gone)["toy.large"] == "gone"
    assert not gone.ok


def test_notebooks_records_and_folders_can_be_given(toy: Toy) -> None:
    source = toy(CELLS)
    a = run(source, "runs/one", n=4)
    path, _ = build(source, timeout=60)
    for form in (a, a / "toy.ipynb", a / "run.json", a.parent, str(a)):
        found = diff(path, form)
        assert states(found)["toy.n"] == "moved"
        assert found.context == [], "a committed notebook does not list its parameters"


def test_versions_model_and_content_that_differ_are_named(toy: Toy) -> None:
    a = run(toy(CELLS), "a")
    b = run(toy(CELLS + "# a remark\n"), "b")
    for path in (b / "run.json", b / "toy.ipynb"):
        data = json.loads(path.read_text())
        facts = data if path.suffix == ".json" else data["metadata"]["lwlab"]["run"]
        facts["versions"]["torch"] = "0.1"
        facts["model_checksum"] = "abc"
        path.write_text(json.dumps(data))
    found = {what: (x, y) for _, what, x, y in diff(a, b).context}
    assert found.pop("version of torch")[1] == "0.1"
    assert found.pop("model checksum") == (None, "abc")
    before, after = found.pop("notebook content")
    assert before != after
    assert found == {}


def test_sweeps_are_compared_row_by_row(toy: Toy, tmp_path: Path) -> None:
    source = toy(CELLS)
    for sweep, shift in (("a", 0), ("b", 1)):
        for seed in (0, 1):
            place = tmp_path / sweep / "rows" / f"{seed}{shift}"
            execute(source, {"n": 3, "seed": seed + shift}, place, html=False)
    found = diff(tmp_path / "a", tmp_path / "b")
    assert {c.run for c in found.changes} == {
        'toy {"model": "tiny", "n": 3, "profile": "quick", "seed": 1}'
    }
    assert [what for _, what in found.remarks] == ["only in the first", "only in the second"]
    assert not found.ok


def test_nan_stays_the_same_and_zero_has_no_relative_change() -> None:
    def change(a: Any, b: Any) -> Change:
        records = [lw.claim("x", measured=v, expect="> 0", kind="paper").record() for v in (a, b)]
        return Change("run", "x", *records)

    assert change(math.nan, math.nan).state == "same"
    assert change(0.0, -1.0).relative is None
    assert change(0.0, -1.0).delta == -1


def test_what_cannot_be_compared_is_refused(toy: Toy, tmp_path: Path) -> None:
    a, b = run(toy(CELLS), "a"), run(toy(CELLS, id="other"), "b")
    with pytest.raises(BadInput, match="no run in common"):
        diff(a, b)
    with pytest.raises(BadInput, match="there is no folder"):
        diff(a, tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no executed notebook"):
        diff(a, tmp_path / "empty")
    plain = tmp_path / "plain.ipynb"
    plain.write_text('{"cells": [], "metadata": {}}')
    with pytest.raises(BadInput, match="not an executed lwlab notebook"):
        diff(plain, a)
