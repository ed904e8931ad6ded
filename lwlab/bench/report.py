"""What a benchmark run leaves: one JSON file, and the table that is rendered from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from lwlab.errors import BadInput
from lwlab.paths import write_atomic

SCHEMA = 1
Report = dict[str, Any]


def new(name: str, machine: Mapping[str, Any], versions: Mapping[str, str]) -> Report:
    """Return an empty report."""
    return {
        "schema": SCHEMA, "name": name, "date": date.today().isoformat(),
        "machine": dict(machine), "versions": dict(versions), "cases": {}, "absent": {},
    }  # fmt: skip


def save(report: Report, path: Path) -> Path:
    """Write the report atomically; returns the path."""
    write_atomic(path, json.dumps(_rounded(report), indent=1, ensure_ascii=False) + "\n")
    return path


def load(path: Path) -> Report:
    """Read a report; raises BadInput when the file is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is no benchmark report: {error}") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise BadInput(f"{path} is no benchmark report of schema {SCHEMA}.")
    return found


def merge(old: Report, new: Report) -> Report:
    """Put the cases of `new` into `old`; raises BadInput when they ran on different versions."""
    apart = {k for k in old["versions"] | new["versions"]
             if old["versions"].get(k) != new["versions"].get(k)}  # fmt: skip
    if old["name"] != new["name"] or apart:
        raise BadInput(
            f"results of {new['name']!r} cannot join those of {old['name']!r}: versions of "
            f"{sorted(apart)} differ; measure everything again."
        )
    cases = {**old["cases"], **new["cases"]}
    absent = {k: v for k, v in (old["absent"] | new["absent"]).items() if k not in cases}
    return {**new, "cases": cases, "absent": absent}


def _rounded(value: Any) -> Any:
    """Six significant digits are more than any timing has."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return value


def table(report: Report) -> str:
    """Render a report as Markdown: one table a case, the limits and what was absent below.

    "times" is the way's CPU time over lwlab's own in the same round, median (min .. max).
    """
    lines: list[str] = []
    for case in report["cases"].values():
        lines += [f"**{case['title']}**", ""]
        if case.get("failed"):
            lines += [f"NOT TIMED: {case['failed']}", ""]
            continue
        lines += ["| way | CPU ms | times lwlab | largest difference | target |"]
        lines += ["|---|---|---|---|---|"]
        for way in case["ways"]:
            lines.append(_line(way))
        lines += ["", _foot(case), ""]
    lines += [f"- {name}: {why}" for name, why in report["absent"].items()]
    machine, found = report["machine"], report["versions"]
    rates = ", ".join(f"{what} {rate:g}" for what, rate in machine.get("rates", {}).items())
    lines += [
        "",
        f"{report['date']}, {machine['processor']}, {machine['cores']} cores, "
        f"{machine['threads']} torch thread, load {machine['load'][0]:g}; "
        + ", ".join(f"{k} {v}" for k, v in found.items())
        + (f". Rates in the same process: {rates}." if rates else "."),
    ]
    return "\n".join(lines).strip() + "\n"


def _line(way: Mapping[str, Any]) -> str:
    ratio, cpu = way["ratio"], way["cpu_ms"]["median"]
    name = f"**{way['name']}**" if way["kind"] == "subject" else way["name"]
    if way["kind"] == "limit":
        name = f"*limit: {way['name']}*"
    times = "1"
    if way["kind"] != "subject":
        times = f"{ratio['median']:.3g} ({ratio['min']:.3g} .. {ratio['max']:.3g})"
    apart = f"{way['difference']:.2g}" if "difference" in way else ""
    target = f"at least {way['target']:.3g}: {way['verdict']}" if "target" in way else ""
    return f"| {name} | {_sig(cpu)} | {times} | {apart} | {target} |"


def _sig(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _foot(case: Mapping[str, Any]) -> str:
    null = case["null"]
    parts = [
        f"{case['rounds']} rounds; null pair {null['median']:.3g} "
        f"({null['min']:.3g} .. {null['max']:.3g})"
        + ("" if case["quiet"] else ": INCONCLUSIVE, the machine was too busy")
    ]
    names = {"gflop_per_s": "GFLOP/s", "gb_per_s": "GB/s"}
    parts += [f"{v:.3g} {names[k]}" for k, v in case["rates"].items()]
    parts += [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
              for k, v in case["figures"].items()]  # fmt: skip
    parts += [f"{way['name']}: {way['note']}" for way in case["ways"] if way.get("note")]
    parts += [f"not timed: {name} ({why})" for name, why in case["absent"].items()]
    return "; ".join(parts) + "."


def markers(name: str) -> tuple[str, str]:
    """Return the comments between which a document holds the table of benchmark `name`."""
    return f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"


def embed(text: str, report: Report) -> str:
    """Return a document with the report's table between its markers.

    Raises BadInput when the markers are not there, once and in order.
    """
    begin, end = markers(report["name"])
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise BadInput(f"the document needs one {begin} and one {end} after it.")
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n{table(report)}{end}{tail}"


def publish(report: Report, document: Path) -> Path:
    """Put the report's table between its markers in a document; raises as `embed` does."""
    write_atomic(document, embed(document.read_text(encoding="utf-8"), report))
    return document


def verdict(report: Report) -> str:
    """Return "met", "missed", "failed" or "INCONCLUSIVE": the worst over all cases and targets."""
    found = {w["verdict"] for c in report["cases"].values() for w in c.get("ways", ())
             if "verdict" in w}  # fmt: skip
    if any(c.get("failed") for c in report["cases"].values()):
        return "failed"
    return next((v for v in ("missed", "INCONCLUSIVE") if v in found), "met")
