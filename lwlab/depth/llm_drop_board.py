"""An instrument: a budget of sublayers to drop, and the model that is left of it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import ipywidgets
import xarray as xr
from lwlab_widgets import DepthBoard
from lwlab_widgets._depth import TEXT

from lwlab.depth.explorer import bars_svg
from lwlab.depth.llm_drop import Mode, drop_order
from lwlab.depth.removal import plan
from lwlab.errors import BadInput
from lwlab.models.model import Model


class DropBoard(ipywidgets.VBox):
    """Which sublayers go first, and what does the rest say?

    A switch chooses the list (attention, MLP, whole blocks, attention and MLP jointly), a slider
    how many of its lowest go. Bars show the importance of every sublayer, the dropped ones in
    another colour; the depth board below runs what is left, and its rows can be switched back on
    one by one.
    """

    def __init__(
        self,
        model: Model,
        scores: xr.Dataset,
        prompt: str = "The capital of France is",
        *,
        text: str = TEXT,
        mode: Mode = "attn",
        k: int = 0,
        orders: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Open on `scores` from `importance`; `orders` replace those they give.

        The board tells the next token after `prompt` and the perplexity of `text`.
        Raises BadInput for scores of another depth, UnknownName for a mode.
        """
        if scores.sizes["layer"] != model.n_layers:
            raise BadInput(
                f"the scores are of {scores.sizes['layer']} layers, {model.name} has "
                f"{model.n_layers}"
            )
        have = set(scores["part"].values.tolist())
        modes = [m for m in get_args(Mode) if ({"attn", "mlp"} if m == "joint" else {m}) <= have]
        self.scores = scores
        self.orders = {m: drop_order(scores, m) for m in modes} | dict(orders or {})
        drop_order(scores, mode)  # refuses a mode that these scores cannot give
        self.board = DepthBoard(model, prompt, text, title="What is left")
        self._mode = ipywidgets.ToggleButtons(options=modes, value=mode, description="drop")
        self._k = ipywidgets.IntSlider(
            0, 0, self._most(mode), description="how many", continuous_update=False,
            layout=ipywidgets.Layout(width="420px"),
        )  # fmt: skip
        self.bars = ipywidgets.HTML()
        super().__init__([self._mode, self._k, self.bars, self.board])
        self._mode.observe(self._switched, "value")
        self._k.observe(self._moved, "value")
        self._draw()
        if k:
            self.show(k=k)

    @property
    def dropped(self) -> list[str]:
        """The sublayers that are gone, as `remove` names them."""
        return list(self.orders[str(self._mode.value)][: int(self._k.value)])

    def show(self, mode: Mode | None = None, k: int | None = None) -> DropBoard:
        """Set list and budget, as the switch and the slider do. Raises BadInput out of range."""
        if mode is not None:
            drop_order(self.scores, mode)
            self._mode.value = mode
        if k is not None:
            if not 0 <= k <= self._k.max:
                raise BadInput(f"k={k} is out of range: 0..{self._k.max}")
            self._k.value = k
        return self

    def _most(self, mode: str) -> int:
        """Largest budget that leaves a block and some attention."""
        order, k = self.orders[mode], 0
        while k < len(order):
            try:
                plan(self.board.model, list(order[: k + 1]))
            except BadInput:
                break
            k += 1
        return k

    def _switched(self, _change: Any) -> None:
        self._k.max = self._most(str(self._mode.value))
        self._moved(_change)

    def _moved(self, _change: Any) -> None:
        self._draw()
        self.board.steps = list(plan(self.board.model, self.dropped).rest)

    def _draw(self) -> None:
        gone = set(self.dropped)
        charts = []
        for part in self.scores["part"].values.tolist():
            one = self.scores.sel(part=part)
            marked = [
                int(n) for n, name in zip(one["layer"].values, one["sublayer"].values)
                if name in gone
            ]  # fmt: skip
            top = 0.5 if float(one["importance"].max()) > 0.5 else None
            charts.append(bars_svg(one["importance"].values, f"S of {part}", marked, top=top))
        self.bars.value = "".join(charts)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        found = super()._repr_mimebundle_(**kwargs)
        data, meta = found if isinstance(found, tuple) else (found or {}, {})
        data = {k: v for k, v in data.items() if k != "text/html"}
        self.board.wait(20)
        told = ", ".join(self.dropped) or "nothing"
        data["text/plain"] = f"Dropped: {told}. {self.board.static_text()}"
        data["image/png"] = base64.b64encode(self.board.static_png()).decode()
        return data, meta
