"""How many steps an integral takes, and what is said about the ones that stay open."""

from __future__ import annotations

import math
import warnings
from typing import Any

from lwlab.errors import BadInput


def check_steps(steps: int, most: int, tolerance: float | None) -> None:
    """Raise BadInput for numbers of steps, or a tolerance, that make no sense."""
    if steps < 1:
        raise BadInput(f"steps={steps}; integrated gradients need at least one")
    if tolerance is None:
        return
    if not 0 < tolerance < math.inf:
        raise BadInput(
            f"tolerance={tolerance}: give a positive share of the effect, such as 0.05, or None to "
            "keep to the steps"
        )
    if most < steps:
        raise BadInput(f"steps={steps}, max_steps={most}: no fewer at most than at first")


def said(
    name: str, gap: float, steps: int, tolerance: float | None, level: int = 3
) -> dict[str, Any]:
    """Attributes of an integral whose worst prompt misses its effect by the share `gap`.

    Warns, `level` frames up, where that is more than the tolerance. Without a tolerance nothing was
    asked, so nothing is said but the numbers.
    """
    attrs: dict[str, Any] = {"completeness_gap": gap, "steps": steps}
    if tolerance is None:
        return attrs
    closed = gap <= tolerance
    if not closed:
        warnings.warn(
            f"{name}: after {steps} steps the scores of some prompt miss the effect they should "
            f"add up to by {gap:.3g} of it (tolerance {tolerance:.3g}); raise max_steps",
            stacklevel=level,
        )
    return attrs | {"tolerance": tolerance, "converged": closed}
