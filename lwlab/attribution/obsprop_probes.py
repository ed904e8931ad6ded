"""Probes with few examples, the baseline of a direction that needed none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from lwlab.errors import BadInput
from lwlab.results import label, provenance
from lwlab.stats import auc

PAPER = "2312.16291"
#: Probes that are trained, and the placebos beside them.
TECHNIQUES = ("logistic regression", "difference of means", "shuffled labels", "random direction")
_Floats = NDArray[np.float64]


def low_data_curve(
    train: xr.DataArray,
    train_labels: ArrayLike,
    test: xr.DataArray,
    test_labels: ArrayLike,
    directions: Mapping[str, xr.DataArray],
    *,
    k: Iterable[int] = (5, 10, 25, 50),
    draws: int = 20,
    seed: int = 0,
) -> xr.DataArray:
    """AUC on `test` of directions that need no data beside probes of k examples a class.

    train, test: (example, d_model); labels: one truth value an example. Every example is divided
    by its root mean square first, which is how a norm would hand it on. `directions` (d_model)
    are scored as they are. Trained on k examples of each class, drawn `draws` times without
    replacement: "logistic regression" (scikit-learn, L2, C = 1), "difference of means", "shuffled
    labels" (the logistic regression on labels that mean nothing), and "random direction".

    Returns (technique, k, draw). Raises BadInput where a class has fewer than the largest k
    examples, for labels of another length, or directions of another width.
    """
    from sklearn.linear_model import LogisticRegression

    sizes = [int(i) for i in k]
    x, t = _examples(train, train_labels, "train")
    q, truth = _examples(test, test_labels, "test")
    least = int(min(t.sum(), (~t).sum()))
    if not sizes or min(sizes) < 1 or max(sizes) > least or draws < 1:
        raise BadInput(f"k={sizes}, draws={draws}: there are {least} examples of the rarer class")
    given = {name: np.asarray(v.values, float).ravel() for name, v in directions.items()}
    for name, v in given.items():
        if v.shape != (x.shape[1],):
            raise BadInput(f"direction {name!r} has {v.size} numbers, examples have {x.shape[1]}")
        if name in TECHNIQUES:
            raise BadInput(f"a direction cannot be called {name!r}, which is a probe's name")
    rng = np.random.default_rng(seed)
    names = [*given, *TECHNIQUES]
    out = np.zeros((len(names), len(sizes), draws), np.float64)
    for row, v in enumerate(given.values()):
        out[row] = auc(q @ v, truth)
    classes = [np.flatnonzero(t), np.flatnonzero(~t)]
    for j, size in enumerate(sizes):
        for d in range(draws):
            rows = np.concatenate([rng.permutation(c)[:size] for c in classes])
            few, of = x[rows], t[rows]
            mixed = rng.permutation(of)
            fits: list[_Floats] = [
                LogisticRegression(max_iter=1000).fit(few, of).coef_[0],
                few[of].mean(0) - few[~of].mean(0),
                LogisticRegression(max_iter=1000).fit(few, mixed).coef_[0],
                np.asarray(rng.normal(size=x.shape[1])),
            ]
            for row, w in enumerate(fits, len(given)):
                out[row, j, d] = auc(q @ w, truth)
    coords = {"technique": names, "k": sizes, "draw": list(range(draws))}
    about = provenance(technique="probes", paper=PAPER, seed=seed, n=len(truth))
    named = label(out, ("technique", "k", "draw"), coords)
    return named.assign_attrs(about, long_name="AUC on held-out examples")


def _examples(
    given: xr.DataArray, labels: ArrayLike, what: str
) -> tuple[_Floats, NDArray[np.bool_]]:
    loose = [d for d in given.dims if d != "d_model"]
    if "d_model" not in given.dims or len(loose) != 1:
        raise BadInput(f"{what} must be (example, d_model), got {given.dims}")
    x = np.asarray(given.transpose(..., "d_model").values, float)
    t = np.asarray(cast(Any, labels)).ravel().astype(bool)
    if len(t) != len(x):
        raise BadInput(f"{len(t)} labels for {len(x)} examples of {what}")
    if t.all() or not t.any():
        raise BadInput(f"{what} has examples of one class only")
    return x / np.sqrt((x**2).mean(1, keepdims=True)), t
