"""Instruments to touch: `lw.widgets.lens(model, "...")` and its companions (package lwlab_widgets).

Imported on first use: a chart alone needs none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

#: What users type, where it is not the class's own name.
_CALLED = {
    "heads": "HeadGrid",
    "lens": "LensExplorer",
    "map": "LayerMap",
    "tokens": "TokenStrip",
}

if TYPE_CHECKING:
    from lwlab_widgets import (
        BitBoard,
        CircuitGraph,
        DepthBoard,
        HeadGrid,
        HeatMap,
        LabWidget,
        LayerMap,
        Ledger,
        LensExplorer,
        Pick,
        SteeringDial,
        TokenStrip,
        TrainingMonitor,
        atlas,
        bits,
        circuit,
        depth,
        ledger,
        steer,
        training,
    )
    from lwlab_widgets import HeadGrid as heads
    from lwlab_widgets import LayerMap as map
    from lwlab_widgets import LensExplorer as lens
    from lwlab_widgets import TokenStrip as tokens

__all__ = [
    "BitBoard",
    "CircuitGraph",
    "DepthBoard",
    "HeadGrid",
    "HeatMap",
    "LabWidget",
    "LayerMap",
    "Ledger",
    "LensExplorer",
    "Pick",
    "SteeringDial",
    "TokenStrip",
    "TrainingMonitor",
    "atlas",
    "bits",
    "circuit",
    "depth",
    "heads",
    "ledger",
    "lens",
    "map",
    "steer",
    "tokens",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import lwlab_widgets

        value = getattr(lwlab_widgets, _CALLED.get(name, name))
        globals()[name] = value
        return value
    raise AttributeError(f"lw.widgets has no instrument {name!r}; there are: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return list(__all__)
