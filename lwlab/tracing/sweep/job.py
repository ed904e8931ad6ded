"""A sweep at work: chunks of prompts are run unedited, then their cells go to an engine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lwlab.errors import BadInput, NoFiring
from lwlab.models.sites import Address
from lwlab.tracing.sweep import adapter, packed, plain, resume
from lwlab.tracing.sweep.account import bytes_at_work, estimate, held, least
from lwlab.tracing.sweep.choose import choose, reads
from lwlab.tracing.sweep.cost import forward_flops
from lwlab.tracing.sweep.observe import observe
from lwlab.tracing.sweep.plan import Plan, rate
from lwlab.tracing.sweep.progress import Meter
from lwlab.tracing.sweep.readout import Readout, scored
from lwlab.tracing.sweep.request import Request
from lwlab.tracing.sweep.store import Store
from lwlab.tracing.sweep.values import Cells, Replacements, cells_of, same
from lwlab.tracing.sweep.work import Work

_TOLERANCE = 1e-3


class Job:
    """One sweep: its engine, its account, and the metrics of the cells that are done."""

    def __init__(self, request: Request, engine: str, path: str | os.PathLike[str] | None) -> None:
        """Choose the engine and check the memory budget, before anything is run."""
        self.request = request
        self.engine, self.reason = choose(request, engine)
        self.asked = engine
        self.readout = Readout(request.model, request.task)
        # The rest is for what no formula counts: the allocator, labels, small tables.
        self.budget = int(0.85 * request.memory)
        self.chunks = list(self._chunks())
        self.store = Store(request, path)
        n = len(request.prompts.tokens)
        self.base_metric, self.donor_metric = np.full(n, np.nan), np.full(n, np.nan)
        self.cells = sum(
            int((request.prompts.wanted >= 0).sum()) * len(request.layers) * len(s.units)
            for s in request.specs
        )
        self.skipped = self.rows = self.flops = 0
        self.replacements: Replacements | None = None

    def _chunks(self) -> Iterator[NDArray[np.int64]]:
        """Prompt numbers, as many at a time as half the budget holds; short prompts first."""
        r, lengths = self.request, self.request.prompts.lengths
        here: list[int] = []
        total = 0
        for i in np.argsort(lengths, kind="stable").tolist():
            t = int(lengths[i])
            need = held(r, self.engine, t) + least(r, self.engine, t)
            if need > self.budget:
                raise BadInput(
                    f"memory={r.memory / 1e6:.3g} MB is too small: prompt {i} ({t} tokens) needs "
                    f"{need / 0.85e6:.3g} MB with sites {[s.site for s in r.specs]}; give more, "
                    "or fewer sites or layers"
                )
            if here and total + held(r, self.engine, t) > self.budget // 2:
                yield np.array(here)
                here, total = [], 0
            here.append(i)
            total += held(r, self.engine, t)
        yield np.array(here)

    # -- work --------------------------------------------------------------------------------

    def prepare(self, prompts: NDArray[np.int64], tick: Callable[[int, int], None]) -> Work:
        """Run the prompts of a chunk unedited, and find the cells that are left to run."""
        r = self.request
        tokens = r.prompts.tokens
        if self.replacements is None:
            self.replacements = Replacements(r)
        base = observe(r.model, _some(tokens, prompts), reads(r, self.engine))
        donor = None
        first = np.zeros(len(prompts), np.int64)
        if r.prompts.donors is not None:
            donors = _some(r.prompts.donors, prompts)
            donor = observe(r.model, donors, r.addresses())
            known = scored(r.task, prompts, donor.logits)
            self.donor_metric[prompts] = known.double().cpu().numpy()
            differ = (donors.ids != _some(tokens, prompts).ids).cpu().numpy()
            first = np.where(differ.any(1), differ.argmax(1), base.lengths)
        self.base_metric[prompts] = scored(r.task, prompts, base.logits).double().cpu().numpy()
        news = {
            Address(s.site, i): self.replacements.new(s, i, base, donor, prompts)
            for s in r.specs for i in r.layers
        }  # fmt: skip
        cells = cells_of(r, prompts)
        if r.skip:
            idle = same(r, cells, base, news, first)
            self._put(cells.take(idle), prompts, self.base_metric[prompts[cells.prompt[idle]]])
            self.skipped += int(idle.sum())
            cells = cells.take(~idle)
        done = np.isfinite(self._get(cells, prompts))
        spare = self.budget - sum(held(r, self.engine, int(t)) for t in base.lengths)
        return Work(r, self.readout, prompts, cells.take(~done), base, news, max(0, spare), tick)

    def _index(self, cells: Cells, prompts: NDArray[np.int64], j: int) -> Any:
        c = cells.take(cells.spec == j)
        return prompts[c.prompt], c.layer_index, c.at_position, c.unit

    def _put(self, cells: Cells, prompts: NDArray[np.int64], metric: NDArray[np.float64]) -> None:
        for j, spec in enumerate(self.request.specs):
            self.store.values[spec.site][self._index(cells, prompts, j)] = metric[cells.spec == j]

    def _get(self, cells: Cells, prompts: NDArray[np.int64]) -> NDArray[np.float64]:
        out = np.empty(len(cells))
        for j, spec in enumerate(self.request.specs):
            out[cells.spec == j] = self.store.values[spec.site][self._index(cells, prompts, j)]
        return out

    def left(self) -> int:
        """Cells that have no result yet."""
        absent = self.request.prompts.wanted < 0
        return sum(
            int((np.isnan(v) & ~absent[:, None, :, None]).sum()) for v in self.store.values.values()
        )

    def run(self, progress: Any = None) -> None:
        """Run every cell that is left."""
        with Meter(progress, len(self.chunks)) as meter:
            for prompts in self.chunks:
                work = self.prepare(prompts, meter.tick)
                assert self.replacements is not None
                if not self.replacements.changed and prompts is self.chunks[-1]:
                    raise NoFiring("the edit returns what it is given everywhere: nothing changes")
                self._settle(work)
                if not len(work.cells):
                    meter.chunk(0)
                    continue
                meter.chunk(estimate(work, self.engine)[1])
                try:
                    for index, metric in self._engine(work):
                        values = metric.double().cpu().numpy()
                        self._put(work.cells.take(index), prompts, values)
                        self.store.save()
                finally:
                    self.store.save(now=True)
                    self.rows += work.rows
                    self.flops += work.flops

    def _engine(self, work: Work) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
        if self.engine == "packed":
            return packed.run(work, self._adapter())
        if self.engine == "resume":
            return resume.run(work, _some(self.request.prompts.tokens, work.prompts))
        return plain.run(work)

    def _adapter(self) -> adapter.Adapter:
        row = adapter.find(self.request.model)
        assert row is not None
        return adapter.Adapter(self.request.model, row)

    def _settle(self, work: Work) -> None:
        """Fall back to the plain engine where a faster one does not give the model's own answer."""
        if self.engine == "plain":
            return
        r = self.request
        n, base = r.model.n_layers, work.base
        ends = torch.from_numpy(base.offsets + base.lengths - 1)
        h = base.values[Address("resid_post", n - 1)][ends]
        known = torch.from_numpy(self.base_metric[work.prompts])
        try:
            off = (self.readout(work.prompts, h).double().cpu() - known).abs().max()
            if not float(off) < _TOLERANCE:
                raise BadInput(
                    f"its last stream, unembedded, is off the logits by {float(off):.2g}"
                )
            if self.engine == "packed":
                try:
                    adapter.verify(self._adapter(), base)
                    return
                except (BadInput, RuntimeError, TypeError, ValueError, AttributeError) as error:
                    if self.asked != "auto":
                        raise
                    self.engine, self.reason = "resume", f"no packed engine: {error}"
            tokens = _some(r.prompts.tokens, work.prompts)
            for t in np.unique(base.lengths):
                resume.opened_at(r.model, base, tokens, int(t))
        except (BadInput, RuntimeError, TypeError, ValueError) as error:
            if self.asked != "auto":
                raise
            self.engine, self.reason = "plain", f"not resumed: {error}"

    def plan(self) -> Plan:
        """Observe every chunk and add up what its cells will take."""
        r = self.request
        rows = flops = naive = most = 0
        seconds = 0.0
        for prompts in self.chunks:
            start = time.perf_counter()
            work = self.prepare(prompts, lambda *_: None)
            self._settle(work)
            observed = time.perf_counter() - start
            more = estimate(work, self.engine)
            rows, flops = rows + more[0], flops + more[1]
            t = work.base.lengths[work.cells.prompt]
            naive += sum(forward_flops(r.model, int(i), r.model.d_vocab or 0) for i in t)
            most = max(most, bytes_at_work(work, self.engine))
            passes = 1 if r.prompts.donors is None else 2
            each = observed / (passes * int(work.base.lengths.sum()))  # seconds a token
            seconds += observed
            if self.engine == "packed":
                seconds += more[1] / rate(self._adapter())
            else:
                seconds += more[0] * each / (r.model.n_layers if self.engine == "resume" else 1)
        return Plan(
            self.engine, self.reason, self.cells, self.skipped, rows, flops, naive, most, seconds
        )


def _some(tokens: Any, prompts: NDArray[np.int64]) -> Any:
    """Some prompts of right-padded tokens, still padded."""
    i = torch.from_numpy(prompts)
    strings = tuple(tokens.strings[k] for k in prompts)
    return type(tokens)(
        tokens.ids[i], tokens.mask[i], strings, tuple(tokens.texts[k] for k in prompts)
    )
