"""Checked matrices: what every decomposition of activations asks of its input."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr

from lwlab.errors import BadInput


def matrix(data: xr.DataArray | Any, who: str, rows: str = "sample") -> torch.Tensor:
    """Return labelled activations (`rows`, neuron) as a float tensor; BadInput for what is none."""
    if not isinstance(data, xr.DataArray) or data.ndim != 2 or data.dims[0] != rows:
        given = data.dims if isinstance(data, xr.DataArray) else type(data).__name__
        raise BadInput(
            f"{who} needs a labelled array of dimensions ({rows!r}, 'neuron'), got {given}; "
            "lwlab.features.collect makes activations"
        )
    if not data.size:
        raise BadInput(f"{who}: no values, shape {data.shape}")
    values = np.asarray(data.values)
    if values.dtype.kind not in "fiu":
        raise BadInput(f"{who}: values of type {values.dtype} are not real numbers")
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.flatnonzero(bad.any(1))[0])
        raise BadInput(
            f"{who}: {int(bad.sum())} of {values.size} values are NaN or infinite, the first in "
            f"row {row}; leave such rows out, e.g. x[np.isfinite(x).all({str(data.dims[1])!r})]"
        )
    if not values.any():
        raise BadInput(f"{who}: all values are zero, so there is nothing to explain")
    x = torch.from_numpy(np.ascontiguousarray(values))
    return x if x.dtype == torch.float64 else x.float()


def rank_fits(x: torch.Tensor, k: int, who: str) -> None:
    """Raise BadInput unless 1 <= k <= min(rows, columns), the rank the data can have."""
    most = min(x.shape)
    if not 1 <= k <= most:
        raise BadInput(
            f"{who}: k={k} features of {x.shape[0]} samples x {x.shape[1]} neurons, whose rank is "
            f"at most {most}; take 1 <= k <= {most}, or more samples"
        )
