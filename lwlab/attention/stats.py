"""Statistics of every attention head, without a pattern of queries by keys."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

import torch
import xarray as xr

from lwlab.attention.tap import Heard, listening
from lwlab.errors import BadInput, NoFiring
from lwlab.models.model import Model, Prompts
from lwlab.models.tokens import Tokens
from lwlab.results import label, provenance
from lwlab.tracing import engine, labels, lock

if TYPE_CHECKING:
    from lwlab_kernels.attention import AttnStats, Mask

_ABOUT = {
    "entropy": ("entropy of where a query looks", "nats"),
    "sink_mass": ("attention to the first tokens", ""),
    "mean_distance": ("mean distance of what a query looks at", "tokens"),
    "column_mass": ("attention a key receives, summed over queries", "queries"),
}


def stats(
    model: Model, prompts: Prompts, layers: Iterable[int] | int | None = None, *, sink: int = 1
) -> xr.Dataset:
    """Where each head looks, from one forward pass.

    With A the attention pattern of a head, i a query and j a key, both a prompt's own tokens,

    * `entropy`: -sum_j A_ij ln A_ij, nats: 0 for one token, ln(i + 1) for all equally (causal);
    * `sink_mass`: sum of A_ij over a prompt's first `sink` tokens; causal queries i < `sink` see no
      others: leave them out of a mean;
    * `mean_distance`: sum_j A_ij |i - j|, tokens;
    * `column_mass`: sum_i A_ij by key j, over a prompt's own queries. In causal attention an early
      key has more queries that can see it; the column masses of a head sum to their number.

    All (prompt, layer, head, position), NaN beyond a prompt's end. Queries and keys are those that
    the model multiplies, after rotary embedding, QK norm and clipping, with its scale, soft cap,
    sliding window and position bias; the forward pass takes its usual values. Each layer's are
    reduced (`lwlab_kernels.attn_stats`) before the next layer runs, so that no pattern is ever
    held: `lw.cache(model, prompts, "attn_pattern")` would keep layers x heads x positions^2.

    Raises MissingSite for a model without attention patterns, BadInput for a layer out of range,
    sink < 1, or attention with learned sinks.
    """
    chosen = model.anatomy.layers(layers)
    model.anatomy.require("attn_pattern")
    if sink < 1:
        raise BadInput(f"sink={sink}: the number of first tokens, at least 1")
    data = engine.batch(model, prompts)
    if data.tokens is None:
        raise BadInput(f"{model.name} was given no tokens, and heads look from token to token")
    tokens = data.tokens
    found: dict[int, AttnStats] = {}

    def listen(layer: int, heard: Heard) -> None:
        from lwlab.kernels import attn_stats

        keys = None
        if tokens.padded:
            keys = tokens.mask.bool().to(heard.query.device)
        shape: Mask = "causal" if heard.causal else "full"
        mask = shape if heard.mask is None else heard.mask
        found[layer] = attn_stats(
            heard.query, heard.key, scale=heard.scale, mask=mask, keys=keys, bias=heard.bias,
            softcap=heard.softcap, sink=sink,
        )  # fmt: skip

    listeners = {i: partial(listen, i) for i in chosen}
    args, inputs = data.fresh()
    keep = engine.keep_last(model, data)
    with lock(model), listening(model, listeners), torch.no_grad():
        model.module(*args, **inputs, **keep)
    if len(found) < len(chosen):
        missing = sorted(set(chosen) - set(found))
        raise NoFiring(f"layers {missing} of {model.name} attended by a way of their own")
    return _labelled(model, tokens, found, chosen, sink)


def _labelled(
    model: Model, tokens: Tokens, found: dict[int, AttnStats], layers: list[int], sink: int
) -> xr.Dataset:
    dims = ("prompt", "layer", "head", "position")
    coords = {
        "layer": layers,
        "head": list(range(found[layers[0]].entropy.shape[1])),
        **labels.position_coords(tokens, None),
    }
    names = {"entropy": "entropy", "sink_mass": "sink", "mean_distance": "distance",
             "column_mass": "column"}  # fmt: skip
    variables = {}
    for name, field in names.items():
        stacked = torch.stack([getattr(found[i], field).cpu() for i in layers], 1)
        own = labels.own_positions(stacked, tokens.to("cpu"), 3)
        long_name, units = _ABOUT[name]
        attrs = {"long_name": long_name, **({"units": units} if units else {})}
        variables[name] = label(own, dims, coords).drop_attrs().assign_attrs(attrs)
    out = xr.Dataset(variables).assign_coords(text=("prompt", list(tokens.texts)))
    return out.assign_attrs(
        provenance(
            model, technique="attention statistics", sink=sink, n=len(tokens),
            backend=found[layers[0]].backend,
        )
    )  # fmt: skip
