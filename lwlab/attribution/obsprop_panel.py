"""An instrument: type an observable, see at once which heads could move it, and what they read."""

from __future__ import annotations

import base64
from html import escape
from typing import Any

import ipywidgets
import numpy as np
import xarray as xr
from lwlab_widgets import HeatMap, Pick, TokenStrip

from lwlab import stats
from lwlab.attribution import obsprop
from lwlab.attribution.obsprop import Observable
from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.models.sites import Address
from lwlab.results import label
from lwlab.tasks.base import Task
from lwlab.tracing import engine

NORM, EFFECT = "norm (weights alone)", "direct effect (patched)"


class ObservablePanel(ipywidgets.VBox):
    """Two boxes of words make the observable; the map shows every head's feature vector for it.

    Words are read as `Observable.parse` reads them. The map holds |y_h| of every head, and with a
    task the exact direct effect beside it, each as a share of its largest. Picking a head names the
    tokens nearest to its vector and colours `text` by y_h . x, the stream it reads divided by its
    root mean square. What cannot be an observable is said under the map, and the last one stays.
    """

    def __init__(
        self,
        model: Model,
        plus: str = "she",
        minus: str = "he",
        *,
        task: Task | None = None,
        text: str = "Mary and John went home, because her brother and his sister were there.",
    ) -> None:
        """Open the panel. Raises as `Observable.parse` and `obsprop.direct_effects` do."""
        self.model, self.task, self.text = model, task, text
        self._tokens = model.tokens(text)
        wide = ipywidgets.Layout(width="300px")
        self.plus = ipywidgets.Text(
            value=plus, description="more of", continuous_update=False, layout=wide
        )
        self.minus = ipywidgets.Text(
            value=minus, description="than of", continuous_update=False, layout=wide
        )
        self.numbers, self.reading = ipywidgets.HTML(), ipywidgets.HTML()
        self._find(Observable.parse(model, plus, minus))
        self.map = HeatMap(
            self._picture(), x="head", y="layer", maps=None if task is None else "map"
        )
        self.head = tuple(
            int(i) for i in np.argwhere(self.norms.values == self.norms.values.max())[0]
        )
        self.strip = TokenStrip(self.scores(), title=self._told())
        self.map.on_pick(self._say)
        self._write()
        boxes = ipywidgets.HBox([self.plus, self.minus])
        super().__init__([boxes, self.numbers, self.map, self.reading, self.strip])
        for box in (self.plus, self.minus):
            box.observe(self._typed, "value")

    def set(self, plus: str, minus: str = "") -> ObservablePanel:
        """Type into both boxes. What is refused raises here, and shows as typing it would."""
        for box, words in ((self.plus, plus), (self.minus, minus)):
            box.unobserve(self._typed, "value")
            box.value = words
            box.observe(self._typed, "value")
        self._typed(None)
        if self.map.error:
            raise BadInput(self.map.error)
        return self

    def pick(self, layer: int, head: int) -> ObservablePanel:
        """Pick a head, as a click does. Raises BadInput for one that does not exist."""
        at = self.model.anatomy.address(f"head_out.{layer}.{head}")
        self.map.pick(at.layer or 0, at.head or 0)
        return self

    def scores(self) -> xr.DataArray:
        """y_h . x / s(x) at every token of `text`, for the head that is picked, (position)."""
        layer, head = self.head
        at = Address("resid_pre", layer)
        x = engine.run(self.model, self._tokens, [at], logits=None).values[at][0].float().cpu()
        x = x / x.pow(2).mean(-1, keepdim=True).sqrt()
        y = self.vectors.sel(layer=layer, head=head).values
        strings = list(self._tokens.strings[0])
        found = label(x.numpy() @ y, ("position",), {"token_str": ("position", strings)})
        return found.assign_attrs(long_name="y . x / s(x)", units="logits")

    def _find(self, observable: Observable) -> None:
        vectors = obsprop.head_vectors(self.model, observable)
        norms = (vectors**2).sum("d_model") ** 0.5
        effects: xr.DataArray | None = None
        if self.task is not None:
            found = obsprop.direct_effects(self.model, observable, self.task)
            effects = abs((found * found.toward).mean("prompt"))
        self.observable, self.vectors, self.norms, self.effects = (
            observable, vectors, norms, effects,
        )  # fmt: skip

    def _longest(self) -> tuple[int, int]:
        layer, head = np.unravel_index(int(self.norms.values.argmax()), self.norms.shape)
        return int(layer), int(head)

    def _picture(self) -> xr.DataArray:
        about = {
            "long_name": "share of the largest", "units": "", "model": self.model.name,
            "title": f"Which heads could move {self.observable.name}?",
        }  # fmt: skip
        shares = self.norms / self.norms.max()
        if self.effects is None:
            return shares.assign_attrs(about)
        two = [shares, self.effects / self.effects.max()]
        both = xr.concat(two, "map", coords="minimal", compat="override").assign_coords(
            map=[NORM, EFFECT]
        )
        return both.assign_attrs(about)

    def _typed(self, _change: Any) -> None:
        self.map.guard(self._renew)

    def _renew(self) -> None:
        self._find(Observable.parse(self.model, self.plus.value, self.minus.value))
        self.map.update(self._picture())
        self.head = tuple(
            int(i) for i in np.argwhere(self.norms.values == self.norms.values.max())[0]
        )
        self.map.answer = ""
        self._write()

    def _write(self) -> None:
        pairs = zip(self.observable.tokens, self.observable.weights)
        terms = ", ".join(f"{w:+.3g} on <code>{escape(repr(t))}</code>" for t, w in pairs)
        said = f"observable: {terms}"
        if self.effects is not None:
            r = stats.pearson(self.norms.values, self.effects.values)
            said += f" · Pearson(norm, |direct effect|) <b>{r:.3f}</b>"
        self.numbers.value = said
        self._read()

    def _read(self) -> None:
        layer, head = self.head
        near = obsprop.nearest_tokens(self.model, self.vectors.sel(layer=layer, head=head), k=6)
        sides = [
            f"{side} <code>{escape(' '.join(map(repr, near.token.sel(side=side).values.tolist())))}"
            "</code>"
            for side in ("top", "bottom")
        ]
        self.reading.value = f"head {layer}.{head} reads, by the embeddings: {' · '.join(sides)}"
        self.strip.update(self.scores())
        self.strip.title = self._told()

    def _told(self) -> str:
        return f"what head {self.head[0]}.{self.head[1]} would read at each token (y·x)"

    def _say(self, pick: Pick) -> str:
        self.head = int(pick["layer"]), int(pick["head"])
        self._read()
        at = {"layer": self.head[0], "head": self.head[1]}
        said = f"head {self.head[0]}.{self.head[1]}: norm {float(self.norms.sel(at)):.3g}"
        if self.effects is not None:
            said += f", direct effect {float(self.effects.sel(at)):.3g} logits (mean, absolute)"
        return said + "."

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        found = super()._repr_mimebundle_(**kwargs)
        data, meta = found if isinstance(found, tuple) else (found or {}, {})
        data = {k: v for k, v in data.items() if k != "text/html"}
        data["text/plain"] = f"{self.map.static_text()} {self.strip.static_text()}"
        data["image/png"] = base64.b64encode(self.map.static_png()).decode()
        return data, meta
