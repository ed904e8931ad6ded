r"""Massive activations: where a few numbers of the stream dwarf all others, and what they do.

r_l = max |h_l| / median |h_l| over the positions and dimensions of one text, h_l the stream after
layer l. An activation is called massive where |a| > 100 and |a| >= 1000 median |h_l|. How r_l comes
about in training is `lwlab.activations.emergence`. Sources: arXiv:2508.03616 (the ratio and its
course), arXiv:2402.17762 (the definition, and what setting them does).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch.nn import functional

from lwlab.errors import BadInput
from lwlab.models.model import Model, Prompts
from lwlab.results import provenance
from lwlab.tracing import cache, engine
from lwlab.tracing.engine import Batch
from lwlab.tracing.write import patch

PAPER = "2508.03616"
SIZE, RATIO = 100.0, 1000.0
Change = Literal["zero", "mean", "bound"]


class Place(NamedTuple):
    """One massive activation: it is first massive after `layer` and last after `until`."""

    layer: int
    until: int
    position: int
    dimension: int
    value: float


def massive(model: Model, texts: Prompts, *, sites: str = "resid_post") -> xr.Dataset:
    """Return, for every text and layer, the largest |h|, the median |h| and their ratio r_l.

    Over (prompt, layer): `largest`, `median`, `ratio`, and where the largest is: `position`,
    `dimension`, `value` (with its sign) and `token`. Padding is left out; position 0 is in. Raises
    MissingSite, and BadInput for fewer than one text.
    """
    found = cache(model, texts, sites)[sites].transpose("prompt", "layer", "position", "d_model")
    h = found.values
    size = np.abs(h)
    flat = size.reshape(*size.shape[:2], -1)
    at = np.nanargmax(flat, axis=-1)
    position, dimension = np.unravel_index(at, size.shape[2:])
    rows, layers = np.indices(at.shape)
    median = np.nanmedian(flat, axis=-1)
    largest = np.take_along_axis(flat, at[..., None], -1)[..., 0]
    dims = ("prompt", "layer")
    words = found.coords.get("token_str")
    out = xr.Dataset(
        {
            "largest": (dims, largest),
            "median": (dims, median),
            "ratio": (dims, largest / np.maximum(median, 1e-30)),
            "position": (dims, found.position.values[position]),
            "dimension": (dims, dimension),
            "value": (dims, h[rows, layers, position, dimension]),
        },
        {"layer": found.layer.values},
    )
    if words is not None:
        tokens = words.transpose("prompt", "position").values
        out["token"] = (dims, tokens[rows, position])
    out.attrs = provenance(model, technique="massive-dynamics", paper=PAPER, site=sites)
    out.attrs["n"] = int(out.sizes["prompt"])
    return out


def places(found: xr.Dataset, *, size: float = SIZE, ratio: float = RATIO) -> list[Place]:
    """Return the activations that are massive in at least half of the texts, by first layer.

    `found` is what `massive` returned; `value` is the mean over texts at the layer where |value| is
    largest. Only the largest of each text and layer is looked at, so a second one at another
    dimension appears where it is the largest.
    """
    good = (found.largest > size) & (found.ratio >= ratio)
    keys: dict[tuple[int, int], dict[int, list[float]]] = {}
    for prompt in range(found.sizes["prompt"]):
        for i, layer in enumerate(found.layer.values):
            if bool(good.values[prompt, i]):
                where = (
                    int(found.position.values[prompt, i]),
                    int(found.dimension.values[prompt, i]),
                )
                value = float(found.value.values[prompt, i])
                keys.setdefault(where, {}).setdefault(int(layer), []).append(value)
    out = []
    for (position, dimension), layers in keys.items():
        often = [k for k, v in layers.items() if 2 * len(v) >= found.sizes["prompt"]]
        if often:
            top = max((float(np.mean(layers[k])) for k in often), key=abs)
            out.append(Place(min(often), max(often), position, dimension, top))
    return sorted(out)


def change(
    model: Model,
    texts: Prompts,
    where: Sequence[Place],
    to: Change | Literal["nothing"] = "zero",
    *,
    layer: int | None = None,
    bound: float = 10.0,
    dimensions: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
) -> xr.Dataset:
    """Set massive activations to something else once, and see what the model then does.

    At `layer` (default: the first where any of `where` is massive) and the position of each place,
    the dimension becomes 0 ("zero"), its mean over the texts ("mean": massive still, but the same
    for every text), is held within +-`bound` times the text's median |h| ("bound"), or stays
    ("nothing": the baseline). `dimensions` puts others in place of the places' own: the control.

    Returns over (prompt): `nll` (nats a token, from the second on) and over (prompt, layer), for
    `layers` (default: every fourth from the edit on): `sink`, the attention to position 0, mean
    over heads and over queries from 1 on; without it for a model without attention patterns.
    Raises BadInput for no places, a layer or dimension out of range.
    """
    if not where:
        raise BadInput(
            "there is no massive activation to change: places() found none; lower its size= or "
            "ratio=, or look at another model"
        )
    if to not in ("zero", "mean", "bound", "nothing"):
        raise BadInput(f"to={to!r}; there are zero, mean, bound and nothing")
    layer = min(p.layer for p in where) if layer is None else model.anatomy.layers(layer)[0]
    width = int(model.d_model or 0)
    dims = [p.dimension for p in where] if dimensions is None else [int(d) for d in dimensions]
    if any(not 0 <= d < width for d in dims):
        raise BadInput(f"dimensions={dims}: {model.name} has 0 to {width - 1}")
    data = engine.batch(model, texts)
    if data.tokens is None:
        raise BadInput(f"{model.name} reads no tokens, so it has no loss to watch")
    positions = sorted({p.position for p in where})
    medians = np.ones(len(data.tokens))
    if to == "bound":
        h = cache(model, texts, "resid_post", layers=layer).resid_post.isel(layer=0)
        medians = np.abs(h).median(("position", "d_model"), skipna=True).values

    def put(part: torch.Tensor) -> torch.Tensor:
        part, edge = part.clone(), torch.tensor(bound * medians).to(part)[:, None]
        for d in dims:
            if to == "zero":
                part[:, :, d] = 0
            elif to == "mean":
                part[:, :, d] = part[:, :, d].mean(0)
            elif to == "bound":
                part[:, :, d] = part[:, :, d].clamp(-edge, edge)
        return part

    later = range(min(layer + 1, model.n_layers - 1), model.n_layers, 4)
    seen = model.anatomy.layers(later if layers is None else layers)
    has_pattern = "attn_pattern" in model.anatomy.taps
    run = patch(
        model, texts, {f"resid_post.{layer}": put}, positions=positions, logits="all",
        read=("attn_pattern",) if has_pattern else (), layers=seen if has_pattern else None,
        compare=False,
    )  # fmt: skip
    out = xr.Dataset({"nll": ("prompt", nll(run.logits, data))})
    if has_pattern:
        first = run.attn_pattern.isel(position=0, query=slice(1, None))
        out["sink"] = first.mean(("head", "query"))
    out.attrs = provenance(
        model, technique="massive-dynamics", to=to, edited_layer=layer, dimensions=dims,
        positions=positions,
    )  # fmt: skip
    return out


def nll(logits: xr.DataArray, data: Batch) -> npt.NDArray[np.float64]:
    """Return each text's mean negative log-likelihood of its tokens from the second on, in nats."""
    assert data.tokens is not None
    z = logits.transpose("prompt", "position", ...).values
    out = []
    tokens = data.tokens
    for i, (begin, n) in enumerate(
        zip(tokens.offsets.tolist(), tokens.lengths.tolist(), strict=True)
    ):
        target = tokens.ids[i, begin + 1 : begin + n]
        guess = torch.tensor(z[i, : n - 1])
        out.append(float(functional.cross_entropy(guess.float(), target)))
    return np.array(out)


def controls(model: Model, where: Sequence[Place], n: int = 3, seed: int = 0) -> list[list[int]]:
    """Return `n` draws of as many other dimensions as `where` has, for `change(dimensions=)`."""
    taken = {p.dimension for p in where}
    others = [d for d in range(int(model.d_model or 0)) if d not in taken]
    rng = np.random.default_rng(seed)
    return [rng.choice(others, len(taken), replace=False).tolist() for _ in range(n)]


def summary(base: xr.Dataset, changes: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Return what changes did, over (change): `loss` in nats a token over `base`, and `sink`."""
    rows: dict[str, list[Any]] = {"loss": [], "sink": []}
    for run in changes.values():
        rows["loss"].append(float((run.nll - base.nll).mean()))
        rows["sink"].append(float(run.sink.mean()) if "sink" in run else np.nan)
    return xr.Dataset({k: ("change", v) for k, v in rows.items()}, {"change": list(changes)})
