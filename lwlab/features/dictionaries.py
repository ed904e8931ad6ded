"""Other ways to find directions in activations: what a decomposition is to be compared with.

All take activations (sample, neuron) and give directions (feature, neuron), as `snmf.factorise`
does in `direction`; a technique that has coefficients gives them too.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
import xarray as xr

from lwlab.errors import BadInput
from lwlab.features.matrix import matrix, rank_fits
from lwlab.features.sae_train import train
from lwlab.results import label


def pca(activations: xr.DataArray, k: int) -> xr.Dataset:
    """First k principal axes of the centred activations, by falling variance.

    An axis has no sign: the directions are the k axes and then the k axes turned round.
    Raises BadInput for NaN or k above the rank the data can have.
    """
    x = matrix(activations, "pca")
    rank_fits(x, k, "pca")
    centred = x - x.mean(0)
    u, s, v = torch.linalg.svd(centred, full_matrices=False)
    y = (u * s)[:, :k]
    both = torch.cat([v[:k], -v[:k]])
    return _dataset(activations, both, torch.cat([y, -y], 1).clamp(min=0), "PCA", k=k)


def svd_error(activations: xr.DataArray, k: int) -> float:
    """Return the share of |A|^2 left by the best rank-k matrix: nothing of rank k has less."""
    x = matrix(activations, "svd_error")
    rank_fits(x, k, "svd_error")
    s = torch.linalg.svdvals(x.double())
    return float((s[k:] ** 2).sum() / (s**2).sum())


def nmf(activations: xr.DataArray, k: int, *, iterations: int = 200, seed: int = 0) -> xr.Dataset:
    """Factorise |A| with both factors non-negative (scikit-learn): the sign of a neuron is lost.

    Raises BadInput for NaN or k above the rank the data can have.
    """
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    x = matrix(activations, "nmf").abs().numpy()
    rank_fits(torch.from_numpy(x), k, "nmf")
    made = NMF(k, init="nndsvda", max_iter=iterations, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        y = made.fit_transform(x)
    return _dataset(
        activations, torch.from_numpy(made.components_), torch.from_numpy(y), "NMF of |A|",
        k=k, seed=seed,
    )  # fmt: skip


def neurons(activations: xr.DataArray, k: int) -> xr.Dataset:
    """Take the k neurons of highest variance, each turned to the side of its longer tail."""
    x = matrix(activations, "neurons")
    if not 1 <= k <= x.shape[1]:
        raise BadInput(f"k={k} of {x.shape[1]} neurons")
    top = x.var(0).topk(k).indices
    centred = x[:, top] - x[:, top].mean(0)
    sign = torch.where((centred**3).sum(0) >= 0, 1.0, -1.0).to(x.dtype)
    z = torch.zeros(k, x.shape[1], dtype=x.dtype)
    z[torch.arange(k), top] = sign
    return _dataset(activations, z, (x[:, top] * sign).clamp(min=0), "neurons", k=k)


def sae(
    activations: xr.DataArray, width: int, active: int, *, steps: int = 1000, seed: int = 0
) -> xr.Dataset:
    """Train a TopK autoencoder on the activations (`lwlab.features.train`); directions are W_dec.

    `error` is the share of |A|^2 that it leaves. Raises BadInput as `train` does.
    """
    x = matrix(activations, "sae").float()
    made = train(x, width, active, steps=steps, seed=seed)
    error = float(((x - made(x)) ** 2).sum() / (x**2).sum())
    return _dataset(
        activations, made.w_dec, made.codes(x), "SAE", k=width, active=active, seed=seed,
        explained_error=error,
    )  # fmt: skip


def random(activations: xr.DataArray, k: int, support: int, *, seed: int = 0) -> xr.Dataset:
    """Directions of `support` neurons drawn at random, with random values: a placebo."""
    x = matrix(activations, "random")
    if not 1 <= support <= x.shape[1]:
        raise BadInput(f"support={support} of {x.shape[1]} neurons")
    gen = torch.Generator().manual_seed(seed)
    z = torch.zeros(k, x.shape[1])
    for row in z:
        chosen = torch.randperm(x.shape[1], generator=gen)[:support]
        row[chosen] = torch.randn(support, generator=gen)
    y = (x.float() @ z.T).clamp(min=0)
    return _dataset(activations, z, y, "random", k=k, support=support, seed=seed)


def difference_in_means(
    activations: xr.DataArray, labels: xr.DataArray | None = None
) -> xr.Dataset:
    """For each concept, mean activation with it less mean activation without it (supervised).

    `labels` [samples]: the concept of each, `activations.concept` by default. Feature j is for the
    j-th concept in order of first appearance (coordinate `concept`). Raises BadInput for one class
    only, or labels of another length.
    """
    x = matrix(activations, "difference_in_means")
    names, member = classes(activations, labels)
    z = torch.stack(
        [x[torch.from_numpy(row)].mean(0) - x[torch.from_numpy(~row)].mean(0) for row in member]
    )
    out = _dataset(activations, z, (x @ z.T).clamp(min=0), "difference in means", k=len(names))
    return out.assign_coords(of=("feature", names))


def classes(
    activations: xr.DataArray, labels: xr.DataArray | None = None
) -> tuple[list[str], np.ndarray]:
    """Concepts in order of appearance, and who belongs: bool [concepts, samples].

    Raises BadInput where there is one class only, or a label is missing.
    """
    if labels is None:
        if "concept" not in activations.coords:
            raise BadInput("these activations carry no coordinate 'concept': give labels=")
        labels = activations["concept"]
    given = np.asarray(labels)
    if given.shape != (activations.sizes["sample"],):
        raise BadInput(
            f"labels of shape {given.shape} for {activations.sizes['sample']} samples: one each"
        )
    found = list(dict.fromkeys(given.astype(str).tolist()))
    if len(found) < 2:
        raise BadInput(
            f"all {len(given)} samples are of one class, {found[0]!r}: a concept needs samples "
            "with it and samples without it"
        )
    return found, np.stack([given.astype(str) == name for name in found])


def _dataset(
    activations: xr.DataArray, z: torch.Tensor, y: torch.Tensor, technique: str, **attrs: object
) -> xr.Dataset:
    kept = {k: v for k, v in activations.coords.items() if "sample" in v.dims}
    column = str(activations.dims[1])
    return xr.Dataset(
        {
            "direction": label(z, ("feature", column)).drop_attrs(),
            "coefficient": label(y, ("sample", "feature")).drop_attrs(),
        },
        coords={"feature": range(len(z)), **kept},
        attrs={**activations.attrs, "technique": technique, **attrs},
    )
