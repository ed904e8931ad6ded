"""The depth board: run the layers of a model in any order, number and part, and see what it says.

The board drives `lw.chain`; perplexity comes from the streams that the chain returns.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import traitlets as t
from torch.nn import functional as F

from lwlab.errors import BadInput
from lwlab.tracing import engine
from lwlab.tracing.chain import chain, parse
from lwlab.tracing.write import kl

from ._asked import Asked, check_text, require_decoder, top
from ._base import front_end
from ._cards import card
from ._live import Job

if TYPE_CHECKING:
    from lwlab.models import Model

PROMPT = "The capital of France is"
TEXT = (
    "The lighthouse stood on a rock above the harbour. Every evening the keeper climbed the "
    "stairs, lit the lamp, and watched the ships come home before the storm."
)
LIMIT = 512  # tokens of a prompt: an answer has to come while one waits for it
_MOST = 9  # times that a row may run


def full_depth(model: Model) -> list[dict[str, Any]]:
    """Return the rows of the whole model: each layer once, in order, both sublayers on."""
    return [_row(i) for i in range(model.n_layers)]


def _row(layer: int, attn: bool = True, mlp: bool = True, times: int = 1) -> dict[str, Any]:
    return {"layer": layer, "attn": attn, "mlp": mlp, "times": times}


def rows_of(model: Model, steps: Sequence[Any]) -> list[dict[str, Any]]:
    """Return checked rows of the board from rows, or from what `lw.chain` takes.

    A sequence such as [0, 1, 1, "attn.3"] becomes rows; the layers it lacks follow switched off, at
    their natural place. Raises BadInput for what is neither.
    """
    if isinstance(steps, str) or not isinstance(steps, Sequence):
        raise BadInput(f"steps={steps!r}: give a list, as in [0, 1, 1, 'attn.3']")
    if all(isinstance(s, dict) for s in steps) and steps:
        return [_checked(model, s) for s in steps]
    rows: list[dict[str, Any]] = []
    for layer, kind in parse(model, steps) if steps else []:
        new = _row(layer, kind != "mlp", kind != "attn")
        last = rows[-1] if rows else None
        if last and {**last, "times": 1} == new and last["times"] < _MOST:
            last["times"] += 1
        else:
            rows.append(new)
    for layer in sorted(set(range(model.n_layers)) - {r["layer"] for r in rows}):
        place = next((i + 1 for i, r in enumerate(rows) if r["layer"] == layer - 1), None)
        rows.insert(
            0 if place is None and not layer else place or len(rows), _row(layer, False, False)
        )
    return rows


def _checked(model: Model, row: dict[str, Any]) -> dict[str, Any]:
    try:
        layer, times = row["layer"], row.get("times", 1)
        attn, mlp = row.get("attn", True), row.get("mlp", True)
    except KeyError:
        raise BadInput(f"steps: {row!r} lacks 'layer'") from None
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < model.n_layers:
        raise BadInput(f"steps: there is no layer {layer!r}; {model.name} has {model.n_layers}")
    if isinstance(times, bool) or not isinstance(times, int) or not 1 <= times <= _MOST:
        raise BadInput(f"steps: layer {layer}: times={times!r}; give a number from 1 to {_MOST}")
    return _row(layer, bool(attn), bool(mlp), times)


class DepthBoard(Asked):
    """The model as a column of layers; each can be off, cut to one sublayer, repeated or moved.

    `steps`, the whole board in one trait: [{"layer", "attn", "mlp", "times"}, ...] in the order of
    the run. It may be set to that or to what `lw.chain` takes ([0, 1, 1, "attn.3"]); `layers` is
    what the chain gets. `prompt` and `text` can be set too; `wait()` waits for the answer.

    `answer`: `top` and `full` (ten likeliest next tokens of the board and of the full model, with
    the other's probability as `other`), `kl` = KL(full || board) in nats at the last token,
    `perplexity` and `full_perplexity` of `text` (its first token is not predicted).
    """

    _esm, _css = front_end("depth")
    steps = t.List().tag(sync=True)
    prompt = t.Unicode(PROMPT).tag(sync=True)
    text = t.Unicode(TEXT).tag(sync=True)
    answer = t.Dict().tag(sync=True)
    splits = t.Bool(True).tag(sync=True)  # whether one sublayer can run without the other
    most = t.Int(_MOST).tag(sync=True)

    def __init__(
        self,
        model: Model,
        prompt: str = PROMPT,
        text: str = TEXT,
        *,
        steps: Sequence[Any] | None = None,
        title: str = "Depth board",
    ) -> None:
        """Show the whole model, or `steps`. Raises BadInput for a model that is no decoder."""
        require_decoder(model, "the depth board")
        self.model = model
        self._base: dict[str, Any] = {}
        a = model.anatomy
        super().__init__(
            title=title,
            subtitle=f"{model.name}: {model.n_layers} layers, the stream runs downwards",
            splits={"attn_out", "mlp_out"} <= set(a.writes) and not a.stream_norms,
            prompt=prompt,
            text=text,
            steps=full_depth(model) if steps is None else rows_of(model, steps),
        )
        self.observe(lambda _: self.ask(), ["steps", "prompt", "text"])
        self.ask()

    @t.validate("steps")
    def _valid(self, proposal: Any) -> list[dict[str, Any]]:
        return rows_of(self.model, proposal["value"])

    @property
    def layers(self) -> list[int | str]:
        """What `lw.chain` gets: [0, 1, 1, "attn.3", ...]."""
        out: list[int | str] = []
        for r in self.steps:
            if r["attn"] or r["mlp"]:
                part = "" if r["attn"] and r["mlp"] else "attn." if r["attn"] else "mlp."
                out += [f"{part}{r['layer']}" if part else r["layer"]] * r["times"]
        return out

    def reset(self) -> None:
        """Put the whole model back."""
        self.steps = full_depth(self.model)

    def ask(self) -> None:
        """Run the board as it stands, off the kernel's thread."""
        if self._closed:
            return
        layers, prompt, text = self.layers, self.prompt, self.text
        self.begin(lambda job: self._run(job, layers, prompt, text))

    def _run(self, job: Job, layers: list[int | str], prompt: str, text: str) -> None:
        model, start = self.model, time.perf_counter()
        if not layers:
            raise BadInput("every layer is off: switch at least one on")
        check_text(model, prompt, "the prompt", LIMIT)
        check_text(model, text, "the text for perplexity", LIMIT, least=2)
        whole = layers == list(range(model.n_layers))
        if self._base.get("prompt") != prompt:
            job.tell(-1, "running the full model")
            z = engine.run(model, prompt).logits
            assert z is not None
            self._base = {**self._base, "prompt": prompt, "logits": z[0].float()}
        full = self._base["logits"]
        job.tell(-1, f"running {len(layers)} steps")
        made = chain(model, prompt, layers, compare=False)
        z = torch.as_tensor(made["logits"].values[0]).to(full).float()
        if not bool(z.isfinite().all()):
            raise BadInput("the stream grew beyond every number: repeat fewer layers")
        p, q = z.softmax(-1), full.softmax(-1)
        found = {
            "top": [{**r, "other": float(q[r["id"]])} for r in top(model, p)],
            "full": [{**r, "other": float(p[r["id"]])} for r in top(model, q)],
            "kl": float(kl(full[None], z[None])[0]),
            "steps": len(layers), "perplexity": None, "full_perplexity": None,
        }  # fmt: skip
        job.show(answer={**found, "ms": _ms(start)}, status="perplexity")
        if self._base.get("text") != text:
            every = list(range(model.n_layers))
            self._base = {**self._base, "text": text, "nll": self._nll(text, every)}
            job.check()
        nll = self._base["nll"] if whole else self._nll(text, layers)
        found |= {"perplexity": _exp(nll), "full_perplexity": _exp(self._base["nll"])}
        job.show(answer={**found, "ms": _ms(start)})

    def _nll(self, text: str, layers: Sequence[int | str]) -> float:
        """Mean -log p of each next token of `text` after the chain's last stream, in nats."""
        streams = chain(self.model, text, layers, streams=True, compare=False)["resid"]
        h = torch.as_tensor(streams.values[-1, 0]).to(self.model.device, self.model.dtype)
        ids = self.model.tokens(text).ids[0]
        with torch.no_grad():
            return float(F.cross_entropy(self.model.unembed(h)[:-1].float(), ids[1:]))

    def static_text(self) -> str:
        """Return what the board runs and says, in a sentence."""
        a, runs = self.answer, _short(self.layers)
        if not a:
            return f"{self.title}: {self.subtitle}. {self.error or 'No answer yet.'}"
        said = f"{a['top'][0]['token']!r} ({a['top'][0]['p']:.0%})"
        full = f"{a['full'][0]['token']!r} ({a['full'][0]['p']:.0%})"
        line = (
            f"{self.title}: {self.model.name} as {runs} after {self.prompt[:80]!r}: {said}; "
            f"the full model: {full}; KL {a['kl']:.3g} nats"
        )
        if a["perplexity"] is not None:
            line += f"; perplexity {a['perplexity']:.4g} (full {a['full_perplexity']:.4g})"
        return line + "."

    def static_png(self) -> bytes:
        """Return the column of layers beside the ten likeliest tokens of both models."""
        words = {(True, True): "", (True, False): "attention only", (False, True): "MLP only"}
        rows = [
            f"layer {r['layer']}"
            + (f"  ×{r['times']}" if r["times"] > 1 else "")
            + f"  {words.get((r['attn'], r['mlp']), 'off')}"
            for r in self.steps
        ]
        columns: list[tuple[str, list[tuple[str, float | None]]]] = [
            ("layers", [(r, None) for r in rows])
        ]
        for name, key in (("this board", "top"), ("full model", "full")):
            lines = self.answer.get(key, [])
            columns.append((name, [(f"{r['p']:6.1%}  {r['token']}", r["p"]) for r in lines]))
        return card(self.title, self.static_text()[len(self.title) + 2 :][:130], columns)


def _ms(start: float) -> float:
    return round(1000 * (time.perf_counter() - start))


def _exp(nll: float) -> float:
    return float(torch.tensor(min(nll, 80.0), dtype=torch.float64).exp())


def _short(layers: list[int | str]) -> str:
    text = str(layers).replace("'", "")
    return text if len(text) < 90 else f"{text[:86]} ...]"


def depth(model: Model, prompt: str = PROMPT, text: str = TEXT, **options: Any) -> DepthBoard:
    """Return a `DepthBoard`: layers on, off, in part, repeated or moved, and what that does."""
    return DepthBoard(model, prompt, text, **options)
