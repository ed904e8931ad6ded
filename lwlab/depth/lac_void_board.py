"""An instrument: which layer is active for which token, while reading and while writing."""

from __future__ import annotations

import base64
from html import escape
from typing import Any

import ipywidgets
import numpy as np
import xarray as xr
from lwlab_widgets import HeatMap, Pick

from lwlab.depth.lac_void import activity, void_generate, void_losses
from lwlab.depth.voids import Variant, check_rule
from lwlab.errors import BadInput
from lwlab.models.model import Model

_GAP = "|"
_TOP = 1.0


class VoidExplorer(ipywidgets.VBox):
    """Active cells (layer by token) of a prompt, then of what the model writes on.

    A slider sets alpha, a switch the reading: "readout" or "skip". Both run the model again; a
    setting seen before comes at once. Below: the loss on the prompt beside the whole model's, the
    share of cells used in both phases, and the text. Picking a cell of the prompt tells how the
    norm changed there, its threshold, and how far the stream turned.
    """

    def __init__(
        self,
        model: Model,
        prompt: str,
        *,
        alpha: float = 0.8,
        variant: Variant = "readout",
        new: int = 8,
    ) -> None:
        """Open on one prompt. Raises as `void_generate`, and BadInput for an alpha above 1."""
        check_rule(alpha, variant=variant)
        if alpha > _TOP:
            raise BadInput(f"alpha={alpha}: the slider goes from 0 to {_TOP}")
        self.model, self.prompt, self.new = model, prompt, new
        self._seen: dict[tuple[float, str], dict[str, Any]] = {}
        self._variant = ipywidgets.ToggleButtons(
            options=["readout", "skip"], value=variant, description="void"
        )
        self._alpha = ipywidgets.FloatSlider(
            alpha, min=0.0, max=_TOP, step=0.05, description="alpha", continuous_update=False,
            layout=ipywidgets.Layout(width="420px"),
        )  # fmt: skip
        self.map = HeatMap(self._picture(), x="position", y="layer", domain=(0.0, 1.0))
        self.map.on_pick(self._say)
        self.told = ipywidgets.HTML(self._words())
        super().__init__([self._variant, self._alpha, self.map, self.told])
        self._variant.observe(self._moved, "value")
        self._alpha.observe(self._moved, "value")

    def show(self, variant: Variant | None = None, alpha: float | None = None) -> VoidExplorer:
        """Set reading and alpha, as the switch and the slider do. Raises BadInput out of range."""
        if alpha is not None and not 0 <= alpha <= _TOP:
            raise BadInput(f"alpha={alpha} is out of range: 0..{_TOP}")
        check_rule(alpha, variant=variant or "readout")
        if variant is not None:
            self._variant.value = variant
        if alpha is not None:
            self._alpha.value = alpha
        return self

    def found(self) -> dict[str, Any]:
        """What is shown: `read` (see `activity`), `wrote` (`void_generate`), `loss`, `full`."""
        alpha, variant = round(float(self._alpha.value), 2), self._variant.value
        if (alpha, variant) not in self._seen:
            losses = void_losses(self.model, self.prompt, [alpha], variants=[variant])
            self._seen[alpha, variant] = {
                "read": activity(self.model, self.prompt, alpha, variant).isel(prompt=0),
                "wrote": void_generate(
                    self.model, self.prompt, alpha, variant, max_new_tokens=self.new
                ).isel(prompt=0),
                "loss": float(losses["nll"].squeeze()),
                "full": float(losses["full"].squeeze()),
            }
        return self._seen[alpha, variant]

    def _picture(self) -> xr.DataArray:
        found = self.found()
        read, wrote = found["read"], found["wrote"]
        gap = np.full((self.model.n_layers, 1), np.nan)
        cells = np.concatenate([read.active.values, gap, wrote.answer_active.values], 1)
        words = [*map(str, read.token_str.values), _GAP, *map(str, wrote.step_str.values)]
        return xr.DataArray(
            cells, dims=("layer", "position"),
            coords={"layer": read.layer.values, "position": range(len(words)),
                    "token_str": ("position", words)},
            attrs={"long_name": "active", "model": self.model.name,
                   "title": f"Active cells, alpha {self._alpha.value:.2f}: reading | writing"},
        )  # fmt: skip

    def _words(self) -> str:
        found = self.found()
        used = found["wrote"].usage
        return (
            f"<p>{escape(self._variant.value)}: loss {found['loss']:.2f} nats a token (whole model "
            f"{found['full']:.2f}); used {float(used.sel(phase='PP')):.0%} of the cells reading, "
            f"{float(used.sel(phase='RG')):.0%} writing</p>"
            f"<p>writes: {escape(repr(str(found['wrote'].text.values)))}</p>"
        )

    def _moved(self, _change: Any) -> None:
        self.map.guard(lambda: self.map.update(self._picture()))
        if not self.map.error:
            self.told.value = self._words()

    def _say(self, pick: Pick) -> str:
        read = self.found()["read"]
        if pick["position"] >= read.sizes["position"]:
            return "Details are kept for the tokens of the prompt."
        cell = read.sel(layer=pick["layer"], position=pick["position"])
        what = "active" if float(cell.active) else "void"
        return (
            f"Layer {pick['layer']} is {what}: the norm changes by {float(cell.delta):+.1f}, the "
            f"threshold is {float(cell.threshold):.1f}; the stream turns by {float(cell.turn):.3f} "
            "(1 - cos)."
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        found = super()._repr_mimebundle_(**kwargs)
        data, meta = found if isinstance(found, tuple) else (found or {}, {})
        data = {k: v for k, v in data.items() if k != "text/html"}
        data["text/plain"] = self.map.static_text()
        data["image/png"] = base64.b64encode(self.map.static_png()).decode()
        return data, meta
