"""Requests for node and edge scores: checked before any run, then run and labelled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import xarray as xr

from lwlab.attribution.first_order import Driver, Ends, Found, Progress
from lwlab.attribution.pairs import Pair
from lwlab.attribution.relp import RULES, switches
from lwlab.attribution.steps import check_steps, said
from lwlab.attribution.wiring import Wiring
from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.models.model import Model
from lwlab.results import label, provenance
from lwlab.tasks.base import Task
from lwlab.tracing import rules as ruled

__all__ = ["RULES", "Request", "study"]

_PAPERS = {"eap": "2310.10348", "atp": "2310.10348", "relp": "2508.21258"}


@dataclass
class Request:
    """What was asked for; raises BadInput or UnknownName for what cannot be done."""

    technique: str | Iterable[str]
    known: tuple[str, ...]
    steps: int
    tolerance: float | None
    max_steps: int
    rules: str | Iterable[str]
    memory: float

    def __post_init__(self) -> None:
        """Check names and numbers."""
        given = self.technique
        self.single = isinstance(given, str)
        self.names: list[str] = [given] if isinstance(given, str) else list(given)
        for name in self.names:
            if name not in self.known:
                raise UnknownName(f"no technique {name!r}{suggest(str(name), self.known)}")
        if not self.names or len(set(self.names)) < len(self.names):
            raise BadInput(f"technique={self.names}: name each once, and at least one")
        check_steps(self.steps, self.max_steps, self.tolerance)
        self.on = switches(self.rules)


def study(
    model: Model,
    task: Task | Pair,
    asked: Request,
    ends: Callable[..., Ends],
    dims: tuple[str, ...],
    *,
    normalise: bool,
    progress: Progress | None,
    long_name: str,
) -> xr.DataArray:
    """Run every technique asked for and label what comes out, (technique,) prompt, *dims."""
    Wiring(model)
    if model.rules:
        raise BadInput(f"{model.name} already follows {model.rules}: give the ordinary model")
    with contextlib.ExitStack() as stack:
        views = {
            name: stack.enter_context(ruled(model, **asked.on)) if name == "relp" else model
            for name in asked.names
        }
        pair = Pair.of(model, task)
        more = {"width": pair.width} if "position" in dims else {}
        drivers = {
            name: Driver(view, pair, ends(Wiring(view), **more), asked.memory, progress)
            for name, view in views.items()
        }
        parts = []
        for name, driver in drivers.items():  # a comprehension's own frame would blur the warning
            found = _run(driver, name, asked)
            parts.append(_label(pair, driver, name, asked, found, dims, normalise))
    if asked.single:
        return parts[0].assign_attrs(long_name=long_name)
    out = xr.concat(
        parts, "technique", coords="different", compat="equals", join="exact",
        combine_attrs="drop_conflicts",
    ).assign_coords(technique=asked.names)  # fmt: skip
    return out.assign_attrs(long_name=long_name)


def _run(driver: Driver, name: str, asked: Request) -> Found:
    if "-" not in name and name != "ig":
        return driver.at_corrupt()
    limit = None
    if asked.tolerance is not None:
        clean, corrupt = driver.pair.metrics()
        limit = asked.tolerance * float((clean - corrupt).abs().mean())
    run = driver.activations if name.endswith("activations") else driver.inputs
    return run(asked.steps, limit, asked.max_steps)


def _label(
    pair: Pair,
    driver: Driver,
    name: str,
    asked: Request,
    found: Found,
    dims: tuple[str, ...],
    normalise: bool,
) -> xr.DataArray:
    clean, corrupt = (float(m.mean()) for m in found.metrics)
    if normalise and clean == corrupt:
        raise BadInput(
            f"{pair.task.name}: clean and corrupt prompts score the same ({clean:.3g}), so there "
            "is no effect to take a share of; normalise=False gives raw differences"
        )
    unit = clean - corrupt if normalise else 1.0
    effect = float((found.metrics[0] - found.metrics[1]).abs().mean())
    share = float(found.gap.max()) / effect if effect else 0.0
    attrs: dict[str, Any] = {
        "technique": name, "paper": _PAPERS.get(name, "2403.17806"), "normalised": normalise,
        "clean_metric": clean, "corrupt_metric": corrupt, "first_position": pair.begin,
        "parallel": driver.wiring.graph.parallel,
        "completeness_gap": share, "units": "" if normalise else pair.task.metric.name,
    }  # fmt: skip
    if name == "relp":
        attrs["rules"] = "+".join(driver.view.rules)
    elif name not in ("eap", "atp"):
        attrs |= said(name, share, int(found.steps.max()), asked.tolerance, level=5)
    graph = driver.wiring.graph
    coords: dict[str, Any] = {
        "text": (("prompt",), list(pair.clean.texts)),
        "group": (("prompt",), pair.task.groups),
        "gap": (("prompt",), found.gap / abs(unit)),
        "steps": (("prompt",), found.steps),
    }
    coords |= {k: v for k, v in graph.coords().items() if k.startswith(dims)}
    values = found.scores / unit
    if "position" in dims:
        coords |= {"position": list(range(pair.width))}
        coords |= {"position_str": (("position",), pair.position_names())}
    elif "receiver" not in dims:
        values = values[..., 0]
    named = label(values, ("prompt", *dims), coords, name="score", **attrs)
    return named.assign_attrs(provenance(pair.model, pair.task) | named.attrs)
