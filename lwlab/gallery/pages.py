"""The sources that Sphinx reads: one executed notebook a technique, and the front page."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from lwlab import __version__, catalog, workshop
from lwlab.claims import ClaimTable, read_claims
from lwlab.errors import BadInput
from lwlab.gallery.atlas import table
from lwlab.notebook import DOOR, Header, is_stale
from lwlab.runs import registry
from lwlab.runs.report import Entry, collect

#: Where a reader of the site finds the notebook itself.
_RUN = (
    "This page is the executed notebook. Run it yourself: `lwlab run {id}`, or open "
    "`notebooks/{family}/{stem}.ipynb` in JupyterLab (`lwlab lab`) and change its parameters."
)


@dataclass(frozen=True)
class Page:
    """One technique of the site; `claims` by model, the notebook's own model first."""

    header: Header
    claims: Mapping[str, ClaimTable]
    stale: bool

    @property
    def address(self) -> str:
        """The page relative to the site's root."""
        return f"{self.header.family}/{self.header.id}.html"


def write_sources(folder: Path, runs: Iterable[Path], executed: Mapping[str, Path]) -> list[Page]:
    """Write the sources of a site into `folder`; return its pages, by family and id.

    `executed` names notebooks to show in place of committed ones. Raises BadInput if no technique
    has an executed notebook.
    """
    measured = collect(list(runs))
    pages = []
    for t in registry.techniques():
        notebook = executed.get(t.header.id, t.notebook)
        if not notebook.is_file():
            continue
        stale = t.header.id not in executed and is_stale(t.source)
        page = Page(t.header, _claims(t.header, notebook, measured), stale)
        write_notebook(notebook, folder / page.address, page)
        pages.append(page)
    if not pages:
        raise BadInput("no executed notebook to show; `lwlab notebooks build` makes them.")
    classes = _workshop(folder, {p.header.id for p in pages})
    (folder / "index.md").write_text(_front(pages, classes), encoding="utf-8")
    return pages


def _workshop(folder: Path, shown: set[str]) -> list[str]:
    """Write the workshop's pages, where all of its notebooks are here; return their names."""
    if not {row["id"] for row in workshop.plan()["steps"]} - {DOOR} <= shown:
        return []
    pages = {"workshop": workshop.page(), "instructor": workshop.answers()}
    for name, text in pages.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return list(pages)


def _claims(header: Header, notebook: Path, measured: list[Entry]) -> dict[str, ClaimTable]:
    own = ClaimTable(read_claims(notebook))
    found = {str(own.records[0]["model"] or header.model) if own.records else header.model: own}
    for e in measured:
        if e.id == header.id and e.status == "ok":
            found.setdefault(e.model, e.table)
    return found


def write_notebook(notebook: Path, target: Path, page: Page) -> None:
    """Write one notebook as a source for Sphinx: claims by model and the citation are added."""
    nb = json.loads(notebook.read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        meta = cell.setdefault("metadata", {})
        if meta.get("jupyter", {}).get("source_hidden"):
            meta["tags"] = [*meta.get("tags", []), "hide-input"]
        if cell["cell_type"] == "markdown":
            cell["source"] = _relinked("".join(cell["source"]))
    h = page.header
    run = _RUN.format(id=h.id, family=h.family, stem=notebook.stem)
    note = f":::{{note}}\n{run}\n:::\n"
    if page.stale:
        note += (
            "\n:::{warning}\nThe source of this notebook changed after it was executed; numbers "
            "below are those of the earlier version.\n:::\n"
        )
    nb["cells"].insert(1, _markdown(note))
    nb["cells"].append(_markdown(_measured(page)))
    nb["cells"].append(_markdown(_citation(h)))
    target = target.with_suffix(".ipynb")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(nb), encoding="utf-8")


def _markdown(text: str) -> dict[str, Any]:
    name = hashlib.sha256(text.encode()).hexdigest()[:8]
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": text}


def _relinked(text: str) -> str:
    """Links between notebooks become links between pages."""

    def page(match: re.Match[str]) -> str:
        path = match[1]
        if Path(path).stem == DOOR:
            return "(../index.md)"
        stem = Path(path).stem.replace("_", "-")
        return f"({os.path.join(os.path.dirname(path), stem)}.ipynb)"

    return re.sub(r"\(([\w./-]+)\.ipynb\)", page, text)


def _measured(page: Page) -> str:
    """Every claim's verdict on every model it was measured on."""
    models = list(page.claims)
    rows: dict[str, dict[str, Any]] = {}
    for model, claims in page.claims.items():
        for r in claims.records:
            rows.setdefault(r["id"], {"statement": r["statement"], "kind": r["kind"]})[model] = r
    head = "".join(f"<th>{escape(m)}</th>" for m in models)
    body = []
    for name, row in rows.items():
        cells = "".join(_verdict(row.get(m)) for m in models)
        text = escape(str(row["statement"] or name))
        body.append(f"<tr><td>{text}</td><td>{row['kind']}</td>{cells}</tr>")
    return (
        "## Claims by model\n\n<div class='table-wrapper'><table class='claims docutils'><thead>"
        f"<tr><th>claim</th><th>kind</th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        "</div>\n"
    )


def _verdict(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return "<td class='none'>not measured</td>"
    kind = str(record["verdict"]).replace(" ", "-")
    value = record["measured"]
    number = f"{value:.3g}" if isinstance(value, float) else str(value)
    text = f"{escape(str(record['verdict']))}<br><small>{escape(number)}</small>"
    return f"<td class='{kind}'>{text}</td>"


def _citation(h: Header) -> str:
    """How to cite the paper, and the software."""
    parts = ["## How to cite\n"]
    if h.paper:
        entry = f"@misc{{{h.id},\n  title = {{{h.title}}},\n  eprint = {{{h.paper}}},\n"
        entry += f"  archivePrefix = {{arXiv}},\n  url = {{https://arxiv.org/abs/{h.paper}}}\n}}"
        parts.append(f"The paper ([arXiv:{h.paper}](https://arxiv.org/abs/{h.paper})):\n")
        parts.append(f"```bibtex\n{entry}\n```\n")
    software = f"@software{{lwlab,\n  title = {{lwlab}},\n  version = {{{__version__}}}\n}}"
    parts.append(f"The notebook:\n\n```bibtex\n{software}\n```\n")
    return "\n".join(parts)


def _front(pages: list[Page], classes: list[str]) -> str:
    tocs = []
    if classes:
        names = "\n".join(classes)
        tocs.append(f"```{{toctree}}\n:hidden:\n:caption: workshop\n\n{names}\n```")
    for family, group in groupby(pages, key=lambda p: p.header.family):
        names = "\n".join(f"{p.header.id} <{family}/{p.header.id}>" for p in group)
        tocs.append(f"```{{toctree}}\n:hidden:\n:caption: {family}\n\n{names}\n```")
    every = ClaimTable([r for p in pages for t in p.claims.values() for r in t.records])
    papers = catalog.papers()
    return "\n\n".join(
        [
            "# lwlab: the atlas",
            "One notebook a paper: it runs the paper's technique on a real language model, and at "
            "the bottom measures the paper's claims again. *holds*: mathematics says so and it "
            "does. *reproduced* or *not reproduced*: the paper's finding, on the model named.",
            f"{len(pages)} of {len(papers)} papers have their notebook. {every.summary()}.",
            table(pages, papers),
            *tocs,
        ]
    )
