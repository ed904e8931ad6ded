"""The claims ledger and the index of the atlas: tables that are filtered and read row by row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import traitlets as t

from lwlab import catalog
from lwlab.claims import show
from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.runs import registry
from lwlab.runs.report import Entry, collect

from ._base import LabWidget, front_end
from ._cards import card

FILTERS = ("text", "family", "model", "verdict", "cost")
COSTS = ["30", "60", "600"]  # seconds of a run, at most


class Ledger(LabWidget):
    """Rows with filters by text, family, model, verdict and cost (seconds a run takes, at most).

    `filters`: {"family": "attribution", ...}, "" for all; settable, and so is `where(...)`.
    `shown`: indices of the rows that pass; `found`: these rows. `picked`: a row, or -1; `detail` is
    what is told about it. A row is {"cells": [...], "mark", "colour", "detail", "family",
    "models", "verdicts", "seconds"}.
    """

    _esm, _css = front_end("ledger")
    columns = t.List(t.Unicode()).tag(sync=True)
    rows = t.List(t.Dict()).tag(sync=True)
    options = t.Dict().tag(sync=True)
    filters = t.Dict().tag(sync=True)
    shown = t.List(t.Int()).tag(sync=True)
    picked = t.Int(-1).tag(sync=True)
    detail = t.Unicode("").tag(sync=True)
    noun = t.Unicode("rows").tag(sync=True)

    def __init__(
        self, columns: Sequence[str], rows: Sequence[dict[str, Any]], title: str, noun: str
    ) -> None:
        """Show `rows` under `columns`; `noun` is what they are called."""
        options = {
            "family": sorted({r["family"] for r in rows if r["family"]}),
            "model": sorted({m for r in rows for m in r["models"]}),
            "verdict": sorted({v for r in rows for v in r["verdicts"]}),
            "cost": COSTS,
        }
        super().__init__(
            columns=list(columns), rows=list(rows), title=title, noun=noun, options=options,
            filters=dict.fromkeys(FILTERS, ""),
        )  # fmt: skip
        self.observe(self._filtered, "filters")
        self.observe(self._picked, "picked")
        self._filtered(None)

    @t.validate("filters")
    def _valid(self, proposal: Any) -> dict[str, str]:
        given = proposal["value"]
        for name, value in given.items():
            if name not in FILTERS:
                raise UnknownName(f"no filter is called {name!r}{suggest(name, FILTERS)}")
            known = self.options.get(name)
            if value and known is not None and str(value) not in known:
                raise UnknownName(f"no {name} is {value!r}{suggest(str(value), known)}")
        return {name: str(given.get(name, "")) for name in FILTERS}

    @t.validate("picked")
    def _row(self, proposal: Any) -> int:
        if not -1 <= proposal["value"] < len(self.rows):
            raise BadInput(f"row {proposal['value']}: there are {len(self.rows)} {self.noun}")
        return int(proposal["value"])

    def where(self, **filters: str) -> Ledger:
        """Set these filters, the others to all; return the widget."""
        self.filters = filters
        return self

    @property
    def found(self) -> list[dict[str, Any]]:
        """The rows that pass the filters."""
        return [self.rows[i] for i in self.shown]

    def _filtered(self, _change: Any) -> None:
        f = self.filters
        self.shown = [i for i, row in enumerate(self.rows) if _passes(row, f)]

    def _picked(self, change: Any) -> None:
        self.detail = self.rows[change["new"]]["detail"] if change["new"] >= 0 else ""

    def static_text(self) -> str:
        """Return how many rows there are and what the shown ones say."""
        asked = ", ".join(f"{k} {v!r}" for k, v in self.filters.items() if v)
        head = f"{self.title}: {len(self.shown)} of {len(self.rows)} {self.noun}"
        lines = [" | ".join([r["mark"], *r["cells"]]).strip(" |") for r in self.found[:30]]
        return "\n".join([head + (f" ({asked})" if asked else ""), *lines])

    def static_png(self) -> bytes:
        """Return the shown rows, a column each."""
        rows = self.found
        columns: list[tuple[str, list[tuple[str, float | None]]]] = []
        for k, name in enumerate(self.columns):
            texts = [
                (f"{r['mark']} " if k == 0 and r["mark"] else "") + r["cells"][k] for r in rows
            ]
            columns.append((name, [(x if len(x) < 40 else x[:38] + "…", None) for x in texts]))
        return card(self.title, self.static_text().partition("\n")[0], columns, 245)


def _passes(row: dict[str, Any], f: dict[str, str]) -> bool:
    text = " ".join([*row["cells"], row["detail"]]).lower()
    return (
        f["text"].strip().lower() in text
        and f["family"] in ("", row["family"])
        and (not f["model"] or f["model"] in row["models"])
        and (not f["verdict"] or f["verdict"] in row["verdicts"])
        and (not f["cost"] or (row["seconds"] is not None and row["seconds"] <= float(f["cost"])))
    )


def _entries(folders: Iterable[str | Path] | None) -> list[Entry]:
    if folders is not None:
        return collect([Path(f) for f in folders])
    runs = Path.cwd() / "lwlab-runs"
    return collect([registry.notebooks_dir(), *([runs] if runs.is_dir() else [])])


def _claim_rows(entry: Entry) -> Iterable[dict[str, Any]]:
    for r in entry.claims:
        model = str(r["model"] or entry.model)
        verdict = f"{r['verdict']}, CHANGED" if r["changed"] else str(r["verdict"])
        lines = [
            r["statement"], f"expected {r['expect']} ({r['kind']}): {verdict}", show.sample(r),
            *show.remarks(r), f"{entry.title}; arXiv {r['paper']}" if r["paper"] else entry.title,
            f"{entry.notebook.name}, {entry.seconds:.0f} s",
        ]  # fmt: skip
        yield {
            "cells": [entry.id, r["id"], show.measured(r), verdict, model],
            "mark": show.mark(r), "colour": show.colour(r),
            "detail": "\n".join(x for x in lines if x), "family": entry.family,
            "models": [model], "verdicts": [r["verdict"]], "seconds": entry.seconds or None,
        }  # fmt: skip


def ledger(folders: Iterable[str | Path] | None = None) -> Ledger:
    """Return every claim of the committed notebooks and of ./lwlab-runs (or of `folders`).

    Of several runs of one technique on one model, the latest counts. Raises BadInput for a folder
    that does not exist.
    """
    rows = [row for entry in _entries(folders) for row in _claim_rows(entry)]
    columns = ("technique", "claim", "measured", "verdict", "model")
    return Ledger(columns, rows, "Claims ledger", "claims")


def atlas(folders: Iterable[str | Path] | None = None) -> Ledger:
    """Return the index of the atlas: every paper of the catalogue, with what was measured of it."""
    measured: dict[str, list[Entry]] = {}
    for entry in _entries(folders):
        measured.setdefault(entry.id, []).append(entry)
    made = {x.header.id: x.header for x in registry.techniques()}
    rows = []
    for paper in catalog.papers():
        header, runs = made.get(paper.id), measured.get(paper.id, [])
        said = "; ".join(f"{e.model}: {e.table.summary()}" for e in runs)
        cost = f"{header.seconds:.0f} s, {header.memory_mb / 1000:.1f} GB" if header else ""
        state = said or ("not run" if header else "no notebook yet")
        lines = [paper.title, paper.url, state, f"lwlab run {paper.id}" if header else ""]
        rows.append({
            "cells": [paper.id, paper.family, paper.title, cost, state],
            "mark": "●" if header else "○", "colour": "",
            "detail": "\n".join(x for x in lines if x), "family": paper.family,
            "models": sorted({e.model for e in runs if e.model}),
            "verdicts": sorted({c["verdict"] for e in runs for c in e.claims}),
            "seconds": header.seconds if header else None,
        })  # fmt: skip
    columns = ("technique", "family", "paper", "cost", "claims")
    return Ledger(columns, rows, "Atlas", "papers")
