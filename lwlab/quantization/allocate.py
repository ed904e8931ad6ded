"""Bits for each layer under a budget of memory, from a table of what rounding costs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import xarray as xr

from lwlab.errors import BadInput, UnknownName, suggest

Numbers = npt.NDArray[np.float64]


def _uniform(error: Numbers, size: Numbers, budget: float) -> list[int]:
    fits = np.flatnonzero(size.sum(0) <= budget)
    return [int(fits[-1])] * len(size)


def _greedy(error: Numbers, size: Numbers, budget: float) -> list[int]:
    at, left = [0] * len(size), budget - float(size[:, 0].sum())
    while True:
        gains = []
        for i, b in enumerate(at):
            for to in range(b + 1, size.shape[1]):
                cost = float(size[i, to] - size[i, b])
                if cost <= left + 1e-9:
                    gains.append((float(error[i, b] - error[i, to]) / max(cost, 1e-12), i, to))
        best = max(gains, default=(0.0, 0, 0))
        if best[0] <= 0:
            return at
        left -= float(size[best[1], best[2]] - size[best[1], at[best[1]]])
        at[best[1]] = best[2]


#: Allocators by name: (error, size) [layers, widths] and a budget -> the width's index by layer.
ALLOCATORS: dict[str, Callable[[Numbers, Numbers, float], list[int]]] = {
    "uniform": _uniform,
    "greedy": _greedy,
}


def allocate(table: xr.Dataset, megabytes: float, technique: str = "greedy") -> xr.DataArray:
    """Choose bits for each layer so that the packed matrices fit into `megabytes` (10^6 bytes).

    `table`: what `error_table` returns; its widths are the choices. "uniform": the same bits
    everywhere, as many as fit. "greedy": from the fewest bits everywhere, raise again and again the
    layer whose error falls most for each megabyte spent, while it fits (marginal analysis, Fox
    1966: optimal where errors are convex in size, but for what the last rise leaves unspent).

    Returns bits (layer), for `fake_quantized`; attributes tell `megabytes` used and the summed
    `error`. Raises BadInput for a budget too small for the fewest bits, UnknownName for a
    technique.
    """
    if technique not in ALLOCATORS:
        raise UnknownName(f"no allocator is called {technique!r}{suggest(technique, ALLOCATORS)}")
    widths = [int(b) for b in table.bits.values]
    order = np.argsort(widths)
    error = table.error.sum("module").transpose("layer", "bits").values[:, order]
    size = table.megabytes.sum("module").transpose("layer", "bits").values[:, order]
    least = float(size[:, 0].sum())
    if not megabytes >= least - 1e-9:
        raise BadInput(
            f"{megabytes:g} MB are too few: {widths[order[0]]} bits everywhere take {least:.2f} MB"
        )
    at = ALLOCATORS[technique](error, size, megabytes + 1e-9)
    layers = np.arange(len(at))
    return xr.DataArray(
        [widths[order[k]] for k in at],
        dims="layer",
        coords={"layer": table.layer.values},
        name="bits",
        attrs={
            **table.attrs, "technique": f"{technique} bit allocation", "budget": float(megabytes),
            "megabytes": float(size[layers, at].sum()), "error": float(error[layers, at].sum()),
        },
    )  # fmt: skip
