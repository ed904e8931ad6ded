"""One vector a text and layer, the probes trained on them, and what those say of a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import torch
import xarray as xr

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.features.probes import Probe, fit_probe
from lwlab.models.model import Model
from lwlab.models.sites import SITES, Address
from lwlab.results import label, provenance
from lwlab.tasks.concepts import Concept
from lwlab.tracing import engine
from lwlab.tracing.rows import subset

PAPER = "2404.07066"
Token = Literal["last", "mean"]


def states(
    model: Model,
    texts: Sequence[str],
    *,
    site: str = "resid",
    token: Token = "last",
    layers: Iterable[int] | None = None,
    batch_size: int = 32,
) -> xr.DataArray:
    """One vector a text and layer, (layer, prompt, d_model).

    site "resid": the residual stream, layer 0 before the first block, layer l after l blocks. Any
    other site has the model's own layers; "mlp_in" (normalised) is what the paper's code hooks.
    layers: those to keep (all by default); the run stops after the last of them.
    token: the last own token (the paper's), or the mean over a text's own tokens.

    Raises BadInput for no texts, a model without text, or a site that is no vector a position;
    UnknownName or MissingSite for a site that does not exist.
    """
    if not texts:
        raise BadInput("no texts were given")
    if token not in get_args(Token):
        raise UnknownName(f"token={token!r}{suggest(str(token), get_args(Token))}")
    if model.tokenizer is None:
        raise BadInput(f"{model.name} has no tokenizer, and concepts are made of text")
    chosen = layers_of(model, site, layers)
    every = addresses(model, site)
    at = [every[i] for i in chosen]
    tokens = model.tokens(list(texts))
    order = torch.argsort(tokens.lengths, stable=True).tolist()
    parts = []
    for start in range(0, len(order), batch_size):
        part = subset(tokens, order[start : start + batch_size])
        trace = engine.run(model, part, at, logits=None)
        rows = torch.arange(len(part), device=part.ids.device)
        if token == "last":
            kept = [trace.values[a][rows, part.columns(-1)] for a in at]
        else:
            share = (part.mask / part.mask.sum(1, keepdim=True)).to(model.dtype)
            kept = [torch.einsum("npd,np->nd", trace.values[a], share) for a in at]
        parts.append(torch.stack(kept).float().cpu())
    back = torch.argsort(torch.tensor(order))
    return label(
        torch.cat(parts, 1)[:, back], ("layer", "prompt", "d_model"), {"layer": chosen},
        **provenance(model, site=site, token=token, n=len(texts)),
    )  # fmt: skip


def layers_of(model: Model, site: str, wanted: Iterable[int] | None) -> list[int]:
    """The layers of `site` that are wanted (None: all); BadInput for one it does not have."""
    there = range(len(addresses(model, site)))
    chosen = list(there) if wanted is None else [int(i) for i in wanted]
    if not chosen or not set(chosen) <= set(there):
        raise BadInput(f"layers {chosen}: choose among {there[0]}..{there[-1]} of {site!r}")
    return chosen


def addresses(model: Model, site: str) -> list[Address]:
    """What to read for `site`, one address a layer ("resid": before the first block and after all).

    Raises as `states` does.
    """
    if site == "resid":
        model.anatomy.require(["resid_pre", "resid_post"])
        after = [Address("resid_post", i) for i in range(model.n_layers)]
        return [Address("resid_pre", 0), *after]
    (name,) = model.anatomy.require([site])
    if SITES[name].dims != ("position", "d_model") or SITES[name].scope != "layer":
        raise BadInput(
            f"site {site!r} is no vector of d_model numbers at each position of each layer; take "
            "'resid' (the stream before and after every block), 'mlp_in' or the like"
        )
    return [Address(name, i) for i in model.anatomy.layers(None)]


def matching(vectors: xr.DataArray, concept: Concept) -> xr.DataArray:
    """Return `vectors`; raise BadInput unless they are (layer, prompt, d_model), one a text."""
    if vectors.dims != ("layer", "prompt", "d_model") or vectors.sizes["prompt"] != len(concept):
        raise BadInput(
            f"vectors {dict(vectors.sizes)} for {len(concept)} texts of {concept.name}: give those "
            "of states(model, concept.texts)"
        )
    return vectors


def train(
    model: Model,
    concept: Concept,
    *,
    site: str = "resid",
    token: Token = "last",
    c: float = 0.05,
    vectors: xr.DataArray | None = None,
) -> Probe:
    """Fit the probes of all layers on all texts of a concept, to judge texts it does not have."""
    if vectors is None:
        x = states(model, concept.texts, site=site, token=token)
    else:
        x = matching(vectors, concept)
    return fit_probe(torch.as_tensor(x.values), binary(concept), c)


def verdicts(
    model: Model,
    probes: Mapping[str, Probe],
    texts: Sequence[str],
    *,
    site: str = "resid",
    token: Token = "last",
) -> xr.DataArray:
    """What trained probes say of texts: (concept, layer, prompt), probabilities of class 1.

    `site` and `token` must be those the probes were trained with, and the texts should end as the
    training texts do: a probe trained at full stops means nothing at another token.
    Raises BadInput for no probes and as `states` does.
    """
    if not probes:
        raise BadInput("no probes were given: train(model, concept) makes them")
    found = states(model, texts, site=site, token=token)
    x = torch.as_tensor(found.values)
    return label(
        torch.stack([p.probability(x) for p in probes.values()]).float(),
        ("concept", "layer", "prompt"),
        {"concept": list(probes), "layer": found.layer.values, "text": ("prompt", list(texts))},
        name="probability",
        **provenance(model, technique="concept depth", paper=PAPER, site=site, token=token),
    )


def binary(concept: Concept) -> list[int]:
    """Return the labels; raise BadInput for a concept of more than two classes."""
    if len(concept.classes) != 2:
        raise BadInput(
            f"{concept.name} has {len(concept.classes)} classes and a probe tells two apart; take "
            f"one against the rest: concept.against({concept.classes[0]!r})"
        )
    return list(concept.labels)
