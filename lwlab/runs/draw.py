"""The chart of a sweep: what each claim measured along a parameter, and the cell that draws it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwlab._quick import quick_imports
from lwlab.charts.palette import CATEGORIES
from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.paths import write_atomic
from lwlab.runs.table import RESERVED

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

_GOOD = ("holds", "reproduced")


def varied(table: pd.DataFrame) -> list[str]:
    """Return the parameters that take several values in a sweep's table, most values first."""
    names = [c for c in table.columns if c not in RESERVED]
    counts = {c: table[c].nunique(dropna=False) for c in names}
    return sorted((c for c in names if counts[c] > 1), key=lambda c: -counts[c])


def chart(
    table: pd.DataFrame,
    x: str | None = None,
    colour: str | None = None,
    *,
    claims: list[str] | None = None,
    columns: int = 2,
    width: int = 300,
    height: int = 170,
) -> alt.Chart:
    """Draw the measured value of each claim along parameter `x`, one panel a claim.

    A point is one row of the sweep, filled if the claim held or was reproduced there; a line joins
    the means over the other parameters (such as seeds).

    Parameters
    ----------
    table : what `lw.runs.results` or `Sweep.table` returns.
    x, colour : parameters; by default the varied parameter with the most values that are numbers,
        and the next one, if the sweep varies several.
    claims : ids of the claims to draw; by default all.
    columns, width, height : panels a line, and the pixels of each.

    Raises
    ------
    UnknownName
        If the table has no such parameter or claim.
    BadInput
        If no row of the sweep made a claim.
    """
    from lwlab.charts._altair import altair, beside

    drawn = table.dropna(subset=["claim", "measured"])
    if drawn.empty:
        raise BadInput("no row of this sweep made a claim, so there is nothing to draw.")
    names = [c for c in table.columns if c not in RESERVED]
    for name in (x, colour):
        if name is not None and name not in names:
            raise UnknownName(f"the sweep has no parameter {name!r}" + suggest(name, names))
    ids = list(dict.fromkeys(drawn["claim"]))
    for claim in claims or ():
        if claim not in ids:
            raise UnknownName(f"the sweep has no claim {claim!r}" + suggest(claim, ids))
    free = [c for c in varied(drawn) if c not in (x, colour)]
    x = x or next((c for c in free if _number(drawn[c])), None) or (free or names)[0]
    colour = colour or next((c for c in free if c != x), None)
    alt = altair()
    panels = [
        _panel(alt, drawn[drawn["claim"] == claim], x, colour, title=claim).properties(
            width=width, height=height
        )
        for claim in claims or ids
    ]
    return panels[0] if len(panels) == 1 else beside(*panels, columns=columns)


def _number(values: pd.Series[Any]) -> bool:
    return str(values.dtype) in ("Int64", "float64")


def _panel(alt: Any, part: pd.DataFrame, x: str, colour: str | None, title: str) -> Any:
    kept = dict.fromkeys([x, *([colour] if colour else []), "measured", "verdict", "seconds"])
    data = part[list(kept)].rename(columns={x: "x", **({colour: "colour"} if colour else {})})
    data["held"] = part["verdict"].isin(_GOOD).map({True: "held", False: "did not"})
    rows = data.astype(object).where(data.notna(), None).to_dict("records")
    kind = "Q" if _number(part[x]) else "N"
    unit = next((u for u in part["unit"].dropna() if u), "")
    colours = {"color": alt.Color("colour:N", title=colour)} if colour else {}
    tips = ["x:N", "measured:Q", "verdict:N", "seconds:Q"] + (["colour:N"] if colour else [])
    base = alt.Chart(alt.Data(values=rows), title=title).encode(
        x=alt.X(f"x:{kind}", title=x, **({"scale": alt.Scale(zero=False)} if kind == "Q" else {})),
        **colours,
    )
    up = {"title": f"measured ({unit})" if unit else "measured", "scale": alt.Scale(zero=False)}
    fill = alt.condition(
        alt.datum.held == "held", alt.value(1.0), alt.value(0.0)
    )  # hollow where the claim did not hold: it must be seen without colour
    inside = alt.Fill("colour:N", legend=None) if colour else alt.value(CATEGORIES[0])
    points = base.mark_point(filled=False, size=55, strokeWidth=1.5).encode(
        y=alt.Y("measured:Q", **up), fillOpacity=fill, tooltip=tips, fill=inside
    )
    means = base.mark_line(strokeWidth=1.5, opacity=0.7).encode(y=alt.Y("mean(measured):Q", **up))
    return means + points


def write_notebook(folder: Path, title: str) -> Path:
    """Write `sweep.ipynb` beside a sweep's table, with the cells that load and draw it.

    One that is there already is left alone: it may have been worked on.
    """
    path = folder / "sweep.ipynb"
    if path.exists():
        return path
    quick_imports()
    import nbformat
    from nbformat import v4

    from lwlab.notebook.source import KERNELSPEC

    cells = [
        v4.new_markdown_cell(f"# Sweep: {title}\n\nOne line a claim and row of the grid."),
        v4.new_code_cell(
            'import lwlab as lw\n\ntable = lw.runs.results(".")  # results.parquet\ntable'
        ),
        v4.new_code_cell("lw.runs.wide(table)  # one line a row, one column a claim"),
        v4.new_code_cell('lw.runs.chart(table)  # chart(table, "n", "model"): along n'),
    ]
    nb = v4.new_notebook(cells=cells, metadata={"kernelspec": KERNELSPEC})
    write_atomic(path, nbformat.writes(nb) + "\n")
    return path
