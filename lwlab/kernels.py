"""The kernels (see the package lwlab_kernels), imported on first use: `lw.kernels.lens_stats`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lwlab_kernels import attn_stats as attn_stats
    from lwlab_kernels import fake_quant as fake_quant
    from lwlab_kernels import lens_stats as lens_stats
    from lwlab_kernels import quant_error_table as quant_error_table
    from lwlab_kernels import sparse_mlp as sparse_mlp

_NAMES = ("attn_stats", "fake_quant", "lens_stats", "quant_error_table", "sparse_mlp")
__all__ = [*_NAMES]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'lwlab.kernels' has no attribute {name!r}")
    import lwlab_kernels

    return getattr(lwlab_kernels, name)


def __dir__() -> list[str]:
    return list(__all__)
