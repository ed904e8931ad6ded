"""Concept depth: from which layer on can a linear probe read a concept?

Jin, Yu, Huang, Zeng, Wang, Hua, Zhao, Mei, Meng, Ding, Yang, Du and Zhang 2024, "Exploring Concept
Depth: How Large Language Models Acquire Knowledge and Concept at Different Layers?"
(arXiv:2404.07066). For every layer a logistic regression on the last token's vector, as in the
paper; unlike there, with whole groups of texts held out (`lwlab.tasks.concepts`), an L2 penalty
that fits a few dozen texts, intervals, and controls. The sets are made here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.features.concept_depth_points import accuracy, estimate, points
from lwlab.features.concept_depth_states import (
    PAPER,
    Token,
    binary,
    layers_of,
    matching,
    states,
    train,
    verdicts,
)
from lwlab.features.probes import folds_of, held_out, shuffled
from lwlab.models.model import Model
from lwlab.quantization import fake_quantized
from lwlab.results import label, provenance
from lwlab.stats import auc
from lwlab.tasks.concepts import Concept

__all__ = [
    "accuracy", "bag_of_words", "estimate", "points", "probe_layers", "rounded", "states", "study",
    "train", "verdicts",
]  # fmt: skip


def bag_of_words(concept: Concept, *, folds: int = 5, c: float = 0.05, seed: int = 0) -> float:
    """Share of held-out texts that a linear bag of words gets right (the same probe; ties half)."""
    found = [re.findall(r"\w+", t.lower()) for t in concept.texts]
    words = sorted({w for row in found for w in row})
    counts = torch.tensor([[row.count(w) for w in words] for row in found]).double()
    fold = folds_of(binary(concept), concept.groups, folds, seed)
    score = held_out(counts[None], concept.labels, fold, c)
    return float(_right(score, concept.labels).mean())


def probe_layers(
    model: Model,
    concept: Concept,
    *,
    site: str = "resid",
    token: Token = "last",
    folds: int = 5,
    c: float = 0.05,
    draws: int = 0,
    control_layers: Iterable[int] | None = None,
    seed: int = 0,
    batch_size: int = 32,
    vectors: xr.DataArray | None = None,
) -> xr.Dataset:
    """Probe every layer for a concept, each text judged by a probe that never saw its group.

    `score` (layer, prompt): log odds of class 1; `correct`: 1 where its sign is right, 1/2 at 0;
    `auc` (layer). With `draws`, `control` (draw, layer): the accuracy of the same probes on
    labels exchanged among the texts of a fold, at `control_layers` (all by default; NaN at others);
    accuracy less control is the probe's selectivity (after Hewitt and Liang, arXiv:1909.03368).
    Coordinates: `group`, `label`, `text`. c and the objective: `fit_probe`. `vectors` are those of
    `states`, where they are at hand: the model does not run.

    Raises BadInput for more than two classes, too few groups, folds with one class, and as
    `states` does.
    """
    y = binary(concept)
    fold = folds_of(y, concept.groups, folds, seed)
    if draws < 0:
        raise BadInput(f"draws={draws}: 0 or more control labellings")
    at = layers_of(model, site, control_layers)
    if vectors is None:
        found = states(model, concept.texts, site=site, token=token, batch_size=batch_size)
    else:
        found = matching(vectors, concept)
    x = torch.as_tensor(found.values)
    score = held_out(x, y, fold, c)
    layers = found.layer.values
    coords = {
        "layer": layers, "group": ("prompt", list(concept.groups)), "label": ("prompt", y),
        "text": ("prompt", list(concept.texts)),
    }  # fmt: skip
    out = {
        "score": label(score, ("layer", "prompt"), coords, long_name="log odds of class 1"),
        "correct": label(_right(score, y), ("layer", "prompt"), coords, long_name="correct"),
        "auc": label(auc(score, y), ("layer",), {"layer": layers}, long_name="ROC AUC"),
    }
    if draws:
        labels = shuffled(y, fold, draws, seed)
        wrong = held_out(x[at], labels, fold, c)
        control = np.full((draws, len(layers)), np.nan)
        control[:, at] = _right(wrong, labels[:, None]).mean(-1)
        out["control"] = label(
            control, ("draw", "layer"), {"layer": layers}, long_name="accuracy, shuffled labels"
        )
    arrays = {k: v.assign_attrs(long_name=v.attrs["long_name"]) for k, v in out.items()}
    return xr.Dataset(arrays, attrs=provenance(
        model, concept, technique="concept depth", paper=PAPER, site=site, token=token, folds=folds,
        c=c, seed=seed,
    ))  # fmt: skip


def study(
    model: Model,
    concepts: Sequence[Concept],
    variants: Sequence[str] = ("plain",),
    *,
    draws: int = 0,
    vectors: Mapping[str, xr.DataArray] | None = None,
    **options: Any,
) -> xr.Dataset:
    """Probe several concepts under several conditions.

    variants: "plain"; "noise" (a meaningless string before every text, `Concept.noisy`); "8-bit"
    (all matrices of the blocks rounded to 8 bits a weight and back, one scale a row; 1 to 8 bits);
    joined by "+": "noise+4-bit". Other options as in `probe_layers`; controls are drawn for the
    first variant; `vectors` by name of concept serve the variant "plain".

    Returns `correct` and `auc` (variant, concept, layer[, prompt]), `control` (concept, draw,
    layer), `words` (concept), what a bag of words gets, and the coordinate `group` (concept,
    prompt); concepts with fewer texts are filled with NaN, group -1. `accuracy` and `points` read
    it. Raises BadInput for no or equal concepts or variants and as `probe_layers` does, for all of
    them before the model runs; UnknownName for another variant.
    """
    names = [k.name for k in concepts]
    for what, given in (("concepts", names), ("variants", list(variants))):
        if not given or len(set(given)) < len(given):
            raise BadInput(f"{what}={given}: name each once, and at least one")
    parsed = [_variant(v) for v in variants]
    folds, seed = options.get("folds", 5), options.get("seed", 0)
    layers_of(model, options.get("site", "resid"), options.get("control_layers"))
    for k in concepts:
        folds_of(binary(k), k.groups, folds, seed)
    grid: list[list[xr.Dataset]] = []
    for noise, bits in parsed:
        ready = dict(vectors or {}) if not noise and bits is None else {}
        with rounded(model, bits) as net:
            row = []
            for k in concepts:
                text, own = k.noisy(seed) if noise else k, ready.get(k.name)
                row.append(
                    probe_layers(net, text, draws=0 if grid else draws, vectors=own, **options)
                )
            grid.append(row)
    most = max(map(len, concepts))
    whole = [xr.concat([_fill(d[["correct", "auc"]], most) for d in row], "concept",
                       combine_attrs="drop_conflicts") for row in grid]  # fmt: skip
    out = xr.concat(whole, "variant", combine_attrs="drop_conflicts")
    out = out.assign_coords(
        concept=names, variant=list(variants), kind=("concept", [k.kind for k in concepts]),
        group=(("concept", "prompt"), [[*k.groups, *[-1] * (most - len(k))] for k in concepts]),
    )  # fmt: skip
    if draws:
        out["control"] = xr.concat([d["control"] for d in grid[0]], "concept").drop_attrs()
    c = options.get("c", 0.05)
    words = [bag_of_words(k, folds=folds, c=c, seed=seed) for k in concepts]
    out["words"] = ("concept", words)
    attrs = provenance(
        model, "+".join(names), n=[len(k) for k in concepts], **{k: grid[0][0].attrs[k] for k in
        ("technique", "paper", "site", "token", "folds", "c", "seed")},
    )  # fmt: skip
    return out.drop_attrs(deep=False).assign_attrs(attrs)


def _fill(found: xr.Dataset, most: int) -> xr.Dataset:
    short = most - found.sizes["prompt"]
    return found.drop_vars(["group", "label", "text"]).pad(prompt=(0, short))


def _variant(name: str) -> tuple[bool, int | None]:
    noise, bits = False, None
    for part in name.split("+"):
        if part == "noise":
            noise = True
        elif found := re.fullmatch(r"([1-8])-bit", part):
            bits = int(found[1])
        elif part != "plain":
            raise UnknownName(f"no variant {name!r}{suggest(part, ['plain', 'noise', '8-bit'])}")
    return noise, bits


@contextlib.contextmanager
def rounded(model: Model, bits: int | None) -> Iterator[Model]:
    """Within the block, the model with weights rounded to `bits` (None: as they are)."""
    if bits is None:
        yield model
        return
    with fake_quantized(model, bits, group=None, spill=True) as q:
        yield q.model


def _right(score: torch.Tensor, labels: Any) -> Any:
    """1 where the sign is that of the label, 1/2 where the score is 0."""
    sign = 2 * np.asarray(labels) - 1
    return 0.5 * (np.sign(score.numpy() * sign) + 1)
