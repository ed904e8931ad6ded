"""Values over text: each token on its colour, several rows linked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import traitlets as t
import xarray as xr

from lwlab.charts import labels as lab
from lwlab.charts.palette import MISSING, Domain, colour_domain, colour_map, stops_for
from lwlab.errors import BadInput

from ._base import LabWidget, front_end
from ._picture import FONT, _light, _text, svg_to_png

Values = xr.DataArray | Mapping[str, Sequence[float]] | Sequence[float] | npt.NDArray[Any]
_MOST = 20_000  # spans on the page
_PICTURE = 500  # cells a picture shows: it is stored in the notebook


class TokenStrip(LabWidget):
    """Per-token values over the text itself, all rows on one colour scale.

    Traits: `focus`, the token (0..n-1, or -1) whose values are read out, set by hover, arrow keys
    or Python; `rows`, their names; `on_pick(call)` hears clicks and Enter as `call(index)`.
    """

    _esm, _css = front_end("tokens")
    values = t.Bytes(b"").tag(sync=True)  # float32 [rows, tokens]
    rows = t.List(t.Unicode()).tag(sync=True)
    tokens = t.List(t.Unicode()).tag(sync=True)
    shown = t.List(t.Unicode()).tag(sync=True)  # the tokens with visible white space
    domain = t.Tuple(t.Float(), t.Float(), default_value=(0.0, 1.0)).tag(sync=True)
    stops = t.List(t.Unicode()).tag(sync=True)
    focus = t.Int(-1).tag(sync=True)
    picked = t.Dict().tag(sync=True)
    answer = t.Unicode("").tag(sync=True)

    def __init__(
        self,
        values: Values,
        tokens: Sequence[str] | None = None,
        *,
        domain: Domain | None = None,
        title: str | None = None,
        subtitle: str = "",
    ) -> None:
        """Show `values`: one row, rows by name, or an array (row, position) with its token strings.

        Without `tokens` a labelled result's own are used; the colours span `domain`, or all
        values. Raises BadInput when there is no token for each value, or too many to show.
        """
        super().__init__(title=title or "", subtitle=subtitle)
        self._callbacks: list[Callable[[int], Any]] = []
        self._title, self._domain = title, domain
        self.update(values, tokens)
        self.observe(self._answer, "picked")

    def update(self, values: Values, tokens: Sequence[str] | None = None) -> TokenStrip:
        """Show other values; their tokens too, unless those are the same."""
        names, grid, own = _rows(values)
        if tokens is None:
            tokens = own if own is not None else (self.tokens or None)
        if tokens is None:
            raise BadInput("these values carry no token strings: give tokens=[...]")
        if isinstance(tokens, str) or grid.shape[1] != len(tokens):
            raise BadInput(f"{grid.shape[1]} values for {len(tokens)} tokens; one is needed each.")
        if not grid.size:
            raise BadInput("no values: give at least one token with a value")
        if grid.size > _MOST:
            raise BadInput(
                f"{grid.shape[0]} rows of {grid.shape[1]} tokens are too many to read; show at "
                f"most {_MOST:,} cells, e.g. a slice along position"
            )
        found, stops = colour_domain(grid)
        if self._domain is not None:
            found, stops = self._domain, stops_for(self._domain)
            if not found[0] < found[1]:
                raise BadInput(f"domain must rise from low to high, got {found}.")
        with self.hold_sync():
            self.tokens = [str(s) for s in tokens]
            # White space that is a whole token is seen; spaces inside a word's token stay spaces.
            self.shown = [
                s if s.strip() else lab.show_token(s, longest=8) + ("\n" if "\n" in s else "")
                for s in self.tokens
            ]
            self.rows, self.values = names, grid.astype(np.float32).tobytes()
            self.domain, self.stops = found, list(stops)
            if self.focus >= len(self.tokens):
                self.focus = -1
            if self._title is None:
                self.title = lab.title_of(values) if isinstance(values, xr.DataArray) else "Tokens"
        return self

    def array(self) -> npt.NDArray[np.float32]:
        """Return the values as float32 [rows, tokens]."""
        return np.frombuffer(self.values, np.float32).reshape(len(self.rows), -1)

    def on_pick(self, call: Callable[[int], Any]) -> TokenStrip:
        """Call `call(index)` for each picked token; text it returns is shown below the strip."""
        self._callbacks.append(call)
        return self

    def pick(self, index: int) -> None:
        """Pick a token, as a click does. Raises BadInput outside the text."""
        if not 0 <= index < len(self.tokens):
            raise BadInput(f"token {index} lies outside 0..{len(self.tokens) - 1}")
        self.focus = index
        self.picked = {"token": index, "n": self.picked.get("n", 0) + 1}

    def _answer(self, change: Any) -> None:
        index = change["new"].get("token", -1)
        if not 0 <= index < len(self.tokens):
            return
        for call in list(self._callbacks):
            said = self.guard(call, index)
            if self.error:
                break
            if isinstance(said, str):
                self.answer = said

    def static_text(self) -> str:
        """Return each row's extreme token in words."""
        parts = []
        for name, row in zip(self.rows, self.array().astype(float)):
            if not np.isfinite(row).any():
                parts.append(f"{name or 'values'}: no value")
                continue
            at = int(np.nanargmax(np.abs(np.where(np.isfinite(row), row, np.nan))))
            token = lab.label_tokens([self.tokens[at]], [at])[0]
            parts.append(f"{name or 'values'}: strongest {row[at]:.3g} at {token}")
        return f"{self.title}, {len(self.tokens)} tokens. " + "; ".join(parts) + "."

    def static_png(self) -> bytes:
        """Return the text with its colours, the first tokens where there are very many."""
        out, y = [_text(8, 18, self.title, 14, font_weight=600)], 30.0
        if self.subtitle:
            out.append(_text(8, 34, self.subtitle, 11.5))
            y = 44.0
        count = max(1, _PICTURE // len(self.rows))
        for name, row in zip(self.rows, self.array().astype(float)):
            x, y = 8.0, y + 16
            if name:
                out.append(_text(8, y, name, 11, font_weight=600))
                y += 16
            rgb = colour_map(row, self.domain, tuple(self.stops))
            light = _light(row, self.domain, tuple(self.stops))
            for k, word in enumerate(self.shown[:count]):
                wide = 7.2 * len(word.strip("\n")) + 1  # a monospaced face of 12 points
                if x + wide > 860:
                    x, y = 8.0, y + 19
                fill = f"rgb{tuple(map(int, rgb[k]))}" if np.isfinite(row[k]) else MISSING
                out.append(f'<rect x="{x:.1f}" y="{y - 13}" width="{wide:.1f}" height="17" '
                           f'fill="{fill}"/>')  # fmt: skip
                out.append(_text(x, y, word.strip("\n"), 12, fill="#111" if light[k] else "#fff",
                                 font_family="DejaVu Sans Mono, Liberation Mono, monospace",
                                 **{"xml:space": "preserve"}))  # fmt: skip
                x += wide
                if "\n" in word:
                    x, y = 8.0, y + 19
            y += 6
        if len(self.tokens) > count:
            y += 16
            out.append(_text(8, y, f"… and {len(self.tokens) - count} more tokens", 11))
        return svg_to_png(
            f'<svg xmlns="http://www.w3.org/2000/svg" width="880" height="{y + 14:.0f}" '
            f'font-family="{FONT}" fill="#1a1a1a"><rect width="100%" height="100%" fill="#fff"/>'
            f"{''.join(out)}</svg>"
        )


def _rows(values: Values) -> tuple[list[str], npt.NDArray[np.float64], list[str] | None]:
    """Names, numbers [rows, tokens] and the token strings that came with them."""
    if isinstance(values, xr.DataArray):
        da = values.squeeze(drop=True) if values.ndim > 1 else values
        along = next((d for d in ("position", "token", "key", "query") if d in da.dims), None)
        if along is None or da.ndim > 2:
            raise BadInput(
                f"a token strip needs position and at most one more dimension, got "
                f"{dict(values.sizes)}; average or select first"
            )
        other = next((str(d) for d in da.dims if d != along), None)
        axis = lab.axis_of(da, along)
        names = list(lab.axis_of(da, other).labels) if other else [""]
        grid = da.transpose(*([other] if other else []), along).values
        own = None if axis.tokens is None else list(axis.tokens)
        return names, np.atleast_2d(np.asarray(grid, float)), own
    if isinstance(values, Mapping):
        sizes = {k: len(v) for k, v in values.items()}
        if len(set(sizes.values())) != 1:
            raise BadInput(f"rows of one length are needed, got {sizes}")
        return [str(k) for k in values], np.array([list(v) for v in values.values()], float), None
    grid = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, float)
    if grid.ndim not in (1, 2):
        raise BadInput(f"values of shape {grid.shape}; give [tokens] or [rows, tokens]")
    grid = np.atleast_2d(grid)
    return ([""] if len(grid) == 1 else [f"row {i}" for i in range(len(grid))]), grid, None
