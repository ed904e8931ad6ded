"""First-order scores of nodes and edges, at the corrupt run or averaged on the way to the clean.

The driver behind `attribution.edges` and `attribution.nodes`: it makes the runs, a chunk of prompts
at a time within a memory budget, and adds steps to an integral until it is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from lwlab.attribution.pairs import Pair, Values
from lwlab.attribution.wiring import Wiring
from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.models.sites import Address
from lwlab.models.tokens import Tokens
from lwlab.tracing import engine
from lwlab.tracing.edits import Edit

#: Told how many forward and backward passes of one prompt are done, and how many are planned.
Progress = Callable[[int, int], None]
FIRST = Address("resid_pre", 0)


@dataclass(frozen=True)
class Stage:
    """Senders that are moved together, and the site that moves them.

    `senders` are scored; `moved`, all or some of them, are what `at` holds: their scores must add
    up to the effect of moving them.
    """

    at: Address
    moved: slice
    senders: slice


@dataclass(frozen=True)
class Part:
    """Gradients [ends, prompts, positions, d_model] at the far ends of edges of `senders`.

    `columns` says which ends these are; without it there is one end, the senders' own outputs.
    """

    senders: slice
    gradients: torch.Tensor
    columns: slice | None = None


class Ends(Protocol):
    """What is scored: edges (a column a receiver) or nodes (a column a position, or one)."""

    wiring: Wiring
    width: int

    def takes(self, stage: Stage) -> list[Address]:
        """Sites that a run with gradients reads to score the senders of `stage`."""
        ...

    def collect(self, stage: Stage, values: Values, metric: torch.Tensor) -> Iterator[Part]:
        """Gradients of sum(metric) at the far ends, a part at a time."""
        ...


@dataclass
class Chunk:
    """Some prompts: both runs' values, m(x) and m(x'), and what senders send more when clean."""

    rows: torch.Tensor
    clean: Values
    corrupt: Values
    metrics: tuple[torch.Tensor, torch.Tensor]
    delta: torch.Tensor


@dataclass
class Found:
    """Scores [prompts, senders, columns], gaps and steps [prompts], metrics of both runs."""

    scores: torch.Tensor
    gap: torch.Tensor
    steps: torch.Tensor
    metrics: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def join(cls, parts: Sequence[Found]) -> Found:
        """Put chunks one after another."""
        clean, corrupt = (torch.cat([p.metrics[i].cpu() for p in parts]) for i in (0, 1))
        return cls(
            torch.cat([p.scores for p in parts]),
            torch.cat([p.gap for p in parts]),
            torch.cat([p.steps for p in parts]),
            (clean, corrupt),
        )


class Driver:
    """Runs techniques over a pair. `view` is its model, or a ruled view of that."""

    def __init__(
        self, view: Model, pair: Pair, ends: Ends, memory: float, progress: Progress | None = None
    ) -> None:
        """Raise BadInput for a budget in bytes that one prompt exceeds."""
        self.view, self.pair, self.ends, self.wiring = view, pair, ends, ends.wiring
        self.memory, self.progress = memory, progress
        self.done = self.planned = 0
        self.row, self.item = self._bytes()
        if memory < self.row + self.item:
            raise BadInput(
                f"memory={memory / 1e6:.3g} MB: one prompt of {pair.width} tokens needs about "
                f"{(self.row + self.item) / 1e6:.3g} MB"
            )

    def at_corrupt(self) -> Found:
        """Gradients of the corrupt run: two forward passes and one backward pass."""
        whole, sends = self._whole(), self.wiring.sends
        self.planned, parts = len(self.pair), []
        for rows in self.pair.chunks(max(1, int(self.memory // (self.row + self.item)))):
            clean, ours = self._read(self.pair.clean, rows, sends)
            trace = self._slopes(rows, whole, [], sends)
            metric = self.pair.metric(rows, trace.logits)
            corrupt = {a: trace.values[a].detach() for a in sends}
            delta = self.wiring.delta(clean, corrupt)
            chunk = Chunk(rows, clean, corrupt, (ours, metric.detach()), delta)
            out = self._empty(len(rows), whole)
            self._add(out, whole, chunk, trace.values, metric, torch.arange(len(rows)))
            gap = self._gap(out, whole, ours - metric.detach())
            parts.append(Found(out, gap, torch.ones(len(rows), dtype=torch.long), chunk.metrics))
            self._tell(len(rows))
        return Found.join(parts)

    def inputs(self, steps: int, limit: float | None, most: int) -> Found:
        """Gradients averaged while the stream entering block 0 goes from corrupt to clean."""
        return self._paths([self._whole()], steps, limit, most)

    def activations(self, steps: int, limit: float | None, most: int) -> Found:
        """Gradients averaged while each sublayer's output goes from corrupt to clean, in turn."""
        g = self.wiring.graph
        stages = [Stage(FIRST, slice(0, 1), slice(0, 1))]
        for i, node in enumerate(g.senders):
            if node.kind == "head" and node.head == 0:
                span = slice(i, i + g.n_heads)
                stages.append(Stage(Address("attn_out", node.layer), span, span))
            elif node.kind == "mlp":
                span = slice(i, i + 1)
                stages.append(Stage(Address("mlp_out", node.layer), span, span))
        return self._paths(stages, steps, limit, most)

    def _paths(self, stages: list[Stage], steps: int, limit: float | None, most: int) -> Found:
        self.planned, parts = len(self.pair) * len(stages) * steps, []
        reads = list(dict.fromkeys([*self.wiring.sends, *(s.at for s in stages)]))
        for rows in self.pair.chunks(max(1, int(self.memory // (self.row + self.item)))):
            clean, ours = self._read(self.pair.clean, rows, reads)
            corrupt, theirs = self._read(self.pair.corrupt, rows, reads)
            delta = self.wiring.delta(clean, corrupt)
            chunk = Chunk(rows, clean, corrupt, (ours, theirs), delta)
            found = self._empty(len(rows), self._whole())
            gap, used = torch.zeros(len(rows)), torch.zeros(len(rows), dtype=torch.long)
            for stage in stages:
                out, missing, n = self._integrate(stage, chunk, steps, limit, most)
                found[:, stage.senders] += out
                gap, used = torch.maximum(gap, missing), torch.maximum(used, n)
            parts.append(Found(found, gap, used, chunk.metrics))
        return Found.join(parts)

    def _integrate(
        self, stage: Stage, chunk: Chunk, steps: int, limit: float | None, most: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Average over `steps`, then over twice as many for prompts whose gap exceeds `limit`."""
        target, left = self._target(stage, chunk), torch.arange(len(chunk.rows))
        out, gap = self._empty(len(left), stage), torch.zeros(len(left))
        used = torch.zeros(len(left), dtype=torch.long)
        while True:
            out[left] = self._average(stage, chunk, left, steps)
            gap[left] = self._gap(out[left], stage, target[left])
            used[left] = steps
            if limit is None or 2 * steps > most:
                return out, gap, used
            left = left[gap[left] > limit]
            if not len(left):
                return out, gap, used
            steps *= 2
            self.planned += len(left) * steps

    def _average(self, stage: Stage, chunk: Chunk, rows: torch.Tensor, steps: int) -> torch.Tensor:
        """Mean over the midpoints of `steps` equal parts of the way, for some of a chunk's rows."""
        # Metrics are flat at both ends of the way and steep between, where equal steps close faster
        # than Gauss's: on IOI, 20 steps leave 0.0008 of the effect open against 0.04.
        out = self._empty(len(chunk.rows), stage)
        items = rows.repeat_interleave(steps)
        way = ((torch.arange(steps) + 0.5) / steps).repeat(len(rows))
        size = max(1, int((self.memory - len(chunk.rows) * self.row) // self.item))
        start, end = chunk.corrupt[stage.at], chunk.clean[stage.at]
        for part in torch.split(torch.arange(len(items)), size):
            who, t = items[part], way[part].to(start)[:, None, None]
            point = torch.lerp(start[who], end[who], t)
            trace = self._slopes(chunk.rows[who], stage, [Edit(stage.at, point)])
            metric = self.pair.metric(chunk.rows[who], trace.logits) / steps
            self._add(out, stage, chunk, trace.values, metric, who)
            self._tell(len(part))
        return out[rows]

    def _target(self, stage: Stage, chunk: Chunk) -> torch.Tensor:
        """What moving the whole stage does: m(x' with its clean value) - m(x')."""
        clean, corrupt = chunk.metrics
        if stage.at == FIRST:
            return clean - corrupt
        data = self.pair.batch(self.pair.corrupt, chunk.rows)
        trace = engine.run(self.pair.model, data, edits=[Edit(stage.at, chunk.clean[stage.at])])
        return self.pair.metric(chunk.rows, trace.logits) - corrupt

    def _add(
        self,
        out: torch.Tensor,
        stage: Stage,
        chunk: Chunk,
        values: Values,
        metric: torch.Tensor,
        who: torch.Tensor,
    ) -> None:
        """Add <clean - corrupt, gradient> of a run whose rows are prompts `who` of the chunk."""
        rows, back = torch.unique(who, return_inverse=True)
        every = len(rows) == len(chunk.rows)
        for part in self.ends.collect(stage, values, metric):
            g = part.gradients
            if len(rows) < len(who):
                shape = (len(g), len(rows), *g.shape[2:])
                g = g.new_zeros(shape).index_add_(1, back.to(g.device), g)
            delta = chunk.delta[:, part.senders]
            delta = delta if every else delta[rows.to(delta.device)]
            first = stage.senders.start
            at = out[:, part.senders.start - first : part.senders.stop - first]
            if part.columns is None:
                dots = torch.einsum("nspd,npd->nsp", delta, g[0].to(delta.device))
                dots = dots if self.ends.width > 1 else dots.sum(2, keepdim=True)
            else:
                at = at[..., part.columns]
                dots = delta.flatten(2) @ g.to(delta.device).transpose(0, 1).flatten(2).mT
            at[rows, :, at.shape[2] - dots.shape[2] :] += dots.cpu()

    def _gap(self, out: torch.Tensor, stage: Stage, target: torch.Tensor) -> torch.Tensor:
        first = stage.senders.start
        moved = out[:, stage.moved.start - first : stage.moved.stop - first]
        return (moved.double().sum((1, 2)) - target.cpu()).abs().float()

    def _whole(self) -> Stage:
        return Stage(FIRST, slice(0, 1), slice(0, len(self.wiring.graph.senders)))

    def _empty(self, n: int, stage: Stage) -> torch.Tensor:
        return torch.zeros(n, stage.senders.stop - stage.senders.start, self.ends.width)

    def _read(
        self, tokens: Tokens, rows: torch.Tensor, at: list[Address]
    ) -> tuple[Values, torch.Tensor]:
        trace = engine.run(self.pair.model, self.pair.batch(tokens, rows), at)
        return trace.values, self.pair.metric(rows, trace.logits)

    def _slopes(
        self,
        rows: torch.Tensor,
        stage: Stage,
        edits: Sequence[Edit],
        also: Sequence[Address] = (),
    ) -> engine.Trace:
        reads = [*self.ends.takes(stage), *also]
        data = self.pair.batch(self.pair.corrupt, rows)
        return engine.run(self.view, data, reads, edits, grad=True)

    def _tell(self, n: int) -> None:
        self.done += n
        if self.progress is not None:
            self.progress(self.done, self.planned)

    def _bytes(self) -> tuple[float, float]:
        """Bytes that a prompt costs, and a forward and backward pass of one prompt."""
        a, g, tokens = self.pair.model.anatomy, self.wiring.graph, self.pair.width - self.pair.begin
        d = a.d_model or 1
        sent = 4 * len(g.senders) * tokens * d
        scores = 4 * len(g.senders) * self.ends.width
        # What autograd keeps of a block: about twelve tensors of the stream's width, four of the
        # MLP's, and scores and patterns; then the gradients of one block's receivers, in the few
        # copies that a norm's backward makes of them. Twice that, because while one is freed the
        # next is made: 14 to 21 MB were seen where the sum is 9 (smollm2-135m, five tokens).
        kept = 12 * d + 4 * (a.d_mlp or 4 * d) + 2 * g.n_heads * self.pair.width
        pulled = 6 * (g.n_heads + 2 * g.n_kv_heads) * d
        head = 8.0 * (a.d_vocab or 0)
        return 2.0 * sent + 2 * scores, 8.0 * tokens * (g.n_layers * kept + pulled) + 2 * head
