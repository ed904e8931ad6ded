"""Claims of a notebook, read back and laid out as one table."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from lwlab.claims import show
from lwlab.claims.record import MIME, Claim, made
from lwlab.errors import BadInput

COLUMNS = ("verdict", "claim", "measured", "expected", "sample")


def read_claims(notebook: str | Path | Mapping[str, Any]) -> list[dict[str, Any]]:
    """Read the claims out of an executed notebook, in the order they were made.

    Parameters
    ----------
    notebook : path of an `.ipynb`, or its content (an nbformat node or the parsed JSON).

    Returns
    -------
    list of records, each with the fields of `Claim` and `cell`, the index of its cell.

    Raises
    ------
    BadInput
        If the file is not a notebook, or two cells made a claim of the same id.
    """
    where = "the notebook"
    if not isinstance(notebook, Mapping):
        path = Path(notebook)
        where = path.name
        try:
            notebook = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise BadInput(f"{path} cannot be read as a notebook: {e}") from None
    if not isinstance(notebook, Mapping) or not isinstance(notebook.get("cells"), list):
        raise BadInput(f"{where} is not a notebook: it has no list of cells.")
    found: dict[str, dict[str, Any]] = {}
    for i, cell in enumerate(notebook["cells"]):
        for output in cell.get("outputs", []):
            record = output.get("data", {}).get(MIME)
            if record is None:
                continue
            if record["id"] in found:
                raise BadInput(
                    f"{where}: claim {record['id']!r} is made twice, in cells "
                    f"{found[record['id']]['cell']} and {i}; give each claim its own id."
                )
            found[record["id"]] = {**record, "cell": i}
    return list(found.values())


@dataclass(frozen=True)
class ClaimTable:
    """Claim records as a table: prints in a terminal, shows as HTML in a notebook."""

    records: list[dict[str, Any]]

    @property
    def ok(self) -> bool:
        """False if any claim is broken or has changed its verdict."""
        return not any(r["changed"] or r["verdict"] == "broken" for r in self.records)

    def summary(self) -> str:
        """Count the verdicts, such as `5 claims: 3 hold, 2 reproduced`."""
        if not self.records:
            return "no claims"
        counts = Counter(r["verdict"] for r in self.records)
        parts = [f"{n} {'hold' if v == 'holds' and n > 1 else v}" for v, n in counts.items()]
        if changed := sum(r["changed"] for r in self.records):
            parts.append(f"{changed} CHANGED")
        noun = "claim" if len(self.records) == 1 else "claims"
        return f"{len(self.records)} {noun}: {', '.join(parts)}"

    def __rich__(self) -> Any:
        from rich import box
        from rich.markup import escape as plain
        from rich.table import Table

        style = {"#009e73": "bold green", "#e69f00": "bold yellow", "#d55e00": "bold red"}
        out = Table(box=box.ROUNDED, caption=self.summary(), caption_justify="left")
        out.show_lines = True
        out.add_column("claim", overflow="fold")
        out.add_column("measured", overflow="fold", min_width=22)
        for r in self.records:
            head = f"[{style[show.colour(r)]}]{show.mark(r)} {r['verdict']}[/]  {plain(r['id'])}"
            below = [r["statement"], *(f"! {remark}" for remark in show.remarks(r))]
            facts = [show.measured(r), f"expected {r['expect']}", show.sample(r)]
            out.add_row(
                "\n".join([head, *(plain(x) for x in below if x)]),
                "\n".join(plain(x) for x in facts if x),
            )
        return out

    def __str__(self) -> str:
        from rich.console import Console

        buffer = io.StringIO()
        # in a notebook rich would display the table by itself instead of writing it here
        console = Console(file=buffer, width=110, color_system=None, force_jupyter=False)
        console.print(self.__rich__())
        return buffer.getvalue().rstrip("\n")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cell = "text-align:left;vertical-align:top;padding:3px 8px"
        head = "".join(f'<th style="{cell}">{name}</th>' for name in COLUMNS)
        rows = "".join(
            f'<tr><td style="{cell};border-left:4px solid {show.colour(r)};white-space:nowrap">'
            f"<strong>{show.mark(r)} {escape(r['verdict'])}</strong></td>"
            f'<td style="{cell}"><code>{escape(r["id"])}</code><br>{escape(r["statement"])}'
            + "".join(f"<br><em>{escape(x)}</em>" for x in show.remarks(r))
            + f'</td><td style="{cell}">{escape(show.measured(r))}</td>'
            f'<td style="{cell};white-space:nowrap">{escape(r["expect"])}</td>'
            f'<td style="{cell}">{escape(show.sample(r))}</td></tr>'
            for r in self.records
        )
        return (
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
            f"<p>{escape(self.summary())}</p>"
        )


def table(
    claims: str | Path | Iterable[Claim | Mapping[str, Any]] | None = None,
) -> ClaimTable:
    """Lay claims out as a table.

    Parameters
    ----------
    claims : path of an executed notebook, or claims, or their records; by default every claim
        made so far in this process (a notebook's last cell).
    """
    if claims is None:
        claims = made.values()
    elif isinstance(claims, str | Path):
        claims = read_claims(claims)
    return ClaimTable([c.record() if isinstance(c, Claim) else dict(c) for c in claims])
