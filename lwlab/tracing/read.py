"""`cache` and `grads`: read activations, and gradients of a metric with respect to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import xarray as xr

from lwlab.errors import BadInput
from lwlab.models.model import Model, Prompts
from lwlab.models.sites import SITES, Address
from lwlab.results import label
from lwlab.tracing import engine, labels

Metric = Callable[[torch.Tensor], torch.Tensor]


def addresses(model: Model, sites: Iterable[str], layers: list[int]) -> list[Address]:
    """Every address of `sites` at `layers` (logits excepted: they come by themselves)."""
    return [
        Address(s, i if SITES[s].scope == "layer" else None)
        for s in sites
        if s != "logits"
        for i in (layers if SITES[s].scope == "layer" else [0])
    ]


def cache(
    model: Model,
    prompts: Prompts,
    sites: str | Iterable[str],
    layers: Iterable[int] | int | None = None,
    positions: int | Iterable[int] | None = None,
    *,
    max_bytes: float = 4e9,
) -> xr.Dataset:
    """Run the model once and keep the activations of `sites`.

    Returns a Dataset with one variable for each site: (prompt, layer, position, d_model) for
    streams, (prompt, layer, position, head, d_head) for head_out, and so on (`lw.models.SITES`);
    `logits` is (prompt, position, token). Positions are each prompt's own, NaN beyond its end.
    Only the sites named are kept, the run stops after the last of them, and no gradient is
    recorded. `positions` selects queries and keys alike in attn_pattern. Blocks whose streams
    differ in shape give one variable a layer, "resid_post.3", with dimensions of its own.

    Raises UnknownName or MissingSite for a site, BadInput for a layer or position out of range or
    when more than `max_bytes` would be kept: before the run, or, for a model that does not read
    tokens, as soon as the limit is passed.
    """
    wanted = model.anatomy.require(sites)
    chosen = model.anatomy.layers(layers)
    data = engine.batch(model, prompts)
    at = labels.positions_of(data.tokens, positions)
    size = _bytes(model, data, wanted, len(chosen))
    if size > max_bytes:
        raise engine.too_large(size, max_bytes)
    reads = addresses(model, wanted, chosen)
    logits = "all" if "logits" in wanted else None
    trace = engine.run(model, data, reads, logits=logits, max_bytes=max_bytes)
    size = size or sum(v.nbytes for v in trace.values.values())
    return labels.dataset(model, trace, wanted, chosen, at, bytes=size)


def _bytes(model: Model, data: engine.Batch, sites: list[str], n_layers: int) -> int:
    """What the sites of a token batch will take; 0 where only the run can tell."""
    if data.tokens is None:
        return 0
    a, (rows, columns) = model.anatomy, data.tokens.ids.shape
    width = {
        "d_model": a.d_model, "neuron": a.d_mlp, "token": a.d_vocab, "d_head": a.d_head,
        "head": a.n_heads, "kv_head": a.n_kv_heads, "position": columns, "query": columns,
    }  # fmt: skip
    total = 0
    for s in sites:
        cells = n_layers if SITES[s].scope == "layer" else 1
        for d in SITES[s].dims:
            cells *= width[d] or 1
        total += cells * rows * model.dtype.itemsize
    return total


def grads(
    model: Model,
    prompts: Prompts,
    metric: Metric | Any,
    sites: str | Iterable[str],
    layers: Iterable[int] | int | None = None,
    positions: int | Iterable[int] | None = None,
) -> xr.Dataset:
    """Gradients d metric / d site, in one forward and one backward.

    `metric` takes the last-token logits [prompts, tokens] and returns one number for each prompt
    (a task's `metric`, or a function of your own). Each prompt's gradient is of its own number:
    prompts do not mix. Under `lw.rules` the backward pass follows the rules.

    Returns a Dataset with the gradient of each site, its value (`<site>_value`) and `metric`
    (prompt). Raises BadInput when the metric does not give one finite number a prompt or does not
    depend on the logits, when the rules cut a site off, and as `cache` does.
    """
    wanted = model.anatomy.require(sites)
    if "logits" in wanted:
        raise BadInput(
            "ask for gradients at sites inside the model; logits are what the metric reads"
        )
    if "attention" in model.rules and (cut := {"q", "k"} & set(wanted)):
        raise BadInput(
            f"under the attention rule the pattern is a constant: nothing flows to {sorted(cut)}"
        )
    chosen = model.anatomy.layers(layers)
    data = engine.batch(model, prompts)
    at = labels.positions_of(data.tokens, positions)
    reads = addresses(model, wanted, chosen)
    _rehearse(model, metric, data)
    trace, values, slopes = (_slopes_there if model.remote else _slopes_here)(
        model, metric, data, reads
    )
    for read, slope in zip(reads, slopes):
        if slope is None:
            raise BadInput(f"the metric does not depend on {read}, so it has no gradient there")
    gradient = engine.Trace(dict(zip(reads, slopes)), None, data)  # type: ignore[arg-type]
    out = labels.dataset(model, gradient, wanted, chosen, at, values=trace)
    out["metric"] = label(values, ("prompt",)).drop_attrs()
    return out.assign_attrs(rules="+".join(model.rules))


Slopes = tuple[engine.Trace, torch.Tensor, Sequence[torch.Tensor | None]]
_CONSTANT = "the metric does not depend on the logits, so it has no gradient"


def _slopes_here(
    model: Model, metric: Metric | Any, data: engine.Batch, reads: list[Address]
) -> Slopes:
    trace = engine.run(model, data, reads, grad=True)
    with torch.enable_grad():
        values = scores(metric, trace.logits)
        if not values.requires_grad:
            raise BadInput(_CONSTANT)
        kept = [trace.values[r] for r in reads]
        return trace, values, torch.autograd.grad(values.sum(), kept, allow_unused=True)


def _slopes_there(
    model: Model, metric: Metric | Any, data: engine.Batch, reads: list[Address]
) -> Slopes:
    """A server sends no graph back: the metric goes there."""
    trace = engine.run(model, data, reads, grad=True, metric=_function(metric))
    given = trace.scores
    _one_each(given, 0 if trace.logits is None else len(trace.logits))
    assert given is not None
    slopes = [trace.slopes.get(r) for r in reads]
    if all(s is None for s in slopes):
        raise BadInput(_CONSTANT)
    return trace, scores(lambda _logits: given, trace.logits), slopes


def _rehearse(model: Model, metric: Metric | Any, data: engine.Batch) -> None:
    """Find out on empty logits whether the metric has the right shape, before the model runs."""
    if "logits" not in model.anatomy.taps:
        raise BadInput(f"{model.name} has no logits, so a metric of them cannot be taken")
    function = _function(metric)
    if data.tokens is None or model.d_vocab is None:
        return
    empty = torch.zeros(len(data.tokens), model.d_vocab, device=model.device, dtype=model.dtype)
    try:
        with torch.no_grad():
            values = function(empty)
    except Exception:
        return  # it may not like empty logits; the real ones will tell
    _one_each(values, len(empty))


def _function(metric: Metric | Any) -> Metric:
    function: Metric = getattr(metric, "metric", metric)
    if not callable(function):
        raise BadInput(
            "metric must be a function of logits [prompts, tokens], or a task that has one"
        )
    return function


def _one_each(values: Any, n: int) -> None:
    if not isinstance(values, torch.Tensor) or values.shape != (n,):
        shape = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
        raise BadInput(
            f"the metric returned {shape}; it must return one number for each of the {n} prompts, "
            f"as a tensor of shape ({n},)"
        )


def scores(metric: Metric | Any, logits: torch.Tensor | None) -> torch.Tensor:
    """Apply a metric to last-token logits; raise BadInput unless it gives one number a prompt."""
    if logits is None:
        raise BadInput("this model has no logits, so a metric of them cannot be taken")
    values = _function(metric)(logits)
    _one_each(values, len(logits))
    if not bool(torch.isfinite(values).all()):
        raise BadInput("the metric gave NaN or infinity")
    return values
