# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# (numba wants the overload below without annotations)
"""Numba: one pass over the neurons of a token; rows that are not needed are never read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import overload

from lwlab_kernels._numba import FAST, jit

# Sums may be reordered, but NaN and infinity are real here.
_SUMS: dict[str, Any] = {**FAST, "fastmath": {"reassoc", "contract", "nsz"}}
_CODES = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}
_ZERO, _SMALL = np.float32(0), np.float32(2.0**112)


def _wide(v):
    raise NotImplementedError


@overload(_wide, jit_options=_SUMS | {"cache": False})
def _wide_impl(v):
    """A stored weight as float32: float32, bfloat16 (seen as uint16) or float16 (as int16)."""
    if v == types.float32:
        return lambda v: v
    if v == types.uint16:
        return lambda v: np.int32(np.int32(v) << np.int32(16)).view(np.float32)

    def half(v):
        bits = np.int32(v)
        size = (bits & np.int32(0x7FFF)) << np.int32(13)
        if size >= np.int32(0x0F800000):  # infinity and NaN keep their exponent of ones
            size = size | np.int32(0x7F800000)
            out = np.int32(size).view(np.float32)
        else:
            out = np.int32(size).view(np.float32) * _SMALL
        return -out if bits < np.int32(0) else out

    return half


@jit(**_SUMS)
def _dot(row: Any, x: Any) -> Any:
    total = _ZERO
    for j in range(len(x)):
        total += _wide(row[j]) * x[j]
    return total


@jit(**_SUMS)
def _dots(row: Any, other: Any, x: Any) -> Any:
    """Two rows at once: scattered rows are bound by how many reads are under way."""
    one, two = _ZERO, _ZERO
    for j in range(len(x)):
        one += _wide(row[j]) * x[j]
        two += _wide(other[j]) * x[j]
    return one, two


@jit(**{**_SUMS, "fastmath": False})
def _act(g: Any, code: int) -> Any:
    if code == 0:
        return np.float32(g / (1.0 + math.exp(-g)))
    if code == 1:
        return np.float32(0.5 * g * (1.0 + math.erf(g * 0.7071067811865476)))
    if code == 2:
        inner = 0.7978845608028654 * (g + 0.044715 * g * g * g)
        return np.float32(0.5 * g * (1.0 + math.tanh(inner)))
    return _ZERO if g < _ZERO else np.float32(g)


@jit(**_SUMS)
def _add(y: Any, row: Any, h: Any) -> None:
    for j in range(len(y)):
        y[j] += h * _wide(row[j])


@jit(**_SUMS)
def _given(x: Any, gate: Any, up: Any, down: Any, idx: Any, code: int, y: Any, used: Any) -> None:
    for t in range(len(x)):
        for i in idx[t]:
            if i >= 0:
                g, u = _dots(gate[i], up[i], x[t])
                _add(y[t], down[i], _act(g, code) * u)
                used[t] += 1


@jit(**_SUMS)
def _chosen(
    x: Any, gate: Any, up: Any, down: Any, limit: Any, code: int, y: Any, used: Any
) -> None:
    for t in range(len(x)):
        for i in range(len(gate)):
            a = _act(_dot(gate[i], x[t]), code)
            if not (abs(a) < limit[i]):
                _add(y[t], down[i], a * _dot(up[i], x[t]))
                used[t] += 1


def run(
    x: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    down_t: torch.Tensor,
    idx: torch.Tensor | None,
    threshold: torch.Tensor | None,
    act: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.run`."""
    y = torch.zeros(len(x), down_t.shape[1])
    used = torch.zeros(len(x), dtype=torch.int64)
    tokens = x.float().contiguous().numpy()
    weights = [_raw(w) for w in (gate, up, down_t)]
    out = _CODES[act], y.numpy(), used.numpy()
    if idx is not None:
        _given(tokens, *weights, idx.contiguous().numpy(), *out)
    else:
        assert threshold is not None
        _chosen(tokens, *weights, threshold.contiguous().numpy(), *out)
    return y, used


def _raw(w: torch.Tensor) -> np.ndarray[Any, Any]:
    """Weights as they lie; a copy only where rows are not contiguous."""
    w = w.contiguous()
    if w.dtype == torch.bfloat16:
        return w.view(torch.uint16).numpy()
    return (w.view(torch.int16) if w.dtype == torch.float16 else w).numpy()
