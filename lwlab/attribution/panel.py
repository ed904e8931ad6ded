"""An instrument: switch the backward rules on and off, and see what RelP makes of the model."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

import ipywidgets
import xarray as xr
from lwlab_widgets import HeatMap, Pick

from lwlab import stats
from lwlab.attribution import relp
from lwlab.attribution.agreement import checked, pick
from lwlab.attribution.pairs import Pair
from lwlab.models.model import Model
from lwlab.tasks.base import Task

_NAMES = {"ln": "LN", "identity": "Identity", "half": "Half", "attention": "AH"}
_MEANING = {
    "ln": "the scale of a norm is a constant",
    "identity": "an activation is a constant gain",
    "half": "each factor of a gated product gets half",
    "attention": "the attention pattern is a constant",
}


class RulePanel(ipywidgets.VBox):
    """Four switches, one a rule; each run of the model takes the corrupt prompts back through them.

    The map shows RelP under the chosen rules (from the token before the first changed one), with
    the exact effect a click on its name away, on one colour scale; under it, Pearson's r with the
    exact map for each component. Picking a cell compares the two there. A setting seen before
    comes at once.
    """

    def __init__(
        self,
        model: Model,
        task: Task | Pair,
        maps: xr.Dataset,
        *,
        rules: Iterable[str] = relp.RULES,
        component: str | None = None,
    ) -> None:
        """Open the panel; `maps` is a `relp.study` of the same task that holds "exact".

        Raises UnknownName where it does not, or for a rule or component that does not exist.
        """
        self.model, self.pair = model, Pair.of(model, task)
        score = checked(maps)
        self.exact = pick(score, "exact")
        names = [str(c) for c in score.component.values]
        self._seen: dict[frozenset[str], xr.DataArray] = {}
        acting, on = relp.acting_rules(model), set(rules)
        relp.switches(on)
        self.switches = {
            k: ipywidgets.ToggleButton(
                value=k in on, description=_NAMES[k], tooltip=_MEANING[k], disabled=k not in acting,
                layout=ipywidgets.Layout(width="90px"),
            )
            for k in relp.EVERY
        }  # fmt: skip
        self.component = ipywidgets.ToggleButtons(
            options=names, value=component or names[-1], description="component"
        )
        self.numbers = ipywidgets.HTML()
        self.map = HeatMap(self._picture(), x="position", y="layer", maps="map")
        self.map.on_pick(self._say)
        row = ipywidgets.HBox([ipywidgets.Label("rules"), *self.switches.values()])
        super().__init__([row, self.component, self.numbers, self.map])
        for switch in (*self.switches.values(), self.component):
            switch.observe(self._moved, "value")
        self._write()

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules that are on."""
        return tuple(k for k, s in self.switches.items() if s.value)

    def set(self, **rules: bool) -> RulePanel:
        """Switch rules, as clicks do: `panel.set(half=False)`. Raises UnknownName otherwise."""
        relp.switches(rules)
        for k, on in rules.items():
            self.switches[k].value = on
        return self

    def scores(self) -> xr.DataArray:
        """Return RelP's mean map (component, layer, position) under the rules that are on."""
        key = frozenset(self.rules)
        if key not in self._seen:
            found = relp.scores(
                self.model, self.pair, [str(c) for c in self.exact.component.values],
                self.exact.layer.values.tolist(), rules=key,
            )  # fmt: skip
            self._seen[key] = found.mean("prompt", keep_attrs=True)
        return self._seen[key]

    def agreement(self) -> dict[str, float]:
        """Return Pearson's r with the exact mean map, by component."""
        truth, found = self.exact.mean("prompt"), self.scores()
        return {
            str(c): stats.pearson(truth.sel(component=c).values, found.sel(component=c).values)
            for c in truth.component.values
        }

    def _label(self) -> str:
        return "+".join(_NAMES[k] for k in self.rules) or "no rules (AtP)"

    def _picture(self) -> xr.DataArray:
        c = str(self.component.value)
        active = slice(max(self.pair.begin - 1, 0), None)  # nothing can happen before
        two = [
            x.sel(component=c).isel(position=active)
            for x in (self.scores(), self.exact.mean("prompt"))
        ]
        name = f"RelP: {self._label()}"
        both = xr.concat(two, "map", coords="minimal", compat="override").assign_coords(
            map=[name, "exact"]
        )
        about = {
            "long_name": self.scores().attrs["long_name"],
            "title": f"{c} at each layer and token",
        }
        return both.assign_attrs(about | {"model": self.model.name, "task": self.pair.task.name})

    def _moved(self, _change: Any) -> None:
        self.map.guard(lambda: self.map.update(self._picture()))
        self._write()

    def _write(self) -> None:
        parts = [f"{c} <b>{r:.3f}</b>" for c, r in self.agreement().items()]
        self.numbers.value = f"Pearson r with exact patching: {' · '.join(parts)}"

    def _say(self, pick: Pick) -> str:
        at = {
            "layer": pick["layer"],
            "position": pick["position"],
            "component": self.component.value,
        }
        truth, found = (float(x.sel(at)) for x in (self.exact.mean("prompt"), self.scores()))
        token = self.exact.position_str.sel(position=pick["position"]).item()
        return (
            f"{self.component.value} of layer {pick['layer']} at {token!r}: "
            f"exact {truth:+.3f}, RelP ({self._label()}) {found:+.3f} of the effect."
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        found = super()._repr_mimebundle_(**kwargs)
        data, meta = found if isinstance(found, tuple) else (found or {}, {})
        data = {k: v for k, v in data.items() if k != "text/html"}
        rs = ", ".join(f"{c} {r:.3f}" for c, r in self.agreement().items())
        data["text/plain"] = f"{self.map.static_text()} Pearson r with exact patching: {rs}."
        data["image/png"] = base64.b64encode(self.map.static_png()).decode()
        return data, meta
