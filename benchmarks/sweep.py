"""Exact patching sweeps against what others do: one forward pass a cell, batches, resuming.

    lwlab bench sweep [--peers]

With `--peers`, TransformerLens runs in the same process, from an environment made for it in the
cache. Every peer patches the same cells with the same values; its results are compared with
lwlab's before anything is timed. Where cells cost a peer the same, it runs a sample of them and its
time is scaled up to the whole grid: the note says so.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from peers import case as questions
from peers.case import Cell, grid, sample
from peers.hooks import Hooks, twin
from peers.traces import Traces

import lwlab as lw
from lwlab import bench
from lwlab.bench import report as bench_report

TOLERANCE = 1e-4
PEERS = Path(__file__).parent / "peers" / "transformer-lens.txt"
PACKAGES = ("transformer-lens",)
WITH_PEERS = importlib.util.find_spec("transformer_lens") is not None
WITHOUT = "not installed here: lwlab bench sweep --peers"
ABSENT = {} if WITH_PEERS else {"TransformerLens": WITHOUT}

NAIVE, LAST, BATCHED, RESUMED = (
    "hooks, one forward a cell",
    "hooks, one forward a cell, logits of the last token only",
    "hooks, the positions of a layer as one batch",
    "hooks, that batch resumed from its layer",
)
LENS, NNSIGHT = "TransformerLens, its patching loop", "nnsight, one trace a cell"
FLOOR = "the same operations as matrix products 512 x 576 x 1536"
Run = Callable[[Sequence[Cell]], np.ndarray[Any, Any]]


@cache
def model() -> lw.Model:
    """The default model."""
    return lw.load("smollm2-135m")


@cache
def plain() -> Any:
    """The same weights, which nothing has wrapped."""
    return twin(model().module)


@cache
def lens() -> Any:
    """The same weights under TransformerLens."""
    from peers import bridge

    return bridge.load(twin(model().module), model().tokenizer.name_or_path, model().tokenizer)


@dataclass
class Grid:
    """Cells of one site of one pair of prompts, swept by lwlab and by whoever else."""

    site: str
    case: questions.Case
    layers: Sequence[int]
    positions: Sequence[int]
    skip: bool = False
    ways: dict[str, bench.Way] = field(default_factory=dict)

    def __post_init__(self) -> None:
        heads = self.case.heads(self.site)
        self.cells = grid(self.layers, self.positions, heads)
        self.found = self.run()
        self.truth = self.metric(self.found)
        self.ways["lwlab"] = bench.Way(self.run)

    def run(self, **options: Any) -> xr.Dataset:
        """Sweep the grid with lwlab."""
        given = {"layers": self.layers, "positions": self.positions, "skip": self.skip}
        return lw.sweep(self.case.model, self.case.task, self.site, **{**given, **options})

    def metric(self, result: Any) -> Any:
        """Metric of every edited run, [layer, position, head]; a peer's is that already."""
        if not isinstance(result, xr.Dataset):
            return result
        return (result[self.site] + result.base_metric).isel(prompt=0).values

    def peer(self, name: str, run: Run, cells: Sequence[Cell], **options: Any) -> None:
        """Add a way that gives the metric of some cells; the others are left out of the check."""
        i, j = ({x: k for k, x in enumerate(given)} for given in (self.layers, self.positions))

        def compare(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            whole = self.truth.copy()
            for (layer, position, *head), value in zip(cells, values):
                whole[(i[layer], j[position], *head)] = value
            return whole

        share = len(self.cells) / len(cells)
        note = "" if share == 1 else f"{len(cells)} of {len(self.cells)} cells, scaled"
        self.ways[name] = bench.Way(
            partial(run, cells), scale=share, compare=compare, **{"note": note, **options}
        )

    def peers(self, n: int, nnsight: int = 0, layers: Sequence[int] = ()) -> None:
        """Add the usual peers: `n` sampled cells each; whole layers for those who batch."""
        hooks = Hooks(plain(), self.case, self.site)
        some = sample(self.cells, n)
        self.peer(NAIVE, hooks.one_by_one, some)
        if layers:
            whole = [c for c in self.cells if c[0] in layers]
            self.peer(LAST, partial(hooks.one_by_one, keep=1), some)
            self.peer(BATCHED, hooks.batched, whole)
            # Cells of high layers cost it less; these layers lie evenly about the middle.
            self.peer(RESUMED, hooks.resumed, whole)
        if WITH_PEERS:
            from peers.bridge import Bridge

            self.peer(LENS, Bridge(lens(), self.case, self.site).one_by_one, some)
        if nnsight:
            traces = Traces(model().nn, self.case)
            self.peer(NNSIGHT, traces.one_by_one, sample(self.cells, nnsight, seed=1))

    def compared(self, title: str, targets: dict[str, float], rounds: int) -> bench.Case:
        """Put it all together, with the bare arithmetic and what was counted."""
        about = self.found.attrs
        each, times = 2 * 512 * 576 * 1536, 40
        floor = bench.gemm(512, 576, 1536, times)
        self.ways[FLOOR] = replace(floor, scale=about["flops"] / (each * times), note="")
        plan = lw.sweep_plan(
            self.case.model, self.case.task, self.site, layers=self.layers,
            positions=self.positions, skip=self.skip,
        )  # fmt: skip
        figures: dict[str, float | int | str] = {
            "cells": about["cells"], "provably zero and not run": about["skipped"],
            "engine": about["engine"], "rows": about["rows"], "GFLOP": about["flops"] / 1e9,
            "GFLOP of one forward a cell": plan.naive_flops / 1e9,
        }  # fmt: skip
        for budget in (512e6, 64e6):
            what = f"peak MB with a budget of {budget / 1e6:.0f}"
            try:
                figures[what] = round(bench.peak_mb(partial(self.run, memory=budget)), 1)
            except bench.Absent:
                break
        known = {k: v for k, v in targets.items() if k in self.ways}
        return bench.Case(
            title, "lwlab", self.ways, targets=known, tolerance=TOLERANCE, compare=self.metric,
            null=NAIVE, rounds=rounds, flops=about["flops"], figures=figures,
            absent={} if WITH_PEERS else {LENS: WITHOUT},
        )  # fmt: skip


def every_layer() -> range:
    """All layers of the model."""
    return range(model().n_layers)


def spread(n: int) -> list[int]:
    """`n` layers that lie evenly, and symmetrically, between the first and the last."""
    return np.linspace(0, model().n_layers - 1, n).round().astype(int).tolist()


def short() -> bench.Case:
    """Every layer and position of a short prompt."""
    g = Grid("resid_pre", questions.ioi(model(), 14), every_layer(), range(14))
    g.peers(15, nnsight=8, layers=spread(4))
    g.ways["lwlab, engine='resume'"] = bench.Way(partial(g.run, engine="resume"))
    targets = {NAIVE: 10, LENS: 10, RESUMED: 1.5, FLOOR: 0.6}
    return g.compared("14 tokens, residual stream, 30 x 14 cells, nothing skipped", targets, 5)


def unlike() -> bench.Case:
    """The same for two prompts that have no token in common: every cell does something."""
    g = Grid("resid_pre", questions.unlike(model()), every_layer(), range(14), skip=True)
    g.peers(15)
    return g.compared("14 tokens, prompts without a common token, 30 x 14 cells", {}, 3)


def skipped() -> bench.Case:
    """What is gained where cells provably do nothing."""
    g = Grid("resid_pre", questions.ioi(model(), 14), every_layer(), range(14), skip=True)
    g.peers(8)
    every = "lwlab, nothing skipped"
    g.ways[every] = bench.Way(partial(g.run, skip=False))
    return g.compared("14 tokens, the same with provable no-ops skipped", {every: 4}, 5)


def long(layers: Sequence[int], positions: Sequence[int], batched: Sequence[int]) -> bench.Case:
    """A longer prompt; a part of its cells, since the whole grid takes the peers an hour.

    The fewer the cells, the more the two unedited runs weigh, which are in lwlab's time.
    """
    g = Grid("resid_pre", questions.ioi(model(), 128), layers, positions)
    g.peers(4, layers=batched)
    size = f"{len(layers)} x {len(positions)}"
    title = f"128 tokens, residual stream, {size} cells, nothing skipped"
    return g.compared(title, {NAIVE: 4, LENS: 4}, 3)


def site(name: str, layers: int) -> bench.Case:
    """Another site of the short prompt, at layers that lie evenly about the middle."""
    g = Grid(name, questions.ioi(model(), 14), spread(layers), range(14))
    g.peers(8)
    heads = g.case.heads(name)
    size = f"{layers} x 14{f' x {heads}' if heads else ''}"
    return g.compared(f"14 tokens, {name}, {size} cells, nothing skipped", {}, 3)


CASES: dict[str, Callable[[], bench.Case]] = {
    "resid-14": short,
    "resid-14-unlike": unlike,
    "resid-14-skip": skipped,
    "resid-128": partial(long, [3, 11, 18, 26], [10, 31, 53, 74, 96, 117], [3, 26]),
    "resid-128-more": partial(long, range(1, 29, 3), range(8, 128, 16), [1, 28]),
    "resid_mid": partial(site, "resid_mid", 6),
    "attn_out": partial(site, "attn_out", 6),
    "mlp_out": partial(site, "mlp_out", 6),
    "heads": partial(site, "head_out", 3),
    "q": partial(site, "q", 3),
    "k": partial(site, "k", 3),
    "v": partial(site, "v", 3),
}


def summary(report: bench_report.Report) -> str:
    """The README's table: a line a case, CPU time of others over lwlab's, and what it took."""
    lines = [
        "| sweep of smollm2-135m | lwlab, CPU s | one forward a cell | TransformerLens 4.3 "
        "| of the rate of bare products | largest difference | peak MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in report["cases"].values():
        ways = {w["name"]: w for w in case.get("ways", ())}
        if not ways:
            continue

        def times(name: str, ways: dict[str, Any] = ways) -> str:
            if name not in ways:
                return ""
            r = ways[name]["ratio"]
            return f"{r['median']:.3g} x ({r['min']:.3g} .. {r['max']:.3g})"

        apart = max(w.get("difference", 0.0) for w in ways.values())
        peak = case["figures"].get("peak MB with a budget of 512", float("nan"))
        seconds = ways["lwlab"]["cpu_ms"]["median"] / 1e3
        lines.append(
            f"| {case['title']} | {seconds:.2g} | {times(NAIVE)} | {times(LENS)} "
            f"| {ways[FLOOR]['ratio']['median']:.0%} | {apart:.0e} | {peak:.0f} |"
        )
    return "\n".join(lines) + "\n"
