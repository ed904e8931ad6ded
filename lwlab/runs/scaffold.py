"""Start a technique: its module, notebook and tests, named alike and failing until written."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

import lwlab
from lwlab import catalog
from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.notebook import file_stem
from lwlab.paths import write_atomic
from lwlab.runs import registry


@dataclass(frozen=True)
class Scaffold:
    """What was started: the files written, and what remains to be done by hand."""

    paths: list[Path]
    steps: list[str]


def scaffold(name: str, *, title: str = "", arxiv: str = "", root: Path | None = None) -> Scaffold:
    """Write the homes of a new technique.

    Parameters
    ----------
    name : `family/id`, such as `depth/layer-skip`; the id is lower case with hyphens.
    title, arxiv : of its paper; by default what the catalogue says.
    root : root of the checkout; by default the one lwlab is imported from.

    Returns
    -------
    Scaffold
        `lwlab/<family>/<id>.py`, `notebooks/<family>/<id>.py` and `tests/<family>/test_<id>.py`
        (file names with underscores), all run-able, all failing until they are written.

    Raises
    ------
    BadInput
        Outside a checkout, for a malformed name, another family than the catalogue's, or if a
        file exists already (nothing is written then).
    UnknownName
        For an unknown family, or an id that is not in the catalogue and has no title.
    """
    root = root or registry.checkout()
    if root is None:
        raise BadInput(
            "lwlab is not imported from a checkout; clone the repository and "
            "`pip install -e .` there to add a technique."
        )
    family, id = _split(name)
    paper = _paper(family, id, title, arxiv)
    stem, package = file_stem(id), file_stem(family)
    targets = {
        "module": root / "lwlab" / package / f"{stem}.py",
        "notebook": root / "notebooks" / package / f"{stem}.py",
        "test": root / "tests" / package / f"test_{stem}.py",
    }
    if there := [str(p.relative_to(root)) for p in targets.values() if p.exists()]:
        raise BadInput(f"{', '.join(there)} exists already; nothing was written.")
    imports = ["from lwlab.models import toys", f"from lwlab.{package}.{stem} import {stem}"]
    values = {
        "id": id, "stem": stem, "family": family, "package": package, "title": paper.title,
        "quoted_title": json.dumps(paper.title, ensure_ascii=False), "arxiv": paper.arxiv,
        "imports": "\n".join(sorted(imports)),
        "source": f" (arXiv:{paper.arxiv})" if paper.arxiv else "",
        "link": f"[arXiv:{paper.arxiv}]({paper.url})" if paper.arxiv else "No preprint is known.",
    }  # fmt: skip
    for kind, path in targets.items():
        template = files("lwlab").joinpath(f"data/scaffold/{kind}.txt")
        write_atomic(path, Template(template.read_text(encoding="utf-8")).substitute(values))
    paths = list(targets.values())
    if not (init := root / "lwlab" / package / "__init__.py").exists():
        write_atomic(init, f'"""{package.replace("_", " ").capitalize()}."""\n')
        paths.append(init)
    return Scaffold(paths, _steps(id, package, paper))


def _split(name: str) -> tuple[str, str]:
    family, slash, id = name.strip().partition("/")
    if not slash or not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", id):
        raise BadInput(
            f"{name!r} is not family/id: write both, the id in lower case with hyphens, such as "
            "depth/layer-skip."
        )
    family = family.replace("_", "-")
    if family not in catalog.families():
        raise UnknownName(f"no family {family!r}" + suggest(family, catalog.families()))
    return family, id


def _paper(family: str, id: str, title: str, arxiv: str) -> catalog.Paper:
    try:
        known = catalog.find(id)
    except UnknownName as e:
        if not title:
            raise UnknownName(f"{e} For a technique outside the catalogue, give --title.") from None
        return catalog.Paper(id, family, title, arxiv)
    if known.family != family:
        raise BadInput(
            f"{id} belongs to the family {known.family}; write `lwlab new {known.family}/{id}`."
        )
    verified = bool(arxiv) or known.verified
    return catalog.Paper(id, family, title or known.title, arxiv or known.arxiv, verified)


def _steps(id: str, package: str, paper: catalog.Paper) -> list[str]:
    steps = [f"Read its card, papers/cards/{id}.md: claims, method, small setting, checks."]
    if not paper.verified:
        steps.append(f"Check its arXiv number, {paper.arxiv}: the catalogue is not sure of it.")
    if package not in lwlab.__all__:
        steps.append(f"Add {package!r} to the modules listed in lwlab/__init__.py.")
    stem = file_stem(id)
    return [
        *steps,
        f"Write the tests, then the module: pytest tests/{package}/test_{stem}.py",
        f"Write the notebook, then build and check it: lwlab notebooks build {id}",
    ]
