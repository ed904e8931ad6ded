"""The two-hour workshop: which notebooks in which order, their exercises, the expected answers.

Exercises and answers are read out of the notebooks, where they were executed: an instructor's page
that is written by hand is wrong after the first change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import util
from importlib.resources import files
from pathlib import Path
from typing import Any

from lwlab.errors import BadInput
from lwlab.notebook import Header
from lwlab.runs import registry
from lwlab.runs.doctor import Check, examine

SERVER_MB = 200  # JupyterLab's server beside a kernel
_EXERCISES = "## Try it"


@dataclass(frozen=True)
class Answer:
    """One folded solution: its code, and what it printed or showed when it was executed."""

    code: str
    output: str


@dataclass(frozen=True)
class Step:
    """One notebook of the path; `exercises` is Markdown, [] answers where it has none."""

    header: Header
    notebook: Path
    minutes: int
    goal: str
    do: str
    exercises: str
    answers: tuple[Answer, ...]


@cache
def plan() -> dict[str, Any]:
    """Return the plan as it is written in `data/workshop.yaml`."""
    import yaml  # type: ignore[import-untyped]

    found: dict[str, Any] = yaml.safe_load(
        files("lwlab").joinpath("data/workshop.yaml").read_text(encoding="utf-8")
    )
    return found


def steps() -> list[Step]:
    """Return the path, with the exercises and executed answers of the committed notebooks.

    Raises UnknownName for a step that has no notebook, BadInput for one that was never executed.
    """
    return [_step(row) for row in plan()["steps"]]


def _step(row: dict[str, Any]) -> Step:
    found = registry.find(row["id"])
    if not found.notebook.is_file():
        raise BadInput(f"{row['id']} was never executed: lwlab notebooks build {row['id']}")
    cells = json.loads(found.notebook.read_text(encoding="utf-8"))["cells"]
    exercises, answers, inside = "", [], False
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and re.search(r"^## ", source, re.M):
            last = re.split(r"^(?=## )", source, flags=re.M)[-1]
            inside = last.startswith(_EXERCISES)
            exercises = last.removeprefix(_EXERCISES).strip() if inside else exercises
        elif inside and cell["metadata"].get("jupyter", {}).get("source_hidden"):
            answers.append(Answer(source, "\n".join(_shown(cell["outputs"])).strip()))
    return Step(
        found.header, found.notebook, int(row["minutes"]), row["goal"], row["do"], exercises,
        tuple(answers),
    )  # fmt: skip


def _shown(outputs: list[dict[str, Any]]) -> Iterator[str]:
    for out in outputs:
        text = out.get("text") or out.get("data", {}).get("text/plain", "")
        yield "".join(text)


def page() -> str:
    """Return the learners' page: the path with times, goals and exercises, as Markdown."""
    path = steps()
    total = sum(s.minutes for s in path)
    parts = [
        f"# {plan()['title']}",
        f"{len(path)} notebooks, {total} minutes, on {plan()['model']}. Before the class: "
        "`lwlab workshop --check` on each machine. Then `lwlab lab`.",
        _timetable(path, "you will see", lambda s: s.goal),
    ]
    for i, s in enumerate(path, 1):
        parts.append(f"## {i}. {s.header.id}: {s.minutes} minutes\n\n{s.goal}\n\n{s.do}")
        if s.exercises:
            parts.append(f"**Exercises**\n\n{s.exercises}")
    return "\n\n".join(parts) + "\n"


def _timetable(path: list[Step], last: str, say: Callable[[Step], str]) -> str:
    """The path as a Markdown table, with the time at which each step starts; `last` is a column."""
    rows, at = [f"| start | minutes | notebook | {last} |", "|---|---|---|---|"], 0
    for s in path:
        rows.append(f"| {at // 60}:{at % 60:02d} | {s.minutes} | {s.header.id} | {say(s)} |")
        at += s.minutes
    return "\n".join(rows)


def answers() -> str:
    """Return the instructor's page: every solution with what it gave when it was executed."""
    path = steps()
    parts = [
        f"# {plan()['title']}: the instructor's page",
        f"Numbers are those of {plan()['model']} in the committed notebooks, seed and sizes as in "
        "their parameters cells; other prompts and models will differ.",
        _timetable(path, "quick run", _cost),
    ]
    for i, s in enumerate(path, 1):
        parts.append(f"## {i}. {s.header.id}\n\n{s.goal}")
        if s.exercises:
            parts.append(s.exercises)
        for n, a in enumerate(s.answers, 1):
            parts.append(f"### Answer {n}\n\n```python\n{a.code}\n```\n\n```text\n{a.output}\n```")
    return "\n\n".join(parts) + "\n"


def _cost(step: Step) -> str:
    h = step.header
    return f"{h.seconds:.0f} s, {h.memory_mb:.0f} MB" if h.seconds else "under a minute"


def check(run: bool = False) -> Iterator[Check]:
    """Yield what a classroom machine needs, check by check; with `run`, execute every notebook.

    Everything `lwlab doctor` looks at; the model; free memory for the largest notebook of the path
    beside JupyterLab; one forward pass of 128 tokens, timed; the notebooks of the path.
    """
    path = steps()
    yield from examine()
    if util.find_spec("jupyterlab") is None:
        yield Check("bad", "no JupyterLab", "python -m pip install 'lwlab[lab]'")
    yield _memory(path)
    yield from _forward(plan()["model"])
    for s in path:
        if not run:
            n = len(s.answers)
            yield Check("ok", f"{s.header.id}: at hand, {n} exercises with executed answers")
        else:
            yield _run(s)


def _memory(path: list[Step]) -> Check:
    import psutil  # type: ignore[import-untyped]

    need = max(s.header.memory_mb for s in path) + SERVER_MB
    have = psutil.virtual_memory().available / 1e6
    what = f"{have:.0f} MB of memory free, the path needs {need:.0f}"
    if have < need:
        return Check("bad", what, "close other programs, or use a machine with more memory")
    return Check("ok", what)


def _forward(name: str) -> Iterator[Check]:
    import time

    import torch

    from lwlab.models import load, zoo

    if not any(row["cached"] for row in zoo.status() if row["name"] == name):
        yield Check("bad", f"{name} is not on this machine", f"lwlab fetch {name}")
        return
    model = load(name, check=False)
    ids = torch.arange(128)[None]
    spent = []
    with torch.no_grad():
        for _ in range(3):
            start = time.perf_counter()
            model.module(input_ids=ids, use_cache=False)
            spent.append(time.perf_counter() - start)
    yield Check("ok", f"{name} reads 128 tokens in {sorted(spent)[1]:.2f} s")


def _run(step: Step) -> Check:
    from lwlab.claims import ClaimTable
    from lwlab.errors import LwlabError
    from lwlab.notebook import load, parameters
    from lwlab.runs import execute

    name = step.header.id
    has = {p.name for p in parameters(load(registry.find(name).source)) or []}
    try:
        done = execute(name, {"profile": "quick"} if "profile" in has else {})
    except LwlabError as e:
        return Check("bad", f"{name} failed: {e}", "lwlab doctor")
    table = ClaimTable(done.claims)
    what = f"{name}: {done.seconds:.0f} s, {done.peak_memory_mb:.0f} MB, {table.summary()}"
    if not table.ok:
        return Check("bad", what, "a claim changed: say so to the authors")
    if done.seconds > 60 * step.minutes / 2:
        return Check("note", what, f"half of its {step.minutes} minutes would pass in waiting")
    return Check("ok", what)
