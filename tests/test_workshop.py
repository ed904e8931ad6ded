"""The workshop's path exists, its answers were executed, and a machine is really checked for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from lwlab import workshop
from lwlab.errors import UnknownName
from lwlab.notebook import DOOR
from lwlab.runs.doctor import Check


def test_the_path_is_five_notebooks_in_two_hours_each_with_executed_answers() -> None:
    path = workshop.steps()
    assert len(path) == 5
    assert 100 <= sum(s.minutes for s in path) <= 120
    for s in path:
        if s.header.id == DOOR:
            continue
        assert s.exercises.startswith("1. "), s.header.id
        assert len(s.answers) >= 2, s.header.id
        for a in s.answers:
            assert a.output, f"{s.header.id}: a solution shows nothing"
            assert "Error" not in a.output


def test_learners_see_no_answers_and_the_instructor_all_of_them() -> None:
    learners, instructor = workshop.page(), workshop.answers()
    for s in workshop.steps():
        assert f"{s.header.id}: {s.minutes} minutes" in learners
        for a in s.answers:
            assert a.output not in learners
            assert a.output in instructor
            assert a.code in instructor


def test_a_step_without_a_notebook_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {**workshop.plan(), "steps": [{"id": "gone", "minutes": 1, "goal": "", "do": ""}]}
    monkeypatch.setattr(workshop, "plan", lambda: broken)
    with pytest.raises(UnknownName, match="gone"):
        workshop.steps()


def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workshop, "examine", lambda: iter([Check("ok", "examined")]))


def test_this_machine_is_checked_and_its_model_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    _quick(monkeypatch)
    found = list(workshop.check())
    assert found[0].what == "examined"
    assert any(c.what.startswith("smollm2-135m reads 128 tokens in") for c in found)
    assert sum(c.what.split(":")[0] in {s.header.id for s in workshop.steps()} for c in found) == 5


@pytest.mark.parametrize(
    ("what", "break_it"),
    [
        ("MB of memory free", lambda m: m.setattr(
            "psutil.virtual_memory", lambda: SimpleNamespace(available=1e9))),
        ("is not on this machine", lambda m: m.setattr(
            "lwlab.models.zoo.status", lambda: [{"name": "smollm2-135m", "cached": False}])),
        ("no JupyterLab", lambda m: m.setattr(
            "lwlab.workshop.util", SimpleNamespace(find_spec=lambda _name: None))),
    ],
)  # fmt: skip
def test_what_a_classroom_machine_lacks_is_said_with_what_to_do(
    what: str, break_it: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    _quick(monkeypatch)
    break_it(monkeypatch)
    bad = [c for c in workshop.check() if c.state == "bad"]
    assert any(what in c.what and c.fix for c in bad), bad


def test_a_notebook_that_fails_or_changes_its_mind_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    from lwlab.errors import RunError

    step = workshop.steps()[1]

    def fail(*_a: Any, **_k: Any) -> Any:
        raise RunError("cell 3 failed")

    monkeypatch.setattr("lwlab.runs.execute", fail)
    assert workshop._run(step).state == "bad"
    claim = {"verdict": "reproduced", "changed": True}
    done = SimpleNamespace(claims=[claim], seconds=1.0, peak_memory_mb=1.0)
    monkeypatch.setattr("lwlab.runs.execute", lambda *_a, **_k: done)
    assert workshop._run(step).state == "bad"
    done.claims, done.seconds = [{**claim, "changed": False}], 3600.0
    assert workshop._run(step).state == "note"


def test_the_command_prints_the_path() -> None:
    code = "from lwlab.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "workshop"], capture_output=True, text=True, check=True
    )
    assert "depth-efficiency" in done.stdout
    assert "### Answer" not in done.stdout
