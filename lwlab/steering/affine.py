"""Affine maps on activations, as a labelled result: made, applied, counted, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from lwlab.errors import BadInput, MissingSite
from lwlab.models.model import Model
from lwlab.models.sites import SITES, Address
from lwlab.models.tokens import Tokens
from lwlab.results import label, provenance
from lwlab.tracing import engine
from lwlab.tracing.edits import Edit

Edits = dict[str | Address, Any]
Places = list[Address]


def places(model: Model, site: str, layers: Iterable[int] | int | None) -> Places:
    """Return the addresses of `site` at `layers` (default: all), in forward order.

    Raises UnknownName or MissingSite for a site, BadInput for a layer that the model does not have
    or a site that is no vector at each position.
    """
    model.anatomy.require(site)
    if SITES[site].scope != "layer" or SITES[site].dims not in (
        ("position", "d_model"),
        ("position", "neuron"),
    ):
        raise BadInput(f"{site!r} is no vector at every position of a layer; take 'mlp_in'")
    given = layers if layers is None or isinstance(layers, int) else list(layers)
    return [Address(site, i) for i in sorted(set(model.anatomy.layers(given)))]


def check_texts(model: Model, texts: Sequence[str], what: str, first: int) -> Tokens:
    """Tokenize the texts of one class; BadInput where none are left or one ends before `first`."""
    if isinstance(texts, str) or not len(texts):
        raise BadInput(
            f"{what} holds no list of texts: both classes need some, to tell what to move where"
        )
    if model.kind not in ("decoder", "encoder"):
        raise MissingSite(f"{model.name} is a {model.kind} model; this needs one that reads text")
    tokens = model.tokens(list(texts))
    short = int(tokens.lengths.argmin())
    if first < 0 or int(tokens.lengths[short]) <= first:
        raise BadInput(
            f"first={first} leaves no token of {tokens.texts[short]!r:.60} ({what}), which has "
            f"{int(tokens.lengths[short])}"
        )
    return tokens


def pooled(
    model: Model,
    tokens: Tokens,
    at: Places,
    edits: Sequence[Edit] = (),
    *,
    first: int = 1,
    grad: bool = False,
) -> torch.Tensor:
    """Mean of each site over a text's own tokens from `first` on: [places, texts, width].

    With `edits` active, and edited values read. Padding is left out.
    """
    read = engine.run(model, tokens, at, edits, grad=grad, logits=None).values
    mask = tokens.mask.bool() & (tokens.position_ids >= first)
    weight = (mask / mask.sum(1, keepdim=True))[..., None]
    return torch.stack([(read[a].float() * weight.to(read[a].device)).sum(1) for a in at])


def apply(
    scale: torch.Tensor, shift: torch.Tensor, strength: float = 1.0
) -> Callable[[torch.Tensor], torch.Tensor]:
    """T^s(z) = (1 - s) z + s (omega z + b), with scale = omega - 1 and shift = b, both [width].

    Written as z + s ((omega - 1) z + b), which at s = 0, or for the identity, is z bit for bit.
    """

    def move(z: torch.Tensor) -> torch.Tensor:
        return z + strength * (scale.to(z) * z + shift.to(z))

    return move


def result(
    model: Model, at: Places, scale: torch.Tensor, shift: torch.Tensor, **attrs: Any
) -> xr.Dataset:
    """Label maps: `scale` = omega - 1 and `bias` = b, (layer, unit), with their site."""
    coords = {"layer": [a.layer for a in at]}
    out = xr.Dataset(
        {
            "scale": label(scale, ("layer", "unit"), coords).drop_attrs(),
            "bias": label(shift, ("layer", "unit"), coords).drop_attrs(),
        }
    )
    return out.assign_attrs(provenance(model, site=at[0].site, **attrs))


def edits(maps: xr.Dataset, strength: float = 1.0) -> Edits:
    """Return maps as what `lw.patch` and `lw.generate` take, with strength s (paper: 0 to 1).

    Raises BadInput for a result that holds no maps, or a strength or maps that are not finite.
    """
    if missing := {"scale", "bias"} - set(map(str, maps.data_vars)):
        raise BadInput(f"these are no maps: {sorted(missing)} missing; take what `learn` returns")
    if not np.isfinite(strength):
        raise BadInput(f"strength={strength}: give a finite number, 0 (the base model) to 1")
    if not (np.isfinite(maps["scale"].values).all() and np.isfinite(maps["bias"].values).all()):
        raise BadInput("the maps hold NaN or infinity")
    scale, shift = (torch.as_tensor(maps[k].values) for k in ("scale", "bias"))
    return {
        Address(str(maps.attrs["site"]), int(layer)): apply(scale[i], shift[i], strength)
        for i, layer in enumerate(maps["layer"].values)
    }


def moved(maps: xr.Dataset, above: float = 0.0) -> xr.DataArray:
    """How many units of each layer are not left alone: max(|omega - 1|, |b|) > above, (layer)."""
    sizes = np.maximum(abs(maps["scale"].values), abs(maps["bias"].values))
    out = label((sizes > above).sum(1), ("layer",), {"layer": maps["layer"].values})
    return out.rename("moved").assign_attrs({**maps.attrs, "long_name": "units moved"})
