"""The bit board: bits by layer, and what they cost in size and perplexity, on the running model."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import traitlets as t
import xarray as xr

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.quantization import ALLOCATORS, allocate, error_table, fake_quantized, input_squares
from lwlab.tasks.perplexity import perplexity

from ._asked import Asked, check_text, require_decoder
from ._base import front_end
from ._cards import card
from ._depth import TEXT
from ._live import Job

if TYPE_CHECKING:
    from lwlab.models import Model

WIDTHS = tuple(range(2, 9))
WHOLE = 16  # untouched
LONG = (
    "In the spring the farmer ploughs the field and sows the seed. By the end of summer the wheat "
    "stands tall and golden, and the whole village comes to help with the harvest.",
    "Water boils at a lower temperature on a mountain, because the air presses less on its "
    "surface. A cook who lives high up therefore has to boil the potatoes for a longer time.",
    "She opened the letter slowly, read it twice, and put it back into the drawer. Nobody in the "
    "family ever asked what was written in it, and she never told them.",
    "A computer stores every number as a row of ones and zeros. The more of them it uses for one "
    "number, the closer the stored number is to the number that was meant.",
    "The train left the station ten minutes late. Most of the passengers were asleep before it "
    "reached the river, and only a child at the window saw the lights of the city disappear.",
    "Birds find their way over thousands of kilometres. Some of them follow the stars, others the "
    "magnetic field of the earth, and young birds learn the route from the old ones.",
)


class BitBoard(Asked):
    """Bits by layer, or a budget shared out by name; size and perplexity of the rounded model.

    `bits`: one number a layer, 2..8, or 16 for a layer left as it is. `allocate(megabytes, name)`
    sets them from a budget for the matrices of the blocks. `answer`: `megabytes` (packed, scales
    included; an untouched weight counts 16 bits), `whole_megabytes` (all at 16 bits),
    `rest_megabytes` (embeddings, norms and so on, at 16 bits), `perplexity` of the short text and
    `full_perplexity` of the model as it is. `measure()` takes the longer texts: `proper`.

    Each answer rounds the weights, layer by layer, and puts them back bit for bit before it ends:
    also when it is cancelled, fails, or the widget is closed. Meanwhile the model is locked.
    """

    _esm, _css = front_end("bits")
    bits = t.List(t.Int()).tag(sync=True)
    text = t.Unicode(TEXT).tag(sync=True)
    wish = t.Dict().tag(sync=True)  # {"megabytes", "technique", "n"}
    measures = t.Int(0).tag(sync=True)
    allocators = t.List(t.Unicode(), list(ALLOCATORS)).tag(sync=True)
    answer = t.Dict().tag(sync=True)
    proper = t.Dict().tag(sync=True)

    def __init__(
        self,
        model: Model,
        text: str = TEXT,
        *,
        bits: int | Sequence[int] = WHOLE,
        group: int | None = 64,
        long: Sequence[str] = LONG,
        title: str = "Bit board",
    ) -> None:
        """Start with `bits`. `group`: inputs that share a scale (None: a whole row)."""
        require_decoder(model, "the bit board")
        if not long:
            raise BadInput("long is empty: give the texts to measure on")
        self.model, self.group, self.long = model, group, list(long)
        self._table: xr.Dataset | None = None
        self._base: dict[str, tuple[float, int]] = {}
        super().__init__(
            title=title,
            subtitle=f"{model.name}: {model.n_layers} layers, rounded in groups of "
            f"{group or 'whole rows'}; an untouched weight counts 16 bits",
            text=text,
            bits=[bits] * model.n_layers if isinstance(bits, int) else list(bits),
        )
        self.observe(lambda _: self.ask(), ["bits", "text"])
        self.observe(self._wished, "wish")
        self.observe(lambda _: self._measure(), "measures")
        self.ask()

    @t.validate("bits")
    def _valid(self, proposal: Any) -> list[int]:
        bits: list[int] = proposal["value"]
        if len(bits) != self.model.n_layers:
            raise BadInput(f"bits has {len(bits)} numbers for {self.model.n_layers} layers")
        if bad := [b for b in bits if b not in (*WIDTHS, WHOLE)]:
            raise BadInput(f"bits={bad[0]}: give 2..8, or 16 for a layer left as it is")
        return bits

    def allocate(self, megabytes: float, technique: str = "greedy") -> None:
        """Share `megabytes` out over the layers, as `lw.quantization.allocate` does, and answer."""
        n = self.wish.get("n", 0) + 1
        self.wish = {"megabytes": megabytes, "technique": technique, "n": n}

    def measure(self) -> None:
        """Measure on the longer texts, with progress; `proper` holds what was found."""
        self.measures += 1

    def ask(self) -> None:
        """Measure the bits as they stand on the short text, off the kernel's thread."""
        if not self._closed:
            bits, text = list(self.bits), self.text
            self.begin(lambda job: self._run(job, bits, text))

    def _wished(self, change: Any) -> None:
        wish = change["new"]
        if wish and not self._closed:
            self.begin(lambda job: self._share(job, wish))

    def _measure(self) -> None:
        if not self._closed:
            bits = list(self.bits)
            self.begin(lambda job: self._long(job, bits))

    def _share(self, job: Job, wish: dict[str, Any]) -> None:
        name, size = wish.get("technique", "greedy"), wish.get("megabytes")
        if isinstance(size, bool) or not isinstance(size, int | float):
            raise BadInput(f"a budget of {size!r}: give a number of megabytes")
        if name not in ALLOCATORS:
            raise UnknownName(f"no allocator is called {name!r}{suggest(name, ALLOCATORS)}")
        table = self._errors(job)
        whole = 2e-6 * float(table.weights.sum())
        if size >= whole:
            bits = [WHOLE] * self.model.n_layers
        else:
            bits = [int(b) for b in allocate(table, float(size), name).values]
        if bits == self.bits:
            self._run(job, bits, self.text)
        job.show(bits=bits)  # the change asks for the answer

    def _errors(self, job: Job) -> xr.Dataset:
        if self._table is None:
            job.tell(-1, "table of rounding errors")
            squares = input_squares(self.model, TEXT)
            job.check()
            self._table = error_table(self.model, self.group, WIDTHS, weight=squares)
        return self._table

    def sizes(self, bits: Sequence[int], table: xr.Dataset) -> dict[str, float]:
        """Return the sizes of an allocation in MB, from the error table's packed sizes."""
        packed = table.megabytes.sum("module")
        weights = table.weights.sum("module")
        whole = 2e-6 * weights
        each = [
            float(whole[i]) if b == WHOLE else float(packed[i].sel(bits=b))
            for i, b in enumerate(bits)
        ]
        every = sum(p.numel() for p in self.model.module.parameters())
        return {
            "megabytes": sum(each), "whole_megabytes": float(whole.sum()),
            "least_megabytes": float(packed.sel(bits=WIDTHS[0]).sum()),
            "rest_megabytes": 2e-6 * (every - float(weights.sum())),
            "bits_per_weight": 8e6 * sum(each) / float(weights.sum()),
        }  # fmt: skip

    def _run(self, job: Job, bits: list[int], text: str) -> None:
        start = time.perf_counter()
        check_text(self.model, text, "the text", 256, least=2)
        found: dict[str, Any] = {
            **self.sizes(bits, self._errors(job)), "perplexity": None, "full_perplexity": None,
        }  # fmt: skip
        job.show(answer=found, proper={}, status="perplexity of the model as it is")
        full = self._score(text)
        with ExitStack() as stack:
            self._round(job, bits, stack)
            job.tell(-1, "perplexity of the rounded model")
            nll = full[0] if _untouched(bits) else self._nll(text)[0]
        found |= {"perplexity": _exp(nll), "full_perplexity": _exp(full[0])}
        job.show(answer={**found, "ms": round(1000 * (time.perf_counter() - start))})

    def _round(self, job: Job, bits: list[int], stack: ExitStack) -> None:
        """Round layer by layer, so that a newer question need not wait for all of them."""
        chosen = [(i, b) for i, b in enumerate(bits) if b != WHOLE]
        for k, (layer, b) in enumerate(chosen):
            job.tell(k / len(chosen), f"rounding layer {layer} to {b} bits")
            stack.enter_context(fake_quantized(self.model, {layer: b}, self.group))

    def _long(self, job: Job, bits: list[int]) -> None:
        full = []
        for k, text in enumerate(self.long):
            job.tell(0.5 * k / len(self.long), f"the model as it is: text {k + 1}")
            full.append(self._score(text))
        rounded = full
        if not _untouched(bits):
            with ExitStack() as stack:
                self._round(job, bits, stack)
                rounded = []
                for k, text in enumerate(self.long):
                    job.tell(0.5 + 0.5 * k / len(self.long), f"the rounded model: text {k + 1}")
                    rounded.append(self._nll(text))
        job.show(
            proper={
                "perplexity": _exp(_mean(rounded)), "full_perplexity": _exp(_mean(full)),
                "tokens": sum(n for _, n in full), "texts": len(full), "bits": bits,
            }
        )  # fmt: skip

    def _score(self, text: str) -> tuple[float, int]:
        """The text's score under the model as it is, measured once."""
        if text not in self._base:
            self._base[text] = self._nll(text)
        return self._base[text]

    def _nll(self, text: str) -> tuple[float, int]:
        found = perplexity(self.model, text)
        return float(found.nll[0]), int(found.tokens[0])

    def static_text(self) -> str:
        """Return the bits, the size and the perplexity in a sentence."""
        a = self.answer
        if not a:
            return f"{self.title}: {self.subtitle}. {self.error or 'No answer yet.'}"
        line = (
            f"{self.title}: {self.model.name}, bits by layer {self.bits}: blocks "
            f"{a['megabytes']:.1f} MB of {a['whole_megabytes']:.1f} MB at 16 bits"
        )
        best = self.proper or a
        if best.get("perplexity") is not None:
            line += f"; perplexity {best['perplexity']:.4g} (model {best['full_perplexity']:.4g})"
        return line + "."

    def static_png(self) -> bytes:
        """Return a bar a layer, with size and perplexity above."""
        lines: list[tuple[str, float | None]] = [
            (f"layer {i}: {'untouched' if b == WHOLE else f'{b} bits'}", b / WHOLE)
            for i, b in enumerate(self.bits)
        ]
        half = (len(lines) + 1) // 2 if len(lines) > 16 else len(lines)
        text = self.static_text()
        columns = [("bits by layer", lines[:half])]
        if lines[half:]:
            columns.append(("", lines[half:]))
        return card(self.title, text[text.find("blocks") :] if self.answer else text, columns, 300)


def _untouched(bits: Sequence[int]) -> bool:
    return all(b == WHOLE for b in bits)


def _mean(scores: list[tuple[float, int]]) -> float:
    return sum(nll * n for nll, n in scores) / sum(n for _, n in scores)


def _exp(nll: float) -> float:
    return math.exp(min(nll, 80.0))


def bits(model: Model, text: str = TEXT, **options: Any) -> BitBoard:
    """Return a `BitBoard`: bits by layer, and their cost in size and perplexity, live."""
    return BitBoard(model, text, **options)
