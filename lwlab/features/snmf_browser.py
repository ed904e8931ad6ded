"""An instrument: pick a feature on a map of concepts, and read what it is."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import ipywidgets
import numpy as np
import xarray as xr
from lwlab_widgets import HeatMap, Pick, TokenStrip

from lwlab.errors import BadInput
from lwlab.features import readout
from lwlab.features.collect import collect

if TYPE_CHECKING:
    from lwlab.models import Model

PASSAGE = (
    "On Monday my brother bought red apples and bread in France. In March his horse hurt a leg."
)


class FeatureBrowser(ipywidgets.VBox):
    """A map of every feature's AUC for every concept; a click opens the feature.

    Opened, a feature shows its sentences, its neurons and the tokens it writes (under the map),
    and its cosine with each token of a passage (on the strip). `show(feature)` does what a click
    does; `read(passage)` takes another text. `map` and `strip` are the two instruments.
    """

    def __init__(
        self, model: Model, fit: xr.Dataset, activations: xr.DataArray, passage: str = PASSAGE
    ) -> None:
        """Show `fit` (of `snmf.factorise`, or any with `direction`) on concept `activations`.

        Raises BadInput for activations without concepts, or a fit of another width or layer.
        """
        if "layer" not in activations.attrs or "concept" not in activations.coords:
            raise BadInput("the browser needs activations of concepts, as lwlab.features.collect")
        if fit.attrs.get("layer", activations.attrs["layer"]) != activations.attrs["layer"]:
            raise BadInput(
                f"the fit is of layer {fit.attrs['layer']}, the activations of layer "
                f"{activations.attrs['layer']}"
            )
        self.model, self.fit, self.activations = model, fit, activations
        self.layer = int(activations.attrs["layer"])
        self.cosine = readout.cosine(activations, fit["direction"])
        found = readout.auc(self.cosine)
        found.attrs = {"long_name": "AUC"}
        self.words: xr.Dataset | None = None
        if model.anatomy.unembed is not None and model.anatomy.down is not None:
            self.words = readout.vocabulary(model, fit["direction"], self.layer, 6)
        technique = fit.attrs.get("technique", "features")
        self.map = HeatMap(
            found, x="feature", y="concept", domain=(0.0, 1.0), subtitle="click a feature",
            title=f"Which feature tells which concept? ({technique}, layer {self.layer})",
        )  # fmt: skip
        self.map.on_pick(self._picked)
        self.feature = int(found["feature"].values[found.max("concept").values.argmax()])
        self._passage(passage)
        self.strip = TokenStrip(
            self._along(), tokens=self.tokens, domain=(-1.0, 1.0), title=self._title()
        )
        super().__init__([self.map, self.strip])

    def show(self, feature: int) -> str:
        """Open a feature; return what it is in words. Raises BadInput where there is none."""
        column = self.fit["feature"].values.tolist()
        if feature not in column:
            raise BadInput(f"there is no feature {feature}; there are {column[0]}..{column[-1]}")
        grid = self.map.array()[0][:, column.index(feature)]
        self.map.pick(int(np.argmax(grid)), column.index(feature))
        return str(self.map.answer)

    def read(self, passage: str) -> FeatureBrowser:
        """Show the open feature on another text."""
        self._passage(passage)
        self.strip.update(self._along(), self.tokens)
        return self

    def describe(self, feature: int) -> str:
        """Say what a feature is: its sentences, its neurons, the tokens it writes."""
        top = readout.top_contexts(self.cosine, feature, 8)
        seen = ", ".join(dict.fromkeys(str(w).strip() for w in top["word"].values))
        parts = readout.top_neurons(self.fit["direction"], feature, 4)
        made = ", ".join(f"{n} ({w:+.2f})" for n, w in zip(parts[_column(self.fit)].values, parts))
        text = f"Feature {feature}: most at {seen}. Neurons {made}."
        if self.words is not None:
            said = self.words["token_str"].sel(feature=feature).values
            text += f" It writes {', '.join(repr(str(s)) for s in said)}."
        return text

    def _picked(self, pick: Pick) -> str:
        self.feature = int(pick["feature"])
        self.strip.title = self._title()
        self.strip.update(self._along(), self.tokens)
        return self.describe(self.feature)

    def _title(self) -> str:
        return f"Cosine of feature {self.feature} with each token"

    def _passage(self, passage: str) -> None:
        seen = collect(self.model, [passage], self.layer, str(self.activations.name), front=0)
        self.tokens = [str(s) for s in seen["token_str"].values]
        self.values = readout.cosine(seen, self.fit["direction"])

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        found = super()._repr_mimebundle_(**kwargs)
        data, meta = found if isinstance(found, tuple) else (found or {}, {})
        data = {k: v for k, v in data.items() if k != "text/html"}
        data["text/plain"] = f"{self.map.static_text()} {self.strip.static_text()}"
        data["image/png"] = base64.b64encode(self._picture()).decode()
        return data, meta

    def _picture(self) -> bytes:
        """Both instruments, one under the other, for where no kernel runs."""
        from PIL import Image

        both = [Image.open(io.BytesIO(w.static_png())) for w in (self.map, self.strip)]
        page = Image.new("RGB", (max(i.width for i in both), sum(i.height for i in both)), "white")
        page.paste(both[0], (0, 0))
        page.paste(both[1], (0, both[0].height))
        out = io.BytesIO()
        page.save(out, "PNG", optimize=True)
        return out.getvalue()

    def _along(self) -> Any:
        return self.values.sel(feature=self.feature).values.astype(float)


def _column(fit: xr.Dataset) -> str:
    return str(fit["direction"].dims[1])
