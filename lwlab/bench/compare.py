"""The largest difference between two results, whatever they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def difference(a: Any, b: Any) -> float:
    """Return the largest absolute difference between two results of the same structure.

    Tensors, arrays, numbers and xarray objects are compared by value (equal infinities and NaN in
    the same place count as equal), mappings and sequences part by part; parts that are None or
    text must be equal. Different shapes or structures are infinitely different.
    """
    if hasattr(a, "data_vars") and hasattr(b, "data_vars"):
        a, b = dict(a.data_vars), dict(b.data_vars)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if set(a) != set(b):
            return float("inf")
        return max((difference(a[k], b[k]) for k in a), default=0.0)
    if a is None or b is None or isinstance(a, str) or isinstance(b, str):
        return 0.0 if type(a) is type(b) and a == b else float("inf")
    if _is_list(a) and _is_list(b):
        if len(a) != len(b):
            return float("inf")
        return max((difference(x, y) for x, y in zip(a, b)), default=0.0)
    x, y = _array(a), _array(b)
    if x.shape != y.shape:
        return float("inf")
    if x.size == 0:
        return 0.0
    with np.errstate(invalid="ignore"):
        gap = np.abs(x - y)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    return float(np.where(same, 0.0, np.where(np.isnan(gap), np.inf, gap)).max())


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not hasattr(value, "dtype")


def _array(value: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    if hasattr(value, "detach"):
        value = value.detach().cpu().double().numpy()
    return np.asarray(value, dtype=np.float64)
