"""Altair made quick to import and able to draw in JupyterLab without a network."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwlab._quick import quick_imports
from lwlab.charts import png
from lwlab.charts.palette import CATEGORIES

if TYPE_CHECKING:
    import altair as alt

MIME = "application/vnd.vegalite.v5+json"
SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"
FONT = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
# A crisp picture at any zoom; only the menu entries that work without a network.
_EMBED = {"renderer": "svg", "actions": {"export": True, "source": False, "editor": False}}


@cache
def altair() -> Any:
    """Return the altair module; the first call sets lwlab's renderer and theme.

    A renderer or theme that the user has already chosen is left alone.
    """
    quick_imports()
    import altair as alt

    alt.renderers.register("lwlab", render)
    if alt.renderers.active == "default":
        alt.renderers.enable("lwlab")
    chosen = alt.theme.active
    alt.theme.register("lwlab", enable=chosen == "default")(_theme)
    return alt


def enable() -> None:
    """Draw every Altair chart of this session, also your own, offline and in lwlab's style."""
    alt = altair()
    alt.renderers.enable("lwlab")
    alt.theme.enable("lwlab")


def render(spec: dict[str, Any], **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the MIME bundle for a Vega-Lite `spec`, drawn by JupyterLab's own Vega.

    JupyterLab 4 bundles Vega-Lite 5 and knows only the v5 type, while Altair 6 stamps v6, so the
    spec is relabelled. It needs no script and no network, and is drawn in untrusted notebooks.
    """
    bundle = {MIME: {**spec, "$schema": SCHEMA}, "text/plain": describe(spec)}
    return bundle, {MIME: {"embed_options": _EMBED}}


def beside(*charts: Any, columns: int | None = None) -> alt.ConcatChart:
    """Place charts side by side, `columns` a row, each with its own colours, legend and axes.

    Altair's own `a | b` would make the charts share one colour scale.
    """
    alt = altair()
    own = dict.fromkeys(("color", "shape", "strokeDash", "x", "y"), "independent")
    return alt.concat(*charts, columns=columns or len(charts)).resolve_scale(**own)


def describe(spec: dict[str, Any]) -> str:
    """Return the chart's text form: its own description, else its title and mark."""
    if text := spec.get("description"):
        return str(text)
    title = spec.get("title")
    title = title.get("text") if isinstance(title, dict) else title
    mark = spec.get("mark")
    mark = mark.get("type") if isinstance(mark, dict) else mark
    return f"Chart ({mark or 'composed'})" + (f": {title}" if title else "")


def to_png(
    chart: alt.TopLevelMixin | dict[str, Any],
    path: str | Path | None = None,
    scale: float = 2.0,
) -> bytes:
    """Draw `chart` (or a Vega-Lite spec) as PNG bytes, with no browser; also write it to `path`.

    Drawn with Vega-Lite 5, as JupyterLab draws it. The first call of a process takes about 3 s.
    """
    import vl_convert

    spec = chart if isinstance(chart, dict) else chart.to_dict()
    drawn = vl_convert.vegalite_to_png({**spec, "$schema": SCHEMA}, vl_version="5.8", scale=scale)
    small = png.squeeze(drawn)
    if path is not None:
        Path(path).write_bytes(small)
    return small


def _theme() -> dict[str, Any]:
    ink, soft = "#1a1a1a", "#5a5a5a"
    return {
        "config": {
            "background": "white",
            "font": FONT,
            "padding": 6,
            "title": {
                "anchor": "start", "color": ink, "fontSize": 14, "fontWeight": 600,
                "subtitleColor": soft, "subtitleFontSize": 11.5, "subtitlePadding": 4, "offset": 10,
                "frame": "group",
            },
            "axis": {
                "labelColor": ink, "titleColor": ink, "labelFontSize": 11, "titleFontSize": 12,
                "titleFontWeight": "normal", "titlePadding": 8, "domainColor": "#888",
                "tickColor": "#888", "gridColor": "#e6e6e6", "labelLimit": 130,
            },
            "header": {"labelFontSize": 12, "labelFontWeight": 600, "labelColor": ink},
            "legend": {
                "labelColor": ink, "titleColor": ink, "labelFontSize": 11, "titleFontSize": 12,
                "titleFontWeight": "normal", "gradientLength": 160, "labelLimit": 260,
                "titleLimit": 260,
            },
            "view": {"stroke": None},
            "range": {"category": list(CATEGORIES)},
        }
    }  # fmt: skip
