"""An instrument: type sentences, and see what the probes of every layer make of each."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
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
_LINES = 8


class ProbePanel(ipywidgets.VBox):
    """Sentences, one a line, read by the probes of every layer.

    Rows are layers (0 is before the first block), columns the sentences; the concepts are one click
    apart. A cell is the probability of the concept's second class ("true", "positive"). Probes are
    trained once, on the unrounded model and clean texts; the switches change what they are shown:
    a meaningless string in front, or rounded weights. New lines or a switch run the model.
    """

    def __init__(
        self,
        model: Model,
        concepts: Sequence[Concept],
        lines: Sequence[str],
        *,
        c: float = 0.05,
        max_tokens: int = 64,
        vectors: Mapping[str, xr.DataArray] | None = None,
    ) -> None:
        """Train the probes and show `lines`; `vectors` of `states` by concept save a run.

        Raises BadInput for no concepts, no lines or too many of them, and one that is too long.
        """
        if not concepts:
            raise BadInput("no concepts were given; for example [lw.tasks.concept('cities')]")
        self.model, self.max_tokens = model, max_tokens
        self.classes = {k.name: k.classes for k in concepts}
        self._ends = {k.name: {t[-1] for t in k.texts} for k in concepts}
        text = "\n".join([lines] if isinstance(lines, str) else lines)
        self._lines(text)
        self.probes: dict[str, Probe] = {
            k.name: train(model, k, c=c, vectors=(vectors or {}).get(k.name)) for k in concepts
        }
        self.text = ipywidgets.Textarea(
            text, description="sentences", continuous_update=False, rows=5,
            layout=ipywidgets.Layout(width="640px"),
        )  # fmt: skip
        self.noise = ipywidgets.Checkbox(False, description="noise in front")
        self.weights = ipywidgets.ToggleButtons(options=list(_WEIGHTS), description="weights")
        self.map = HeatMap(
            self._picture(), x="sentence", y="layer", maps="concept", domain=(0.0, 1.0)
        )
        self.map.on_pick(self._say)
        super().__init__([self.text, ipywidgets.HBox([self.weights, self.noise]), self.map])
        for control in (self.text, self.noise, self.weights):
            control.observe(self._moved, "value")

    def ask(
        self,
        lines: Sequence[str] | None = None,
        *,
        noise: bool | None = None,
        weights: str | None = None,
    ) -> ProbePanel:
        """Set the lines and the switches, as hands do; what is wrong is said in `map.error`."""
        if weights is not None and weights not in _WEIGHTS:
            raise BadInput(f"weights={weights!r}; one of {', '.join(_WEIGHTS)}")
        if lines is not None:
            self.text.value = lines if isinstance(lines, str) else "\n".join(lines)
        if noise is not None:
            self.noise.value = noise
        if weights is not None:
            self.weights.value = weights
        return self

    def verdicts(self) -> xr.DataArray:
        """What the probes say of the lines, (concept, layer, prompt); runs the model."""
        front = "aaa " if self.noise.value else ""
        texts = [front + line for line in self._lines(self.text.value)]
        with rounded(self.model, _WEIGHTS[self.weights.value]) as net:
            return verdicts(net, self.probes, texts)

    def _lines(self, text: str) -> list[str]:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not 1 <= len(lines) <= _LINES:
            raise BadInput(f"{len(lines)} sentences; type 1 to {_LINES}, one a line")
        lengths = self.model.tokens(lines).lengths.tolist()
        for line, n in zip(lines, lengths):
            if n > self.max_tokens:
                raise BadInput(f"{line!r:.40} has {n} tokens; at most {self.max_tokens} are read")
        return lines

    def _picture(self) -> xr.DataArray:
        self.shown = self.verdicts()
        names = [f"{k}: {words[1]}" for k, words in self.classes.items()]
        lines = self._lines(self.text.value)
        short = [f"{i + 1}: {_ending(line)}" for i, line in enumerate(lines)]
        about = {
            "long_name": "probability of the class",
            "title": "What each layer's probe makes of it",
            "model": self.shown.attrs["model"],
        }
        found = self.shown.drop_vars("text").rename(prompt="sentence").drop_attrs()
        return found.assign_coords(concept=names, sentence=short).assign_attrs(about)

    def _moved(self, _change: Any) -> None:
        self.map.guard(lambda: self.map.update(self._picture()))
        if self.map.picked and not self.map.error:
            self.map.pick(self.map.picked["row"], self.map.picked["column"])  # say it anew

    def _say(self, pick: Pick) -> str:
        name = pick.map.rsplit(": ", 1)[0]
        no, yes = self.classes[name]
        said, p = (yes, pick.value) if pick.value >= 0.5 else (no, 1 - pick.value)
        line = str(self.shown.text.values[pick.column])
        where = "before the first block" if pick["layer"] == 0 else f"after {pick['layer']} blocks"
        ends = self._ends[name]
        aside = (
            "" if line[-1] in ends else f" It was trained on texts that end in {' or '.join(ends)}"
        )
        return f"{line!r}, {where}, by the probe of {name}: {said}, {p:.0%}.{aside}"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        found = super()._repr_mimebundle_(**kwargs)
        data, meta = found if isinstance(found, tuple) else (found or {}, {})
        data = {k: v for k, v in data.items() if k != "text/html"}
        data["text/plain"] = self.map.static_text()
        data["image/png"] = base64.b64encode(self.map.static_png()).decode()
        return data, meta


def _ending(line: str, longest: int = 18) -> str:
    """The last words of a line, which is where sentences to compare differ."""
    if len(line) <= longest:
        return line
    tail = line[-longest:]
    return "… " + (tail.split(" ", 1)[1] if " " in tail else tail)
