"""`patch` and `ablate`: put other values into sites and see what the model then says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
import xarray as xr

from lwlab.errors import BadInput
from lwlab.models.model import Model, Prompts
from lwlab.models.sites import SITES, Address
from lwlab.results import label
from lwlab.tracing import engine, labels
from lwlab.tracing.edits import Edit, Value, parse_edits
from lwlab.tracing.read import addresses


def patch(
    model: Model,
    prompts: Prompts,
    edits: Mapping[str | Address, Value],
    *,
    positions: int | Iterable[int] | None = None,
    read: str | Iterable[str] = (),
    layers: Iterable[int] | int | None = None,
    logits: Literal["last", "all"] = "last",
    compare: bool = True,
) -> xr.Dataset:
    """Run the model with sites replaced.

    `edits` maps addresses ("resid_pre.7", "head_out.3.5") to what to put there: a number, an
    array that broadcasts to the selected part [prompts, positions, ...], or a function of that
    part. `positions` limits all edits to these own positions. An array's positions are the
    prompts' own, as in what `cache` returns; a function without `positions` sees the columns of
    the batch, padding included. `read` names sites to keep (they show the edited values), at
    `layers`.

    Returns a Dataset with `logits` and the sites read; with `compare`, also `base_logits` of the
    unedited model and `moved` (prompt), the KL divergence KL(base || edited) in nats at the last
    token. Attribute `edits` tells for each edit how often it fired and its relative size. Raises
    NoFiring when an edit never ran; BadInput, UnknownName, MissingSite before the run.
    """
    data = engine.batch(model, prompts)
    work = parse_edits(model.anatomy, edits, columns_of(data, positions), data.tokens)
    return run_edits(model, data, work, read, layers, logits, compare)


def columns_of(data: engine.Batch, positions: int | Iterable[int] | None) -> torch.Tensor | None:
    """Return the batch columns of own positions, [prompts, positions], or None for all."""
    wanted = labels.positions_of(data.tokens, positions)
    if wanted is None or data.tokens is None:
        return None
    return torch.stack([data.tokens.columns(p) for p in wanted], 1)


def run_edits(
    model: Model,
    data: engine.Batch,
    edits: list[Edit],
    read: str | Iterable[str] = (),
    layers: Iterable[int] | int | None = None,
    logits: Literal["last", "all"] = "last",
    compare: bool = True,
) -> xr.Dataset:
    """Run prepared edits and label the outcome (what `patch` and `ablate` share)."""
    wanted = model.anatomy.require(read) if read else []
    if layers is not None and not wanted:
        raise BadInput("layers= says where to read: name the sites in read=")
    chosen = model.anatomy.layers(layers)
    if not wanted and "logits" not in model.anatomy.taps:
        raise BadInput(f"{model.name} has no logits, so name the sites to keep in read=")
    if "logits" in wanted:
        logits = "all"
    trace = engine.run(model, data, addresses(model, wanted, chosen), edits, logits=logits)
    told = [f"{e.at}: fired {e.fired}, changed by {e.change:.3g} of its size" for e in edits]
    out = labels.dataset(model, trace, wanted, chosen, None, edits=told)
    if compare and trace.logits is not None:
        base = engine.run(model, data, logits=logits)
        assert base.logits is not None
        out["base_logits"] = labels.logits_array(base, None)
        z0, z = (
            engine.last(t, data.tokens) if t.ndim == 3 else t for t in (base.logits, trace.logits)
        )
        out["moved"] = label(kl(z0, z), ("prompt",)).drop_attrs()
    return out


def kl(base: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(softmax(base) || softmax(other)) in nats over the last axis."""
    p, q = base.float().log_softmax(-1), other.float().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def ablate(
    model: Model,
    prompts: Prompts,
    where: str | Address | Iterable[str | Address],
    how: Literal["zero", "mean", "resample"] = "zero",
    *,
    reference: Prompts | None = None,
    positions: int | Iterable[int] | None = None,
    seed: int = 0,
    read: str | Iterable[str] = (),
    layers: Iterable[int] | int | None = None,
    compare: bool = True,
) -> xr.Dataset:
    """Remove what sites carry, and return what `patch` returns.

    * "zero": x <- 0
    * "mean": x <- mean of x over the prompts and all own positions of `reference` (the prompts
      themselves by default)
    * "resample": x <- x of another prompt of `reference`, drawn by `seed`, at the same position
      (needs prompts of equal length)

    Raises BadInput for an unknown `how`, unequal lengths, or one prompt to resample from, and as
    `patch` does.
    """
    if how not in ("zero", "mean", "resample"):
        raise BadInput(f"how={how!r} is unknown; use 'zero', 'mean' or 'resample'")
    if how == "zero" and reference is not None:
        raise BadInput("how='zero' takes nothing from reference=; use 'mean' or 'resample'")
    places = [where] if isinstance(where, str | Address) else list(where)
    at = [model.anatomy.address(p) for p in places]
    data = engine.batch(model, prompts)
    if how == "zero":
        values: dict[str | Address, Value] = dict.fromkeys(at, 0.0)
    else:
        values = _replacements(model, data, at, how, reference, positions, seed)
    work = parse_edits(model.anatomy, values, columns_of(data, positions), data.tokens)
    return run_edits(model, data, work, read, layers, compare=compare)


def _replacements(
    model: Model,
    data: engine.Batch,
    at: list[Address],
    how: str,
    reference: Prompts | None,
    positions: Any,
    seed: int,
) -> dict[str | Address, Value]:
    other = data if reference is None else engine.batch(model, reference)
    if data.tokens is None or other.tokens is None:
        raise BadInput(f"how={how!r} needs prompts made of tokens")
    if any(a.site == "logits" for a in at):
        raise BadInput("logits are the output: ablate 'final_norm' or a stream instead")
    if any(SITES[a.site].dims[0] != "position" for a in at):
        raise BadInput(f"how={how!r} works on sites with positions; use 'zero' for attn_pattern")
    if how == "resample":
        n = other.tokens.require_equal_length("resample ablation")
        if data.tokens.require_equal_length("resample ablation") != n:
            raise BadInput("resample ablation needs reference prompts as long as the prompts")
        if len(other.tokens) < 2:
            raise BadInput("resample ablation needs at least two prompts to draw from")
    whole = {a: Address(a.site, a.layer) for a in at}
    trace = engine.run(model, other, set(whole.values()), logits=None)
    mask = other.tokens.mask.bool()
    donors = (
        _donors(len(data.tokens), len(other.tokens), reference is None, seed)
        if how == "resample"
        else None
    )
    out: dict[str | Address, Value] = {}
    for a in at:
        x = trace.values[whole[a]]
        x = x if a.head is None else x[:, :, a.head]
        if donors is None:
            out[a] = x[mask].mean(0)
            continue
        wanted = labels.positions_of(data.tokens, positions)
        x = labels.own_positions(x, other.tokens)
        out[a] = x[donors] if wanted is None else x[donors][:, wanted]
    return out


def _donors(n: int, available: int, same: bool, seed: int) -> torch.Tensor:
    """For each prompt, another one to take values from: never itself when the two sets are one."""
    g = torch.Generator().manual_seed(seed)
    if same:
        return (torch.arange(n) + torch.randint(1, n, (n,), generator=g)) % n
    return torch.randint(0, available, (n,), generator=g)
