"""What a sweep is asked for: checked before anything runs, and turned into cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.models.model import Model, Prompts
from lwlab.models.sites import SITES, Address
from lwlab.models.tokens import Tokens
from lwlab.tracing.batch import batch

EditName = Literal["patch", "zero", "mean", "resample", "noise"]
EditLike = EditName | Callable[[torch.Tensor], torch.Tensor]
Indices = int | Iterable[int] | None
EDITS = ("patch", "zero", "mean", "resample", "noise")
UNITS = {"head": "head", "kv_head": "kv_head", "neuron": "neuron_block"}


@dataclass(frozen=True)
class Spec:
    """One site of a sweep, and the units it is cut into: heads, key/value heads, neuron blocks.

    `parts[u]` selects unit u on the first feature axis: a head's number, or a slice of neurons.
    """

    site: str
    unit: str | None
    units: tuple[int, ...] = (0,)
    parts: tuple[int | slice, ...] = (slice(None),)

    def read(self, values: torch.Tensor, unit: int) -> torch.Tensor:
        """Unit `unit` (an index of `units`) of values [tokens, ...]: [tokens, features]."""
        return values[:, self.parts[unit]]


@dataclass(frozen=True, eq=False)
class Prompted:
    """Prompts of a sweep without padding, the twins they are patched from, and where to edit.

    `tokens` and `donors` are padded on the right whatever they were; `wanted` [prompts,
    positions] holds own positions, -1 where a prompt has no such position.
    """

    tokens: Tokens
    donors: Tokens | None
    wanted: NDArray[np.int64]
    names: tuple[int | str, ...]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Own tokens of each prompt."""
        return np.asarray(self.tokens.lengths.cpu().numpy())


@dataclass(frozen=True, eq=False)
class Request:
    """A checked sweep: everything but the values."""

    model: Model
    task: Any
    specs: tuple[Spec, ...]
    layers: tuple[int, ...]
    prompts: Prompted
    edit: EditLike
    into: str
    reference: Prompts | None
    skip: bool
    memory: int
    seed: int
    scale: float

    @property
    def edit_name(self) -> str:
        """The edit's name, or that of the user's function."""
        if isinstance(self.edit, str):
            return self.edit
        return getattr(self.edit, "__qualname__", type(self.edit).__name__)

    def addresses(self) -> list[Address]:
        """Every (site, layer) of the sweep."""
        return [Address(s.site, i) for s in self.specs for i in self.layers]

    def shape(self, spec: Spec) -> tuple[int, int, int, int]:
        """Prompts, layers, positions and units of one site's result."""
        n, p = self.prompts.wanted.shape
        return n, len(self.layers), p, len(spec.units)


def check(
    model: Model,
    task: Any,
    sites: str | Iterable[str],
    layers: Indices,
    positions: int | str | Iterable[int | str] | None,
    heads: Indices,
    edit: EditLike,
    into: Literal["clean", "corrupt"] | None,
    reference: Prompts | None,
    memory: float,
    neuron_blocks: int,
    split: bool,
    skip: bool,
    seed: int,
    scale: float,
) -> Request:
    """Check every argument of `sweep`; raises as `sweep` says, before anything is run."""
    if isinstance(edit, str) and edit not in EDITS:
        raise UnknownName(f"no edit {edit!r}{suggest(edit, EDITS)} Or give a function of cells.")
    if not isinstance(edit, str) and not callable(edit):
        raise BadInput(f"edit is a {type(edit).__name__}; give a name {EDITS} or a function")
    if into not in (None, "clean", "corrupt"):
        raise BadInput(f"into={into!r}: the runs that are edited are the 'clean' or the 'corrupt'")
    if edit not in ("mean", "resample") and reference is not None:
        raise BadInput(f"edit={edit!r} takes nothing from reference=; use 'mean' or 'resample'")
    into = into or ("corrupt" if edit == "patch" else "clean")
    _check_model(model, task)
    chosen = tuple(sorted(set(model.anatomy.layers(layers))))
    if split and neuron_blocks < 1:
        raise BadInput(f"neuron_blocks={neuron_blocks}: give at least one")
    specs = tuple(
        _spec(model, s, heads, neuron_blocks if split else 0) for s in _sites(model, sites)
    )
    if heads is not None and not any(s.unit in ("head", "kv_head") for s in specs):
        raise BadInput(f"heads={heads!r}: none of the sites {[s.site for s in specs]} has heads")
    tokens = task.tokens(model, into).pad("right")
    donors = None
    if edit == "patch":
        donors = task.tokens(model, "corrupt" if into == "clean" else "clean").pad("right")
        if not torch.equal(donors.lengths, tokens.lengths):
            i = int((donors.lengths != tokens.lengths).nonzero()[0])
            raise BadInput(
                f"twins must have equally many tokens; prompt {i} has {int(tokens.lengths[i])} and "
                f"its twin {int(donors.lengths[i])}: {tokens.texts[i][:60]!r}"
            )
        if torch.equal(donors.ids, tokens.ids):
            raise BadInput(f"{task.name}: every prompt equals its twin, so a patch changes nothing")
    elif edit == "resample":
        _check_donors(model, tokens, reference)
    _rehearse(model, task, len(tokens))
    wanted, names = _positions(task, tokens, positions)
    if not memory > 0:
        raise BadInput(f"memory={memory!r}: give a number of bytes, such as 500e6")
    prompts = Prompted(tokens, donors, wanted, names)
    return Request(
        model, task, specs, chosen, prompts, edit, into, reference, bool(skip), int(memory),
        int(seed), float(scale),
    )  # fmt: skip


def _check_model(model: Model, task: Any) -> None:
    if not all(hasattr(task, k) for k in ("clean", "corrupt", "metric", "subset", "tokens")):
        raise BadInput(
            "a sweep needs a task with clean and corrupt prompts and a metric, such as "
            f"lw.tasks.ioi(model), not {type(task).__name__}"
        )
    if model.kind == "encoder-decoder":
        raise BadInput(
            f"{model.name} reads prompts with its encoder and answers with its decoder; a sweep "
            "needs one stack that does both"
        )
    if "logits" not in model.anatomy.taps or model.kind == "vision":
        raise BadInput(f"{model.name} gives no logits of tokens, so a task cannot be scored on it")
    if len(task.clean) != len(task.corrupt) or not task.clean:
        raise BadInput(
            f"{task.name} has {len(task.clean)} clean and {len(task.corrupt)} corrupt prompts; "
            "each clean prompt needs its corrupt twin"
        )


def _sites(model: Model, sites: str | Iterable[str]) -> list[str]:
    wanted = model.anatomy.require(sites)
    for s in wanted:
        if SITES[s].scope != "layer" or SITES[s].dims[0] != "position":
            raise BadInput(f"site {s!r} has no value at each layer and position")
    return wanted


def _spec(model: Model, site: str, heads: Indices, blocks: int) -> Spec:
    unit = next((UNITS[d] for d in SITES[site].dims if d in UNITS), None)
    if unit is None or not blocks:
        return Spec(site, None)
    if unit == "neuron_block":
        d = model.anatomy.d_mlp
        if not d or not 1 <= blocks <= d:
            raise BadInput(f"neuron_blocks={blocks}: give 1 to {d}, the neurons of a layer")
        edges = np.linspace(0, d, blocks + 1).round().astype(int).tolist()
        parts = tuple(slice(a, b) for a, b in pairwise(edges))
        return Spec(site, unit, tuple(range(blocks)), parts)
    n = model.anatomy.heads(site) or 1
    chosen = list(range(n)) if heads is None else [heads] if isinstance(heads, int) else list(heads)
    if not chosen or any(not isinstance(h, int | np.integer) or not -n <= h < n for h in chosen):
        raise BadInput(f"heads={heads!r}: {site} of {model.name} has heads 0..{n - 1}")
    units = tuple(sorted({int(h) % n for h in chosen}))
    return Spec(site, unit, units, units)


def _check_donors(model: Model, tokens: Tokens, reference: Prompts | None) -> None:
    n = tokens.require_equal_length("resample ablation")
    other = tokens if reference is None else batch(model, reference).tokens
    if other is None or other.require_equal_length("resample ablation") != n:
        raise BadInput("resample ablation needs reference prompts as long as the prompts")
    if reference is None and len(other) < 2:
        raise BadInput("resample ablation needs at least two prompts to draw from")


def _rehearse(model: Model, task: Any, n: int) -> None:
    """Find out on empty logits whether the metric gives one number a prompt."""
    if model.d_vocab is None:
        return
    values = task.metric(torch.zeros(n, model.d_vocab, dtype=model.dtype, device=model.device))
    if not isinstance(values, torch.Tensor) or values.shape != (n,):
        got = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
        raise BadInput(
            f"the metric of {task.name} returned {got}; it must return one number for each of the "
            f"{n} prompts, as a tensor of shape ({n},)"
        )


def _positions(
    task: Any, tokens: Tokens, positions: int | str | Iterable[int | str] | None
) -> tuple[NDArray[np.int64], tuple[int | str, ...]]:
    lengths = tokens.lengths.cpu().numpy()
    if positions is None:
        names: list[int | str] = list(range(int(lengths.max())))
        grid = np.arange(int(lengths.max()))[None].repeat(len(lengths), 0)
        return np.where(grid < lengths[:, None], grid, -1), tuple(names)
    names = [positions] if isinstance(positions, int | str) else list(positions)
    if not names:
        raise BadInput("positions is empty; leave it out to take all")
    columns = []
    for p in names:
        if isinstance(p, str):
            known = getattr(task, "positions", {})
            if p not in known:
                raise UnknownName(f"{task.name} names no position {p!r}{suggest(p, known)}")
            columns.append(np.asarray(known[p].cpu().numpy()))
            continue
        tokens.columns(int(p))  # raises for a prompt that is too short
        columns.append(np.where(p < 0, lengths + p, p))
    return np.stack(columns, 1).astype(np.int64), tuple(names)
