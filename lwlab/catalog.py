"""The catalogue: the papers this atlas is to cover, one id each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from lwlab.errors import UnknownName, suggest


@dataclass(frozen=True)
class Paper:
    """One paper. `arxiv` is '' if it has no known preprint; `verified` says the number is sure."""

    id: str
    family: str
    title: str
    arxiv: str
    verified: bool = True

    @property
    def url(self) -> str:
        """The address of the preprint, or ''."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else ""


@cache
def papers() -> tuple[Paper, ...]:
    """Return every paper of the catalogue, ordered by family and id."""
    rows = json.loads(files("lwlab").joinpath("data/catalog.json").read_text(encoding="utf-8"))
    return tuple(
        Paper(r["id"], r["family"], r["title"], r["arxiv"], not r.get("unverified", False))
        for r in rows
    )


def families() -> tuple[str, ...]:
    """Return the names of the families."""
    return tuple(sorted({p.family for p in papers()}))


def find(id: str) -> Paper:
    """Return the paper of an id, written with hyphens or underscores.

    Raises
    ------
    UnknownName
        If the catalogue has no such paper; the message suggests the nearest id.
    """
    wanted = id.strip().lower().replace("_", "-")
    for paper in papers():
        if paper.id == wanted:
            return paper
    raise UnknownName(
        f"no paper {id!r} in the catalogue" + suggest(wanted, [p.id for p in papers()])
    )
