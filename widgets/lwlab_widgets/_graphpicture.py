"""The picture of a circuit, drawn as SVG: the same one live, in saved notebooks and in tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from ._picture import FONT

HELPS, HINDERS, UNKNOWN = "#0072b2", "#d55e00", "#6b6b6b"  # Okabe & Ito: safe without red and green
_INK, _SOFT, _PAPER = "#1a1a1a", "#5a5a5a", "#ffffff"
_WIDE, _HIGH, _GAP = 46, 22, 12


class Dot(NamedTuple):
    """A component: its name, the half step at which it runs, its place among its like, a label."""

    name: str
    step: int
    order: int
    label: str
    said: str  # the whole of it in words, for screen readers


class Line(NamedTuple):
    """All edges from one component into another: the sum of their weights, and each in words."""

    sender: str
    receiver: str
    weight: float | None
    said: str


def draw_graph(
    dots: Sequence[Dot],
    lines: Sequence[Line],
    rows: Mapping[int, str],
    *,
    name: str,
    heading: Sequence[str] = (),
    picked: str = "",
) -> str:
    """Return an SVG with the stream running upwards, a row for each half step that has a component.

    `rows` names the half steps. Lines are as thick as their weight is large; a negative weight is
    orange and dashed. `heading` is written above, the first line bold.
    """
    steps = sorted({d.step for d in dots})
    by_step = {s: sorted((d for d in dots if d.step == s), key=lambda d: d.order) for s in steps}
    # One half step of a few nodes is high enough to tell lines apart; sixty must still fit a page.
    rise = max(40.0, min(64.0, 900 / max(len(steps), 1)))
    left = 98
    widest = max((len(v) for v in by_step.values()), default=1)
    middle = left + max(300, widest * (_WIDE + _GAP) + 60) / 2
    top = 18 + 18 * len(heading)
    height = top + _HIGH + 10 + rise * max(len(steps) - 1, 0) + 14
    width = max(2 * middle - left + 20, 28 + 6.3 * max(map(len, heading), default=0))
    at: dict[str, tuple[float, float]] = {}
    for k, step in enumerate(steps):
        y = height - 14 - _HIGH / 2 - k * rise
        row = by_step[step]
        # Every other row is moved a little: straight lines would run through the nodes between.
        x = middle - (len(row) - 1) * (_WIDE + _GAP) / 2 + (18 if k % 2 else -18)
        for j, dot in enumerate(row):
            at[dot.name] = x + j * (_WIDE + _GAP), y
    most = max((abs(e.weight) for e in lines if e.weight is not None), default=0.0) or 1.0
    out = [
        f'<text class="lw-plain" x="14" y="{18 + 18 * k}" font-size="{12 if k else 14}" '
        f'font-weight="{400 if k else 600}" fill="{_SOFT if k else _INK}">{escape(text)}</text>'
        for k, text in enumerate(heading)
    ]
    for k, step in enumerate(steps):
        y = height - 14 - _HIGH / 2 - k * rise
        out.append(
            f'<text class="lw-plain" x="{left - 10}" y="{y + 4:.1f}" text-anchor="end" '
            f'font-size="11" fill="{_SOFT}">{escape(rows[step])}</text>'
        )
    # Thin lines last, so that a thick one does not hide them.
    for e in sorted(lines, key=lambda e: -abs(e.weight or 0)):
        a, b = at[e.sender], at[e.receiver]
        # A line past other rows goes around what stands in its way, on its own side.
        past = round((a[1] - b[1]) / rise) - 1
        side = 1 if a[0] + b[0] >= 2 * middle else -1
        bow = side * min(90.0, 60.0 + 6 * past) if past and abs(a[0] - b[0]) < _WIDE else 0.0
        out.append(_line(e, a, b, bow, most, picked))
    out += [_dot(d, *at[d.name], picked) for d in dots]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="{FONT}" role="group" '
        f'aria-label="{escape(name)}"><rect class="lw-ground" width="100%" height="100%" '
        f'fill="#fff"/>{"".join(out)}</svg>'
    )


def _line(
    e: Line, a: tuple[float, float], b: tuple[float, float], bow: float, most: float, picked: str
) -> str:
    (x0, y0), (x1, y1) = (a[0], a[1] - _HIGH / 2), (b[0], b[1] + _HIGH / 2)
    bend = (y0 - y1) / 2
    kind = "unknown" if e.weight is None else "helps" if e.weight >= 0 else "hinders"
    colour = {"unknown": UNKNOWN, "helps": HELPS, "hinders": HINDERS}[kind]
    dash = ' stroke-dasharray="6 3"' if kind == "hinders" else ""
    wide = 1.5 if e.weight is None else 1 + 5 * abs(e.weight) / most
    seen = 0.85 if not picked or picked in (e.sender, e.receiver) else 0.15
    path = (
        f"M{x0:.1f},{y0:.1f} C{x0 + bow:.1f},{y0 - bend:.1f} "
        f"{x1 + bow:.1f},{y1 + bend:.1f} {x1:.1f},{y1:.1f}"
    )
    return (
        f'<path class="lw-edge lw-{kind}" data-a="{escape(e.sender)}" data-b="{escape(e.receiver)}"'
        f' d="{path}" fill="none" stroke="{colour}" stroke-width="{wide:.2f}" opacity="{seen}"'
        f"{dash}><title>{escape(e.said)}</title></path>"
    )


def _dot(d: Dot, x: float, y: float, picked: str) -> str:
    on = d.name == picked
    return (
        f'<g class="lw-node" data-id="{escape(d.name)}" data-x="{x:.0f}" data-y="{y:.0f}" '
        f'role="button" tabindex="-1" aria-pressed="{str(on).lower()}" '
        f'aria-label="{escape(d.said)}"><rect x="{x - _WIDE / 2:.1f}" y="{y - _HIGH / 2:.1f}" '
        f'width="{_WIDE}" height="{_HIGH}" rx="5" fill="{"#f0e442" if on else _PAPER}" '
        f'stroke="#333" stroke-width="{2.5 if on else 1.2}"/><text x="{x:.1f}" y="{y + 4:.1f}" '
        f'text-anchor="middle" font-size="11.5" fill="{_INK}">{escape(d.label)}</text></g>'
    )
