"""Corpus statistics as a labelled result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.models.sites import SITES
from lwlab.results import label, provenance
from lwlab.tracing.online.state import Online, Unit


def labelled(
    state: Online, quantiles: Sequence[float] = (0.5,), model: Model | None = None
) -> xr.Dataset:
    """Name the axes of a state's statistics (see `corpus_stats`).

    Raises BadInput when nothing was observed.
    """
    if not state.units:
        raise BadInput("nothing was observed yet")
    kept = state.settings
    out: dict[str, xr.Variable] = {}
    for site in kept.sites:
        layered = SITES[site].scope == "layer"
        units = [state.units[site, i] for i in (kept.layers if layered else [None])]
        if len({u.shape for u in units}) > 1:
            raise BadInput(f"layers differ in their number of units at {site!r}: name them apart")
        dims = SITES[site].dims[1:]
        for name, values in _statistics(state, units, quantiles).items():
            before = ("quantile",) if name == "quantile" else ()
            after = ("rank",) if name.startswith("top") else ()
            names = (*before, "layer", *dims, *after)
            data = values if layered else values.squeeze(len(before))
            names = names if layered else tuple(d for d in names if d != "layer")
            out[f"{site}_{name}"] = label(data, names, site=site).variable
    coords: dict[str, Any] = {"quantile": list(quantiles)} if quantiles else {}
    coords |= {"layer": list(kept.layers)} if any("layer" in v.dims for v in out.values()) else {}
    coords |= {"rank": list(range(kept.top))} if kept.top else {}
    attrs = provenance(
        model or kept.model, technique="corpus statistics", prompts=len(state.prompts),
        tokens=state.tokens, front=kept.front, quantile_error=kept.quantile_error,
    )  # fmt: skip
    return xr.Dataset(out, coords, attrs)


def _statistics(state: Online, units: list[Unit], quantiles: Sequence[float]) -> dict[str, Any]:
    shape = units[0].shape
    moments = [u.moments.results() for u in units]
    out: dict[str, Any] = {
        name: torch.stack([m[name].view(shape) for m in moments]) for name in moments[0]
    }
    if quantiles:
        found = [u.quantiles.at(quantiles, m["min"], m["max"]) for u, m in zip(units, moments)]
        out["quantile"] = torch.stack([q.view(-1, *shape) for q in found], 1)
    if state.settings.top:
        tops = [u.tops.results() for u in units if u.tops is not None]
        names = ("top", "top_prompt", "top_position")
        for name, parts in zip(names, zip(*tops)):
            out[name] = torch.stack([p.view(*shape, -1) for p in parts])
        out["top_context"] = contexts(state, out["top_prompt"], out["top_position"])
    return out


def contexts(state: Online, prompt: torch.Tensor, position: torch.Tensor) -> np.ndarray[Any, Any]:
    """The tokens up to a place, the last in brackets, of the shape of `prompt`."""
    before, known = state.settings.context, {}
    flat = list(zip(prompt.flatten().tolist(), position.flatten().tolist()))
    for i, p in set(flat):
        words = state.strings.get(i, ())
        known[i, p] = (
            "".join(words[max(0, p - before) : p]) + f"[{words[p]}]" if 0 <= p < len(words) else ""
        )
    texts = np.array([known[place] for place in flat], dtype=object)
    return texts.astype(str).reshape(prompt.shape)
