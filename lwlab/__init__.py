"""lwlab: a Jupyter-first laboratory for looking inside neural networks layer by layer.

Everything below is imported on first use, so that `import lwlab` costs milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY: dict[str, str] = {
    "load": "lwlab.models",
    "wrap": "lwlab.models",
    "Model": "lwlab.models",
    "Tokens": "lwlab.models",
    "Anatomy": "lwlab.models",
    "cache": "lwlab.tracing",
    "patch": "lwlab.tracing",
    "ablate": "lwlab.tracing",
    "grads": "lwlab.tracing",
    "lens": "lwlab.tracing",
    "rules": "lwlab.tracing",
    "chain": "lwlab.tracing",
    "circuit": "lwlab.attribution.circuits",
    "generate": "lwlab.tracing",
    "corpus_stats": "lwlab.tracing.online",
    "sweep": "lwlab.tracing",
    "sweep_plan": "lwlab.tracing",
    "logit_diff": "lwlab.tasks",
    "claim": "lwlab.claims",
    "open": "lwlab.results",
}
_MODULES = (
    "activations",
    "attention",
    "attribution",
    "charts",
    "claims",
    "depth",
    "dynamics",
    "errors",
    "features",
    "kernels",
    "merging",
    "models",
    "normalization",
    "pruning",
    "quantization",
    "results",
    "runs",
    "stats",
    "steering",
    "tasks",
    "tracing",
    "widgets",
)

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr

    from lwlab import (
        activations,
        attention,
        attribution,
        charts,
        claims,
        depth,
        dynamics,
        errors,
        features,
        kernels,
        merging,
        models,
        normalization,
        pruning,
        quantization,
        results,
        runs,
        stats,
        steering,
        tasks,
        tracing,
        widgets,
    )
    from lwlab.attribution.circuits.subgraph import circuit
    from lwlab.claims import claim
    from lwlab.models import Anatomy, Model, Tokens
    from lwlab.models.loading import load, wrap
    from lwlab.results import open
    from lwlab.tasks import logit_diff
    from lwlab.tracing.chain import chain
    from lwlab.tracing.generate import generate
    from lwlab.tracing.lens import lens
    from lwlab.tracing.online import corpus_stats
    from lwlab.tracing.read import cache, grads
    from lwlab.tracing.rules import rules
    from lwlab.tracing.sweep import sweep, sweep_plan
    from lwlab.tracing.write import ablate, patch

__all__ = ["__version__", "save", *sorted(_LAZY), *_MODULES]


def save(result: xr.DataArray | xr.Dataset, path: str | Path) -> Path:
    """Save a labelled result with its provenance (see `lwlab.results.save`)."""
    # Not lazy like the rest: nnsight mounts `.save` on every object, modules included, and a name
    # that is found never reaches __getattr__.
    from lwlab.results import save as write

    return write(result, path)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"lwlab.{name}")
    raise AttributeError(f"module 'lwlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
