"""Orders of layers: which can bear fewer bits (arXiv:2406.17415), and orders to compare with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import xarray as xr

from lwlab.errors import BadInput
from lwlab.models.model import Model, Prompts
from lwlab.quantization.calibrate import Moments
from lwlab.quantization.layerwise_quant_runs import Rounder, Scorer, width
from lwlab.quantization.matrices import matrices
from lwlab.results import label, provenance
from lwlab.tracing import cache, lock

PAPER = "2406.17415"


def lim(model: Model, prompts: Prompts, *, skip: int = 1, flatten: bool = False) -> xr.DataArray:
    """Layer input modification, LIM(l) = -cos(h_l, h_{l+1}), over (layer,); higher: more important.

    h_l is the stream entering block l. The cosine is taken at each token from position `skip` on
    and averaged over all tokens; with `flatten` it is one cosine of all those streams laid end to
    end, in which tokens of large norm (an attention sink, if skip=0) outweigh the others. The
    paper leaves open which is meant. A layer that adds nothing has LIM = -1.

    Raises BadInput for prompts without a token after `skip`, MissingSite for a model without
    resid_pre and resid_post.
    """
    if skip < 0:
        raise BadInput(f"skip={skip}: give 0 or more positions to leave out")
    found = cache(model, prompts, ["resid_pre", "resid_post"])
    a, b = (found[s].transpose("layer", "prompt", "position", "d_model").values.astype(np.float64)
            for s in ("resid_pre", "resid_post"))  # fmt: skip
    own = np.isfinite(a[0]).all(-1)
    own[:, :skip] = False
    if not own.any():
        raise BadInput(f"no prompt is longer than the {skip} token(s) that are left out")
    a, b = a[:, own], b[:, own]  # [layer, tokens, d_model]
    dots = [(x * y).sum(-1) for x, y in ((a, b), (a, a), (b, b))]
    if flatten:
        dots = [d.sum(-1, keepdims=True) for d in dots]
    cosine = dots[0] / np.sqrt(dots[1] * dots[2])
    return label(
        -cosine.mean(-1), ("layer",), {"layer": found.layer.values}, name="LIM",
        **provenance(model, technique="LIM", paper=PAPER, skip=skip, flatten=flatten,
                     tokens=int(own.sum()), larger_is="important"),
    )  # fmt: skip


def zd(
    model: Model, *, two_sided: bool = False, pooled: bool = True,
    modules: str | Iterable[str] | None = None,
) -> xr.DataArray:  # fmt: skip
    """Z-score distribution over (layer,): the share of a layer's weights with z > 1, needs no data.

    z = (w - mean) / std over all the block's matrices together; `two_sided` counts |z| > 1, and
    pooled=False standardises each matrix by itself and averages their shares. A smaller share
    (heavy tails: a few large weights carry the spread) is more important. A normal distribution
    has 0.1587 (0.3173 two-sided).

    Raises UnknownName for a module, BadInput for a layer whose weights are all equal.
    """
    layers: dict[int, list[torch.Tensor]] = {}
    out = []
    with lock(model):
        for m in matrices(model, None, modules):
            layers.setdefault(m.layer, []).append(m.weight)
        for layer, parts in layers.items():
            sets = [parts] if pooled else [[w] for w in parts]
            shares = [_share(s, two_sided) for s in sets]
            if not all(math.isfinite(s) for s in shares):
                raise BadInput(f"layer {layer}: its weights are all equal, so they have no z-score")
            out.append(sum(shares) / len(shares))
    return label(
        out, ("layer",), {"layer": list(layers)}, name="ZD",
        **provenance(model, technique="ZD", paper=PAPER, two_sided=two_sided, pooled=pooled,
                     larger_is="unimportant"),
    )  # fmt: skip


def _share(parts: Sequence[torch.Tensor], two_sided: bool) -> float:
    n = sum(w.numel() for w in parts)
    mean = sum(float(w.sum(dtype=torch.float64)) for w in parts) / n
    std = math.sqrt(sum(float((w.double() - mean).square().sum()) for w in parts) / n)
    if not std > 0:
        return math.nan
    above = sum(int((w > mean + std).sum()) for w in parts)
    if two_sided:
        above += sum(int((w < mean - std).sum()) for w in parts)
    return above / n


def sensitivity(
    model: Model, prompts: Prompts | Scorer, bits: int = 2, group: int | None = 64, *,
    symmetric: bool = False, base: str = "rtn", moments: Moments | None = None,
    modules: str | Iterable[str] | None = None, max_tokens: int = 256,
) -> xr.DataArray:  # fmt: skip
    """What rounding one layer alone costs: nll(layer at `bits`) - nll, (layer, prompt), in nats.

    The oracle that cheaper orders are measured against: it looks at the very quantity that counts,
    for layers one at a time. Half of n_layers forward passes. Raises as `losses` does.
    """
    rounder = Rounder(
        model, group, symmetric=symmetric, base=base, moments=moments, modules=modules
    )
    width(bits)
    scorer = Scorer.of(model, prompts, max_tokens)
    clean, rows = scorer.base, []
    with rounder:
        for layer in range(model.n_layers):
            rows.append(scorer.nll(rounder.set({layer: bits})) - clean)
    return label(
        np.stack(rows), ("layer", "prompt"), {"layer": list(range(model.n_layers))},
        name="rise of the loss",
        **provenance(model, technique="single-layer sensitivity", paper=PAPER, bits=bits,
                     group=group or 0, symmetric=symmetric, base=base, n=len(scorer),
                     unit="nats per token", larger_is="important"),
    )  # fmt: skip


def least_first(scores: xr.DataArray) -> list[int]:
    """Return the layers from the least important to the most, by `lim`, `zd` or `sensitivity`.

    Other scores over layer count as rising with importance, unless their attribute `larger_is`
    says "unimportant". Further dimensions are averaged; equal scores keep the order of layers.
    Raises BadInput where scores are not finite or have no layers.
    """
    if "layer" not in scores.dims:
        raise BadInput(f"scores over {scores.dims}: an order of layers needs the dimension layer")
    mean = scores.mean([d for d in scores.dims if d != "layer"])
    values = mean.values.astype(float)
    if not np.isfinite(values).all():
        raise BadInput("a score is not finite, so layers cannot be sorted by it")
    sign = -1 if scores.attrs.get("larger_is") == "unimportant" else 1
    return [int(mean.layer.values[i]) for i in np.argsort(sign * values, kind="stable")]


def random_orders(n_layers: int, n: int = 5, seed: int = 0) -> dict[str, list[int]]:
    """Draw `n` orders of the layers, by name ("random 0", ...): what any order is held against."""
    rng = np.random.default_rng(seed)
    return {f"random {i}": rng.permutation(n_layers).tolist() for i in range(n)}
