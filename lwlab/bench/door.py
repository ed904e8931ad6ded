"""Find benchmark definitions in a checkout and run them.

A definition is a file `benchmarks/<name>.py` with `CASES: dict[str, Callable[[], Case]]`: each
builds one case when it is asked to, and may raise `Absent` when it cannot run here.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from lwlab.bench import machine, report
from lwlab.bench.protocol import Absent, Case, Unequal, measure
from lwlab.errors import BadInput, UnknownName, suggest


def folder() -> Path:
    """Return the checkout's `benchmarks`; raises BadInput when lwlab runs from an installation."""
    from lwlab.runs.registry import checkout

    root = checkout()
    if root is None or not (root / "benchmarks").is_dir():
        raise BadInput(
            "benchmarks are files of the repository, and this lwlab is installed without it: "
            "clone the repository and `pip install -e .` there."
        )
    return root / "benchmarks"


def names(where: Path | None = None) -> list[str]:
    """Return the names of the definitions: the files with a top-level `CASES`."""
    found = sorted((where or folder()).glob("*.py"))
    return [p.stem for p in found if any(ln.startswith("CASES") for ln in p.open(encoding="utf-8"))]


def read(name: str, where: Path | None = None) -> ModuleType:
    """Import `benchmarks/<name>.py` by path; raises UnknownName for a name that is none."""
    where = where or folder()
    stem = name.replace("-", "_")
    if stem not in names(where):
        raise UnknownName(f"no benchmark is called {name!r}" + suggest(name, names(where)))
    spec = importlib.util.spec_from_file_location(f"lwlab_benchmarks_{stem}", where / f"{stem}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickling look it up there
    if str(where) not in sys.path:
        sys.path.append(str(where))  # a definition may have helpers beside it
    spec.loader.exec_module(module)
    return module


def run(
    name: str,
    *,
    rounds: int | None = None,
    only: Sequence[str] = (),
    where: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
    partial: Callable[[report.Report], None] = lambda _: None,
) -> report.Report:
    """Run the cases of one definition and return its report.

    `only` keeps the cases whose id is given; `rounds` overrides the cases' own. A case whose ways
    disagree, or that raises, is reported as failed with the reason, and the others still run;
    `partial` is called with the report so far after each. Raises UnknownName for a name or case
    that is none, and BadInput outside a checkout.
    """
    import torch

    if rounds is not None and rounds < 1:
        raise BadInput(f"rounds is {rounds}; it is at least 1.")
    module = read(name, where)
    cases: dict[str, Callable[[], Case]] = module.CASES
    for id in only:
        if id not in cases:
            raise UnknownName(f"{name!r} has no case {id!r}" + suggest(id, cases))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        about = machine.describe() | {"rates": machine.rates()}
        out = report.new(
            name.replace("-", "_"), about, machine.versions(*getattr(module, "PACKAGES", ()))
        )
        out["absent"] = dict(getattr(module, "ABSENT", {}))
        for id in only or cases:
            progress(id)
            try:
                out["cases"][id] = measure(cases[id](), rounds)
            except Absent as why:
                out["absent"][id] = str(why)
            except Unequal as why:
                out["cases"][id] = {"title": id, "failed": str(why)}
            except Exception as why:
                out["cases"][id] = {"title": id, "failed": f"{type(why).__name__}: {why}"}
            partial(out)
    finally:
        torch.set_num_threads(before)
    return out
