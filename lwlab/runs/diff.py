"""Two runs compared: which claims moved and by how much, and what else was not the same."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwlab.claims import show
from lwlab.errors import BadInput
from lwlab.runs.report import Entry, collect, read_entry

#: From what needs a look to what does not.
STATES = ("verdict", "gone", "new", "moved", "within", "same")
_WORDS = {
    "verdict": "VERDICT CHANGED", "gone": "only in the first", "new": "only in the second",
    "moved": "moved", "within": "moved within the interval", "same": "the same",
}  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One claim in two runs; a record is None where the run does not make the claim.

    `state` is 'verdict' (it differs), 'gone' or 'new' (one run lacks the claim), 'moved', 'within'
    (moved, but inside an interval of either run) or 'same' (the same number).
    """

    run: str
    claim: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None

    @property
    def delta(self) -> float | None:
        """The second measurement less the first."""
        if self.before is None or self.after is None:
            return None
        return float(self.after["measured"]) - float(self.before["measured"])

    @property
    def relative(self) -> float | None:
        """`delta` as a share of the first measurement; None where that is 0 or not finite."""
        first = float(self.before["measured"]) if self.before else 0.0
        delta = self.delta
        return delta / abs(first) if delta is not None and first and math.isfinite(first) else None

    @property
    def state(self) -> str:
        """How the two differ."""
        a, b = self.before, self.after
        if a is None or b is None:
            return "new" if a is None else "gone"
        if a["verdict"] != b["verdict"]:
            return "verdict"
        x, y = float(a["measured"]), float(b["measured"])
        if x == y or (math.isnan(x) and math.isnan(y)):
            return "same"
        return "within" if _inside(y, a) or _inside(x, b) else "moved"


@dataclass(frozen=True)
class Diff:
    """Two runs, or two folders of runs, compared."""

    changes: list[Change]
    #: What else differs: (run, what, before, after), such as ("relp", "torch", "2.12", "2.13").
    context: list[tuple[str, str, Any, Any]]
    #: Runs that only one side has, or that did not end well: (run, what about it).
    remarks: list[tuple[str, str]]

    @property
    def ok(self) -> bool:
        """True if no verdict changed, no claim or run is missing, and no second run failed."""
        bad = [what for _, what in self.remarks if what != _WORDS["new"]]
        return not bad and all(c.state not in ("verdict", "gone") for c in self.changes)

    def summary(self) -> str:
        """Count the claims by state, such as `12 claims: 10 the same, 2 moved`."""
        counts = Counter(c.state for c in self.changes)
        parts = [f"{counts[s]} {_WORDS[s]}" for s in reversed(STATES) if counts[s]]
        noun = "claim" if len(self.changes) == 1 else "claims"
        return f"{len(self.changes)} {noun}: {', '.join(parts)}" if parts else "no claims"

    def table(self, every: bool = False) -> Any:
        """Return a rich table of the claims that differ; with `every`, of all."""
        from rich.table import Table

        out = Table(box=None, header_style="bold")
        for name in ("run", "claim", "first", "second", "change", ""):
            out.add_column(name, overflow="fold")
        for c in self.changes:
            if c.state == "same" and not every:
                continue
            style = "bold red" if c.state in ("verdict", "gone") else None
            out.add_row(
                c.run, c.claim, _cell(c.before), _cell(c.after), _move(c), _WORDS[c.state],
                style=style,
            )  # fmt: skip
        return out

    def records(self) -> list[dict[str, Any]]:
        """Return one dict a claim, for a table of your own."""
        return [
            {
                "run": c.run, "claim": c.claim, "state": c.state,
                "before": c.before and c.before["measured"],
                "after": c.after and c.after["measured"], "delta": c.delta, "relative": c.relative,
                "verdict_before": c.before and c.before["verdict"],
                "verdict_after": c.after and c.after["verdict"],
            }
            for c in self.changes
        ]  # fmt: skip

    def __str__(self) -> str:
        import io

        from rich.console import Console

        buffer = io.StringIO()
        console = Console(file=buffer, width=120, color_system=None, force_jupyter=False)
        if any(c.state != "same" for c in self.changes):
            console.print(self.table())
        lines = [f"{run}: {what}" for run, what in self.remarks]
        lines += [f"{run}: {what} {_text(a)} -> {_text(b)}" for run, what, a, b in self.context]
        return "\n".join([*buffer.getvalue().rstrip().splitlines(), *lines, self.summary()])

    __repr__ = __str__


def diff(first: str | Path, second: str | Path) -> Diff:
    """Compare the claims of two runs, and what was different about the runs themselves.

    Parameters
    ----------
    first, second : each a run's folder, an executed notebook, or a folder of runs (of which the
        latest of each technique and model counts), or a sweep's folder (rows are then matched by
        all their parameters).

    Returns
    -------
    Diff
        Claims with what each run measured and the change; differences of parameters, seed, library
        versions, model checksum, notebook content and hardware; runs that one side lacks.

    Raises
    ------
    BadInput
        If a path holds no executed notebook, or the two have no run in common.
    """
    a, b = _runs(Path(first)), _runs(Path(second))
    if len(a) == len(b) == 1 and {e.id for e in a.values()} == {e.id for e in b.values()}:
        b = dict(zip(a, b.values()))  # one run of a technique each, whatever the parameters
    common = [name for name in a if name in b]
    if not common:
        raise BadInput(
            f"{first} has {_names(a)} and {second} has {_names(b)}: no run in common to compare."
        )
    changes = [c for name in common for c in _changes(name, a[name], b[name])]
    context = [c for name in common for c in _context(name, a[name], b[name])]
    remarks = [(name, _WORDS["gone"]) for name in a if name not in b]
    remarks += [(name, _WORDS["new"]) for name in b if name not in a]
    for name in common:
        if b[name].status != "ok":
            remarks.append((name, f"the second run {b[name].status}: {b[name].message}"))
    return Diff(sorted(changes, key=lambda c: STATES.index(c.state)), context, remarks)


def _runs(path: Path) -> dict[str, Entry]:
    """Return the runs at `path` by a name that is the same for the same run elsewhere."""
    if path.is_file():
        notebook = path if path.suffix == ".ipynb" else next(path.parent.glob("*.ipynb"), path)
        entry = read_entry(notebook)
        if entry is None:
            raise BadInput(f"{path} is not an executed lwlab notebook, nor the record of one.")
        return {_name(entry): entry}
    if (path / "rows").is_dir():
        found = [e for p in sorted(path.glob("rows/*/*.ipynb")) if (e := read_entry(p))]
        return {f"{e.id} {json.dumps(e.parameters, sort_keys=True)}": e for e in found}
    entries = {_name(e): e for e in collect([path])}
    if not entries:
        raise BadInput(f"{path} holds no executed notebook with claims; `lwlab run ID` makes one.")
    return entries


def _name(entry: Entry) -> str:
    return f"{entry.id} ({entry.model})" if entry.model else entry.id


def _names(runs: Mapping[str, Entry]) -> str:
    shown = list(runs)[:4] + (["..."] if len(runs) > 4 else [])
    return ", ".join(shown) or "nothing"


def _changes(name: str, a: Entry, b: Entry) -> Iterator[Change]:
    before, after = ({c["id"]: c for c in e.claims} for e in (a, b))
    for claim in dict.fromkeys([*before, *after]):
        yield Change(name, claim, before.get(claim), after.get(claim))


def _context(name: str, a: Entry, b: Entry) -> Iterator[tuple[str, str, Any, Any]]:
    for left, right in zip(_circumstances(a), _circumstances(b)):
        if not left or not right:  # an older run that did not write it down
            continue
        for what in dict.fromkeys([*left, *right]):
            if left.get(what) != right.get(what):
                yield name, what, left.get(what), right.get(what)


def _circumstances(entry: Entry) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a run's parameters, and what it used; either is empty if it is not known."""
    parameters = {f"parameter {k}": v for k, v in entry.parameters.items()}
    facts = entry.facts
    if not facts:
        return parameters, {}
    used = {"model": entry.model, "model checksum": facts.get("model_checksum") or None}
    used |= {"notebook content": facts.get("source_hash")}
    used |= {f"version of {k}": v for k, v in facts.get("versions", {}).items()}
    used |= {f"hardware {k}": v for k, v in facts.get("hardware", {}).items()}
    return parameters, used


def _inside(value: float, record: Mapping[str, Any]) -> bool:
    if record["interval"] is None:
        return False
    low, high = (float(v) for v in record["interval"])
    return low <= value <= high


def _cell(record: Mapping[str, Any] | None) -> str:
    return "" if record is None else f"{show.mark(record)} {show.measured(record)}"


def _move(change: Change) -> str:
    if change.delta is None or change.state == "same":
        return ""
    share = f" ({change.relative:+.1%})" if change.relative is not None else ""
    return f"{change.delta:+.4g}{share}"


def _text(value: Any) -> str:
    return "none" if value is None else str(value)
