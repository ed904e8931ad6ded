"""LiNeS: scale what fine-tuning changed by a line that rises with depth.

    lambda(l) = alpha + beta l / (L - 1),   theta = theta_0 + lambda(l) tau^(l),   l = 0 .. L-1

Parameters outside the blocks (embeddings, a head tied to them, the last norm) get lambda = alpha.
For one task beta = 1 - alpha, so that the last block keeps its whole change. For several, tau is
the merged vector and alpha = (|sum_k tau_k|_1 / |tau_merged|_1) / K: 1/K where they are summed.

Wang, Dimitriadis, Favero, Ortiz-Jimenez, Fleuret & Frossard, "LiNeS: Post-training Layer Scaling
Prevents Forgetting and Enhances Model Merging" (arXiv:2410.17146); formulas as in its released
code.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
import xarray as xr

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.merging.task_vectors import OUTSIDE, Vectors, combine, sizes, ties
from lwlab.models.model import Model
from lwlab.results import label, provenance

PAPER = "2410.17146"
Shape = Literal["lines", "reversed", "uniform", "random"]
How = Literal["sum", "ties"]
SHAPES: tuple[Shape, ...] = get_args(Shape)


def profile(
    n_layers: int,
    alpha: float,
    beta: float | None = None,
    *,
    shape: Shape = "lines",
    seed: int = 0,
) -> xr.DataArray:
    """Return lambda over `layer`: -1 (outside the blocks), 0 .. L-1. No unit.

    `beta` is 1 - alpha if not given. The controls have the numbers of the line, placed otherwise:
    "reversed" falls from alpha + beta to alpha over the blocks and leaves what is outside at
    alpha; "random" is a permutation over the blocks; "uniform" has the blocks' mean,
    alpha + beta / 2, everywhere.

    Raises BadInput for numbers that are not finite or fewer than two layers, UnknownName for a
    shape.
    """
    if shape not in SHAPES:
        raise UnknownName(f"no shape {shape!r}{suggest(shape, SHAPES)}")
    if n_layers < 2:
        raise BadInput(f"n_layers={n_layers}: a line over depth needs two blocks or more")
    beta = 1 - alpha if beta is None else beta
    if not (math.isfinite(alpha) and math.isfinite(beta)):
        raise BadInput(f"alpha={alpha}, beta={beta}: both must be finite numbers")
    blocks = alpha + beta * np.arange(n_layers) / (n_layers - 1)
    first = alpha
    if shape == "reversed":
        blocks = blocks[::-1]
    elif shape == "random":
        blocks = np.random.default_rng(seed).permutation(blocks)
    elif shape == "uniform":
        blocks, first = np.full(n_layers, alpha + beta / 2), alpha + beta / 2
    return label(
        np.concatenate([[first], blocks]), "layer", {"layer": [OUTSIDE, *range(n_layers)]},
        name="lambda", technique="LiNeS", paper=PAPER, alpha=alpha, beta=beta, shape=shape,
    )  # fmt: skip


def scaled(v: Vectors, alpha: float, *, shape: Shape = "lines", seed: int = 0) -> Model:
    """Return the base plus the change of one task, scaled by depth with beta = 1 - alpha.

    alpha = 1 gives the fine-tuned model back. For "random" the profile is scaled to a change of
    the same Euclidean norm as that of the line. Raises BadInput for several tasks (see `merge`),
    and as `profile` does.
    """
    if len(v.tasks) != 1:
        raise BadInput(f"scaled takes one task, not {len(v.tasks)}; merge takes several")
    by_depth = profile(v.base.n_layers, alpha, shape=shape, seed=seed)
    if shape == "random":
        size = sizes(v).isel(task=0)
        straight = profile(v.base.n_layers, alpha)
        change = [float(np.sqrt(((p * size) ** 2).sum())) for p in (straight, by_depth)]
        by_depth = by_depth * (change[0] / change[1] if change[1] else 1.0)
    return combine(v, by_depth, name=f"{shape}, alpha {alpha:g}")


def merge(
    v: Vectors,
    beta: float,
    *,
    alpha: float | None = None,
    how: How = "sum",
    keep: float = 0.2,
    shape: Shape = "lines",
) -> Model:
    """Return the base plus the merged change of several tasks, scaled by depth.

    `how`: "sum" of the vectors, or "ties" (see `lwlab.merging.ties`, which uses `keep`). `alpha` is
    `alpha_of` the merged vector if not given. Task arithmetic with lambda is `combine(v, lambda)`.
    Raises BadInput and UnknownName as `profile` and `ties` do.
    """
    if how not in get_args(How):
        raise UnknownName(f"no way to merge {how!r}{suggest(how, get_args(How))}")
    tau = v if how == "sum" else ties(v, keep)
    if alpha is None:
        alpha = 1 / len(v.tasks) if how == "sum" else _ratio(v, tau)
    by_depth = profile(v.base.n_layers, alpha, beta, shape=shape)
    return combine(tau, by_depth, name=f"{shape} of {how}, beta {beta:g}")


def alpha_of(v: Vectors, how: How = "sum", keep: float = 0.2) -> float:
    """Return (|sum_k tau_k|_1 / |tau_merged|_1) / K: where the line starts for K tasks.

    Exactly 1/K for "sum": the first block gets the mean of the fine-tunes. Raises BadInput where
    the merged change is zero.
    """
    return 1 / len(v.tasks) if how == "sum" else _ratio(v, ties(v, keep))


def _ratio(v: Vectors, merged: Vectors) -> float:
    top = bottom = 0.0
    for n in v.tensors:
        top += float(torch.stack([t[n] for t in v.tau.values()]).sum(0).double().abs().sum())
        bottom += sum(float(t[n].double().abs().sum()) for t in merged.tau.values())
    if not bottom:
        raise BadInput("the merged change is zero, so there is nothing to scale")
    return top / bottom / len(v.tasks)


def describe(v: Vectors, by_depth: xr.DataArray) -> xr.Dataset:
    """Return lambda and |lambda tau| by layer (task, layer): what is left of every block's change.

    Raises BadInput where `by_depth` does not cover the layers.
    """
    size = sizes(v)
    if not set(size.layer.values.tolist()) <= set(by_depth.layer.values.tolist()):
        raise BadInput("by_depth leaves layers out; see lwlab.merging.profile")
    scale = by_depth.drop_attrs()
    found = {"scale": scale, "size": size.drop_attrs(), "left": (scale * size).drop_attrs()}
    return xr.Dataset(found, attrs=provenance(v.base, technique="LiNeS", paper=PAPER))
