"""Placebos for attribution: what a score must beat before it means anything."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace

import torch
import xarray as xr

from lwlab.attribution.pairs import COMPONENTS, Pair, Values
from lwlab.errors import BadInput
from lwlab.models import wrap
from lwlab.models.model import Model
from lwlab.models.sites import Address
from lwlab.tasks.base import Task


def size(
    model: Model,
    task: Task | Pair,
    components: str | Iterable[str] = COMPONENTS,
    layers: Iterable[int] | int | None = None,
) -> xr.DataArray:
    """|a - a'|: how much each activation differs, with no look at what follows it.

    Returns (component, prompt, layer, position), not normalised; raises as `exact.scores` does.
    """
    pair = Pair.of(model, task)

    def slopes(rows: torch.Tensor, at: list[Address]) -> Values:
        clean, corrupt = pair.read(at)
        gaps = {a: (clean[a] - corrupt[a])[rows] for a in at}
        return {a: g / g.norm(dim=-1, keepdim=True).clamp(min=1e-30) for a, g in gaps.items()}

    return pair.estimate(
        slopes,
        components,
        layers,
        normalise=False,
        batch_size=len(pair),
        technique="size of change",
    )


def random_direction(
    model: Model,
    task: Task | Pair,
    components: str | Iterable[str] = COMPONENTS,
    layers: Iterable[int] | int | None = None,
    *,
    draws: int = 20,
    seed: int = 0,
    batch_size: int = 16,
) -> xr.DataArray:
    """AtP with each gradient replaced by a random direction g of the same length, `draws` times.

    <a - a', g |dm/da| / |g|>, g ~ N(0, 1) drawn by `seed`. Returns (draw, component, prompt, layer,
    position), not normalised; raises as `exact.scores` does, and BadInput for no draws.
    """
    if draws < 1:
        raise BadInput(f"draws={draws}; a placebo needs at least one")
    pair = Pair.of(model, task)
    generator = torch.Generator().manual_seed(seed)
    lengths: dict[int, Values] = {}

    def slopes(rows: torch.Tensor, at: list[Address]) -> Values:
        chunk = int(rows[0])
        if chunk not in lengths:
            real = pair.slopes(model, rows, at)
            lengths[chunk] = {a: c.norm(dim=-1, keepdim=True) for a, c in real.items()}
        clean, _ = pair.read(at)
        out = {}
        for a, length in lengths[chunk].items():
            g = torch.randn(clean[a][rows].shape, generator=generator).to(length)
            out[a] = g * (length / g.norm(dim=-1, keepdim=True))
        return out

    parts = [
        pair.estimate(
            slopes, components, layers, normalise=False, batch_size=batch_size,
            technique="random direction", direction_seed=seed,
        )
        for _ in range(draws)
    ]  # fmt: skip
    return xr.concat(parts, "draw", coords="minimal", compat="override", join="exact")


def shuffled_labels(task: Task) -> Task:
    """Ask each prompt for the answer of another group of prompts (prompts that corrupt each other).

    Prompts stay as they are, so all that is left of the task is its prompts. Raises BadInput where
    there is one group, or groups differ in size.
    """
    numbers, counts = torch.unique_consecutive(task.groups, return_counts=True)
    if len(numbers) < 2 or bool((counts != counts[0]).any()):
        raise BadInput(
            f"{task.name} has {len(numbers)} groups of {counts.tolist()} prompts; shuffling labels "
            "needs at least two, all of one size"
        )
    by = int(counts[0])
    rows = torch.arange(len(task)).roll(by)
    return replace(
        task,
        name=f"{task.name}, shuffled labels",
        answers=tuple(task.answers[i] for i in rows.tolist()),
        foils=tuple(task.foils[i] for i in rows.tolist()),
        answer_sets=task.answer_sets[rows],
        foil_sets=task.foil_sets[rows],
    )


def untrained(model: Model, *, layers: int | None = None, seed: int = 0) -> Model:
    """Return a model of the same architecture, width and tokenizer with random weights.

    Weights are drawn as transformers starts a training run, by `seed`; `layers` makes it shorter,
    at most as deep as the model. Raises BadInput for a model that transformers did not make.
    """
    import transformers

    config = copy.deepcopy(getattr(model.module, "config", None))
    if not isinstance(model.module, transformers.PreTrainedModel) or config is None:
        raise BadInput(f"{model.name} was not made by transformers, so it cannot be made again")
    depth = min(layers or model.n_layers, model.n_layers)
    config.num_hidden_layers = depth
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:depth]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blank = type(model.module)(config)
    blank = blank.to(model.device, model.dtype).eval()
    return wrap(blank, tokenizer=model.tokenizer, name=f"{model.name}, untrained")
