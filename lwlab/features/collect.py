"""Activations as a table: one row for each token in its context, one column for each neuron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from lwlab.errors import BadInput
from lwlab.features.concept_words import Concepts
from lwlab.models.sites import SITES, Address
from lwlab.models.tokens import Tokens
from lwlab.results import label, provenance
from lwlab.tracing import engine
from lwlab.tracing.rows import own, subset

if TYPE_CHECKING:
    from lwlab.models import Model


def collect(
    model: Model,
    source: Concepts | Sequence[str] | str,
    layer: int,
    site: str = "neurons",
    *,
    front: int = 1,
    batch_size: int = 32,
) -> xr.DataArray:
    """Read one site at one layer as rows (sample, neuron), or (sample, d_model) of a stream.

    `source`: concept sentences, of which the word's last token is one row each; or texts, of which
    every own token from position `front` on is a row (position 0 is left out by default: where it
    is an attention sink its norm would make a feature of its own). The pass stops after the site.

    Coordinates along sample: `prompt`, `position`, `token_str`, `context` (the text so far, its
    end); for concepts also `word`, `concept`, `held_out`. Raises MissingSite for a model without
    that site (no MLP neurons), BadInput for a layer out of range, a site with heads, or texts of
    which nothing is left.
    """
    options: dict[str, int] = {"front": front, "batch_size": batch_size}
    return next(iter(collect_layers(model, source, [layer], site, **options).values()))


def collect_layers(
    model: Model,
    source: Concepts | Sequence[str] | str,
    layers: Sequence[int] | None = None,
    site: str = "neurons",
    *,
    front: int = 1,
    batch_size: int = 32,
) -> dict[int, xr.DataArray]:
    """Read one site at several layers in one pass: layer -> what `collect` returns."""
    model.anatomy.require([site])
    spec = SITES[site]
    if spec.scope != "layer" or spec.dims[0] != "position" or len(spec.dims) != 2:
        raise BadInput(f"site {site!r} has no vector at each position; take 'neurons' or 'mlp_out'")
    at = [Address(site, i) for i in model.anatomy.layers(layers)]
    tokens = model.tokens(list(source.texts) if isinstance(source, Concepts) else source)
    keep = _chosen(tokens, source.positions) if isinstance(source, Concepts) else own(tokens, front)
    parts: dict[Address, list[torch.Tensor]] = {a: [] for a in at}
    order: list[tuple[int, int]] = []
    # Prompts of like length together, so that little is spent on padding.
    by_length = torch.argsort(tokens.lengths, stable=True).tolist()
    for start in range(0, len(by_length), batch_size):
        rows = by_length[start : start + batch_size]
        some = subset(tokens, rows)
        trace = engine.run(model, some, at, logits=None)
        mask = keep[rows][:, tokens.mask[rows].any(0)]
        for a, v in trace.values.items():
            parts[a].append(v[mask.to(v.device)].float().cpu())
        where = mask.nonzero()
        shift = some.offsets[where[:, 0]]
        order += [(rows[int(i)], int(c) - int(s)) for (i, c), s in zip(where, shift)]
    place = sorted(range(len(order)), key=order.__getitem__)
    order = [order[i] for i in place]
    coords: dict[str, Any] = {
        "prompt": ("sample", np.array([p for p, _ in order])),
        "position": ("sample", np.array([i for _, i in order])),
        "token_str": ("sample", np.array([tokens.strings[p][i] for p, i in order])),
        "context": ("sample", np.array([_context(model, tokens, p, i) for p, i in order])),
    }
    if isinstance(source, Concepts):
        coords |= {
            "word": ("sample", np.array(source.words)),
            "concept": ("sample", np.array(source.names)[source.labels]),
            "held_out": ("sample", source.held_out),
        }
    out = {}
    for a in at:
        about = provenance(model, layer=a.layer, site=site)
        about |= {"seed": source.seed} if isinstance(source, Concepts) else {}
        x = torch.cat(parts[a])[place]
        assert a.layer is not None
        out[a.layer] = label(x, ("sample", spec.dims[1]), coords, name=site, **about)
    return out


def _chosen(tokens: Tokens, positions: np.ndarray[Any, Any]) -> torch.Tensor:
    columns = tokens.columns(torch.as_tensor(positions))
    keep = torch.zeros_like(tokens.mask, dtype=torch.bool)
    keep[torch.arange(len(tokens)), columns] = True
    return keep


def _context(model: Model, tokens: Tokens, prompt: int, at: int, before: int = 12) -> str:
    """The text up to a token, its last `before` tokens."""
    start = max(0, at - before)
    first = int(tokens.offsets[prompt])
    ids = tokens.ids[prompt, first + start : first + at + 1].tolist()
    if model.tokenizer is None:
        return " ".join(str(i) for i in ids)
    text = str(model.tokenizer.decode(ids, skip_special_tokens=True))
    return ("…" if start else "") + text.strip()
