"""The atlas: a table of all papers with filters by family, model, cost and verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from lwlab.catalog import Paper

if TYPE_CHECKING:
    from lwlab.gallery.pages import Page

_COSTS = {"30": "up to 30 s", "60": "up to 60 s", "600": "up to 10 min"}


def table(pages: Sequence[Page], papers: Iterable[Paper]) -> str:
    """Return the table as HTML; `static/atlas.js` makes the filters work."""
    shown = {p.header.id for p in pages}
    rest = [p for p in papers if p.id not in shown]
    families = sorted({p.header.family for p in pages} | {p.family for p in rest})
    models = sorted({m for p in pages for m in p.claims})
    verdicts = sorted({r["verdict"] for p in pages for t in p.claims.values() for r in t.records})
    filters = "".join(
        (
            "<label>search <input type='search' data-filter='text'></label>",
            _select("family", {f: f for f in families}),
            _select("model", {m: m for m in models}),
            _select("verdict", {v: v for v in verdicts}),
            _select("cost", _COSTS),
            "<label><input type='checkbox' data-filter='done'> only papers with a notebook</label>",
        )
    )
    rows = [_row(p) for p in pages] + [_missing(p) for p in rest]
    columns = ("technique", "family", "paper", "cost", "claims")
    head = "".join(f"<th scope='col'>{h}</th>" for h in columns)
    return (
        f"<div id='atlas'><p class='filters'>{filters}</p>"
        "<p aria-live='polite' class='count'></p>"
        "<div class='table-wrapper'><table class='docutils'><thead>"
        f"<tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></div>\n"
        "<script src='_static/atlas.js'></script>"
    )


def _select(name: str, options: dict[str, str]) -> str:
    items = "".join(
        f"<option value='{escape(k, quote=True)}'>{escape(v)}</option>" for k, v in options.items()
    )
    return (
        f"<label>{name} <select data-filter='{name}'><option value=''>all</option>{items}</select>"
        "</label>"
    )


def _row(page: Page) -> str:
    h = page.header
    verdicts = {r["verdict"] for t in page.claims.values() for r in t.records}
    claims = "; ".join(f"{escape(m)}: {escape(t.summary())}" for m, t in page.claims.items())
    data = {
        "family": h.family, "model": "|".join(page.claims), "verdict": "|".join(sorted(verdicts)),
        "cost": f"{h.seconds:.0f}", "done": "1",
    }  # fmt: skip
    attrs = " ".join(f"data-{k}='{escape(v, quote=True)}'" for k, v in data.items())
    return (
        f"<tr {attrs}><td><a href='{page.address}'>{escape(h.id)}</a></td><td>{escape(h.family)}"
        f"</td><td>{_paper(h.title, h.paper)}</td><td>{h.seconds:.0f}&nbsp;s, "
        f"{h.memory_mb / 1000:.1f}&nbsp;GB</td><td>{claims}</td></tr>"
    )


def _missing(paper: Paper) -> str:
    return (
        f"<tr class='missing' data-family='{escape(paper.family, quote=True)}' data-done=''>"
        f"<td>{escape(paper.id)}</td><td>{escape(paper.family)}</td>"
        f"<td>{_paper(paper.title, paper.arxiv)}</td><td></td><td>no notebook yet</td></tr>"
    )


def _paper(title: str, arxiv: str) -> str:
    if not arxiv:
        return escape(title)
    return f"<a href='https://arxiv.org/abs/{escape(arxiv, quote=True)}'>{escape(title)}</a>"
