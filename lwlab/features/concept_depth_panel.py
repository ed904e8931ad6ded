"""An instrument: type a sentence, and see what the probes of every layer make of it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import ipywidgets
import xarray as xr
from lwlab_widgets import HeatMap, Pick

from lwlab.errors import BadInput
from lwlab.features.concept_depth import rounded, train, verdicts
from lwlab.features.probes import Probe
from lwlab.models.model import Model
from lwlab.tasks.concepts import Concept

_WEIGHTS = {"as trained": None, "8-bit": 8, "4-bit": 4, "3-bit": 3}


class ProbePanel(ipywidgets.VBox):
    """A sentence, read by the probes of every layer at every token; the last column is the verdict.

    Rows are layers (0 is before the first block), columns tokens; the concepts are one click apart.
    A cell is the probability of the concept's second class ("true", "positive"). Probes are trained
    once, on the unrounded model and clean texts; the switches change what they are shown: a
    meaningless string in front, or rounded weights. A new sentence or switch runs the model.
    """

    def __init__(
        self,
        model: Model,
        concepts: Sequence[Concept],
        text: str,
        *,
        c: float = 0.05,
        max_tokens: int = 64,
    ) -> None:
        """Train the probes and show `text`. Raises BadInput for no concepts or a text too long."""
        if not concepts:
            raise BadInput("no concepts were given; for example [lw.tasks.concept('cities')]")
        self.model, self.max_tokens = model, max_tokens
        self.classes = {k.name: k.classes for k in concepts}
        self._check(text)
        self.probes: dict[str, Probe] = {k.name: train(model, k, c=c) for k in concepts}
        wide = ipywidgets.Layout(width="640px")
        self.text = ipywidgets.Text(
            text, description="sentence", continuous_update=False, layout=wide
        )
        self.noise = ipywidgets.Checkbox(False, description="noise in front")
        self.weights = ipywidgets.ToggleButtons(options=list(_WEIGHTS), description="weights")
        self.map = HeatMap(
            self._picture(), x="position", y="layer", maps="concept", domain=(0.0, 1.0)
        )
        self.map.on_pick(self._say)
        super().__init__([self.text, ipywidgets.HBox([self.weights, self.noise]), self.map])
        for control in (self.text, self.noise, self.weights):
            control.observe(self._moved, "value")

    def ask(
        self, text: str | None = None, *, noise: bool | None = None, weights: str | None = None
    ) -> ProbePanel:
        """Set the sentence and the switches, as hands do; what is wrong is said in `map.error`."""
        if weights is not None and weights not in _WEIGHTS:
            raise BadInput(f"weights={weights!r}; one of {', '.join(_WEIGHTS)}")
        for control, value in (
            (self.text, text),
            (self.noise, noise),
            (self.weights, weights),
        ):
            if value is not None:
                control.value = value
        return self

    def verdicts(self) -> xr.DataArray:
        """What the probes say of the sentence, (concept, layer, position); runs the model."""
        self._check(self.text.value)
        text = ("aaa " if self.noise.value else "") + self.text.value
        with rounded(self.model, _WEIGHTS[self.weights.value]) as net:
            return verdicts(net, self.probes, text)

    def _check(self, text: str) -> None:
        if not text.strip():
            raise BadInput("the sentence is empty: type one")
        n = int(self.model.tokens(text).lengths[0])
        if n > self.max_tokens:
            raise BadInput(f"the sentence has {n} tokens; at most {self.max_tokens} are shown")

    def _picture(self) -> xr.DataArray:
        self.shown = self.verdicts()
        names = [f"{k}: {words[1]}" for k, words in self.classes.items()]
        about = {
            "long_name": "probability of the class",
            "title": "What each layer's probe makes of it",
            "model": self.shown.attrs["model"],
        }
        return self.shown.assign_coords(concept=names).drop_attrs().assign_attrs(about)

    def _moved(self, _change: Any) -> None:
        self.map.guard(lambda: self.map.update(self._picture()))
        if self.map.picked and not self.map.error:
            self.map.pick(self.map.picked["row"], self.map.picked["column"])  # say it anew

    def _say(self, pick: Pick) -> str:
        name = pick.map.rsplit(": ", 1)[0]
        no, yes = self.classes[name]
        said, p = (yes, pick.value) if pick.value >= 0.5 else (no, 1 - pick.value)
        token = str(self.shown.token_str.values[pick["position"]])
        where = "before the first block" if pick["layer"] == 0 else f"after {pick['layer']} blocks"
        last = pick["position"] == self.shown.sizes["position"] - 1
        aside = "" if last else " (probes were trained at the last token)"
        return f"{name}, {where}, at {token!r}: {said}, {p:.0%}{aside}."

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        found = super()._repr_mimebundle_(**kwargs)
        data, meta = found if isinstance(found, tuple) else (found or {}, {})
        data = {k: v for k, v in data.items() if k != "text/html"}
        data["text/plain"] = self.map.static_text()
        data["image/png"] = base64.b64encode(self.map.static_png()).decode()
        return data, meta
