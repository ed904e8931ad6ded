"""A circuit as a graph: how many edges to keep, what a node reads and feeds, what is left of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets as t
import xarray as xr

from lwlab.attribution.answers import Reader
from lwlab.errors import BadInput, UnknownName, suggest

from ._base import front_end
from ._circuitlayout import Layout, lay_out
from ._graphpicture import draw_graph
from ._live import Job, Live
from ._picture import svg_to_png
from ._tables import table

if TYPE_CHECKING:
    import torch

    from lwlab.attribution.circuits import Circuit, Cutter, Graph
    from lwlab.attribution.circuits.cut import Value
    from lwlab.models import Model
    from lwlab.tasks.base import Task

MOST = 150  # lines that a picture can hold and a reader can follow


class CircuitGraph(Live):
    """Components and the edges between them, as many of the strongest edges as `keep` says.

    `keep` edges are selected as `lw.circuit` does, so that none dangle: `circuit` is what is left,
    and may have fewer. `picked` is the name of the component that was clicked ("a1.h0"; "" for
    none). `measure()`, or the button, really runs the circuit with all other edges cut
    (`lw.attribution.circuits.faithfulness`) and puts the answer into `measured`: `faithfulness`,
    its 95 % interval `low`, `high` (None for one group of prompts), `edges`, and the task's metric
    of the `circuit`, of the model (`clean`) and with every edge cut (`empty`). `wait()` waits for
    it. What is wrong with the scores, or with the model, is said in `error`.
    """

    _esm, _css = front_end("circuit")
    svg = t.Unicode("").tag(sync=True)
    keep = t.Int(0).tag(sync=True)
    most = t.Int(0).tag(sync=True)  # edges there are to choose from
    fixed = t.Bool(False).tag(sync=True)  # a circuit without scores has no order of edges
    picked = t.Unicode("").tag(sync=True)
    note = t.Unicode("").tag(sync=True)
    answer = t.Unicode("").tag(sync=True)
    measured = t.Dict().tag(sync=True)
    table = t.Dict().tag(sync=True)
    measures = t.Bool(False).tag(sync=True)
    asked = t.Int(0).tag(sync=True)  # the button counts it up

    def __init__(
        self,
        scores: xr.DataArray | Circuit,
        model: Model | None = None,
        task: Task | None = None,
        *,
        keep: int | None = None,
        select: str = "greedy",
        value: Value = "patch",
        title: str = "Circuit",
    ) -> None:
        """Show edge scores (`lw.attribution.edges.scores`), or a `Circuit`, whose edges are all.

        With `model` and `task` its faithfulness can be measured, cut edges carrying `value` as in
        `circuits.Cutter`. `keep` is 30 at first for scores, all for a circuit. Mistakes are shown
        in the widget; only `keep`, `picked` set to what is not there raise, with BadInput and
        UnknownName.
        """
        self.model, self.task, self.select, self.value = model, task, select, value
        self.graph: Graph | None = None
        self.circuit: Circuit | None = None
        self._values: Any = None
        self._about: dict[str, Any] = {}
        self._cutter: Cutter | None = None
        self._shown = Layout()
        self._seen: dict[tuple[int, int], dict[str, Any]] = {}
        super().__init__(title=title)
        self.guard(self._read, scores)
        self._first(scores, keep)
        self.observe(lambda _: self.guard(self._select), "keep")
        self.observe(lambda _: self.measure(), "asked")

    def _first(self, scores: Any, keep: int | None) -> None:
        if self.graph is not None:
            start = self.most if hasattr(scores, "nodes") else min(30, self.most)
            self.keep = start if keep is None else keep
            self._select()
            self.guard(self._may_measure)
        else:
            self.svg = draw_graph([], [], {}, name="no circuit")

    def _read(self, scores: Any) -> None:
        """Note the graph and the weight of each of its edges; -inf where one cannot be chosen."""
        from lwlab.attribution.circuits.select import selector
        from lwlab.attribution.circuits.subgraph import Circuit, mean_scores

        selector(self.select)
        if isinstance(scores, Circuit):
            graph, values, within = scores.graph, scores.scores, scores.edges
            known = values is not None and bool(np.isfinite(values[within]).all())
            self.fixed = not known
            self._values = values if known else None
            self._about = dict(scores.about)
        else:
            # A mean over prompts would pass over them in silence.
            missing = int(scores.isnull().sum()) if isinstance(scores, xr.DataArray) else 0
            if missing:
                raise BadInput(f"{missing} scores are NaN: no order of edges can be made from them")
            graph, self._values = mean_scores(scores)
            within = graph.exists
            self._about = dict(scores.attrs)
        self._within = within
        self.most = int(within.sum())
        if not self.most:
            raise BadInput("this circuit has no edge, so there is nothing to draw")
        self.graph = graph
        told = [str(self._about.get(k, "")) for k in ("model", "task", "technique")]
        self.subtitle = ", ".join(x for x in told if x)

    def _may_measure(self) -> None:
        from lwlab.attribution.circuits.graph import Graph

        if self.model is None:
            return
        found = Graph.of(self.model)
        if found != self.graph:
            raise BadInput(
                f"these edges are of another graph than {self.model.name}'s: {self.graph} is not "
                f"{found}; give the model they were made with"
            )
        if self.task is None:
            raise BadInput("to measure what is left, give the task too: circuit(scores, net, task)")
        self.measures = True

    @t.validate("keep")
    def _valid_keep(self, proposal: Any) -> int:
        n = int(proposal["value"])
        if self.graph is not None and not 0 <= n <= self.most:
            raise BadInput(f"keep={n}: there are {self.most} edges to choose from")
        if self.fixed and n != self.most:
            raise BadInput(f"keep={n}: these edges have no scores, so all {self.most} are shown")
        return n

    @t.validate("picked")
    def _valid_picked(self, proposal: Any) -> str:
        name = str(proposal["value"])
        names = self._shown.names
        if name and name not in names:
            raise UnknownName(f"no component {name!r} in the picture{suggest(name, names)}")
        return name

    def _select(self) -> None:
        from lwlab.attribution.circuits.select import selector
        from lwlab.attribution.circuits.subgraph import Circuit

        graph = self.graph
        if graph is None:
            return
        if self.fixed:
            edges = self._within
        else:
            # What is not among the edges given comes last: never, as keep goes no further.
            rank = np.where(self._within, np.abs(self._values), -np.inf)
            edges = selector(self.select)(graph, rank, self.keep)
        self.circuit = Circuit(graph, edges, self._values, self._about)
        self._shown = lay_out(self.circuit, self._values, MOST)
        gone = bool(self.picked) and self.picked not in self._shown.names
        with self.hold_sync():
            if gone:
                self.picked = ""
            self.svg = self._draw()
            self._describe()

    def _describe(self) -> None:
        assert self.circuit is not None
        n = len(self.circuit)
        said = f"{n} edges, {len(self.circuit.nodes)} components"
        if n < self.keep:
            said += f"; {self.keep - n} of the {self.keep} strongest edges dangle and are left out"
        if self._shown.total > len(self._shown.lines):
            said += f"; drawn: the {len(self._shown.lines)} strongest of {self._shown.total} lines"
        if not n:
            said = "no edges left: keep more of them"
        old = self._seen.get((self.keep, n))
        self.note, self.measured, self.answer = said, old or {}, _sentence(old)

    def _draw(self, *, heading: bool = False, picked: str = "") -> str:
        above = [self.title, *filter(None, (self.subtitle, self.note, self.answer))]
        size = f"{len(self._shown.dots)} components, {len(self._shown.lines)} lines"
        return draw_graph(
            *self._shown[:3], heading=above if heading else (),
            name=f"{self.title}: {size}",
            picked=picked,
        )  # fmt: skip

    def measure(self) -> None:
        """Measure the faithfulness of what is left, off the kernel's thread; see `wait`."""
        if self.circuit is None or not self.measures:
            self.error = self.error or "to measure what is left, give a model and a task"
            return
        if not len(self.circuit):
            self.error = "no edges left to measure: keep more of them"
            return
        circuit, keep = self.circuit, self.keep
        self.begin(lambda job: self._measure(job, circuit, keep))

    def _measure(self, job: Job, circuit: Circuit, keep: int) -> None:
        from lwlab.attribution.circuits import Cutter, faithfulness

        assert self.model is not None
        assert self.task is not None
        start = time.perf_counter()
        job.tell(-1.0, "running the model on both prompts")
        if self._cutter is None:
            self._cutter = Cutter(self.model, self.task, self.value)
        cutter = self._cutter
        job.tell(0.0, f"running {len(circuit)} edges, all others cut")
        plain, runs = cutter.reader, 1 if "ends" in vars(cutter) else 3
        try:
            cutter.reader = _Told(plain, job, runs * len(cutter.pair))
            made = faithfulness(self.model, cutter, circuit, value=self.value)
        finally:
            cutter.reader = plain
        low, high = (float(made[k][0]) for k in ("low", "high"))
        one = {
            "keep": keep, "edges": len(circuit), "faithfulness": float(made["faithfulness"][0]),
            "low": low if np.isfinite(low) else None, "high": high if np.isfinite(high) else None,
            "circuit": float(made["metric"].mean()), "clean": made.attrs["clean_metric"],
            "empty": made.attrs["empty_metric"], "value": self.value,
            "ms": round(1000 * (time.perf_counter() - start)),
        }  # fmt: skip
        job.check()
        self._seen[keep, len(circuit)] = one
        rows = [
            (str(m["edges"]), f"{m['faithfulness']:.3f}", f"{m['circuit']:.3g}")
            for m in sorted(self._seen.values(), key=lambda m: m["edges"])
        ]
        columns = ("edges", "faithfulness", "metric")
        traits: dict[str, Any] = {"table": table("Measured so far", columns, rows)}
        if keep == self.keep:  # the slider may have moved on meanwhile
            traits |= {"measured": one, "answer": _sentence(one)}
        job.show(**traits)

    def static_text(self) -> str:
        """Return what is shown in words: the strongest edges, and what was measured."""
        head = f"{self.title}: {self.subtitle}. " if self.subtitle else f"{self.title}. "
        if self.circuit is None:
            return head + self.error
        strongest = "; ".join(e.said for e in self._shown.lines[:8])
        said = ". ".join(x for x in (self.note, strongest, self.answer, self.error) if x)
        return head + said.rstrip(".") + "."

    def static_png(self) -> bytes:
        """Return the picture with its title, what was measured, and the picked component."""
        if self.circuit is None:
            return svg_to_png(draw_graph([], [], {}, name="", heading=[self.title, self.error]))
        # A tangle of lines does not compress: drawn smaller, it still fits a saved notebook.
        scale = 1.5 if len(self._shown.lines) <= 60 else 1.0
        return svg_to_png(self._draw(heading=True, picked=self.picked), scale)


class _Told(Reader):
    """A reader that shows how many prompts were run, and ends where nobody waits any more."""

    def __init__(self, reader: Reader, job: Job, total: int) -> None:
        vars(self).update(vars(reader))
        self._job, self._total, self._done = job, total, 0

    def run(self, data: Any, edits: Any, rows: torch.Tensor) -> torch.Tensor:
        self._job.check()
        found = super().run(data, edits, rows)
        self._done += len(rows)
        self._job.tell(min(1.0, self._done / self._total), f"{self._done} of {self._total} prompts")
        return found


def _sentence(m: dict[str, Any] | None) -> str:
    if not m:
        return ""
    ends = "" if m["low"] is None else f" (95 %: {m['low']:.3f} to {m['high']:.3f})"
    return (
        f"Measured: {m['edges']} edges keep {m['faithfulness']:.3f} of the effect{ends}; metric "
        f"{m['circuit']:.3g}, whole model {m['clean']:.3g}, all cut {m['empty']:.3g}"
    )


circuit = CircuitGraph
