"""A training run to watch and to steer: knobs, start, pause, go on, and lines that grow."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
import traitlets as t

from lwlab.errors import BadInput

from ._base import front_end
from ._live import Job, Live
from ._picture import FONT, svg_to_png

Knob = Sequence[Any] | tuple[float, float, float]
Start = Callable[..., Iterator[tuple[int, Mapping[str, float]]]]
#: One colour a line of a panel; they can be told apart by the colour-blind.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
REDRAW = 0.2
_WIDE, _HIGH = 300, 150


class TrainingMonitor(Live):
    """Watch a training while it happens; stop it, go on, or start anew with other knobs.

    `start(**values)` begins a run with the knobs' `values` and returns an iterator of
    (step, {name: number}); `order("start")`, `order("pause")` and `order("go on")` do what the
    buttons do. A paused run goes on where it was. `rows` (steps) and `series` hold what came so far
    ([row, series], NaN where a number is missing); `wait()` waits until nothing runs. What goes
    wrong in the training is said in `error`, and the lines stay.
    """

    _esm, _css = front_end("training")
    knobs = t.List().tag(sync=True)
    values = t.Dict().tag(sync=True)
    panels = t.List().tag(sync=True)
    colours = t.List(list(COLOURS)).tag(sync=True)
    data = t.Bytes(b"").tag(sync=True)  # float32 [rows, 1 + series], the step first
    total = t.Int(0).tag(sync=True)
    marks = t.List().tag(sync=True)
    paused = t.Bool(False).tag(sync=True)
    orders = t.Dict().tag(sync=True)

    def __init__(
        self,
        start: Start,
        panels: Mapping[str, Sequence[str]],
        total: int,
        *,
        knobs: Mapping[str, Sequence[Any]] | None = None,
        values: Mapping[str, Any] | None = None,
        marks: Callable[[npt.NDArray[np.float64], list[str]], Mapping[str, float]] | None = None,
        title: str = "Training",
        subtitle: str = "",
    ) -> None:
        """`panels`: title of a plot to the names of its lines (at most four); `total`: steps to do;
        `knobs`: name to the values it may take, in order; `values`: what they stand at (default:
        the first); `marks(data, names)`: labelled steps for vertical lines. Raises BadInput."""
        if total < 1 or not panels or any(not 1 <= len(p) <= len(COLOURS) for p in panels.values()):
            raise BadInput("a monitor needs total >= 1 and panels of one to four series each")
        knobs = {k: list(v) for k, v in (knobs or {}).items()}
        chosen = {k: v[0] for k, v in knobs.items()} | dict(values or {})
        for name, value in chosen.items():
            if name not in knobs or value not in knobs[name]:
                known = knobs.get(name)
                raise BadInput(f"{name}={value!r}: " + (f"one of {known}" if known else "no knob"))
        self.names = list(dict.fromkeys(n for p in panels.values() for n in p))
        self.rows: list[int] = []
        self.series: list[list[float]] = []
        self._start, self._marks = start, marks
        self._run: Iterator[tuple[int, Mapping[str, float]]] | None = None
        super().__init__(
            title=title, subtitle=subtitle, total=total, values=chosen,
            knobs=[{"name": k, "options": v} for k, v in knobs.items()],
            panels=[
                {"title": k, "series": [[n, self.names.index(n)] for n in p]}
                for k, p in panels.items()
            ],
        )  # fmt: skip
        self.observe(lambda change: self.order(str(change["new"].get("do", ""))), "orders")

    @t.validate("values")
    def _values(self, proposal: Any) -> dict[str, Any]:
        allowed = {k["name"]: k["options"] for k in self.knobs} if self.knobs else None
        for name, value in proposal["value"].items():
            if allowed is not None and value not in allowed.get(name, ()):
                raise BadInput(f"{name}={value!r}: one of {allowed.get(name, 'no knob')}")
        return dict(proposal["value"])

    def order(self, do: str) -> None:
        """Do what a button does: "start", "pause" or "go on"."""
        if do == "start":
            values = dict(self.values)
            self.begin(lambda job: self._fresh(job, values))
        elif do == "pause":
            self.stop()
        elif do == "go on" and self._run is not None:
            self.begin(self._go)
        elif do != "go on":
            self.error = f"no button is called {do!r}: start, pause or go on"

    def _fresh(self, job: Job, values: dict[str, Any]) -> None:
        job.show(data=b"", marks=[], paused=False)
        self.rows, self.series = [], []
        self._run = None
        self._run = iter(self._start(**values))
        self._go(job)

    def _go(self, job: Job) -> None:
        run, shown = self._run, 0.0
        assert run is not None
        self.paused = False
        try:
            while True:
                job.check()  # before the step: a paused run loses nothing
                try:
                    step, numbers = next(run)
                except StopIteration:
                    self._run = None
                    break
                self.rows.append(int(step))
                self.series.append([float(numbers.get(n, math.nan)) for n in self.names])
                if time.monotonic() - shown > REDRAW:
                    self._show(job, step)
                    shown = time.monotonic()
            self._show(job, self.rows[-1] if self.rows else 0)
        finally:
            self.paused = self._run is not None and job.stopped

    def _show(self, job: Job, step: int) -> None:
        job.show(
            data=self.table().astype("<f4").tobytes(),
            marks=[[name, at] for name, at in self._marked().items() if math.isfinite(at)],
            progress=step / self.total,
            status=f"step {step} of {self.total}",
        )

    def table(self) -> npt.NDArray[np.float64]:
        """Return what came so far: [row, 1 + series], the step first."""
        values = [[float(s), *v] for s, v in zip(self.rows, self.series, strict=True)]
        return np.array(values).reshape(-1, 1 + len(self.names))

    def _marked(self) -> Mapping[str, float]:
        return self._marks(self.table(), self.names) if self._marks and self.rows else {}

    def static_text(self) -> str:
        """Return the knobs and the last numbers."""
        knobs = ", ".join(f"{k} {v}" for k, v in self.values.items())
        if not self.rows:
            return f"{self.title} ({knobs}): not started."
        last = ", ".join(f"{n} {v:.3g}" for n, v in zip(self.names, self.series[-1], strict=True))
        marks = "".join(f"; {name}: step {at:g}" for name, at in self._marked().items())
        done = f" {self.error}" if self.error else ""
        return f"{self.title} ({knobs}): at step {self.rows[-1]} {last}{marks}.{done}"

    def static_png(self) -> bytes:
        """Return the panels side by side."""
        out = [self._drawn(p, 12 + i * (_WIDE + 40)) for i, p in enumerate(self.panels)]
        knobs = ", ".join(f"{k} {v}" for k, v in self.values.items())
        head = _text(12, 20, self.title, 14, "600") + _text(12, 38, knobs or self.subtitle, 11)
        width = 12 + len(self.panels) * (_WIDE + 40)
        return svg_to_png(
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{120 + _HIGH}" '
            f'font-family="{FONT}"><rect width="100%" height="100%" fill="#fff"/>'
            f"{head}{''.join(out)}</svg>"
        )

    def _drawn(self, panel: Mapping[str, Any], x: float) -> str:
        data, out = self.table(), [_text(x, 58, panel["title"], 12, "600")]
        low, high = _range([data[:, 1 + k] for _, k in panel["series"]])

        def at(step: float, value: float) -> str:
            y = 90 + _HIGH * (1 - (value - low) / (high - low))
            return f"{x + _WIDE * step / self.total:.1f},{y:.1f}"

        for j, (name, k) in enumerate(panel["series"]):
            out.append(_text(x + 110 * j, 76, name.replace("_", " "), 10.5, fill=COLOURS[j]))
            known = data[np.isfinite(data[:, 1 + k])]
            points = " ".join(at(row[0], row[1 + k]) for row in known)
            line = f'fill="none" stroke="{COLOURS[j]}" stroke-width="1.6"'
            out.append(f'<polyline {line} points="{points}"/>')
        box = f'x="{x}" y="90" width="{_WIDE}" height="{_HIGH}"'
        out.append(f'<rect {box} fill="none" stroke="#bdbdbd"/>')
        for name, step in self._marked().items():
            if math.isfinite(step):
                mark = x + _WIDE * step / self.total
                ends = f'x1="{mark:.1f}" x2="{mark:.1f}" y1="90" y2="{90 + _HIGH}"'
                out.append(f'<line {ends} stroke="#5a5a5a" stroke-dasharray="3 3"/>')
                out.append(_text(mark + 3, 102, name, 10))
        out.append(_text(x, 106 + _HIGH, f"{low:.2g} to {high:.2g}; {self.total} steps", 10))
        return "".join(out)


def _range(columns: Sequence[npt.NDArray[np.float64]]) -> tuple[float, float]:
    """Return the ends of an axis: 0 and 1 where these hold all values, else as far as they go."""
    values = np.concatenate([c[np.isfinite(c)] for c in columns] or [np.zeros(0)])
    if not values.size:
        return 0.0, 1.0
    low, high = min(0.0, float(values.min())), float(values.max())
    return low, high if high > 1.0 or low < 0 else 1.0


def _text(
    x: float, y: float, text: str, size: float, weight: str = "400", fill: str = "#1a1a1a"
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="{fill}"'
    return f"<text {place}>{escape(text)}</text>"


def training(
    start: Start, panels: Mapping[str, Sequence[str]], total: int, **options: Any
) -> TrainingMonitor:
    """Return a `TrainingMonitor`: start, pause and go on with a training, and see its numbers."""
    return TrainingMonitor(start, panels, total, **options)
