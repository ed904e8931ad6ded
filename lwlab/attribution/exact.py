"""Exact activation patching: put one clean activation into the corrupt run and see what it changes.

The ground truth that first-order methods are judged by, one intervention for each component, layer
and position. Heimersheim & Nanda 2024 (arXiv:2404.15255) tell how to read it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import xarray as xr

from lwlab.attribution.answers import Reader
from lwlab.attribution.pairs import COMPONENTS, Pair, Values
from lwlab.attribution.prefix import extend, inputs, select
from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.models.sites import Address
from lwlab.tasks.base import Task
from lwlab.tracing.edits import Edit


def scores(
    model: Model,
    task: Task | Pair,
    components: str | Iterable[str] = COMPONENTS,
    layers: Iterable[int] | int | None = None,
    *,
    normalise: bool = True,
    max_tokens: int = 1536,
) -> xr.DataArray:
    """Effect of each clean activation in the corrupt run.

    AP(c, l, p) = m(x' with a'(c, l, p) <- a(c, l, p)) - m(x'), with m the task's metric; divided
    by mean m(x) - mean m(x') if `normalise`, so that 1 means that the clean answer is restored.

    Returns (component, prompt, layer, position). Positions before the first token in which any
    prompt differs from its twin are exactly zero: in a causal model both runs are equal there.

    One forward pass carries all layers: copies of the batch join it at the layer they are patched
    at, so nothing below is computed twice, and only tokens from p on are run. `max_tokens` bounds
    the tokens in one pass, and with it the memory (about 50 kB a token for a model of width 576).

    Raises BadInput, UnknownName or MissingSite before the run: components or layers that the model
    lacks, an unfit task (see `Pair.of`), a zero effect to normalise by.
    """
    if max_tokens < 1:
        raise BadInput(f"max_tokens={max_tokens}; at least one token must be run at a time")
    pair = Pair.of(model, task)
    sites, chosen = pair.sites(components), pair.layers(layers)
    clean, corrupt = pair.read(Address(s, i) for s in {*sites, "resid_pre"} for i in chosen)
    per_pass = max(1, max_tokens // (len(sites) * (pair.width - pair.begin)))
    size = min(per_pass, len(chosen))
    groups = [chosen[i : i + size] for i in range(0, len(chosen), size)]
    parts = []
    for rows in pair.chunks(max(1, per_pass // size)):
        here = {a: v[rows] for a, v in clean.items()}, {a: v[rows] for a, v in corrupt.items()}
        parts.append(_sweep(pair, sites, groups, rows, *here))
    out = torch.cat(parts, 1) - pair.metrics()[1][:, None, None]
    # Putting back what is there already does nothing; rounding must not say otherwise.
    out[_equal(clean, corrupt, sites, chosen)] = 0
    return pair.label(
        out, sites, chosen, normalise=normalise, technique="activation patching",
        paper="2404.15255",
    )  # fmt: skip


def _equal(clean: Values, corrupt: Values, sites: list[str], layers: list[int]) -> torch.Tensor:
    """Where both runs have the same activation: [component, prompt, layer, position]."""
    same = [
        torch.stack([(clean[a] == corrupt[a]).flatten(2).all(2) for a in at], 1)
        for at in ([Address(s, i) for i in layers] for s in sites)
    ]
    return torch.stack(same)


def _sweep(
    pair: Pair,
    sites: list[str],
    groups: list[list[int]],
    rows: torch.Tensor,
    clean: Values,
    corrupt: Values,
) -> torch.Tensor:
    """Metrics [component, prompt, layer, position from `begin`] of the patched prompts `rows`."""
    model, ids, reader = pair.model, pair.corrupt.ids, Reader(pair)
    cached = "past_key_values" in model.forward_names
    cache = None if pair.prefix is None else select(pair.prefix, [rows] * model.n_layers)
    columns = []
    for p in range(pair.begin, pair.width):
        start = p if cached else pair.begin
        parts = []
        for layers in groups:
            own = None
            if cache is not None:
                own = select(
                    cache, _joined(model.n_layers, layers, len(sites) * len(rows), len(rows))
                )
            data = inputs(model, pair.corrupt, rows[:1], start, own)
            edits: list[Edit] = []
            for k, layer in enumerate(layers):
                stream = corrupt[Address("resid_pre", layer)][:, start - pair.begin :]
                edits.append(Join(Address("resid_pre", layer), stream, len(sites), first=k == 0))
                for j, site in enumerate(sites):
                    at = Address(site, layer)
                    new = clean[at][:, p - pair.begin]
                    first = len(rows) * (k * len(sites) + j)
                    edits.append(Put(at, new, first, p - start, pair.width - start))
            metric = reader.run(data, edits, rows.repeat(len(layers) * len(sites)))
            parts.append(metric.reshape(len(layers), len(sites), len(rows)))
        columns.append(torch.cat(parts))
        if cached and p < pair.width - 1:
            cache = extend(model, cache, ids[rows, p : p + 1])
    return torch.stack(columns, 3).permute(1, 2, 0, 3)


def _joined(n_layers: int, layers: list[int], new: int, prompts: int) -> list[torch.Tensor]:
    """For each layer, which prompt's keys and values each row of the growing batch needs."""
    counts = [sum(i <= layer for i in layers) * new for layer in range(n_layers)]
    return [torch.arange(max(c, 1)) % prompts for c in counts]


class Join(Edit):
    """`copies` of a stream [prompts, positions, d_model] join the batch; the `first` replace it."""

    def __init__(self, at: Address, stream: torch.Tensor, copies: int, first: bool) -> None:
        super().__init__(at, stream)
        self.stream, self.copies, self.first = stream, copies, first

    def __call__(self, site: torch.Tensor) -> torch.Tensor:
        """Return the larger batch."""
        self.fired += 1
        new = self.stream.repeat(self.copies, 1, 1)
        return new if self.first else torch.cat([site, new])


class Put(Edit):
    """Values [prompts, ...] go into one column of as many rows of the batch, from `first` on."""

    def __init__(
        self, at: Address, value: torch.Tensor, first: int, column: int, width: int
    ) -> None:
        super().__init__(at, value)
        self.new, self.first, self.column, self.width = value, first, column, width

    def __call__(self, site: torch.Tensor) -> torch.Tensor:
        """Return a copy of the site with the values in place."""
        self.fired += 1
        out = site.clone()
        # OPT hands its MLP [rows * positions, features]
        view = out if out.ndim > 2 else out.view(-1, self.width, out.shape[-1])
        view[self.first : self.first + len(self.new), self.column] = self.new
        return out
