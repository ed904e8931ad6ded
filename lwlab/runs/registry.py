"""The techniques at hand: one notebook each, in the checkout or in the installed package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import lwlab
from lwlab import catalog
from lwlab.errors import UnknownName, suggest
from lwlab.notebook import ROOTS, Header, file_stem, read_header


@dataclass(frozen=True)
class Technique:
    """A technique that has a notebook: its header and its source file."""

    header: Header
    source: Path

    @property
    def notebook(self) -> Path:
        """The committed `.ipynb` of the pair."""
        return self.source.with_suffix(".ipynb")


def checkout() -> Path | None:
    """Return the root of the repository lwlab is imported from, or None if it is installed."""
    root = Path(lwlab.__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").is_file() and (root / "notebooks").is_dir() else None


def notebooks_dir() -> Path:
    """Return the folder of the notebooks: the checkout's, or the copy inside the package."""
    root = checkout()
    return root / "notebooks" if root else Path(lwlab.__file__).resolve().parent / "_notebooks"


def sources(folder: Path | None = None) -> list[Path]:
    """Return every notebook source, those at the root first, the door before the others."""
    folder = folder or notebooks_dir()
    roots = (folder / f"{name}.py" for name in ROOTS)
    return [p for p in roots if p.is_file()] + sorted(folder.glob("*/*.py"))


def techniques(folder: Path | None = None) -> list[Technique]:
    """Return the techniques that have a notebook, by family and id.

    Raises
    ------
    BadInput
        If a notebook has no valid header.
    """
    found = [Technique(read_header(p), p) for p in sources(folder) if p.stem not in ROOTS]
    return sorted(found, key=lambda t: (t.header.family, t.header.id))


def find(id: str, folder: Path | None = None) -> Technique:
    """Return the technique called `id`: hyphens or underscores, with or without its family.

    Raises
    ------
    UnknownName
        If it has no notebook; the message says what to do when the catalogue knows the paper.
    """
    stem = file_stem(id.strip().lower().rsplit("/", 1)[-1])
    for path in sources(folder):
        if path.stem == stem:
            return Technique(read_header(path), path)
    name = stem.replace("_", "-")
    for paper in catalog.papers():
        if paper.id == name:
            raise UnknownName(
                f"{name!r} is in the catalogue ({paper.title}) but has no notebook yet; in a "
                f"checkout, `lwlab new {paper.family}/{name}` starts one."
            )
    known = [p.stem.replace("_", "-") for p in sources(folder)]
    raise UnknownName(f"no technique is called {id!r}" + suggest(name, known))
