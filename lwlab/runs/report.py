"""One page and one JSON file over all executed notebooks: the atlas's state, claim by claim."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from lwlab import __version__
from lwlab.claims import ClaimTable, read_claims
from lwlab.errors import BadInput
from lwlab.notebook import ROOTS
from lwlab.paths import write_atomic
from lwlab.runs import registry


@dataclass(frozen=True)
class Entry:
    """One executed notebook of a report; `status` is 'ok' where no record says otherwise.

    `facts` are what the run wrote down about itself (`lwlab.notebook.record.facts`), if it did.
    """

    id: str
    family: str
    title: str
    paper: str
    model: str
    status: str
    started: str
    seconds: float
    peak_memory_mb: float
    parameters: dict[str, Any]
    message: str
    claims: list[dict[str, Any]]
    notebook: Path
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> ClaimTable:
        """The claims, laid out."""
        return ClaimTable(self.claims)

    @property
    def ok(self) -> bool:
        """True if it ran to its end with no claim broken or changed."""
        return self.status == "ok" and self.table.ok


@dataclass(frozen=True)
class Report:
    """What was gathered and where it was written."""

    entries: list[Entry]
    html: Path
    json: Path

    @property
    def ok(self) -> bool:
        """True if every entry is."""
        return all(e.ok for e in self.entries)


def report(folders: Iterable[Path] = (), out: Path | None = None) -> Report:
    """Gather executed notebooks and write `report.html` and `report.json`.

    Parameters
    ----------
    folders : where to look, at any depth; by default `./lwlab-runs`, or the committed notebooks
        if there is none. Of several runs of one technique on one model, the latest counts.
    out : folder to write to; by default `./lwlab-runs`.

    Raises
    ------
    BadInput
        If a folder does not exist, there is nothing to report, or a notebook makes a claim twice.
    """
    runs = Path.cwd() / "lwlab-runs"
    places = list(folders) or [runs if runs.is_dir() else registry.notebooks_dir()]
    entries = collect(places)
    if not entries:
        names = ", ".join(str(p) for p in places)
        raise BadInput(f"no executed notebook with claims in {names}; `lwlab run ID` makes one.")
    out = out or runs
    html, data = out / "report.html", out / "report.json"
    write_atomic(data, json.dumps(_data(entries), indent=1, default=str) + "\n")
    write_atomic(html, _page(entries, out))
    return Report(entries, html, data)


def collect(folders: Iterable[Path]) -> list[Entry]:
    """Return the latest entry of every technique and model under `folders`, by family and id."""
    latest: dict[tuple[str, str], Entry] = {}
    for folder in folders:
        if not folder.is_dir():
            raise BadInput(f"there is no folder {folder}.")
        for path in sorted(folder.rglob("*.ipynb")):
            if ".ipynb_checkpoints" in path.parts or (entry := read_entry(path)) is None:
                continue
            key = (entry.id, entry.model)
            if key not in latest or entry.started >= latest[key].started:
                latest[key] = entry
    return sorted(latest.values(), key=lambda e: (e.family, e.id, e.model))


def read_entry(path: Path) -> Entry | None:
    """Read one notebook, and the record beside it; None for what is not an lwlab notebook."""
    try:
        header = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("lwlab", {})
    except (ValueError, KeyError, AttributeError):
        return None
    claims = read_claims(path)
    facts = header.get("run", {})
    record = {**facts, **_record(path)}
    if facts:
        facts = {"source_hash": header.get("source_hash"), **facts}
    if (not claims and not record) or header.get("id") in ROOTS:
        return None
    failure = record.get("failure") or {}
    models = [c["model"] for c in claims if c["model"]]
    written = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
    return Entry(
        facts={k: record.get(k, v) for k, v in facts.items()},
        id=header.get("id") or record.get("id") or path.stem.replace("_", "-"),
        family=header.get("family", ""), title=header.get("title", path.stem),
        paper=header.get("paper", ""),
        model=record.get("model") or next(iter(models), header.get("model", "")),
        status=record.get("status", "ok"), started=record.get("started", written),
        seconds=record.get("seconds", 0.0), peak_memory_mb=record.get("peak_memory_mb", 0.0),
        parameters=record.get("parameters", {}),
        message=f"{failure['name']}: {failure['message']}" if failure else "",
        claims=claims, notebook=path,
    )  # fmt: skip


def _record(path: Path) -> dict[str, Any]:
    beside = path.parent / "run.json"
    try:
        record: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if record.get("notebook") == path.name else {}


def _data(entries: list[Entry]) -> dict[str, Any]:
    every = [c for e in entries for c in e.claims]
    return {
        "lwlab_version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "ok": all(e.ok for e in entries),
        "claims": len(every),
        "verdicts": dict(Counter(c["verdict"] for c in every)),
        "changed": [f"{e.id}: {c['id']}" for e in entries for c in e.claims if c["changed"]],
        "failed": [e.id for e in entries if e.status != "ok"],
        "runs": [{**asdict(e), "ok": e.ok} for e in entries],
    }


_STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; width: 100%; margin: .5em 0; font-size: .92em; }
th, td { border-bottom: 1px solid var(--line); padding: 3px 8px; }
h2 { margin-top: 2em; border-bottom: 1px solid var(--line); text-transform: capitalize; }
.facts { opacity: .8; font-size: .9em; } .bad { font-weight: 700; color: #d55e00; }
"""


def _page(entries: list[Entry], out: Path) -> str:
    every = ClaimTable([c for e in entries for c in e.claims])
    failed = sum(e.status != "ok" for e in entries)
    parts = [
        "<!DOCTYPE html><html lang='en'><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'><title>lwlab report</title>",
        f"<style>{_STYLE}</style><h1>Claims checked</h1>",
        f"<p><strong>{escape(every.summary())}</strong></p>",
        f"<p class='bad'>runs that did not finish: {failed}</p>" if failed else "",
        f"<p class='facts'>lwlab {__version__}, {datetime.now(UTC):%d %B %Y %H:%M} UTC. "
        "An exact claim must hold; a paper's finding is reproduced or not on the model measured "
        "here, and either is a result.</p><table>",
        *(_row(e) for e in entries),
        "</table>",
    ]
    for family, group in groupby(entries, key=lambda e: e.family):
        parts.append(f"<h2>{escape(family or 'other')}</h2>")
        parts.extend(_section(e, out) for e in group)
    return "\n".join(parts) + "</html>\n"


def _row(e: Entry) -> str:
    found = e.table.summary() if e.status == "ok" else f"{e.status}: {e.message}"
    bad = "" if e.ok else " class='bad'"
    return (
        f"<tr><td><a href='#{_anchor(e)}'>{escape(e.id)}</a></td><td>{escape(e.model)}</td>"
        f"<td{bad}>{escape(found)}</td></tr>"
    )


def _anchor(e: Entry) -> str:
    return escape(f"{e.id}--{e.model}".replace("/", "-"), quote=True)


def _section(e: Entry, out: Path) -> str:
    page = e.notebook.with_suffix(".html")
    target = page if page.exists() else e.notebook
    link = escape(os.path.relpath(target, out))
    facts = [f"<code>{escape(e.id)}</code> on {escape(e.model or 'no model')}"]
    if e.paper:
        facts.append(f"<a href='https://arxiv.org/abs/{escape(e.paper)}'>{escape(e.paper)}</a>")
    if e.seconds:
        facts.append(f"{e.seconds:.0f} s, {e.peak_memory_mb:.0f} MB")
    facts.append(f"{escape(e.started[:16].replace('T', ' '))}")
    facts.append(f"<a href='{link}'>notebook</a>")
    bad = "" if e.status == "ok" else f"<p class='bad'>{escape(e.status)}: {escape(e.message)}</p>"
    return (
        f"<h3 id='{_anchor(e)}'>{escape(e.title)}</h3><p class='facts'>{' · '.join(facts)}</p>{bad}"
        f"{e.table._repr_html_()}"
    )
