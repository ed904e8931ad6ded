"""Time ways of doing the same thing against each other, so that a busy machine cannot lie.

One process, one torch thread. Results are compared before anything is timed. Each round runs every
way once, in an order that is shifted and turned round from round to round; the warm-up round is
thrown away. What is measured is process CPU time, which other programs' use of the processor does
not enter, and a ratio is taken within its round. A null pair (one way against itself) says what
the machine's noise makes of a ratio of 1: when it strays, the verdict is INCONCLUSIVE.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lwlab.bench.compare import difference
from lwlab.errors import BadInput, LwlabError

NULL = (0.8, 1.25)
"""Where the null pair's middle half must lie for a verdict."""


class Unequal(LwlabError, AssertionError):
    """Two ways that should give the same result do not; nothing is timed."""


class Absent(LwlabError):
    """Something that could not be timed here, and why."""


class Timed(NamedTuple):
    """A result whose CPU seconds were measured elsewhere, as in a peer's own process."""

    result: Any
    seconds: float


@dataclass(frozen=True)
class Way:
    """One way to do it.

    `run` takes nothing and returns the result (or `Timed`). `limit` marks the arithmetic or the
    reading that no way can avoid, such as the bare matrix product: it is not compared. `scale`
    multiplies its time, for a way that does a part of the work (25 of 420 cells: 420 / 25).
    `compare` maps its result (after the case's own `compare`, unless `raw`) to what is compared,
    `part` does so with what the subject gave; `tolerance` overrides the case's.
    """

    run: Callable[[], Any]
    limit: bool = False
    scale: float = 1.0
    note: str = ""
    checked: bool = True
    compare: Callable[[Any], Any] | None = None
    part: Callable[[Any], Any] | None = None
    raw: bool = False
    tolerance: float | None = None


@dataclass(frozen=True)
class Case:
    """One comparison: `ways[subject]` is ours, the others are peers and limits.

    Every ratio is a way's CPU time over the subject's, in the same round: 3 means "the subject
    takes a third". `targets` names the smallest ratio wanted of a peer. `compare` maps every result
    to what is compared; `tolerance` is the largest absolute difference. `null` is the way that is
    run twice a round (the subject if empty). `flops` and `bytes` are those of one call of the
    subject; `figures` are counts to report beside, `absent` the peers that could not run, and why.
    """

    title: str
    subject: str
    ways: Mapping[str, Way | Callable[[], Any]]
    targets: Mapping[str, float] = field(default_factory=dict)
    tolerance: float = 0.0
    compare: Callable[[Any], Any] | None = None
    null: str = ""
    null_bounds: tuple[float, float] = NULL
    rounds: int = 11
    min_seconds: float = 0.02
    flops: float = 0.0
    bytes: float = 0.0
    figures: Mapping[str, float | int | str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)

    def all_ways(self) -> dict[str, Way]:
        """Return the ways with plain functions wrapped; raises BadInput for names that are none."""
        ways = {n: w if isinstance(w, Way) else Way(w) for n, w in self.ways.items()}
        for what, name in [("subject", self.subject), ("null", self.null or self.subject)]:
            if name not in ways:
                raise BadInput(f"{what} {name!r} is none of the ways {list(ways)}.")
        unknown = sorted(set(self.targets) - set(ways))
        if unknown:
            raise BadInput(f"targets for {unknown}, which are none of the ways {list(ways)}.")
        if ways[self.subject].limit:
            raise BadInput(f"the subject {self.subject!r} is marked as a limit.")
        return ways


def check(case: Case) -> dict[str, float]:
    """Run every way once; return each one's largest difference from the subject's result.

    Raises Unequal when a difference is above the tolerance (or NaN).
    """
    ways = case.all_ways()

    def seen(name: str) -> Any:
        value = ways[name].run()
        value = value.result if isinstance(value, Timed) else value
        value = case.compare(value) if case.compare and not ways[name].raw else value
        mine = ways[name].compare
        return mine(value) if mine and name != case.subject else value

    truth, out = seen(case.subject), {}
    for name, way in ways.items():
        if name == case.subject or way.limit or not way.checked:
            continue
        out[name] = difference(seen(name), way.part(truth) if way.part else truth)
        allowed = case.tolerance if way.tolerance is None else way.tolerance
        if not out[name] <= allowed:
            raise Unequal(
                f"{case.title}: {name!r} differs from {case.subject!r} by {out[name]:.3g}, "
                f"above {allowed:.3g}; nothing was timed."
            )
    return out


NULL_NAME = "null"


def rounds_of(case: Case, rounds: int | None = None) -> dict[str, list[tuple[float, float]]]:
    """Return for every way (and `"null"`) its (CPU, wall) seconds a call, one pair a round."""
    ways = case.all_ways()
    ways[NULL_NAME] = ways[case.null or case.subject]
    names = list(ways)
    calls = dict.fromkeys(names, 1)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for r in range((rounds or case.rounds) + 1):
        shift = (r // 2) % len(names)  # with the turning, every shift comes both ways
        order = names[shift:] + names[:shift]
        gc.collect()
        for name in order if r % 2 else order[::-1]:
            cpu, wall = _time(ways[name], calls[name])
            if r:
                taken[name].append((cpu, wall))
            elif 0 < cpu < case.min_seconds:  # the warm-up round says how many calls fill a timing
                cpu, _ = _time(ways[name], 1)  # warm: the first call may have compiled something
                calls[name] = max(1, math.ceil(case.min_seconds / max(cpu, 1e-6)))
        if not r:  # both halves of the null pair do the same number of calls
            calls[NULL_NAME] = calls[case.null or case.subject]
    return taken


def _time(way: Way, calls: int) -> tuple[float, float]:
    """Return CPU and wall seconds a call, garbage collection held off."""
    told = 0.0
    on = gc.isenabled()
    gc.disable()
    try:
        begin, wall = time.process_time(), time.perf_counter()
        for _ in range(calls):
            result = way.run()
            if isinstance(result, Timed):
                told += result.seconds
        spent, passed = time.process_time() - begin, time.perf_counter() - wall
        del result
    finally:
        if on:
            gc.enable()
    cpu = told or spent
    return cpu * way.scale / calls, passed * way.scale / calls


def spread(values: list[float]) -> dict[str, float]:
    """Return median, quartiles, smallest and largest."""
    if len(values) < 2:
        return dict.fromkeys(("median", "q1", "q3", "min", "max"), values[0])
    q1, _, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {
        "median": statistics.median(values), "q1": q1, "q3": q3,
        "min": min(values), "max": max(values),
    }  # fmt: skip


def measure(case: Case, rounds: int | None = None) -> dict[str, Any]:
    """Check and time a case; return its row as plain data (see `lwlab.bench.report`).

    Raises Unequal when the results differ and BadInput when the case does not make sense.
    """
    ways = case.all_ways()
    equal = check(case)
    taken = rounds_of(case, rounds)
    base = [cpu for cpu, _ in taken[case.subject]]
    twice = [cpu for cpu, _ in taken[case.null or case.subject]]
    null = spread([cpu / own for (cpu, _), own in zip(taken[NULL_NAME], twice)])
    low, high = case.null_bounds
    quiet = low <= null["q1"] and null["q3"] <= high
    rows = []
    for name, way in ways.items():
        cpus = [cpu for cpu, _ in taken[name]]
        kind = "limit" if way.limit else "subject" if name == case.subject else "peer"
        row: dict[str, Any] = {
            "name": name, "kind": kind, "cpu_ms": spread([1e3 * s for s in cpus]),
            "wall_ms": statistics.median(1e3 * w for _, w in taken[name]),
            "ratio": spread([cpu / own for cpu, own in zip(cpus, base)]),
        }  # fmt: skip
        if way.note:
            row["note"] = way.note
        if name in equal:
            row["difference"] = equal[name]
        if name in case.targets:
            row["target"] = case.targets[name]
            met = row["ratio"]["median"] >= case.targets[name]
            row["verdict"] = ("met" if met else "missed") if quiet else "INCONCLUSIVE"
        rows.append(row)
    seconds = statistics.median(base)
    rates = {"gflop_per_s": case.flops / seconds / 1e9} if case.flops else {}
    rates |= {"gb_per_s": case.bytes / seconds / 1e9} if case.bytes else {}
    return {
        "title": case.title, "subject": case.subject, "rounds": len(base),
        "tolerance": case.tolerance, "null": {"way": case.null or case.subject, **null},
        "quiet": quiet, "ways": rows, "rates": rates,
        "figures": dict(case.figures), "absent": dict(case.absent),
    }  # fmt: skip
