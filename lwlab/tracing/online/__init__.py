"""Statistics of activations over a corpus, in one pass that never stores an activation.

Keeping them would take layers x d_model x 4 bytes a token (69 kB for one site of smollm2-135m);
these statistics take the same memory for a sentence and for a library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
import xarray as xr

from lwlab.errors import BadInput
from lwlab.models.model import Model, Prompts
from lwlab.models.sites import SITES
from lwlab.models.tokens import Tokens
from lwlab.tracing import engine
from lwlab.tracing.online.labelled import labelled
from lwlab.tracing.online.state import Online, Settings, add, bytes_of
from lwlab.tracing.read import addresses
from lwlab.tracing.rows import own, subset

__all__ = ["Online", "Settings", "corpus_stats", "labelled", "observe"]


def corpus_stats(
    model: Model,
    prompts: Prompts,
    sites: str | Iterable[str] = "neurons",
    layers: Iterable[int] | int | None = None,
    *,
    quantiles: Sequence[float] = (0.01, 0.25, 0.5, 0.75, 0.99),
    quantile_error: float = 0.05,
    top: int = 8,
    context: int = 8,
    front: int = 1,
    batch_tokens: int = 512,
    first: int = 0,
    resume: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    max_bytes: float = 2e9,
) -> xr.Dataset:
    """Mean, spread, quantiles, extremes and top contexts of every unit of `sites` over a corpus.

    One variable a site and statistic, (layer, units of the site): `neurons_mean`, `_std` (of the
    population), `_skew`, `_kurtosis` (excess), `_min`, `_max`; `_quantile` (quantile, layer, ...),
    each within the share `quantile_error` of an exact order statistic (below 1e-4 in size: within
    1e-4); with `top`, the largest activations: `_top` (layer, ..., rank) with their `_top_prompt`,
    `_top_position` and `_top_context` (the token in brackets, `context` tokens before it). Of
    equal values the earlier place in the corpus comes first.

    Positions below `front` of each prompt are left out: position 0 is often an attention sink with
    a massive activation. Prompts are numbered from `first` on. With `resume`, the state is kept in
    that file after every batch, prompts that are in it are not run again, and the result covers all
    that is in it. `observe` gives the state itself, to be merged with other parts of a corpus;
    `progress(done, all)` is called after each batch.

    Raises BadInput for sites without a vector at each position, settings out of range, a
    state of other settings, or when the state would take more than `max_bytes`; LwlabError for NaN
    or infinite activations.
    """
    if any(not 0 <= q <= 1 for q in quantiles):
        raise BadInput(f"quantiles={tuple(quantiles)}; they are shares between 0 and 1")
    state = observe(
        model, prompts, sites, layers, quantile_error=quantile_error, top=top, context=context,
        front=front, batch_tokens=batch_tokens, first=first, resume=resume, progress=progress,
        max_bytes=max_bytes,
    )  # fmt: skip
    return labelled(state, quantiles, model)


def observe(
    model: Model,
    prompts: Prompts,
    sites: str | Iterable[str] = "neurons",
    layers: Iterable[int] | int | None = None,
    *,
    quantile_error: float = 0.05,
    top: int = 8,
    context: int = 8,
    front: int = 1,
    batch_tokens: int = 512,
    first: int = 0,
    resume: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    max_bytes: float = 2e9,
) -> Online:
    """The state behind `corpus_stats`, with its arguments: `.merge`, `.save`, `Online.load`."""
    wanted = model.anatomy.require(sites)
    for site in wanted:
        if SITES[site].dims[0] != "position" or site == "logits":
            raise BadInput(f"site {site!r} has no vector of units at each position")
    if min(top, context, front, first) < 0 or batch_tokens < 1:
        raise BadInput(
            f"top={top}, context={context}, front={front}, first={first}, "
            f"batch_tokens={batch_tokens}: none may be negative, and a batch holds a token"
        )
    chosen = model.anatomy.layers(layers)
    kept = Settings(
        f"{model.name} {model.checksum}", tuple(wanted), tuple(chosen), front,
        quantile_error, top, context,
    )  # fmt: skip
    tokens = model.tokens(prompts)
    own(tokens, front)
    _fits(model, wanted, kept, max_bytes)
    state = Online(kept)
    if resume is not None and Path(resume).exists():
        state = Online.load(resume).merge(state)
        if state.settings != kept:
            raise BadInput(f"{resume} was made with other settings: {state.settings}")
    todo = [i for i in range(len(tokens)) if first + i not in state.prompts]
    reads = addresses(model, wanted, chosen)
    done = len(tokens) - len(todo)
    for rows in _groups(tokens, todo, batch_tokens):
        part = subset(tokens, rows)
        numbers = [first + i for i in rows]
        keep = part.mask.bool() & (part.position_ids >= front)
        if bool(keep.any()):
            trace = engine.run(model, part, reads, logits=None)
            values = {(a.site, a.layer): v for a, v in trace.values.items()}
            add(state, values, keep.cpu(), numbers, part.strings, part.position_ids.cpu())
            del trace, values
        else:
            state.prompts |= set(numbers)
        done += len(rows)
        if resume is not None:
            state.save(resume)
        if progress is not None:
            progress(done, len(tokens))
    state.prune()
    return state


def _fits(model: Model, sites: list[str], kept: Settings, max_bytes: float) -> None:
    """Raise BadInput when the state would be too large."""
    a = model.anatomy
    width = {
        "d_model": a.d_model, "neuron": a.d_mlp, "d_head": a.d_head,
        "head": a.n_heads, "kv_head": a.n_kv_heads,
    }  # fmt: skip
    size = 0
    for site in sites:
        units = len(kept.layers) if SITES[site].scope == "layer" else 1
        for d in SITES[site].dims[1:]:
            units *= width[d] or 1
        size += bytes_of(units, kept)
    if size > max_bytes:
        raise BadInput(
            f"these statistics take {size / 1e9:.3g} GB and max_bytes is {max_bytes / 1e9:.3g} GB; "
            "name fewer sites or layers, a larger quantile_error, or raise max_bytes"
        )


def _groups(tokens: Tokens, rows: list[int], size: int) -> Iterator[list[int]]:
    """Consecutive prompts whose padded batch holds at most `size` tokens, or one prompt."""
    group: list[int] = []
    longest = 0
    lengths = torch.as_tensor(tokens.lengths).tolist()
    for i in rows:
        if group and max(longest, lengths[i]) * (len(group) + 1) > size:
            yield group
            group, longest = [], 0
        group.append(i)
        longest = max(longest, lengths[i])
    if group:
        yield group
