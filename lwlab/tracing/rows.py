"""Token positions as rows of features: what similarity between layers is measured on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from lwlab.errors import BadInput
from lwlab.models.model import Model, Prompts
from lwlab.models.sites import SITES, Address
from lwlab.models.tokens import Tokens
from lwlab.tracing import engine


def features_of(
    model: Model, prompts: Prompts, site: str, layers: Sequence[int], front: int
) -> torch.Tensor:
    """One site at `layers` as rows, [layers, rows, d]: every own position from `front` on.

    Heads are joined: head_out gives d = heads * d_head. Raises BadInput when no position is left,
    or for a site that has no vector at each position of each layer.
    """
    _require(model, site, front)
    data = engine.batch(model, prompts)
    at = [Address(site, i) for i in layers]
    trace = engine.run(model, data, at, logits=None)
    if data.tokens is None:
        raise BadInput("similarity over positions needs prompts made of tokens")
    keep = own(data.tokens, front)
    return torch.stack([trace.values[a].flatten(2)[keep.to(trace.values[a].device)] for a in at])


def feature_batches(
    model: Model, prompts: Prompts, site: str, layers: Sequence[int], front: int, size: int
) -> Iterator[torch.Tensor]:
    """Yield [layers, size, d] until the prompts are used up; the last may be shorter (4 or more).

    Prompts are read one group at a time, so memory does not grow with the corpus.
    """
    tokens = model.tokens(prompts)
    left: torch.Tensor | None = None
    for start in range(0, len(tokens), 4):
        part = subset(tokens, range(start, min(start + 4, len(tokens))))
        if not bool((part.lengths > front).any()):
            continue
        x = features_of(model, part, site, layers, front)
        left = x if left is None else torch.cat([left, x], 1)
        while left.shape[1] >= size:
            yield left[:, :size]
            left = left[:, size:]
    if left is not None and left.shape[1] >= 4:
        yield left


def own(tokens: Tokens, front: int) -> torch.Tensor:
    """Which columns are own tokens at a position of `front` or later, bool [prompts, columns]."""
    keep = tokens.mask.bool() & (tokens.position_ids >= front)
    if not bool(keep.any()):
        longest = int(tokens.lengths.max())
        raise BadInput(f"front={front} leaves no position: the longest prompt has {longest} tokens")
    return keep


def subset(tokens: Tokens, rows: Sequence[int]) -> Tokens:
    """Some prompts of a batch, without the columns that are padding for all of them."""
    at = list(rows)
    mask = tokens.mask[at]
    used = mask.any(0)
    return Tokens(
        tokens.ids[at][:, used], mask[:, used],
        tuple(tokens.strings[i] for i in at), tuple(tokens.texts[i] for i in at),
    )  # fmt: skip


def _require(model: Model, site: str, front: int) -> None:
    model.anatomy.require([site])
    spec = SITES[site]
    if spec.scope != "layer" or spec.dims[0] != "position":
        raise BadInput(f"site {site!r} has no vector at each position of each layer")
    if front < 0:
        raise BadInput(f"front={front}; positions are counted from 0")
