"""An instrument: a sparsity and a gamma, the widths they leave, and what the model then says."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from typing import Any

import ipywidgets
import xarray as xr
from lwlab_widgets._picture import svg_to_png

from lwlab.depth.explorer import bars_svg
from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.models.model import Model
from lwlab.pruning.allocation import allocate
from lwlab.pruning.cut import prune
from lwlab.pruning.measure import pruned_losses
from lwlab.tracing.generate import generate


class PruneBoard(ipywidgets.VBox):
    """Two sliders and a list of criteria; the bars are what every layer keeps.

    Moving a slider allocates anew, cuts a model, and tells its loss on a text, its divergence from
    the whole model, and how it continues a prompt.
    """

    def __init__(
        self,
        model: Model,
        scores: Mapping[str, xr.Dataset],
        prompt: str,
        text: str,
        *,
        sparsity: float = 0.1,
        gamma: float = 3.0,
        max_tokens: int = 48,
        new: int = 8,
    ) -> None:
        """Open on the first of `scores`, which are by name what `scores` gives.

        Raises BadInput for no scores, scores of another depth, and as `allocate`.
        """
        if not scores:
            raise BadInput("give at least one set of scores, as {'nirvana': pruning.scores(...)}")
        for name, s in scores.items():
            if s.sizes["layer"] != model.n_layers:
                raise BadInput(f"{name}: scores of {s.sizes['layer']} layers, not {model.n_layers}")
        self.model, self.scores, self.prompt, self.text = model, dict(scores), prompt, text
        self._size = (max_tokens, new)
        short = {"continuous_update": False, "layout": ipywidgets.Layout(width="320px")}
        self._criterion = ipywidgets.ToggleButtons(options=list(scores), description="score")
        self._s = ipywidgets.FloatSlider(
            sparsity, min=0.02, max=0.5, step=0.02, description="sparsity", **short
        )
        self._gamma = ipywidgets.FloatSlider(
            gamma, min=1.0, max=6.0, step=0.5, description="gamma", **short
        )
        self.bars, self.told = ipywidgets.HTML(), ipywidgets.HTML()
        rows = ipywidgets.HBox([self._s, self._gamma])
        super().__init__([self._criterion, rows, self.bars, self.told])
        for control in (self._criterion, self._s, self._gamma):
            control.observe(self._moved, "value")
        self.keep, self.numbers, self.said = xr.Dataset(), dict[str, float](), ""
        self._run()

    def show(
        self,
        criterion: str | None = None,
        sparsity: float | None = None,
        gamma: float | None = None,
    ) -> PruneBoard:
        """Set the controls as a hand does. Raises UnknownName, or BadInput out of range."""
        if criterion is not None and criterion not in self.scores:
            raise UnknownName(
                f"criterion={criterion!r} is unknown{suggest(criterion, self.scores)}"
            )
        for slider, value in ((self._s, sparsity), (self._gamma, gamma)):
            if value is not None and not slider.min <= value <= slider.max:
                raise BadInput(f"{value} is out of range: {slider.min} to {slider.max}")
        given = ((self._criterion, criterion), (self._s, sparsity), (self._gamma, gamma))
        with self.hold_trait_notifications():
            for control, setting in given:
                if setting is not None:
                    control.value = setting
        return self

    def _moved(self, _change: Any) -> None:
        try:
            self._run()
        except BadInput as error:  # a budget that cannot be spent; callbacks show no errors
            self.told.value = f"<b>{escape(str(error))}</b>"

    def _run(self) -> None:
        scores = self.scores[str(self._criterion.value)]
        self.keep = allocate(scores, float(self._s.value), float(self._gamma.value))
        self.bars.value = "".join(self._pictures())
        tokens, new = self._size
        found = pruned_losses(self.model, {"cut": self.keep}, self.text, tokens)
        small = prune(self.model, self.keep, check=False)
        self.said = str(generate(small, self.prompt, new).text.values[0])
        del small
        whole, cut = (float(x) for x in found["nll"].values[:, 0])
        self.numbers = {
            "cut": float(self.keep.attrs["cut"]), "loss": cut, "whole": whole,
            "kl": float(found["kl"].values[1, 0]),
        }  # fmt: skip
        self.told.value = escape(self.static_text())

    def _pictures(self) -> list[str]:
        names = {"mlp": "neurons kept", "attn": "key/value groups kept"}
        out = []
        for part, what in names.items():
            if part in self.keep:
                left = self.keep[part].values.sum(1)
                less = (left < self.keep[part].shape[1]).nonzero()[0].tolist()
                out.append(bars_svg(left, what, less if part == "attn" else ()))
        return out

    def static_text(self) -> str:
        """What the board says, in one line."""
        n = self.numbers
        return (
            f"{100 * n['cut']:.1f} % of the blocks' weights cut: loss {n['loss']:.2f} nats a token "
            f"(whole {n['whole']:.2f}), KL {n['kl']:.2f}. {self.prompt}{self.said}"
        )

    def static_png(self) -> bytes:
        """The bars of the neurons as PNG."""
        head, rest = self._pictures()[0].removesuffix("<br>").split(">", 1)
        return svg_to_png(f'{head}><rect width="100%" height="100%" fill="#fff"/>{rest}')

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        found = super()._repr_mimebundle_(**kwargs)
        data, meta = found if isinstance(found, tuple) else (found or {}, {})
        data = {k: v for k, v in data.items() if k != "text/html"}
        data["text/plain"] = self.static_text()
        data["image/png"] = base64.b64encode(self.static_png()).decode()
        return data, meta
