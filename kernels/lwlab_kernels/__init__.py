"""Kernels that earn their place: Triton on the GPU, Numba on the CPU, plain torch as the truth.

Each kernel is a pure function, tensors in and a NamedTuple out, whose torch reference *is* its
definition. `backend=None` chooses by device and by what is installed, a name forces one, and the
result says which one ran (`.backend`). Results carry no gradient. Numba and triton are imported on
first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_LAZY: dict[str, str] = {
    "attn_stats": "lwlab_kernels.attention",
    "fake_quant": "lwlab_kernels.quant",
    "lens_stats": "lwlab_kernels.lens",
    "quant_error_table": "lwlab_kernels.quant",
    "sparse_mlp": "lwlab_kernels.sparse_mlp",
}

if TYPE_CHECKING:
    from lwlab_kernels.attention import attn_stats as attn_stats
    from lwlab_kernels.lens import lens_stats as lens_stats
    from lwlab_kernels.quant import fake_quant as fake_quant
    from lwlab_kernels.quant import quant_error_table as quant_error_table
    from lwlab_kernels.sparse_mlp import sparse_mlp as sparse_mlp

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'lwlab_kernels' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
