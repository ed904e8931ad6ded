"""DynamicLRP: relevance of any model's inputs, one rule an operation, no model-specific code.

"Always Keep Your Promises: A Model-Agnostic Solution To Layer-Wise Relevance Propagation", 2025
(arXiv:2512.07010). The engine is `lwlab.attribution.oplrp`: it walks the autograd graph of one
forward pass. Here it is asked of models, tasks and pictures. LRP is claimed as patented technology
by one of its groups, which grants free use for personal and scientific purposes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import xarray as xr
from torch import Tensor

from lwlab.attribution.dynamiclrp_ask import Asked, Start, Target, ask, similarity
from lwlab.attribution.dynamiclrp_curves import baseline, curves
from lwlab.attribution.oplrp import (
    OPS,
    SETS,
    Graph,
    Relevance,
    Rules,
    propagate,
    recording,
    rules_of,
    uncovered,
)
from lwlab.attribution.oplrp.walk import Unknown
from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.models.model import Model, Prompts
from lwlab.models.sample import sample
from lwlab.models.sites import SITES, Address
from lwlab.results import label, provenance
from lwlab.tasks.base import Task
from lwlab.tracing import engine, labels

PAPER = "2512.07010"


def scores(
    model: Model,
    prompts: Prompts | Task,
    target: Target = None,
    *,
    rules: str | Rules = "paper",
    site: str = "input",
    layers: Sequence[int] | int | None = None,
    start: Start = "one",
    contrast: bool = False,
    unknown: Unknown = "error",
    batch_size: int = 16,
) -> xr.DataArray:
    """Relevance of every token (or pixel) for what the model answered, in one forward and one walk.

    R_start = 1 at the logit asked for, 0 elsewhere (`start="value"`: the logit itself); every
    operation of the autograd graph hands what it received to its operands by its rule (`Rules`);
    R(token) is the sum over d_model of what comes to its embedding, R(pixel) the sum over channels.

    target: None asks for a task's answers (`contrast`: minus its foils), else for the top logit;
    an id (or one for each prompt); or a function of the logits [n, ids] (of the last stream
    [n, positions, d_model] where there are no logits) to one number a prompt. rules: the name of a
    set ("paper", "gamma", "attnlrp", "relp", "relp+attention", "gradient") or a `Rules`. site:
    "input", or a stream such as "resid_pre", at `layers`. unknown: as in `oplrp.propagate`.

    Returns (prompt, position), (prompt, layer, position), or (prompt, height, width). Attributes
    `nodes`, `promises` (operands rebuilt), `gap` (|sum R + what constants took - R_start| /
    |R_start|, the worst batch), `constants` and `lost` (shares of R_start that went to constants,
    such as biases, and that rules dropped).

    Raises before the run UnknownName for rules or a site that do not exist and MissingSite for one
    that this model lacks, BadInput for a target that is not one number a prompt; after it BadInput
    for operations without a rule, unless `unknown` says what to do with them.
    """
    rules_of(rules)
    if start not in ("one", "value"):
        raise UnknownName(f"start={start!r}{suggest(str(start), ['one', 'value'])}")
    at = _addresses(model, site, layers)
    parts, walks = [], []
    for some, wanted in _chunks(prompts, target, batch_size):
        asked = ask(model, some, wanted, [a for a in at if a is not None], contrast=contrast)
        inputs = [asked.reads[a] for a in at]
        walk = propagate(
            asked.output, inputs, start=asked.start(start), rules=rules, unknown=unknown
        )
        walks.append(walk)
        parts.append(_labelled(model, asked, at, walk.inputs))
    out = xr.concat(parts, "prompt", join="outer", combine_attrs="override")
    return out.assign_attrs(
        provenance(model, prompts if isinstance(prompts, Task) else None, technique="DynamicLRP",
                   paper=PAPER),
        rules=str(rules_of(rules)) if isinstance(rules, Rules) else rules, site=site,
        long_name="relevance", units="1" if start == "one" else "logit", **_said(walks),
    )  # fmt: skip


def _said(walks: Sequence[Relevance]) -> dict[str, Any]:
    total = sum(abs(w.start) for w in walks) or 1.0
    return {
        "nodes": max(len(w.graph.nodes) for w in walks),
        "promises": max(len(w.promises) for w in walks),
        "gap": max(w.gap for w in walks),
        "constants": sum(sum(w.constants.values()) for w in walks) / total,
        "lost": sum(sum(w.lost.values()) for w in walks) / total,
    }


def coverage(
    model: Model, prompts: Prompts | Task | None = None, rules: str | Rules = "paper"
) -> xr.Dataset:
    """Count the operations of one forward pass, and which of them have a rule.

    Without `prompts` a short sample of the model's kind is run. Returns `nodes` (operation), with
    coordinates `kind` (the rule's kind, "" where there is none) and `covered`; attributes `total`
    and `share`, the fraction of nodes that are covered. Raises BadInput where the model needs an
    example of its input.
    """
    given = sample(model) if prompts is None else prompts
    if given is None:
        raise BadInput(f"{model.name}: say what it reads, coverage(model, prompts)")
    bare = "logits" not in model.anatomy.taps
    asked = ask(model, given, (lambda h: h.flatten(1).sum(1)) if bare else None)
    graph, chosen = Graph(asked.output), rules_of(rules)
    counts, blind = graph.counts(), uncovered(Graph(asked.output), chosen)
    names = [k for k, _ in counts.most_common()]
    kinds = [OPS[k].kind if k in OPS else "custom" if k in chosen.custom else "" for k in names]
    total = sum(counts.values())
    nodes = label(
        [counts[k] for k in names], "operation",
        {"operation": names, "kind": ("operation", kinds),
         "covered": ("operation", [k not in blind for k in names])},
    )  # fmt: skip
    return xr.Dataset({"nodes": nodes.drop_attrs()}, attrs=provenance(
        model, technique="DynamicLRP", paper=PAPER, total=total,
        share=1 - sum(blind.values()) / total,
    ))  # fmt: skip


def conservation(
    model: Model, prompts: Prompts | Task, target: Target = None, *, rules: str | Rules = "paper"
) -> xr.Dataset:
    """Add up the relevance in the stream that enters each block.

    Returns `relevance` (layer), sum over prompts and everything else of R at resid_pre, as a share
    of R_start; `error` (operation), the largest |R_in - R_out| at a node of that kind, relative to
    the absolute relevance it handles; attributes `constants` (share of R_start taken by operands
    that no input reaches), `gap`, and `parallel`, what the weights would get, in units of R_start,
    if their share were given beside the inputs' and not out of it. Where no rule drops any and
    there are no biases, `relevance` is 1 at every layer.
    """
    at = [Address("resid_pre", i) for i in range(model.n_layers)]
    asked = ask(model, prompts, target, at)
    walk = propagate(
        asked.output, [asked.reads[a] for a in at], start=asked.start("one"), rules=rules
    )
    sums = [float(r.double().sum()) / walk.start for r in walk.inputs]
    kinds = sorted(walk.error)
    return xr.Dataset(
        {
            "relevance": label(sums, "layer", {"layer": list(range(model.n_layers))}).drop_attrs(),
            "error": label(
                [walk.error[k] for k in kinds], "operation", {"operation": kinds}
            ).drop_attrs(),
        },
        attrs=provenance(
            model, prompts if isinstance(prompts, Task) else None, technique="DynamicLRP",
            paper=PAPER, rules=str(rules), parallel=walk.parallel / walk.start,
            **_said([walk]),
        ),
    )  # fmt: skip


def _addresses(model: Model, site: str, layers: Sequence[int] | int | None) -> list[Address | None]:
    if site == "input":
        if model.kind in ("vision", "generic") and "embed" not in model.anatomy.taps:
            return [None]
        site = "embed"
    model.anatomy.require(site)
    if SITES[site].scope == "model":
        return [Address(site)]
    return [Address(site, i) for i in model.anatomy.layers(layers)]


def _chunks(
    prompts: Prompts | Task, target: Target, size: int
) -> Iterator[tuple[Prompts | Task, Target]]:
    if size < 1:
        raise BadInput(f"batch_size={size}: it is the number of prompts run together, 1 or more")
    if callable(target) or not isinstance(prompts, Task | list | tuple | Tensor):
        yield prompts, target
        return
    every: Any = prompts
    if isinstance(every, Tensor) and every.ndim < 2:
        yield prompts, target  # refused, with the reason, by whoever reads it
        return
    for i in range(0, max(len(every), 1), size):
        rows = slice(i, i + size)
        some = every.subset(rows) if isinstance(every, Task) else every[rows]
        whole: Any = target
        shared = whole is None or isinstance(whole, int | float) or len(whole) == 1
        yield some, whole if shared else whole[rows]


def _labelled(
    model: Model, asked: Asked, at: Sequence[Address | None], found: Sequence[Tensor]
) -> xr.DataArray:
    """Name the axes and add up d_model or channels."""
    if at[0] is None:
        dims = ("prompt", *labels.loose_dims(found[0].ndim))
        out = label(found[0], dims)
    else:
        values = {a: r for a, r in zip(at, found) if a is not None}
        layers = [a.layer for a in values if a.layer is not None]
        trace = engine.Trace(values, None, asked.data)
        made = labels.dataset(model, trace, [at[0].site], layers, None)
        if at[0].site not in made:
            raise BadInput("streams of different shapes: ask for one layer, or use conservation()")
        out = made[at[0].site]
    inner = [d for d in ("d_model", "channel", "head", "d_head", "neuron") if d in out.dims]
    return out.sum(inner, skipna=False) if inner else out


__all__ = [
    "PAPER", "SETS", "Asked", "Rules", "ask", "baseline", "conservation", "coverage", "curves",
    "propagate", "recording", "scores", "similarity",
]  # fmt: skip
