"""The logit lens while you type: what every layer and position would say next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import traitlets as t
import xarray as xr

from lwlab.charts.labels import show_token
from lwlab.errors import BadInput

from ._base import front_end
from ._heatmap import HeatMap, Pick
from ._live import Job, Live
from ._picture import draw_maps, svg_to_png
from ._tables import place_of, table

if TYPE_CHECKING:
    from lwlab.models.model import Model
    from lwlab.models.tokens import Tokens

COLOURS = ("probability", "entropy", "kl", "rank")
_ABOUT = {
    "probability": "probability of the top token",
    "entropy": "entropy, nats",
    "kl": "KL to the last layer, nats",
    "rank": "log10(1 + rank) of the target",
}


class LensExplorer(HeatMap, Live):
    """A prompt box over the logit lens (`lw.lens`): layers x positions, the top token in each cell.

    Traits, all readable and settable: `prompt`, `target` (a one-token word, or ""), `colour`
    ("probability", "entropy", "kl" to the last layer, "rank" of the target), `picked` (or
    `pick(row, column)`); `table` holds the picked cell's ten likeliest tokens, `result` the
    Dataset of `lw.lens`. A new prompt or target runs the model in the widget's thread; `wait()`
    waits for it. What is wrong with a prompt is said in `error`; the map stays as it was.
    """

    _esm, _css = front_end("heatmap", "lens")
    prompt = t.Unicode("").tag(sync=True)
    target = t.Unicode("").tag(sync=True)
    colour = t.Enum(COLOURS, "probability").tag(sync=True)
    texts = t.List(t.Unicode()).tag(sync=True)  # [rows * columns], the top tokens
    table = t.Dict().tag(sync=True)

    def __init__(
        self,
        model: Model,
        prompt: str = "",
        target: str | None = None,
        *,
        colour: str = "probability",
        max_tokens: int = 128,
    ) -> None:
        """Explore `model` from `prompt` on; prompts of more than `max_tokens` are refused.

        Raises MissingSite for a model without an unembedding and BadInput for one without a
        tokenizer or an unknown colour.
        """
        from lwlab.tracing.lens import readers

        readers(model)
        if model.tokenizer is None:
            raise BadInput(f"{model.name} has no tokenizer, and this instrument reads text")
        if colour not in COLOURS:
            raise BadInput(f"colour={colour!r}; one of {', '.join(COLOURS)}")
        self.model, self.max_tokens = model, max_tokens
        self.result: xr.Dataset | None = None
        start = _empty(model, prompt, max_tokens)
        super().__init__(start, "position", "layer", title="Logit lens", subtitle=model.name)
        self.colour, self.prompt, self.target = colour, prompt, target or ""
        self.on_pick(self._open)
        self.observe(lambda _: self.ask(), ["prompt", "target"])
        self.observe(lambda _: self.guard(self._recolour), "colour")
        self.ask()

    def ask(self) -> None:
        """Run the lens on what stands in the prompt box; the last question wins."""
        prompt, target = self.prompt, self.target
        self.begin(lambda job: self._look(job, prompt, target))

    def _look(self, job: Job, prompt: str, target: str) -> None:
        from lwlab.tracing.lens import lens

        tokens = _tokens(self.model, prompt, self.max_tokens)
        if target:
            self.model.token_id(target)  # says how a longer word splits, before the run
        job.tell(-1.0, f"reading {int(tokens.lengths[0])} tokens at {self.model.n_layers} layers…")
        found = lens(self.model, tokens, target or None, k=min(10, self.model.d_vocab or 10))
        with self._turn:
            job.check()
            self.result = found.isel(prompt=0)
            with self.hold_sync():
                self._paint()

    def _grid(self) -> xr.DataArray:
        assert self.result is not None
        r, kind = self.result, self.colour
        if kind == "rank" and "rank" not in r:
            raise BadInput("name a target word to see its rank")
        if kind == "probability":
            da = cast("xr.DataArray", np.exp(r["log_prob"].isel(top=0, drop=True)))
        else:
            da = cast("xr.DataArray", np.log10(1 + r["rank"])) if kind == "rank" else r[kind]
        what = _ABOUT[kind].replace("the target", repr(self.target))
        return da.rename(kind).drop_attrs().assign_attrs(long_name=what)

    def _paint(self) -> None:
        assert self.result is not None
        if self.colour == "rank" and "rank" not in self.result:
            self.colour = "probability"
        da = self._grid()
        self._domain = (0.0, 1.0) if self.colour == "probability" else None
        top = self.result["token"].isel(top=0).transpose("layer", "position").values
        self.texts = [show_token(str(s), longest=9) for s in top.ravel()]
        self.update(da.transpose("layer", "position"))
        last = self.result.isel(layer=-1, position=-1)
        words = [str(s) for s in last["token"].values[:3]]
        chances = np.exp(last["log_prob"].values[:3])
        self.answer = "The model goes on with " + ", ".join(
            f"“{w}” ({p:.0%})" for w, p in zip(words, chances)
        )
        if not self.picked:
            size = da.sizes
            self.picked = {"row": size["layer"] - 1, "column": size["position"] - 1, "n": 0}
        else:
            self._tabulate(self.picked["row"], self.picked["column"])

    def _recolour(self) -> None:
        if self.result is not None:
            da = self._grid()
            self._domain = (0.0, 1.0) if self.colour == "probability" else None
            self.update(da.transpose("layer", "position"))

    def _open(self, pick: Pick) -> None:
        if self.result is None:
            raise BadInput("nothing has been read yet: type a prompt")
        self._tabulate(pick.row, pick.column)

    def _tabulate(self, row: int, column: int) -> None:
        assert self.result is not None
        cell = self.result.isel(layer=row, position=column)
        chances = np.exp(cell["log_prob"].values)
        names = [show_token(str(s), longest=30) for s in cell["token"].values]
        extra = f", {self.target!r} is number {int(cell['rank']) + 1}" if "rank" in cell else ""
        self.table = table(
            f"Top ten at {place_of(self._rows, row)}, {place_of(self._columns, column)}{extra}",
            ("", "token", "probability"),
            [(str(i + 1), n, f"{p:.3f}") for i, (n, p) in enumerate(zip(names, chances))],
        )

    def static_text(self) -> str:
        """Return the prompt, the continuation and the picked cell's tokens in words."""
        rows = "; ".join(f"{r[1]} {r[2]}" for r in self.table.get("rows", []))
        cell = f" {self.table['caption']}: {rows}." if rows else ""
        return f"Logit lens of {self.model.name} on {self.prompt!r}. {self.answer}.{cell}"

    def static_png(self) -> bytes:
        """Return the map with the top token in each cell."""
        place = (self.picked["row"], self.picked["column"]) if self.picked else None
        grid: npt.NDArray[np.floating[Any]] = self.array()[0].astype(float)
        return svg_to_png(
            draw_maps(
                [("", grid)], rows=self.row_labels, columns=self.column_labels,
                row_title=self.row_title, column_title=self.column_title,
                value_title=self.value_title, title=self.title, subtitle=self.subtitle,
                domain=self.domain, stops=tuple(self.stops), lower=self.lower, picked=place,
                texts=self.texts,
            )
        )  # fmt: skip


def _tokens(model: Model, prompt: str, most: int) -> Tokens:
    if not prompt.strip():
        raise BadInput("the prompt is empty: type something")
    # A tokenizer takes seconds over a novel, and no token is longer than the text it stands for.
    tokens = model.tokens(prompt) if len(prompt) < 400 * most else None
    n = None if tokens is None else int(tokens.lengths[0])
    if tokens is None or n is None or n > most:
        size = f"{n} tokens" if n else f"{len(prompt)} characters"
        raise BadInput(f"the prompt has {size}; this instrument shows at most {most} tokens")
    return tokens


def _empty(model: Model, prompt: str, most: int) -> xr.DataArray:
    """A map without values: the prompt's tokens are there before the model has read them."""
    try:
        strings = list(_tokens(model, prompt, most).strings[0])
    except BadInput:
        strings = [""]
    return xr.DataArray(
        np.full((model.n_layers + 1, len(strings)), np.nan, np.float32),
        dims=("layer", "position"),
        coords={
            "layer": np.arange(model.n_layers + 1),
            "position": np.arange(len(strings)),
            "token_str": ("position", strings),
        },
        attrs={"long_name": _ABOUT["probability"]},
    )
