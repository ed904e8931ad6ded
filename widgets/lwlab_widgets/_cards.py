"""Static pictures of instruments: columns of text lines, each with a bar where it has a value."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ._picture import FONT, svg_to_png

Line = tuple[str, float | None]  # text, and the length of its bar from 0 to 1
_BLUE, _INK, _SOFT = "#0072b2", "#1a1a1a", "#5a5a5a"
_PER_COLUMN = 40


def card(
    title: str, subtitle: str, columns: Sequence[tuple[str, Sequence[Line]]], wide: int = 270
) -> bytes:
    """Draw columns (heading, lines) side by side under a title as PNG; long ones are cut."""
    rows = min(max((len(lines) for _, lines in columns), default=0), _PER_COLUMN)
    width, height = 24 + wide * max(1, len(columns)), 84 + 18 * rows
    out = [_text(12, 22, title, 14, _INK, "600"), _text(12, 40, subtitle, 11.5, _SOFT)]
    for k, (heading, lines) in enumerate(columns):
        x = 12 + k * wide
        out.append(_text(x, 64, heading, 12, _INK, "600"))
        for i, (text, bar) in enumerate(_cut(lines)):
            y = 84 + 18 * i
            if bar is not None:
                size = max(0.0, min(1.0, bar)) * 0.36 * wide
                place = f'x="{x + 0.58 * wide:.1f}" y="{y - 10}" width="{size:.1f}" height="11"'
                out.append(f'<rect {place} fill="{_BLUE}"/>')
            out.append(_text(x, y, text, 11.5, _INK))
    body = "".join(out)
    return svg_to_png(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'font-family="{FONT}"><rect width="100%" height="100%" fill="#fff"/>{body}</svg>'
    )


def _cut(lines: Sequence[Line]) -> list[Line]:
    if len(lines) <= _PER_COLUMN:
        return list(lines)
    left = len(lines) - _PER_COLUMN + 1
    return [*lines[: _PER_COLUMN - 1], (f"and {left} more", None)]


def _text(x: float, y: float, text: str, size: float, fill: str, weight: str = "400") -> str:
    # XML holds no control characters, and a token may be one.
    plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}"'
    return f'<text {place} fill="{fill}" xml:space="preserve">{escape(plain)}</text>'


def wrapped(text: str, wide: int = 44) -> list[Line]:
    """Break text into lines of at most `wide` characters."""
    import textwrap

    parts = [p for line in text.splitlines() for p in (textwrap.wrap(line, wide) or [""])]
    return [(p, None) for p in parts]
