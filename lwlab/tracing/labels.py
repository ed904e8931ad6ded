"""From raw traces to labelled results: names for axes, own positions in place of batch columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.models.sites import SITES, Address
from lwlab.models.tokens import Tokens
from lwlab.results import label, provenance
from lwlab.tracing.engine import Trace


def loose_dims(ndim: int) -> tuple[str, ...]:
    """Names for the axes after (prompt) of a stream that is no sequence of tokens."""
    known = {4: ("channel", "height", "width"), 3: ("position", "d_model"), 2: ("d_model",)}
    return known.get(ndim, tuple(f"axis_{i}" for i in range(1, ndim)))


def own_positions(values: torch.Tensor, tokens: Tokens, axis: int = 1) -> torch.Tensor:
    """Move each prompt's own tokens to the front of `axis` and put NaN after them."""
    offsets, lengths = tokens.offsets.to(values.device), tokens.lengths.to(values.device)
    longest = int(lengths.max())
    if bool((offsets == 0).all()) and tokens.equal_length:
        return values.narrow(axis, 0, longest)
    p = torch.arange(longest, device=values.device)
    columns = (offsets[:, None] + p).clamp(max=values.shape[axis] - 1)
    shape = [1] * values.ndim
    shape[0], shape[axis] = len(tokens), longest
    index = columns.view(shape).expand(*_with(values.shape, axis, longest))
    out = values.gather(axis, index)
    beyond = (p >= lengths[:, None]).view(shape)
    return out.masked_fill(beyond, float("nan")) if out.is_floating_point() else out


def _with(shape: Sequence[int], axis: int, size: int) -> list[int]:
    out = list(shape)
    out[axis] = size
    return out


def positions_of(tokens: Tokens | None, positions: int | Iterable[int] | None) -> list[int] | None:
    """Check own positions against every prompt; return them as given, or None for all."""
    if positions is None:
        return None
    wanted = [positions] if isinstance(positions, int) else [int(p) for p in positions]
    if tokens is None:
        raise BadInput("positions= needs prompts made of tokens")
    if not wanted:
        raise BadInput("positions is empty; leave it out to take all")
    for p in wanted:
        tokens.columns(p)
    return wanted


def site_variables(
    trace: Trace, site: str, layers: list[int], positions: list[int] | None
) -> dict[str, xr.Variable]:
    """Name the axes of one site of a trace: {site: (prompt, [layer,] ...)}.

    Layers that differ in shape cannot share an array: they come one by one, {"resid_post.3":
    (prompt, channel.resid_post.3, ...)}.
    """
    if SITES[site].scope == "model":
        return {site: _variable(trace, site, None, positions)}
    shapes = {trace.values[Address(site, i)].shape for i in layers}
    if len(shapes) == 1:
        return {site: _variable(trace, site, layers, positions)}
    out = {}
    for i in layers:
        one = _variable(trace, site, [i], positions).isel(layer=0)
        dims = [d if d == "prompt" else f"{d}.{site}.{i}" for d in one.dims]
        out[f"{site}.{i}"] = xr.Variable(dims, one.data, one.attrs)
    return out


def _variable(
    trace: Trace, site: str, layers: list[int] | None, positions: list[int] | None
) -> xr.Variable:
    spec, tokens = SITES[site], trace.batch.tokens
    scoped = layers is not None
    at = [Address(site)] if layers is None else [Address(site, i) for i in layers]
    parts = [trace.values[a] for a in at]
    dims = spec.dims if parts[0].ndim == len(spec.dims) + 1 else loose_dims(parts[0].ndim)
    dims = ("prompt", "layer", *dims) if scoped else ("prompt", *dims)
    data = torch.stack([x.to(parts[0].device) for x in parts], 1) if scoped else parts[0]
    along = [dims.index(d) for d in ("position", "query") if d in dims]
    if tokens is not None and {data.shape[axis] for axis in along} == {tokens.ids.shape[1]}:
        for axis in along:
            data = _take(own_positions(data, tokens, axis), tokens, positions, axis)
    return label(data, dims, site=site, meaning=spec.meaning).variable


def _take(x: torch.Tensor, tokens: Tokens, positions: list[int] | None, axis: int) -> torch.Tensor:
    if positions is None:
        return x
    columns = torch.stack([tokens.columns(p) for p in positions], 1) - tokens.offsets[:, None]
    columns = columns.to(x.device)
    shape = [1] * x.ndim
    shape[0], shape[axis] = columns.shape
    return x.gather(axis, columns.view(shape).expand(*_with(x.shape, axis, columns.shape[1])))


def position_coords(tokens: Tokens, positions: list[int] | None) -> dict[str, Any]:
    """Coordinates `position` and `token_str` (prompt, position) for own positions."""
    wanted = list(range(int(tokens.lengths.max()))) if positions is None else positions
    strings = [[_at(row, p) for p in wanted] for row in tokens.strings]
    return {
        "position": wanted,
        "token_str": (("prompt", "position"), np.array(strings, dtype=object).astype(str)),
    }


def _at(row: Sequence[str], p: int) -> str:
    return row[p] if -len(row) <= p < len(row) else ""


def logits_array(trace: Trace, positions: list[int] | None) -> xr.DataArray | None:
    """Label logits: (prompt, token) for last tokens, (prompt, position, token) for all."""
    z, tokens = trace.logits, trace.batch.tokens
    if z is None:
        return None
    if z.ndim == 2:
        return label(z, ("prompt", "token"), name="logits")
    if tokens is None or z.shape[1] != tokens.ids.shape[1]:
        return label(z, ("prompt", "position", "token"), name="logits")
    z = _take(own_positions(z, tokens), tokens, positions, 1)
    return label(
        z, ("prompt", "position", "token"), position_coords(tokens, positions), name="logits"
    )


def _apart(variables: dict[str, xr.Variable]) -> dict[str, xr.Variable]:
    """Give a variable a dimension of its own where it differs in size from most others.

    A picture's patches are embedded before the class token joins them: position.embed.
    """
    seen = Counter(pair for v in variables.values() for pair in v.sizes.items())
    usual = {d: n for (d, n), _ in sorted(seen.items(), key=lambda item: (item[1], item[0][1]))}
    out = {}
    for name, v in variables.items():
        dims = [d if n == usual[d] else f"{d}.{name}" for d, n in v.sizes.items()]
        out[name] = xr.Variable(dims, v.data, v.attrs)
    return out


def dataset(
    model: Model,
    trace: Trace,
    sites: Sequence[str],
    layers: list[int],
    positions: list[int] | None,
    *,
    values: Trace | None = None,
    **attrs: object,
) -> xr.Dataset:
    """Gather labelled sites and logits, and those of `values` as `<site>_value`, in a Dataset."""
    variables: dict[str, xr.Variable] = {}
    for s in sites:
        if s != "logits":
            variables |= site_variables(trace, s, layers, positions)
            if values is not None:
                there = site_variables(values, s, layers, positions)
                variables |= {f"{name}_value": v for name, v in there.items()}
    z = logits_array(trace, positions)
    if z is not None:
        variables["logits"] = z.drop_attrs().variable
    variables = _apart(variables)
    coords = _coords(variables, trace.batch.tokens, layers, positions)
    return xr.Dataset(variables, coords, provenance(model, **attrs))


def _coords(
    variables: dict[str, xr.Variable],
    tokens: Tokens | None,
    layers: list[int],
    positions: list[int] | None,
) -> dict[str, Any]:
    sizes = {d: n for v in variables.values() for d, n in v.sizes.items()}
    coords: dict[str, Any] = {"layer": layers} if "layer" in sizes else {}
    if tokens is None:
        return coords
    coords["text"] = ("prompt", list(tokens.texts))
    along = position_coords(tokens, positions)
    if sizes.get("position") == len(along["position"]):
        coords |= along
        coords |= {"query": along["position"]} if "query" in sizes else {}
    return coords
