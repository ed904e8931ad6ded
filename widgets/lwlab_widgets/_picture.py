"""Static pictures of maps, drawn in milliseconds with no browser: pixels for cells, SVG text."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt

from lwlab.charts import png
from lwlab.charts.palette import MISSING, MISSING_STROKE, Domain, colour_map, ticks

FONT = "Helvetica, Arial, Liberation Sans, DejaVu Sans, sans-serif"
_INK, _SOFT = "#1a1a1a", "#5a5a5a"


def _rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def cells(
    values: npt.NDArray[np.floating],
    domain: Domain,
    stops: tuple[str, ...],
    size: tuple[int, int],
) -> npt.NDArray[np.uint8]:
    """Paint a map `[rows, columns]` as RGB pixels, each cell `size` = (wide, high); NaN hatched."""
    wide, high = size
    rgb = colour_map(values, domain, stops)
    rgb[~np.isfinite(values)] = _rgb(MISSING)
    rgb = rgb.repeat(high, axis=0).repeat(wide, axis=1)
    hole = (~np.isfinite(values)).repeat(high, axis=0).repeat(wide, axis=1)
    i, j = np.indices(hole.shape)
    rgb[hole & ((i + j) % 18 < 3)] = _rgb(MISSING_STROKE)
    return rgb


def _text(x: float, y: float, text: str, size: float = 11, **style: object) -> str:
    more = "".join(f' {k.replace("_", "-")}="{v}"' for k, v in style.items())
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}"{more}>{escape(text)}</text>'


def draw_maps(
    maps: Sequence[tuple[str, npt.NDArray[np.floating]]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    row_title: str,
    column_title: str,
    value_title: str,
    title: str,
    subtitle: str,
    domain: Domain,
    stops: tuple[str, ...],
    lower: bool,
    picked: tuple[int, int] | None = None,
    texts: Sequence[str] | None = None,
) -> str:
    """Return an SVG of named maps side by side (three a line) with axes and one colour bar.

    texts: what to write in the cells, row by row; cells grow to hold it where there are few.
    """
    count, per_line = len(maps), min(len(maps), 3)
    n_rows, n_columns = len(rows), len(columns)
    wide = int(np.clip({1: 480, 2: 330}.get(per_line, 240) // n_columns, 1, 28))
    high = int(np.clip(360 // n_rows, 2, 24))
    if texts and n_columns <= 24:
        wide, high = 52, 16
    else:
        texts = None
    long = max(map(len, columns)) > 3
    left = round(28 + 6.2 * max(map(len, rows)))
    below = 34 + (4.6 * max(map(len, columns)) if long else 12)
    head = 26 + (16 if subtitle else 0)
    band = 22 if count > 1 or maps[0][0] else 6
    panel_w, panel_h = n_columns * wide, n_rows * high
    lines = -(-count // per_line)
    width = left + per_line * (panel_w + 18) + 190
    height = head + lines * (band + panel_h + below)
    out = [_text(left, 18, title, 14, font_weight=600, fill=_INK)]
    if subtitle:
        out.append(_text(left, 34, subtitle, 11.5, fill=_SOFT))
    for k, (name, values) in enumerate(maps):
        x0 = left + (k % per_line) * (panel_w + 18)
        y0 = head + (k // per_line) * (band + panel_h + below) + band
        shown = values[::-1] if lower else values
        # One pixel a cell, unless a hatch must be drawn inside cells: then finer than the screen.
        whole = np.isfinite(shown).all() or panel_w * panel_h > 400_000
        pixels = cells(shown, domain, stops, (1, 1) if whole else (3 * wide, 3 * high))
        body = base64.b64encode(png.encode(pixels)).decode()
        out.append(
            f'<image x="{x0:.1f}" y="{y0}" width="{panel_w}" height="{panel_h}" '
            'preserveAspectRatio="none" image-rendering="optimizeSpeed" '
            f'href="data:image/png;base64,{body}"/>'
        )
        if min(wide, high) >= 8:  # hairlines between cells
            lines_x = "".join(f"M{x0 + j * wide:.1f} {y0}v{panel_h}" for j in range(1, n_columns))
            lines_y = "".join(f"M{x0:.1f} {y0 + i * high}h{panel_w}" for i in range(1, n_rows))
            out.append(f'<path d="{lines_x}{lines_y}" stroke="#fff" stroke-width="0.5"/>')
        if texts:
            inks = [("#111" if light else "#fff") for light in _light(values, domain, stops)]
            for at, (word, ink) in enumerate(zip(texts, inks)):
                i, j = divmod(at, n_columns)
                y = y0 + ((n_rows - 1 - i if lower else i) + 0.5) * high + 3.5
                out.append(_text(x0 + (j + 0.5) * wide, y, word, 9, fill=ink, text_anchor="middle"))
        out.append(_text(x0 + panel_w / 2, y0 - 7, name, 12, font_weight=600, text_anchor="middle"))
        for j in range(0, n_columns, _every(n_columns, wide, 12 if long else 18)):
            x, y = x0 + (j + 0.5) * wide, y0 + panel_h + 13
            turn = {"transform": f"rotate(-50 {x:.1f} {y:.1f})", "text_anchor": "end"}
            out.append(_text(x + (3 if long else 0), y, columns[j], 10.5,
                             **(turn if long else {"text_anchor": "middle"})))  # fmt: skip
        out.append(
            _text(
                x0 + panel_w / 2, y0 + panel_h + below - 8, column_title, 12, text_anchor="middle"
            )
        )
        if k % per_line == 0:
            for i in range(0, n_rows, _every(n_rows, high, 13)):
                y = y0 + ((n_rows - 1 - i if lower else i) + 0.5) * high + 4
                out.append(_text(x0 - 5, y, rows[i], 10.5, text_anchor="end"))
            y = y0 + panel_h / 2
            out.append(_text(12, y, row_title, 12, text_anchor="middle",
                             transform=f"rotate(-90 12 {y:.1f})"))  # fmt: skip
        if picked is not None:
            i = n_rows - 1 - picked[0] if lower else picked[0]
            x, y = x0 + picked[1] * wide, y0 + i * high
            box = f'x="{x:.1f}" y="{y}" width="{wide}" height="{high}"'
            out += [f'<rect {box} fill="none" stroke="{c}" stroke-width="{w}"/>'
                    for c, w in (("#000", 3), ("#fff", 1.2))]  # fmt: skip
    x, y, tall = left + per_line * (panel_w + 18) + 4, head + band + 12, min(160, max(60, panel_h))
    knots = "".join(
        f'<stop offset="{100 * k / (len(stops) - 1):.1f}%" stop-color="{c}"/>'
        for k, c in enumerate(reversed(stops))
    )
    out.append(f'<linearGradient id="g" x1="0" x2="0" y1="0" y2="1">{knots}</linearGradient>')
    out.append(f'<rect x="{x:.1f}" y="{y}" width="14" height="{tall}" fill="url(#g)"/>')
    out.append(_text(x, y - 8, value_title, 11))
    for v in ticks(domain):
        level = y + tall * (domain[1] - v) / (domain[1] - domain[0]) + 4
        out.append(_text(x + 19, level, f"{v:g}".replace("-", "−"), 10.5))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'font-family="{FONT}" fill="{_INK}"><rect width="100%" height="100%" fill="#fff"/>'
        f"{''.join(out)}</svg>"
    )


def _light(values: npt.NDArray[np.floating], domain: Domain, stops: tuple[str, ...]) -> list[bool]:
    """Whether dark ink is read better on each cell; missing ones are light."""
    luma = colour_map(values, domain, stops) @ np.array([0.299, 0.587, 0.114])
    return list(((luma > 140) | ~np.isfinite(values)).ravel())


def _every(count: int, step: int, room: int) -> int:
    """Return how many cells to go from one label to the next so that labels do not touch."""
    return next((k for k in (1, 2, 5, 10, 20, 50, 100, 200) if step * k >= room), count)


def svg_to_png(svg: str, scale: float = 1.5) -> bytes:
    """Draw `svg` as PNG bytes (resvg: about 20 ms, no browser)."""
    import vl_convert

    return png.squeeze(vl_convert.svg_to_png(svg, scale=scale))
