"""An instrument: keep fewer edges, cut all others, and see what is left of the answer."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import ipywidgets
import numpy as np
import xarray as xr
from lwlab_widgets import HeatMap, Pick

from lwlab.attribution.circuits.scale import Asked, Scale, cutter_of
from lwlab.attribution.circuits.subgraph import Circuit, circuit
from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.results import label

KEEP = (25, 50, 100, 200, 400, 800, 1600, 3200)


class CircuitPanel(ipywidgets.VBox):
    """A slider over the number of edges kept, and the faithfulness measured by cutting the rest.

    The map shows how many kept edges touch each head and MLP; picking a cell lists them. A setting
    seen before comes at once, another one runs the model on all prompts.
    """

    def __init__(
        self,
        model: Model,
        task: Asked,
        scores: xr.DataArray,
        keep: Sequence[int] = KEEP,
        *,
        select: str = "greedy",
    ) -> None:
        """Open the panel on edge scores (technique, ..., sender, receiver) of several techniques.

        Raises BadInput for no size or scores without techniques; as `lw.circuit` does otherwise.
        """
        if "technique" not in getattr(scores, "dims", ()) or not len(keep):
            raise BadInput("the panel needs edge scores with a dimension technique, and sizes")
        self.model, self.scores, self.select = model, scores, select
        self.cutter = cutter_of(model, task)
        self.scale = Scale(self.cutter)
        self._seen: dict[tuple[str, int], tuple[Circuit, float]] = {}
        names = [str(t) for t in scores.technique.values]
        sizes = sorted({min(int(k), self.cutter.graph.n_edges) for k in keep})
        self.technique = ipywidgets.ToggleButtons(options=names, description="scores")
        self.keep = ipywidgets.SelectionSlider(
            options=sizes,
            value=sizes[len(sizes) // 2],
            description="edges",
            continuous_update=False,
        )
        self.numbers = ipywidgets.HTML()
        self.map = HeatMap(self._picture(), x="component", y="layer")
        self.map.on_pick(self._say)
        super().__init__([self.technique, self.keep, self.numbers, self.map])
        for control in (self.technique, self.keep):
            control.observe(self._moved, "value")
        self._write()

    def set(self, technique: str | None = None, keep: int | None = None) -> CircuitPanel:
        """Choose, as clicks do: `panel.set("relp", keep=100)`. Raises BadInput for other values."""
        for control, value in ((self.technique, technique), (self.keep, keep)):
            if value is not None:
                if value not in control.options:
                    raise BadInput(f"{value!r} is none of the choices {list(control.options)}")
                control.value = value
        return self

    def circuit(self) -> Circuit:
        """Return the circuit that is shown."""
        return self._now()[0]

    def faithfulness(self) -> float:
        """Return the measured f of the circuit that is shown."""
        return self._now()[1]

    def _now(self) -> tuple[Circuit, float]:
        key = (str(self.technique.value), int(self.keep.value))
        if key not in self._seen:
            found = circuit(self.scores.sel(technique=key[0]), keep=key[1], select=self.select)
            self._seen[key] = found, float(self.scale.run([found.edges])[0])
        return self._seen[key]

    def _picture(self) -> xr.DataArray:
        found, g = self.circuit(), self.cutter.graph
        into, outof = found.edges.sum(0), found.edges.sum(1)
        width = g.n_heads + g.mlps
        counts = np.zeros((g.n_layers, width))
        for j, s in enumerate(g.senders):
            if s.kind != "input":
                at = s.head if s.kind == "head" else g.n_heads
                counts[s.layer, at] = outof[j] + into[g.feeds[:, j]].sum()
        names = [f"h{h}" for h in range(g.n_heads)] + ["MLP"] * g.mlps
        coords = {"layer": list(range(g.n_layers)), "component": names}
        return label(
            counts, ("layer", "component"), coords, long_name="kept edges in and out",
            title="Where the kept edges are", model=self.model.name,
        )  # fmt: skip

    def _text(self) -> str:
        found, f = self._now()
        return (
            f"{len(found)} of {found.graph.n_edges} edges "
            f"({len(found) / found.graph.n_edges:.2%}), "
            f"{len(found.heads)} heads: faithfulness {f:.3f}, measured on "
            f"{len(self.cutter.pair)} prompts with all other edges cut"
        )

    def _moved(self, _change: Any) -> None:
        self.map.guard(lambda: self.map.update(self._picture()))
        self._write()

    def _write(self) -> None:
        self.numbers.value = self._text()

    def _say(self, pick: Pick) -> str:
        layer, name = pick["layer"], str(pick["component"])
        node = f"m{layer}" if name == "MLP" else f"a{layer}.{name}"
        c, g = self.circuit(), self.cutter.graph
        feeding = {g.receiver_names[i] for i in np.flatnonzero(g.feeds[:, g.sender(node)])}
        reads = [f"{s}→{r}" for s, r in c.names if r in feeding]
        writes = [r for s, r in c.names if s == node]
        told = [
            f"{verb} {', '.join(rows[:8])}{' …' if len(rows) > 8 else ''}"
            for verb, rows in (("reads", reads), ("writes to", writes)) if rows
        ]  # fmt: skip
        return f"{node} " + ("; ".join(told) if told else "has no kept edge") + "."

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        found = super()._repr_mimebundle_(**kwargs)
        data, meta = found if isinstance(found, tuple) else (found or {}, {})
        data = {k: v for k, v in data.items() if k != "text/html"}
        data["text/plain"] = f"{self.map.static_text()} {self._text()}."
        data["image/png"] = base64.b64encode(self.map.static_png()).decode()
        return data, meta
