"""An instrument: add a constant to every coordinate of the stream, and see who notices."""

from __future__ import annotations

import base64
from typing import Any

import ipywidgets
import torch
import xarray as xr
from lwlab_widgets import HeatMap

from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.normalization.pre_rmsnorm import shifted
from lwlab.results import label, provenance


class ShiftPanel(ipywidgets.VBox):
    """Two sliders, c and a layer: x_l <- x_l + c 1 in several models, one row each.

    The map shows the probability of the likeliest next tokens (of the first model, unshifted); the
    line above it says by how much each model's last logits moved.
    """

    def __init__(
        self, models: dict[str, Model], prompt: str, *, limit: float = 2.0, top: int = 12
    ) -> None:
        """Open the panel; `models` by name, with one tokenizer, the first one the reference.

        Raises BadInput for no models or a limit that is not positive.
        """
        if not models or not limit > 0:
            raise BadInput("give at least one model, and a limit above 0")
        self.models, self.prompt = dict(models), prompt
        first = next(iter(models.values()))
        self._start = {k: shifted(m, prompt, 0.0)[0] for k, m in self.models.items()}
        p = next(iter(self._start.values())).softmax(-1)
        self.tokens = p.topk(min(top, len(p))).indices.tolist()
        self._words = [
            repr(first.tokenizer.decode([i]))[1:-1].replace(" ", "\u2423") for i in self.tokens
        ]
        self.c = ipywidgets.FloatSlider(
            value=0.0, min=-limit, max=limit, step=limit / 40, description="c",
            continuous_update=False,
        )  # fmt: skip
        self.layer = ipywidgets.IntSlider(
            value=0, min=0, max=first.n_layers - 1, description="layer", continuous_update=False
        )
        self.numbers = ipywidgets.HTML()
        self.map = HeatMap(self._picture(), x="token", y="variant")
        super().__init__([ipywidgets.HBox([self.c, self.layer]), self.numbers, self.map])
        for slider in (self.c, self.layer):
            slider.observe(lambda _: self._moved(), "value")
        self._write()

    def set(self, c: float | None = None, layer: int | None = None) -> ShiftPanel:
        """Move the sliders, as a hand does: `panel.set(c=1.5, layer=2)`."""
        if layer is not None:
            self.layer.value = layer
        if c is not None:
            self.c.value = c
        return self

    def moved(self) -> dict[str, float]:
        """Return max |z(c) - z(0)| over the last logits, by model."""
        return {k: float((z - self._start[k]).abs().max()) for k, z in self._logits().items()}

    def _logits(self) -> dict[str, torch.Tensor]:
        c, at = float(self.c.value), int(self.layer.value)
        if c == 0:
            return self._start
        return {k: shifted(m, self.prompt, c, at)[0] for k, m in self.models.items()}

    def _picture(self) -> xr.DataArray:
        p = torch.stack([z.float().softmax(-1)[self.tokens] for z in self._logits().values()])
        first = next(iter(self.models.values()))
        return label(
            p, ("variant", "token"), {"variant": list(self.models), "token": self._words},
            name="probability", **provenance(first, technique="pre-rmsnorm"),
            title=f"Next token, with {self.c.value:+.2f} on every coordinate of the stream",
        )  # fmt: skip

    def _moved(self) -> None:
        self.map.guard(lambda: self.map.update(self._picture()))
        self._write()

    def _text(self) -> str:
        rows = " · ".join(f"{k} {v:.2g}" for k, v in self.moved().items())
        return f"largest change of a logit at c = {self.c.value:+.2f}: {rows}"

    def _write(self) -> None:
        self.numbers.value = self._text()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        found = super()._repr_mimebundle_(**kwargs)
        data, meta = found if isinstance(found, tuple) else (found or {}, {})
        data = {k: v for k, v in data.items() if k != "text/html"}
        data["text/plain"] = f"{self.map.static_text()} {self._text()}."
        data["image/png"] = base64.b64encode(self.map.static_png()).decode()
        return data, meta
