"""How a claim's record reads: in a terminal, and in a notebook of either theme."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any


def number(value: Any) -> str:
    """Write a measured value with four significant digits; whole numbers and truth as they are."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def mark(record: Mapping[str, Any]) -> str:
    """Return the sign of a verdict: it must be readable without colour."""
    if record["changed"]:
        return "⚠"
    return "✓" if record["verdict"] in ("holds", "reproduced") else "✗"


def measured(record: Mapping[str, Any]) -> str:
    """Write the measured value with its unit and interval, such as `0.935 [0.9, 0.95]`."""
    out = number(record["measured"]) + (f" {record['unit']}" if record["unit"] else "")
    if record["interval"] is not None:
        low, high = (number(v) for v in record["interval"])
        out += f" [{low}, {high}]"
    return out


def remarks(record: Mapping[str, Any]) -> list[str]:
    """List what a reader must know beside the verdict: a changed pin, a close call, the note."""
    out = []
    if record["changed"]:
        where = f" on {record['model']}" if record["model"] else ""
        out.append(f"CHANGED: pinned as {record['pinned']!r}{where}")
    if record["borderline"]:
        out.append("the interval crosses the limit")
    if record["note"]:
        out.append(record["note"])
    return out


def sample(record: Mapping[str, Any]) -> str:
    """Write n and the seed, such as `n=16, seed 0`."""
    parts = [f"n={record['n']}" if record["n"] is not None else ""]
    parts.append(f"seed {record['seed']}" if record["seed"] is not None else "")
    return ", ".join(p for p in parts if p)


def text(record: Mapping[str, Any]) -> str:
    """Write a claim for a terminal: one line, and one more for each remark."""
    head = f"{mark(record)} {record['verdict']}: {record['id']}"
    line = f"{head} = {measured(record)} (expected {record['expect']})"
    tail = [x for x in (record["statement"], sample(record), record["paper"]) if x]
    lines = [line + (f" — {'; '.join(tail)}" if tail else "")]
    return "\n".join(lines + [f"  ! {r}" for r in remarks(record)])


def colour(record: Mapping[str, Any]) -> str:
    """Return the edge colour of a verdict (Okabe-Ito; the sign and word say the same)."""
    if record["changed"] or record["verdict"] == "broken":
        return "#d55e00"
    return "#009e73" if record["verdict"] in ("holds", "reproduced") else "#e69f00"


def html(record: Mapping[str, Any]) -> str:
    """Write a claim as HTML that inherits the theme's text colour and needs no script."""
    small = "font-size:0.9em;opacity:0.85"
    facts = [f"expected {record['expect']}", sample(record), record["model"], record["paper"]]
    facts_html = " · ".join(escape(str(x)) for x in facts if x)
    extra = "".join(f"<div>{escape(r)}</div>" for r in remarks(record))
    extra = extra.replace("CHANGED", "<strong>CHANGED</strong>", 1) if record["changed"] else extra
    return (
        f'<div style="border-left:4px solid {colour(record)};padding:2px 0 2px 10px;margin:4px 0">'
        f"<div><strong>{mark(record)} {escape(record['verdict'])}</strong> "
        f"<code>{escape(record['id'])}</code> = <strong>{escape(measured(record))}</strong></div>"
        + (f"<div>{escape(record['statement'])}</div>" if record["statement"] else "")
        + f'<div style="{small}">{facts_html}</div>{extra}</div>'
    )
