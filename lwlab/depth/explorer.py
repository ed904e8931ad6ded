"""An instrument: the effect matrix of one prompt, with a switch of modes and a slider for t."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

import ipywidgets
import numpy as np
import xarray as xr
from lwlab_widgets import HeatMap, Pick

from lwlab.charts.palette import CATEGORIES
from lwlab.depth.contributions import layer_contributions
from lwlab.depth.skips import Mode, skip_effects
from lwlab.errors import BadInput
from lwlab.models.model import Model

_MODES = ("current", "future", "local")


class SkipExplorer(ipywidgets.VBox):
    """Which layer needs which? Rows are layers skipped, columns the layers affected.

    A switch chooses the mode (see `skip_effects`), a slider the position t from which on changes
    are read: moving it runs the model, and a setting seen before comes at once. Picking a cell
    says what it means and marks both layers in the bars below, which show what each layer adds
    (relative contribution) and in which direction (cosine). In mode "current", t does nothing.
    """

    def __init__(
        self,
        model: Model,
        prompt: str,
        *,
        mode: Mode = "future",
        t: int | None = None,
        layers: Sequence[int] | None = None,
        front: int = 1,
        known: xr.Dataset | None = None,
    ) -> None:
        """Open the explorer on one prompt; `layers` are those to skip (all by default).

        `known` are effects that `skip_effects` gave for this prompt (its first, at its only t), so
        that the first picture needs no run. Raises BadInput for a prompt too short to choose t.
        """
        self.model, self.prompt, self.front = model, prompt, front
        self.layers = layers
        self._seen: dict[tuple[str, int | None], xr.Dataset] = {}
        tokens = model.tokens(prompt)
        n = int(tokens.lengths[0])
        if n < front + 3:
            raise BadInput(
                f"{prompt!r} has {n} tokens; at least {front + 3} are needed to choose t"
            )
        self.words = tokens.strings[0]
        added = layer_contributions(model, prompt, front=front).isel(prompt=0).mean("position")
        self._bars = {k: added[k].sel(part="layer").values for k in ("relative", "cosine")}
        t = n // 2 if t is None else t
        if known is not None:
            if str(known["text"].values[0]) != prompt:
                raise BadInput(f"known holds effects of another text than {prompt!r:.60}")
            at = known.attrs["t"][0]
            self._seen[known.attrs["mode"], at[0] if at else None] = known.isel(prompt=[0])
        self._modes = ipywidgets.ToggleButtons(options=_MODES, value=mode, description="skip")
        self._t = ipywidgets.IntSlider(
            t, front + 1, n - 1, description="t", continuous_update=False,
            layout=ipywidgets.Layout(width="420px"),
        )  # fmt: skip
        self._token = ipywidgets.Label()
        self.map = HeatMap(self._picture(), x="layer", y="skipped", domain=(0.0, 1.0))
        self.map.on_pick(self._say)
        self.bars = ipywidgets.HTML()
        super().__init__(
            [self._modes, ipywidgets.HBox([self._t, self._token]), self.map, self.bars]
        )
        self._modes.observe(self._moved, "value")
        self._t.observe(self._moved, "value")
        self._draw_bars()
        self._name_token()

    @property
    def mode(self) -> str:
        """The mode shown."""
        return str(self._modes.value)

    @property
    def t(self) -> int:
        """The position from which on changes are read."""
        return int(self._t.value)

    def show(self, mode: Mode | None = None, t: int | None = None) -> SkipExplorer:
        """Set mode and t, as the switch and the slider do. Raises BadInput for a t out of range."""
        if t is not None and not self._t.min <= t <= self._t.max:
            raise BadInput(f"t={t} is out of range: {self._t.min}..{self._t.max}")
        if mode is not None:
            self._modes.value = mode
        if t is not None:
            self._t.value = t
        return self

    def effects(self) -> xr.Dataset:
        """Return the effects shown; the model runs where they were not seen before."""
        key = (self.mode, None if self.mode == "current" else self.t)
        if key not in self._seen:
            self._seen[key] = skip_effects(
                self.model, self.prompt, self.mode, t=key[1], layers=self.layers,  # type: ignore[arg-type]
                front=self.front,
            )  # fmt: skip
        return self._seen[key]

    def _picture(self) -> xr.DataArray:
        effect = self.effects()["effect"].sel(statistic="max").isel(prompt=0, drop=True)
        where = {
            "current": "every token loses the layer",
            "future": f"tokens before t = {self.t} lose it, later ones are read",
            "local": f"tokens before t = {self.t} lose it, each layer on its own",
        }[self.mode]
        named = {"long_name": "relative change", "title": f"Skip, {self.mode}: {where}"}
        return effect.drop_vars("statistic").assign_attrs(named | {"model": self.model.name})

    def _moved(self, _change: Any) -> None:
        self._name_token()
        self.map.guard(lambda: self.map.update(self._picture()))
        if self.map.picked and not self.map.error:
            self.map.pick(self.map.picked["row"], self.map.picked["column"])  # say it anew

    def _name_token(self) -> None:
        self._token.value = f"t is the token {self.words[self.t]!r}"
        self._t.disabled = self.mode == "current"

    def _say(self, pick: Pick) -> str:
        s, layer = pick["skipped"], pick["layer"]
        self._draw_bars(s, layer)
        if layer < s:
            return f"Layer {layer} runs before layer {s}: skipping {s} cannot reach it."
        who = {"current": "any token", "future": "a later token", "local": "a later token"}
        out = self.effects().get("output_effect")
        text = (
            f"Without layer {s}, what layer {layer} writes changes by up to {pick.value:.0%} of "
            f"its size at {who[self.mode]}"
        )
        if out is None:
            return text + ", if nothing else reads the gap."
        change = float(out.sel(statistic="max", skipped=s).isel(prompt=0))
        return text + f"; the output by up to {change:.2f} of 1.41 (L2)."

    def _draw_bars(self, *marked: int) -> None:
        charts = [
            bars_svg(self._bars["relative"], "added / stream", marked, top=1.5),
            bars_svg(self._bars["cosine"], "cosine with stream", marked),
        ]
        self.bars.value = "".join(charts)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        found = super()._repr_mimebundle_(**kwargs)
        data, meta = found if isinstance(found, tuple) else (found or {}, {})
        data = {k: v for k, v in data.items() if k != "text/html"}
        data["text/plain"] = self.map.static_text()
        data["image/png"] = base64.b64encode(self.map.static_png()).decode()
        return data, meta


def bars_svg(
    values: np.ndarray[Any, Any], title: str, marked: Sequence[int] = (), top: float | None = None
) -> str:
    """Draw one bar a layer as SVG, marked layers in another colour; bars above `top` are cut."""
    wide, high, left, head = 14, 70, 64, 18
    low, up = min(0.0, float(values.min())), max(float(values.max()), 0.0)
    up = min(up, top) if top is not None else up
    scale = high / ((up - low) or 1.0)
    zero = head + up * scale
    parts = []
    for i, v in enumerate(values):
        shown = min(float(v), up)
        y, h = (zero - shown * scale, shown * scale) if shown >= 0 else (zero, -shown * scale)
        colour = CATEGORIES[1] if i in marked else CATEGORIES[0]
        cut = " (cut)" if v > shown else ""
        parts.append(
            f'<rect x="{left + i * wide}" y="{y:.1f}" width="{wide - 2}" '
            f'height="{max(h, 0.5):.1f}" fill="{colour}">'
            f"<title>layer {i}: {v:.2f}{cut}</title></rect>"
        )
        if i % 5 == 0 or i in marked:
            x, at = left + i * wide + wide / 2 - 1, head + high + 13
            parts.append(f'<text x="{x:.1f}" y="{at}" text-anchor="middle">{i}</text>')
    for v in (low, up) if low < 0 else (up,):
        base = head + (up - v) * scale + 4
        parts.append(f'<text x="{left - 5}" y="{base:.1f}" text-anchor="end">{v:.2f}</text>')
    size = f'width="{left + len(values) * wide + 10}" height="{head + high + 18}"'
    line = f'<line x1="{left}" x2="{left + len(values) * wide}" y1="{zero:.1f}" y2="{zero:.1f}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(title)} by layer" '
        f'{size} font-family="sans-serif" font-size="10" fill="currentColor">'
        f'<text x="{left}" y="11">{escape(title)}, by layer</text>{"".join(parts)}'
        f'{line} stroke="currentColor"/></svg><br>'
    )
