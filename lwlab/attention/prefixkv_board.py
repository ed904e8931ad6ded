"""An instrument: a budget for the cache, what each layer keeps of the text, what is still known."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any, cast, get_args

import ipywidgets
import numpy as np
from lwlab_widgets._picture import svg_to_png

from lwlab.attention.prefixkv import RECENT, START, Technique, allocate, keep
from lwlab.attention.prefixkv_cache import Reading, cut, nbytes
from lwlab.attention.prefixkv_measure import losses, recall
from lwlab.attention.prefixkv_needles import Haystack
from lwlab.errors import BadInput, LwlabError

_KEPT, _GONE, _BAR = (0, 114, 178), (228, 228, 228), "#0072b2"


class CacheBoard(ipywidgets.VBox):
    """How small can the cache become before the model forgets?

    A switch chooses the technique, a slider the budget. The picture has a row a layer: how many
    keys it keeps, and which (dark: kept, light: evicted; the text runs to the right). Underneath,
    what the model does with a cache that is really cut: its loss on what follows, the needles it
    finds, the bytes it holds.
    """

    def __init__(
        self,
        reading: Reading,
        stack: Haystack,
        budget: float = 0.2,
        technique: Technique = "prefixkv",
    ) -> None:
        """Open on one text. Raises as `keep` does for the budget and the technique."""
        allocate(reading.scores["mass"], budget, technique)
        self.reading, self.stack = reading, stack
        self._whole = float(losses(reading, None, stack.following).mean())
        self._technique = ipywidgets.ToggleButtons(
            options=list(get_args(Technique)), value=technique, description="technique",
            style={"button_width": "80px"},
        )  # fmt: skip
        least = min(1.0, (START + RECENT + 1) / reading.ids.shape[1])
        self._budget = ipywidgets.FloatSlider(
            value=budget, min=min(least, budget), max=1.0, step=0.01, description="budget",
            continuous_update=False, readout_format=".0%",
            layout=ipywidgets.Layout(width="420px"),
        )  # fmt: skip
        self.picture, self.answer = ipywidgets.HTML(), ipywidgets.HTML()
        super().__init__([self._technique, self._budget, self.picture, self.answer])
        for control in (self._technique, self._budget):
            control.observe(lambda _change: self._draw(), "value")
        self._draw()

    def show(self, budget: float | None = None, technique: Technique | None = None) -> CacheBoard:
        """Set budget and technique, as slider and switch do. Raises as `keep` does."""
        how = technique or cast("Technique", self._technique.value)
        allocate(self.reading.scores["mass"], self._budget.value if budget is None else budget, how)
        if budget is not None and not self._budget.min <= budget <= 1:
            raise BadInput(f"budget={budget}: the slider goes from {self._budget.min:.3g} to 1")
        self._technique.value = how
        if budget is not None:
            self._budget.value = budget
        return self

    @property
    def text(self) -> str:
        """What the model does with this cache, in a sentence."""
        return self._said

    def _draw(self) -> None:
        try:
            kept = keep(
                self.reading.scores, float(self._budget.value),
                cast("Technique", self._technique.value),
            )  # fmt: skip
            loss = float(losses(self.reading, kept, self.stack.following).mean())
            found = recall(self.reading, kept, self.stack)
        except LwlabError as why:  # an exception of a callback would be seen by nobody
            self._said = str(why)
            self.answer.value = f'<div role="alert">{why}</div>'
            return
        held, whole = nbytes(cut(self.reading, kept)), nbytes(self.reading.cache)
        needles = f"{sum(found)} of {len(found)} needles found, " if found else ""
        self._said = (
            f"{self._technique.value} at {self._budget.value:.0%}: {needles}loss {loss:.2f} "
            f"(full cache {self._whole:.2f}), cache {held / 1e6:.2f} of {whole / 1e6:.2f} MB, "
            f"worst layer keeps {kept.attrs['level']:.0%} of its attention"
        )
        self._svg = _svg(kept.values)
        self.picture.value = self._svg
        self.answer.value = f'<div aria-live="polite">{self._said}</div>'

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        found = super()._repr_mimebundle_(**kwargs)
        data, meta = found if isinstance(found, tuple) else (found or {}, {})
        data = {k: v for k, v in data.items() if k != "text/html"}
        data["text/plain"] = self._said
        data["image/png"] = base64.b64encode(svg_to_png(self._svg)).decode()
        return data, meta


def _svg(kept: np.ndarray[Any, Any]) -> str:
    """A row a layer: a bar of how many keys it keeps, and a strip of which."""
    L, T = kept.shape
    high, left, bar, wide = 8, 34, 110, 480
    parts = []
    for layer, row in enumerate(kept):
        y, n = 22 + layer * high, int(row.sum())
        parts.append(
            f'<rect x="{left}" y="{y}" width="{max(1, bar * n / T):.1f}" height="{high - 1}" '
            f'fill="{_BAR}"><title>layer {layer}: {n} of {T}</title></rect>'
        )
        if layer % 5 == 0:
            parts.append(f'<text x="{left - 5}" y="{y + 7}" text-anchor="end">{layer}</text>')
    strip, at = base64.b64encode(_png(kept, high)).decode(), left + bar + 12
    height = 22 + L * high + 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{at + wide + 8}" height="{height}" '
        'font-family="sans-serif" font-size="10" role="img" aria-label="keys kept by layer">'
        f'<rect width="{at + wide + 8}" height="{height}" fill="white"/>'
        f'<text x="{left}" y="13">keys kept by layer (of {T})</text>'
        f'<text x="{at}" y="13">which (position, the start at the left)</text>{"".join(parts)}'
        f'<image x="{at}" y="22" width="{wide}" height="{L * high}" preserveAspectRatio="none" '
        f'href="data:image/png;base64,{strip}"/></svg>'
    )


def _png(kept: np.ndarray[Any, Any], high: int) -> bytes:
    """One pixel a position, `high` a layer with a light line between: a PNG of two colours."""
    rows = np.repeat(kept[:, None], high, 1)
    rows[:, -1] = False
    image = rows.reshape(-1, kept.shape[1]).astype(np.uint8)
    lines = b"".join(b"\0" + line.tobytes() for line in image)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(
            ">I", zlib.crc32(kind + data)
        )  # fmt: skip

    size = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, 3, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"PLTE", bytes([*_GONE, *_KEPT]))
        + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    )  # fmt: skip
