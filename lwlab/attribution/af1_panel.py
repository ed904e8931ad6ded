"""An instrument: two sliders for where waiting ends and where the last token is left alone."""

from __future__ import annotations

import base64
from typing import Any

import ipywidgets
import numpy as np
import torch
import xarray as xr
from lwlab_widgets import HeatMap, Pick

from lwlab.attribution import af1
from lwlab.attribution.af1_parts import ordered
from lwlab.attribution.af1_rows import Rows
from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.results import label
from lwlab.tasks.base import Task

_MEANS = {
    -1: "waits: what it holds is averaged over all prompts with this token here",
    0: "looks at itself and at what all prompts share",
    1: "looks at every token before it",
}


def scheme(rows: Rows, wait: int, until: int) -> xr.DataArray:
    """What each token does in each block of a subgraph, (layer, position).

    -1: waits (its stream is averaged away at the end), 0: sees itself and the common start only,
    1: sees every token. Positions are those behind the common start. Raises BadInput unless
    0 <= wait <= until <= n_layers.
    """
    ordered(rows.model, wait, until)
    grid = np.zeros((rows.n_layers, rows.length - rows.shared))
    grid[:wait], grid[wait:until, -1] = -1, 1
    first = [set(column) for column in zip(*(s[rows.shared :] for s in rows.strings))]
    names = [repr(c.pop()) if len(c) == 1 else "abcdefgh"[i] for i, c in _numbered(first)]
    coords = {
        "layer": range(rows.n_layers), "position": range(rows.shared, rows.length),
        "position_str": ("position", names),
    }  # fmt: skip
    return label(grid, ("layer", "position"), coords, name="scheme").assign_attrs(
        long_name="-1 waits, 0 sees itself, 1 sees all"
    )


def _numbered(columns: list[set[str]]) -> list[tuple[int, set[str]]]:
    """Each column with how many before it vary: the letter of its operand."""
    out, operand = [], 0
    for c in columns:
        out.append((operand, c))
        operand += len(c) > 1
    return out


class BoundaryPanel(ipywidgets.VBox):
    """Move the two boundaries; the subgraph runs again on every prompt.

    The map shows what each token does in each block; above it stand the accuracy and, for one
    prompt, the five likeliest answers. Picking a cell of the map says what the token does there.
    """

    def __init__(
        self, model: Model, task: Task | Rows, wait: int, until: int, *, prompt: int = 0
    ) -> None:
        """Open at a subgraph; `prompt` is the number of a solved one. Raises as `af1.subgraph`."""
        ordered(model, wait, until)
        self.model, self.rows = model, af1.prepare(model, task)
        solved = self.rows.require_solved().tolist()
        if prompt not in solved:
            raise BadInput(f"prompt={prompt} is not one the model solves; those are {solved}")
        self._at = solved.index(prompt)
        self._seen: dict[tuple[int, int], xr.Dataset] = {}
        n = model.n_layers
        wide = {"continuous_update": False, "layout": ipywidgets.Layout(width="420px")}
        style = {"description_width": "150px"}
        self.wait = ipywidgets.IntSlider(wait, 0, n, description="wait before block", style=style,
                                         **wide)  # fmt: skip
        self.until = ipywidgets.IntSlider(until, 0, n, description="alone from block", style=style,
                                          **wide)  # fmt: skip
        self.numbers = ipywidgets.HTML()
        self.map = HeatMap(
            self._picture(), x="position", y="layer", domain=(-1.0, 1.0),
            title="What each token does in each block",
        )  # fmt: skip
        self.map.on_pick(self._say)
        super().__init__([self.wait, self.until, self.numbers, self.map])
        self.wait.observe(self._moved, "value")
        self.until.observe(self._moved, "value")
        self._write()

    def set(self, wait: int, until: int) -> BoundaryPanel:
        """Move both boundaries, as dragging does. Raises BadInput for layers out of order."""
        ordered(self.model, wait, until)
        if wait > self.until.value:
            self.until.value = until
        self.wait.value, self.until.value = wait, until
        return self

    def result(self) -> xr.Dataset:
        """Return `af1.subgraph` at the boundaries; one seen before comes at once."""
        key = self.wait.value, self.until.value
        if key not in self._seen:
            found = af1.subgraph(self.model, self.rows, *key)
            top = self._top(found.logits.values[self._at])
            self._seen[key] = found.drop_vars("logits").assign_attrs(top=top)
        return self._seen[key]

    def _top(self, logits: np.ndarray[Any, Any]) -> list[str]:
        p, ids = torch.as_tensor(logits).softmax(-1).topk(5)
        return [f"{self.model.tokenizer.decode([i])!r} {x:.0%}" for x, i in zip(p, ids.tolist())]

    def _picture(self) -> xr.DataArray:
        return scheme(self.rows, self.wait.value, self.until.value)

    def _moved(self, change: Any) -> None:
        if self.wait.value > self.until.value:  # push the other one along
            other = self.until if change.owner is self.wait else self.wait
            other.value = change.new
            return
        self.map.guard(lambda: self.map.update(self._picture()))
        self.map.guard(self._write)

    def _text(self) -> str:
        found, rows = self.result(), self.rows
        i = int(found.prompt.values[self._at])
        asked = rows.task.clean[i].rstrip()[-24:]
        return (
            f"accuracy {float(found.correct.mean()):.0%} of {found.sizes['prompt']} "
            f"(chance {af1.chance(rows):.0%}); …{asked} -> {', '.join(found.attrs['top'])}"
        )

    def _write(self) -> None:
        self.numbers.value = self._text()

    def _say(self, pick: Pick) -> str:
        return f"block {pick['layer']}: this token {_MEANS[round(pick.value)]}"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        found = super()._repr_mimebundle_(**kwargs)
        data, meta = found if isinstance(found, tuple) else (found or {}, {})
        data = {k: v for k, v in data.items() if k != "text/html"}
        where = f"wait before block {self.wait.value}, alone from block {self.until.value}"
        data["text/plain"] = f"{where}: {self._text()}."
        data["image/png"] = base64.b64encode(self.map.static_png()).decode()
        return data, meta
