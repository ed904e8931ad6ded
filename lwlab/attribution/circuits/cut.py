"""A forward pass in which any set of edges carries another value: circuits, really run.

Every receiver r gets an input stream of its own,

    x_r = x + sum over cut edges s -> r of (o'_s - o_s),

with x the stream of this very run, o_s what sender s adds to it in this run, and o'_s what it adds
elsewhere: on the corrupt prompt ("patch"), on average ("mean"), or nothing ("zero"). Kept edges so
carry what the circuit itself computes, not what the clean run did. With no edge cut x_r is x, and
the run is the model's; with all edges cut x_r is the corrupt run's stream, and so is the output.
Heads read three streams (query, key, value; keys and values one for each group of heads), so
queries, keys and values are computed here from their streams and put into the model's own run;
attention itself, rotary or other positions, masks and MLPs are the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lwlab.attribution.answers import Reader
from lwlab.attribution.circuits.ends import Shares, norms
from lwlab.attribution.circuits.graph import Bools, Graph
from lwlab.attribution.pairs import Pair
from lwlab.attribution.wiring import Wiring, matrix
from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.models.model import Model
from lwlab.models.sites import Address
from lwlab.models.views import Heads
from lwlab.tasks.base import Task
from lwlab.tracing.edits import Edit

Value = Literal["patch", "mean", "zero"]
VALUES = ("patch", "mean", "zero")
MEMORY = 2.5e8
Map = Callable[[Tensor], Tensor]


class Cutter:
    """Runs circuits of one model on one task. What all of them share is computed once."""

    def __init__(
        self, model: Model, task: Task | Pair, value: Value = "patch", *, memory: float = MEMORY
    ) -> None:
        """Prepare the runs; `memory` bounds the bytes of what senders add, o'_s - o_s, at a time.

        `value`: "patch", a cut edge carries what its sender adds on the corrupt prompt; "mean", the
        sender's mean over the clean prompts, position by position; "zero", nothing.

        Raises as `Pair.of` and `Graph.of` do, UnknownName for another `value`, BadInput for a
        budget that one prompt exceeds.
        """
        if value not in VALUES:
            raise UnknownName(f"no value {value!r} for cut edges{suggest(value, VALUES)}")
        self.model, self.value, self.memory = model, value, memory
        self.wiring = Wiring(model)
        self.graph: Graph = self.wiring.graph
        pair = Pair.of(model, task)
        # What is equal in both prompts is not equal to a mean, or to nothing.
        self.pair = pair if value == "patch" or not pair.begin else pair.from_the_start()
        tokens = self.pair.width - self.pair.begin
        self._row_bytes = 4 * len(self.graph.senders) * tokens * (model.d_model or 1)
        if memory < 2 * self._row_bytes:
            raise BadInput(
                f"memory={memory / 1e6:.3g} MB: one prompt of {tokens} tokens to compute needs "
                f"{2 * self._row_bytes / 1e6:.3g} MB for its {len(self.graph.senders)} senders"
            )
        self.norms = norms(model)
        self.shares = Shares(model)
        self.reader = Reader(self.pair)
        self.clean, self.corrupt = self.pair.metrics()
        self.rows_run = 0

    def metrics(self, kept: Bools | Sequence[Bools] | Tensor) -> Tensor:
        """Metric of each circuit on each prompt, [circuits, prompts].

        `kept` [circuits, sender, receiver] (or one circuit without the first axis): True where an
        edge carries this run's own value. Places where the graph has no edge are ignored. Raises
        BadInput for tables of another shape.
        """
        cut = self._cut(kept)
        n = len(self.pair)
        room = int(self.memory // (2 * self._row_bytes))
        out = torch.zeros(len(cut), n)
        alike = cut.flatten(1).sum(1).argsort()  # a run is as cheap as its least sparse circuit
        for rows in self.pair.chunks(min(n, room)):
            others = self._others(rows)
            for part in torch.split(alike, max(1, room // len(rows))):
                work = _Run(self, cut[part], others)
                data = self.pair.batch(self.pair.clean, rows.repeat(len(part)))
                found = self.reader.run(data, work.edits(), rows.repeat(len(part)))
                out[part[:, None], rows] = found.view(len(part), len(rows)).float().cpu()
                self.rows_run += len(part) * len(rows)
        return out

    def _cut(self, kept: Any) -> Tensor:
        table = np.asarray(kept) if not isinstance(kept, Tensor) else kept.cpu().numpy()
        table = table[None] if table.ndim == 2 else table
        if table.shape[1:] != self.graph.exists.shape or table.dtype != np.bool_ or not len(table):
            raise BadInput(
                f"circuits must be tables of bools [circuits, {self.graph.exists.shape[0]} senders,"
                f" {self.graph.exists.shape[1]} receivers], not {table.dtype} {table.shape}"
            )
        return torch.from_numpy(self.graph.exists[None] & ~table)

    def _others(self, rows: Tensor) -> Tensor:
        """o'_s [prompts, senders, positions, d_model], what cut edges carry."""
        _, corrupt = self.pair.read(self.wiring.sends)
        if self.value == "patch":
            return self.wiring.outputs({a: v[rows] for a, v in corrupt.items()})
        one = self._mean if self.value == "mean" else torch.zeros_like(self._mean)
        return one.expand(len(rows), -1, -1, -1)

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Metrics with every edge cut and with none, really run, [prompts] each."""
        whole = self.graph.exists
        none, every = self.metrics(np.stack([np.zeros_like(whole), whole]))
        return none, every

    @cached_property
    def _mean(self) -> Tensor:
        clean, _ = self.pair.read(self.wiring.sends)
        return self.wiring.outputs(clean).mean(0, keepdim=True)


def metrics(
    model: Model,
    task: Task | Pair,
    kept: Bools | Sequence[Bools],
    value: Value = "patch",
    *,
    memory: float = MEMORY,
) -> Tensor:
    """Metric of circuits with everything else cut, [circuits, prompts]; see `Cutter`."""
    return Cutter(model, task, value, memory=memory).metrics(kept)


@dataclass
class _Step(Edit):
    """One stop of the run: look at a site, or compute it anew."""

    step: Map = lambda x: x

    def __call__(self, site: Tensor) -> Tensor:
        """Return what the site is to hold."""
        self.fired += 1
        try:
            return self.step(site)
        except Exception as error:
            self.error = error
            raise


class _Run:
    """One forward pass of `cut` [circuits, sender, receiver] on the prompts of `others`."""

    def __init__(self, cutter: Cutter, cut: Tensor, others: Tensor) -> None:
        self.model, self.graph, self.wiring = cutter.model, cutter.graph, cutter.wiring
        self.norms, self.shares, self.others = cutter.norms, cutter.shares, others
        self.cut = cut.transpose(1, 2)
        self.kept = torch.from_numpy(self.graph.exists.T) & ~self.cut
        n, _, t, d = others.shape
        self.shape = (len(cut), n, t, d)
        self.gaps = others.new_empty(len(cut), len(self.graph.senders), n, t, d)
        self.stream, self.all_cut = others, others
        self.total: Tensor | None = None  # the sum of all gaps so far
        self.normed: dict[int, Tensor] = {}

    def edits(self) -> list[Edit]:
        """Stops at every sender and receiver; the engine puts them into forward order."""
        g, a = self.graph, self.model.anatomy
        last = Address("resid_post", g.n_layers - 1)
        out: list[tuple[Address, Map]] = []
        for layer in range(g.n_layers):
            out.append((Address("resid_pre", layer), self._enter(layer)))
            out += [(Address(s, layer), self._project(s, layer)) for s in "qkv"]
            out.append((Address("head_out", layer), self._heads(layer)))
            if not g.mlps:
                continue
            if not a.parallel:
                out.append((Address("resid_mid", layer), self._look))
            out.append((Address("mlp_in", layer), self._read(layer)))
            out.append((Address("mlp_out", layer), self._mlp(layer)))
        out.append((last, self._end))
        return [_Step(at, None, step=step) for at, step in out]

    def _look(self, site: Tensor) -> Tensor:
        self.stream = site.clone()  # some blocks add to it in place
        self._meet()
        return site

    def _meet(self) -> None:
        """Note the stream as it would be with every edge into it cut: x + sum of all gaps."""
        assert self.total is not None
        self.stream = self.stream.float().view(len(self.cut), 1, -1)
        self.all_cut = self.stream + self.total

    def _enter(self, layer: int) -> Map:
        def step(site: Tensor) -> Tensor:
            if layer == 0:
                self._sent(0, site[:, None])
            return self._look(site)

        return step

    def _sent(self, first: int, outputs: Tensor) -> None:
        """Note o'_s - o_s of senders from `first` on; outputs [rows, senders, positions, d]."""
        c, n, t, d = self.shape
        k = outputs.shape[1]
        own = outputs.float().view(c, n, k, t, d).transpose(1, 2)
        theirs = self.others[:, first : first + k].transpose(0, 1)
        new = torch.sub(theirs[None], own, out=self.gaps[:, first : first + k])
        total = new.sum(1).view(c, 1, n * t * d)
        self.total = total if self.total is None else self.total + total

    def _streams(self, columns: slice) -> Tensor:
        """x_r of receivers that all read the same senders: [circuits, receivers, rows, t, d]."""
        c, n, t, d = self.shape
        before = int(self.graph.exists[:, columns.start].sum())
        # Add what is cut to the stream, or take what is kept from the stream of the other run:
        # whichever concerns fewer senders.
        cut, kept = (m[:, columns, :before] for m in (self.cut, self.kept))
        (i, j) = (m.flatten(0, 1).any(0).nonzero()[:, 0] for m in (cut, kept))
        x, table, at = (self.stream, cut, i) if len(i) <= len(j) else (self.all_cut, kept, j)
        x = x.expand(c, table.shape[1], -1)
        if len(at):
            gaps = self.gaps[:, :before] if len(at) == before else self.gaps[:, at.to(x.device)]
            weights = table[..., at].to(x) * (1 if table is cut else -1)
            x = torch.baddbmm(x, weights, gaps.reshape(c, len(at), n * t * d))
        return x.reshape(c, -1, n, t, d)

    def _project(self, site: str, layer: int) -> Map:
        tap = self.model.anatomy.taps[site]
        view = tap.view
        if isinstance(view, Heads):
            view = replace(view, clip=None)  # the model clips by itself
        g = self.graph
        start = {"q": 0, "k": g.n_heads, "v": g.n_heads + g.n_kv_heads}[site]
        columns = slice(start, start + (g.n_heads if site == "q" else g.n_kv_heads))

        def step(old: Tensor) -> Tensor:
            module = self.model.module.get_submodule(tap.at(layer))
            h = self._attn_in(layer)[columns]  # [heads, circuits * rows * t, d_model]
            w = view.read(matrix(module))  # [d_model, heads, d_head]
            made = torch.bmm(h.to(w.dtype), w.transpose(0, 1))
            bias = getattr(module, "bias", None)
            if bias is not None:
                made = made + view.read(bias)[:, None]
            return made.transpose(0, 1).reshape(old.shape).to(old.dtype)

        return step

    def _attn_in(self, layer: int) -> Tensor:
        """What the layer's queries, keys and values read, [receivers, circuits * rows * t, d]."""
        if layer not in self.normed:
            x = self._streams(self.wiring.columns(("attn", layer)))
            h = self.norms["attn_in"](layer, x).transpose(0, 1).flatten(1, 3)
            self.normed = {layer: h}
        return self.normed[layer]

    def _heads(self, layer: int) -> Map:
        first = self.graph.sender(f"a{layer}.h0")

        def step(site: Tensor) -> Tensor:
            self._sent(first, self.shares(layer, site))
            return site

        return step

    def _read(self, layer: int) -> Map:
        columns = self.wiring.columns(("mlp", layer))

        def step(old: Tensor) -> Tensor:
            x = self._streams(columns)
            return self.norms["mlp_in"](layer, x).reshape(old.shape).to(old.dtype)

        return step

    def _mlp(self, layer: int) -> Map:
        at = self.graph.sender(f"m{layer}")

        def step(site: Tensor) -> Tensor:
            self._sent(at, site[:, None])
            return site

        return step

    def _end(self, site: Tensor) -> Tensor:
        self.stream = site
        self._meet()
        columns = self.wiring.columns(("logits", self.graph.n_layers))
        return self._streams(columns).reshape(site.shape).to(site.dtype)
