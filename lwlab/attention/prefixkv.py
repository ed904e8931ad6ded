"""PrefixKV: how many keys and values each layer may keep, found by one binary search.

Wang, Chen, Zhang, Liu, Chen & Ding 2024, "PrefixKV: Adaptive Prefix KV Cache is What Vision
Instruction-Following Models Need for Efficient Generation" (arXiv:2412.03409). A layer whose
attention is concentrated needs few keys, another many; one level of retained attention for all
layers gives each its own number. What is kept is really cut in `prefixkv_cache`, and measured in
`prefixkv_measure`.

The paper's code counts what the level forgets, leaves the protected positions out of that count
and rescales to the total. Here the protected positions head each layer's list, so that the level
*is* the attention retained and the search solves max min_l P^l(n_l) exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.results import label, provenance

PAPER = "2412.03409"
START, RECENT = 4, 1  # positions that are never evicted: the first and the last ones
Technique = Literal["prefixkv", "uniform", "pyramid", "late", "recency", "random"]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def curves(mass: xr.DataArray, *, start: int = START, recent: int = RECENT) -> xr.DataArray:
    """Priority curves: the share of its attention that a layer retains with its best n keys.

        P^l(n) = sum of the first n of I^l / sum of I^l,

    I^l the column masses `mass` (layer, position), the `start` first and `recent` last positions
    at the head of the list, the others in falling order. Returns (layer, kept), kept = 0 ... T,
    no unit. Raises BadInput for masses that are negative, not finite or all zero, or a context
    that is not longer than the protected positions.
    """
    values = _masses(mass, start, recent)
    order = _order(values, start, recent)
    cumulated = np.cumsum(np.take_along_axis(values, order, 1), 1)
    share = np.concatenate([np.zeros((len(values), 1)), cumulated / cumulated[:, -1:]], 1)
    coords = {"layer": _layers(mass), "kept": list(range(share.shape[1]))}
    about = {k: v for k, v in mass.attrs.items() if k not in ("units", "long_name")}
    return label(
        share, ("layer", "kept"), coords, name="retained",
        **{**about, "long_name": "attention retained", "start": start, "recent": recent},
    )  # fmt: skip


def allocate(
    mass: xr.DataArray,
    budget: float,
    technique: Technique = "prefixkv",
    *,
    start: int = START,
    recent: int = RECENT,
    shares: Sequence[float] | None = None,
) -> xr.Dataset:
    """Say how many of its T keys each of the L layers keeps, B = floor(budget L T) in all.

    * "prefixkv": n_l(p) = min {n : P^l(n) >= p} (see `curves`), p the largest level with
      sum_l n_l(p) <= B, by binary search. What ties leave of B goes to the layers in turn. No other
      sizes with the same total retain more in their worst layer. With `shares` (one a layer, from
      `calibrate`) the sizes are those shares of B instead: the paper's offline mode.
    * "pyramid": falling linearly from 1.5 to 0.5 of the mean over the depth.
    * any other technique: the same for all, the first B mod L layers one more.

    Returns a Dataset over layer: `kept` (keys), `retained` = P^l(kept); attribute `level` is the
    least retained. Raises BadInput for a budget that is no share in (0, 1], one with less than a
    key a layer or less than what is protected; UnknownName for a technique; and as `curves` does.
    """
    _known(technique)
    curve = curves(mass, start=start, recent=recent)
    table = curve.values
    L, T = len(table), table.shape[1] - 1
    total = check_budget(budget, L, T, start + recent)
    floor = np.full(L, start + recent, dtype=np.int64)
    if technique == "prefixkv":
        sizes = _search(table, total, floor) if shares is None else _shared(shares, total, floor, T)
    elif technique == "pyramid":
        sizes = _shared(np.linspace(1.5, 0.5, L).tolist(), total, floor, T)
    else:
        sizes = _fill(np.full(L, total // L, dtype=np.int64), total, T)
    retained = np.take_along_axis(table, sizes[:, None], 1)[:, 0]
    coords = {"layer": curve["layer"].values.tolist()}
    units = {"kept": "keys", "retained": "share of attention"}
    arrays = {
        k: label(v, ("layer",), coords).drop_attrs().assign_attrs(long_name=k, units=units[k])
        for k, v in (("kept", sizes), ("retained", retained))
    }
    about = {k: v for k, v in mass.attrs.items() if k not in ("units", "long_name")}
    return xr.Dataset(arrays, attrs={**about, **provenance(
        technique=technique, paper=PAPER, budget=budget, total=int(total),
        level=float(retained.min()), start=start, recent=recent,
    )})  # fmt: skip


def keep(
    scores: xr.Dataset,
    budget: float,
    technique: Technique = "prefixkv",
    *,
    start: int = START,
    recent: int = RECENT,
    shares: Sequence[float] | None = None,
    seed: int = 0,
) -> xr.DataArray:
    """Choose the keys that stay: bool (layer, position), the sizes of `allocate`.

    `scores` (of `read`) holds `mass`, the column masses, and `late`, those of the last queries
    alone. Within a layer the best stay by `mass` ("prefixkv", "uniform", "pyramid"), by `late`
    ("late": as SnapKV does), by how recent they are ("recency": attention sinks and a window, as
    StreamingLLM) or by chance of `seed` ("random"); the first `start` and the last `recent` always.
    Raises as `allocate`.
    """
    mass = scores["mass"]
    sizes = allocate(mass, budget, technique, start=start, recent=recent, shares=shares)
    L, T = mass.shape
    by: Any
    if technique == "recency":
        by = np.tile(np.arange(T, dtype=float), (L, 1))
    elif technique == "random":
        by = np.random.default_rng(seed).random((L, T))
    else:
        by = scores["late" if technique == "late" else "mass"].values.astype(float)
    order = _order(by, start, recent)
    chosen = np.zeros((L, T), dtype=bool)
    for row, ranked, n in zip(chosen, order, sizes["kept"].values):
        row[ranked[:n]] = True
    return mass.copy(data=chosen).rename("kept").assign_attrs(
        {**sizes.attrs, "long_name": "key is kept", "units": "", "seed": seed}
    )  # fmt: skip


def calibrate(masses: Sequence[xr.DataArray], budget: float, **options: Any) -> list[float]:
    """Each layer's share of the budget, mean over texts: the paper's offline mode for `shares`."""
    if not masses:
        raise BadInput("calibrate needs the masses of at least one text")
    found = [allocate(mass, budget, **options)["kept"].values for mass in masses]
    return [float(x) for x in np.mean([sizes / sizes.sum() for sizes in found], 0)]


def check_budget(budget: float, layers: int, tokens: int, protected: int = START + RECENT) -> int:
    """Return how many keys `budget` allows in all; raise BadInput where it cannot be kept."""
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget <= 1:
        raise BadInput(
            f"budget={budget!r}: a share of the context in (0, 1]; 64 of 512 tokens are 0.125"
        )
    # The share is meant exactly: 0.1 of 30 x 10 keys is 30, not the 29 that rounding may make of it
    total = int(np.floor(budget * layers * tokens + 1e-9))
    if total < layers:
        raise BadInput(
            f"budget={budget} of {tokens} tokens is less than one token a layer; the least for "
            f"this context is {max(1, protected) / tokens:.3g}"
        )
    if total < layers * protected:
        raise BadInput(
            f"budget={budget} of {tokens} tokens is {total / layers:.1f} a layer, fewer than the "
            f"{protected} always kept; the least for this context is {protected / tokens:.3g}"
        )
    return total


def _masses(mass: xr.DataArray, start: int, recent: int) -> Floats:
    if mass.dims != ("layer", "position"):
        raise BadInput(f"masses are (layer, position), not {mass.dims}: take one prompt of them")
    values = np.asarray(mass.values, dtype=np.float64)
    if not np.isfinite(values).all() or (values < 0).any() or (values.sum(1) <= 0).any():
        raise BadInput("masses must be finite, not negative, and not all zero in a layer")
    if start < 0 or recent < 0:
        raise BadInput(f"start={start}, recent={recent}: numbers of positions, at least 0")
    if values.shape[1] <= start + recent:
        raise BadInput(
            f"a context of {values.shape[1]} tokens has nothing to evict: the first {start} and "
            f"the last {recent} are always kept"
        )
    return values


def _order(by: Floats, start: int, recent: int) -> Ints:
    """Positions of every layer, the protected first, the others by falling `by`; ties in order."""
    ranked = by.copy()
    ranked[:, :start] = np.inf
    if recent:
        ranked[:, -recent:] = np.inf
    return np.argsort(-ranked, axis=1, kind="stable")


def _layers(mass: xr.DataArray) -> list[int]:
    return [int(x) for x in mass["layer"].values] if "layer" in mass.coords else [*range(len(mass))]


def _at(table: Floats, level: float, floor: Ints) -> Ints:
    """n_l(p), at least what is protected."""
    found = np.array([int(np.searchsorted(row, level, side="left")) for row in table])
    return np.maximum(found, floor)


def _search(table: Floats, total: int, floor: Ints) -> Ints:
    low, high = 0.0, 1.0
    for _ in range(60):  # a double has no more digits to halve
        middle = (low + high) / 2
        if _at(table, middle, floor).sum() <= total:
            low = middle
        else:
            high = middle
    return _fill(_at(table, low, floor), total, table.shape[1] - 1)


def _fill(sizes: Ints, total: int, most: int) -> Ints:
    """Hand out what is left of the total, one key to each layer in turn, as far as it has any."""
    sizes = sizes.copy()
    left = total - int(sizes.sum())
    while left > 0 and (open_ := np.flatnonzero(sizes < most)).size:
        sizes[open_[:left]] += 1
        left -= min(left, len(open_))
    return sizes


def _shared(shares: Sequence[float], total: int, floor: Ints, most: int) -> Ints:
    """Sizes in proportion to `shares`, between floor and most, with the given total."""
    parts = np.asarray(shares, dtype=np.float64)
    if parts.shape != floor.shape or not np.isfinite(parts).all() or (parts <= 0).any():
        raise BadInput(f"shares: {len(floor)} positive numbers, one a layer; given {shares!r}")
    low, high = 0.0, float(most / parts.min())
    for _ in range(100):
        scale = (low + high) / 2
        sizes = np.clip((scale * parts).astype(np.int64), floor, most)
        low, high = (scale, high) if sizes.sum() <= total else (low, scale)
    return _fill(np.clip((low * parts).astype(np.int64), floor, most), total, most)


def _known(technique: str) -> None:
    if technique not in get_args(Technique):
        raise UnknownName(f"no technique {technique!r}{suggest(technique, get_args(Technique))}")
