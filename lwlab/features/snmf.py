"""SNMF: MLP activations as a sum of non-negative amounts of sparse neuron combinations.

Shafran, Geiger & Geva 2025, "Decomposing MLP Activations into Interpretable Features via
Semi-Nonnegative Matrix Factorization" (arXiv:2506.10920); the updates are those of semi-NMF, Ding,
Li & Jordan 2010 (IEEE TPAMI 32:45), with a hard cut to the largest neurons between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from lwlab.errors import BadInput
from lwlab.features.matrix import matrix, rank_fits
from lwlab.results import label

PAPER = "2506.10920"
EPS = 1e-6
Init = Literal["random", "svd", "kmeans"]


def factorise(
    activations: xr.DataArray,
    k: int,
    *,
    sparsity: float = 0.01,
    iterations: int = 500,
    patience: int = 100,
    tolerance: float = 1e-4,
    init: Init = "random",
    refit: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Factorise activations A (sample, neuron) into k features: A ~ Y Z, Y >= 0, Z of both signs.

    Z (feature, neuron) holds the directions, Y (sample, feature) how much of each a token has.
    From Y drawn in U(0, 1) (or by `init`: "svd", "kmeans"), repeat at most `iterations` times

        Z <- (Y'Y + eps)^-1 Y'A                                     least squares
        keep the ceil(sparsity * neurons) largest |Z_j| of each feature, zero the others
        scale each column of Y to length 1, and Z_j by what it was
        Y <- Y * sqrt((P+ + Y Q-) / (P- + Y Q+ + eps)),  P = A Z', Q = Z Z', x+- = max(+-x, 0)

    and return the best pair; stop after `patience` steps without a gain of `tolerance` in the
    error. With sparsity=1 the error never rises; with the cut it may (`rises` counts). The cut
    leaves Z no longer the best of its support: `refit` solves for that, each time.

    Returns a Dataset: `direction` (feature, neuron), `coefficient` (sample, feature), largest
    features first (by the size of their part, |Y_j| |Z_j|), `error` (iteration), the share of
    |A|^2 that is not explained; attributes `explained_error`, `best`, `rises`, `support`.
    Raises BadInput, before anything is computed, for NaN or infinite activations, k larger than
    the rank the data can have, a sparsity outside (0, 1], or other settings that cannot work.
    """
    x = matrix(activations, "snmf.factorise")
    rank_fits(x, k, "snmf.factorise")
    if not 0 < sparsity <= 1:
        raise BadInput(f"sparsity={sparsity}: the share of neurons a feature keeps, in (0, 1]")
    if iterations < 1 or patience < 1:
        raise BadInput(f"iterations={iterations}, patience={patience}: at least 1 each")
    support = int(np.ceil(round(sparsity * x.shape[1], 9)))
    y = start(x, k, init, seed)
    whole = float((x**2).sum())
    errors: list[float] = []
    best, since = (float("inf"), y, y.new_zeros(k, x.shape[1]), 0), 0
    for i in range(iterations):
        y, z = step(x, y, support, refit)
        errors.append(float(((x - y @ z) ** 2).sum()) / whole)
        since = 0 if errors[-1] < best[0] - tolerance else since + 1
        if errors[-1] < best[0]:
            best = (errors[-1], y, z, i)
        if since >= patience:
            break
    error, y, z, at = best
    order = torch.argsort(y.norm(dim=0) * z.norm(dim=1), descending=True)
    rises = int(sum(b > a * (1 + 1e-6) for a, b in pairwise(errors)))
    column = str(activations.dims[1])
    kept = {k_: v for k_, v in activations.coords.items() if "sample" in v.dims}
    return xr.Dataset(
        {
            "direction": label(z[order], ("feature", column)).drop_attrs(),
            "coefficient": label(y[:, order], ("sample", "feature")).drop_attrs(),
            "error": label(errors, ("iteration",)).drop_attrs(),
        },
        coords={"feature": range(k), "iteration": range(len(errors)), **kept},
        attrs={
            **activations.attrs, "technique": "SNMF", "paper": PAPER, "k": k, "seed": seed,
            "sparsity": sparsity, "support": support, "init": init, "refit": int(refit),
            "explained_error": error, "best": at, "rises": rises,
        },
    )  # fmt: skip


def step(
    x: torch.Tensor, y: torch.Tensor, support: int, refit: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make one iteration: x [n, d], y [n, k] -> the new y [n, k] and z [k, d]."""
    gram, cross = y.T @ y, y.T @ x
    z = torch.linalg.solve(gram + EPS * torch.eye(len(gram), dtype=x.dtype), cross)
    if support < x.shape[1]:
        keep = torch.zeros_like(z, dtype=torch.bool)
        keep.scatter_(1, z.abs().topk(support, dim=1).indices, True)
        z = on_support(gram, cross, keep) if refit else z * keep
    length = y.norm(dim=0)
    length = torch.where(length > 0, length, torch.ones_like(length))
    y, z = y / length, z * length[:, None]
    return update(x, y, z), z


def update(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """One multiplicative update of the coefficients y [n, k] >= 0 for directions z [k, d]."""
    p, q = x @ z.T, z @ z.T
    up = p.clamp(min=0) + y @ (-q).clamp(min=0)
    down = (-p).clamp(min=0) + y @ q.clamp(min=0)
    return y * (up / (down + EPS)).sqrt()


def on_support(gram: torch.Tensor, cross: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Least squares for z [k, d] where `keep` is true, zero elsewhere: one system a neuron."""
    out = torch.empty_like(cross)
    eye = torch.eye(len(gram), dtype=gram.dtype)
    for part in torch.split(torch.arange(cross.shape[1]), 256):
        m = keep[:, part].T.to(gram.dtype)
        systems = gram * m[:, :, None] * m[:, None, :] + torch.diag_embed(1 - m) + EPS * eye
        out[:, part] = torch.linalg.solve(systems, cross[:, part].T * m).T
    return out * keep


def start(x: torch.Tensor, k: int, init: str, seed: int) -> torch.Tensor:
    """First coefficients [n, k], all of at least 1e-6: an exact zero would stay one for ever."""
    if init == "random":
        drawn = np.random.default_rng(seed).random((len(x), k))
        return torch.from_numpy(drawn).to(x.dtype).clamp(min=EPS)
    if init == "svd":
        u, s, _ = torch.linalg.svd(x, full_matrices=False)
        # A singular vector has no sign of its own: take the one that most of its weight has.
        u = (u * s)[:, :k]
        sign = torch.where((u.clamp(min=0) ** 2).sum(0) >= (u.clamp(max=0) ** 2).sum(0), 1.0, -1.0)
        return (u * sign).clamp(min=EPS)
    if init == "kmeans":
        from sklearn.cluster import KMeans

        found = KMeans(k, n_init=1, max_iter=15, random_state=seed).fit_predict(x.numpy())
        one_hot = torch.nn.functional.one_hot(torch.from_numpy(found).long(), k)
        return one_hot.to(x.dtype).clamp(min=EPS)
    raise BadInput(f"init={init!r} is unknown; use 'random', 'svd' or 'kmeans'")


def encode(
    activations: xr.DataArray, directions: xr.DataArray, iterations: int = 200
) -> xr.DataArray:
    """Say how much of each feature new activations have: min_Y |A - Y Z|, Y >= 0, for Z fixed.

    Each coefficient in turn is set to its best value given the others, `iterations` times round,
    which ends in the non-negative least squares solution. (sample, neuron) and (feature, neuron)
    give (sample, feature). Raises BadInput for NaN, or directions of another width.
    """
    x, z = matrix(activations, "snmf.encode"), matrix(directions, "snmf.encode", rows="feature")
    if x.shape[1] != z.shape[1]:
        raise BadInput(f"directions of {z.shape[1]} neurons for activations of {x.shape[1]}")
    z = z.to(x.dtype)
    p, q = x @ z.T, z @ z.T
    y = torch.zeros_like(p)
    for _ in range(iterations):
        before = y.clone()
        for j in range(len(z)):
            if q[j, j] > 0:
                y[:, j] = (y[:, j] + (p[:, j] - y @ q[:, j]) / q[j, j]).clamp(min=0)
        if float((y - before).abs().max()) <= 1e-9 * float(y.abs().max()):
            break
    kept = {str(k): v for k, v in activations.coords.items() if "sample" in v.dims}
    kept |= {str(k): v for k, v in directions.coords.items() if "feature" in v.dims}
    return label(y, ("sample", "feature"), kept, name="coefficient", **activations.attrs)


def hierarchy(fit: xr.Dataset, sizes: Sequence[int], **options: Any) -> xr.Dataset:
    """Factorise the directions again and again with fewer features: what do features share?

    Z_0 (features of `fit`) ~ Y_1 Z_1 with sizes[0] parents, Z_1 ~ Y_2 Z_2, ...; `options` go to
    `factorise`, the sparsity is that of `fit` unless given. Directions are first scaled to length
    1: a feature's size says how often it was seen, not what it is made of.

    Returns a Dataset: for each level i from 1 on `direction_i` (level_i, neuron), `weight_i`
    (level_{i-1}, level_i) >= 0, `parent_i` (level_{i-1}), the heaviest weight; level_0 are the
    features of `fit`, and `ancestor_i` (level_0) is each one's forebear at level i. Raises BadInput
    for sizes that do not fall, and as `factorise` does.
    """
    z: xr.DataArray = fit["direction"]
    steps = [z.sizes["feature"], *sizes]
    if len(steps) < 2 or any(b >= a or b < 1 for a, b in pairwise(steps)):
        raise BadInput(f"sizes={list(sizes)}: give fewer parents at each level than {steps[0]}")
    options = {"sparsity": float(fit.attrs.get("sparsity", 1.0)), **options}
    column = str(z.dims[1])
    out = xr.Dataset(coords={"level_0": range(steps[0])}, attrs=dict(fit.attrs))
    ancestor = np.arange(steps[0])
    for i, size in enumerate(sizes, 1):
        values = z.values / np.maximum(np.linalg.norm(z.values, axis=1, keepdims=True), 1e-12)
        found = factorise(label(values, ("sample", column)), size, **options)
        weight = found["coefficient"].values * np.linalg.norm(found["direction"].values, axis=1)
        parent = weight.argmax(1)
        ancestor = parent[ancestor]
        z = found["direction"]
        out[f"direction_{i}"] = ((f"level_{i}", column), z.values)
        out[f"weight_{i}"] = ((f"level_{i - 1}", f"level_{i}"), weight)
        out[f"parent_{i}"] = ((f"level_{i - 1}",), parent)
        out[f"ancestor_{i}"] = (("level_0",), ancestor)
        out = out.assign_coords({f"level_{i}": range(size)})
    return out.assign_attrs(sizes=[int(s) for s in sizes])
