"""Colours shared by charts and widgets: safe for colour-blind readers, one scale rule for both."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Blue - near-white - orange: the two arms differ in hue for every common colour-vision deficiency
# and have equal lightness at equal distance from zero, so neither sign looks stronger.
DIVERGING = (
    "#0b3c7d", "#2a6db3", "#64a3d4", "#b2d1e8", "#f7f7f7",
    "#f9c48c", "#e5842f", "#b3540a", "#6d2c02",
)  # fmt: skip
# cividis (Nunez, Anderton & Renslow 2018), sampled: read alike with and without colour vision.
SEQUENTIAL = (
    "#00224e", "#123570", "#3b496c", "#575d6d", "#707173",
    "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838",
)  # fmt: skip
# Okabe & Ito (2008), ordered so that the first ones also differ in grey.
CATEGORIES = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#7f7f7f",
)  # fmt: skip
MISSING = "#e0e0e0"  # ground of a cell without a value
MISSING_STROKE = "#a3a3a3"  # its hatch

Domain = tuple[float, float]


def colour_domain(values: npt.NDArray[np.floating]) -> tuple[Domain, tuple[str, ...]]:
    """Return `(low, high)` and the colour stops for `values` of any shape.

    Values of both signs get the diverging stops on (-m, m), m the largest magnitude, so that white
    is exactly zero; otherwise cividis on (min, max), from zero where min is a small part of max.
    A sign that is less than a millionth of m is rounding, not a sign. NaN and infinity are left
    out; with no finite value the domain is (0, 1).
    """
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return (0.0, 1.0), SEQUENTIAL
    low, high = float(finite.min()), float(finite.max())
    peak = max(-low, high)
    if low < -1e-6 * peak and high > 1e-6 * peak:
        return (-peak, peak), DIVERGING
    if 0 <= low < 0.05 * high:  # counts, probabilities, errors: their scale starts at zero
        low = 0.0
    if low == high:  # a constant map still needs a scale with two ends
        return ((0.0, high) if high > 0 else (low, 0.0) if low < 0 else (0.0, 1.0)), SEQUENTIAL
    return (low, high), SEQUENTIAL


def stops_for(domain: Domain) -> tuple[str, ...]:
    """Return the colour stops for a domain somebody chose: diverging if it straddles zero."""
    return DIVERGING if domain[0] < 0 < domain[1] else SEQUENTIAL


def colour_map(
    values: npt.NDArray[np.floating], domain: Domain, stops: tuple[str, ...]
) -> npt.NDArray[np.uint8]:
    """Return RGB bytes `[*values.shape, 3]`: linear between the stops, clamped to the domain."""
    table = np.array([[int(s[i : i + 2], 16) for i in (1, 3, 5)] for s in stops], dtype=float)
    low, high = domain
    at = np.clip((np.nan_to_num(values, nan=low) - low) / (high - low), 0, 1)
    knots = np.linspace(0, 1, len(stops))
    rgb = np.stack([np.interp(at, knots, table[:, c]) for c in range(3)], axis=-1)
    return np.rint(rgb).astype(np.uint8)


def ticks(domain: Domain, count: int = 5) -> list[float]:
    """Return round numbers inside `domain`, about `count` of them, zero among them if inside."""
    low, high = domain
    raw = (high - low) / max(count - 1, 1)
    base = 10.0 ** np.floor(np.log10(raw))
    step = base * next(k for k in (1, 2, 5, 10) if raw <= 1.15 * k * base)
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    return [float(f"{k * step:.6g}") for k in range(first, last + 1)]
