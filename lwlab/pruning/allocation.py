"""How much to cut where: a budget for attention and one for MLPs, one threshold over all layers."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import xarray as xr

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.pruning.units import DIMS, PARTS
from lwlab.results import provenance

Across = Literal["global", "uniform"]


def rates(attention: float, mlp: float, sparsity: float, gamma: float = 3.0) -> dict[str, float]:
    """Share of the units to cut of each kind, by one budget for both.

    s_mlp = s (A + M) / (M + A / gamma), s_attn = s_mlp / gamma, where A and M are the weights of
    attention and of MLPs: s_attn A + s_mlp M = s (A + M) go. gamma > 1 spares attention, gamma = 1
    treats both alike.
    Raises BadInput for a sparsity outside (0, 1), a gamma not above 0, or a budget of MLPs or of
    attention of 1 and more.
    """
    if not 0 < sparsity < 1:
        raise BadInput(f"sparsity={sparsity}: the share to cut lies between 0 and 1, both excluded")
    if not 0 < gamma < float("inf"):
        raise BadInput(f"gamma={gamma}: it must be above 0; 1 cuts both kinds alike, 3 is usual")
    s_mlp = sparsity * (attention + mlp) / (mlp + attention / gamma)
    found = {"attn": s_mlp / gamma, "mlp": s_mlp}
    for part, rate in found.items():
        if rate >= 1 and {"attn": attention, "mlp": mlp}[part]:
            raise BadInput(
                f"sparsity={sparsity} with gamma={gamma} would cut {rate:.2f} of all {part} "
                "weights; take a lower sparsity, or a gamma nearer to 1"
            )
    return found


def allocate(
    scores: xr.Dataset,
    sparsity: float,
    gamma: float = 3.0,
    *,
    across: Across = "global",
    multiple: int = 8,
) -> xr.Dataset:
    """Decide which units stay: booleans `attn` (layer, kv_head) and `mlp` (layer, neuron).

    Of each kind, round(rate x units) go (`rates`), the lowest scores first. across="global": one
    list over all layers, so that layers end with different widths; "uniform": the same number in
    every layer (to within one). Each layer keeps its best key/value group, and its kept neurons are
    rounded up to a `multiple`, which brings the best of the condemned back (1: none).

    `scores` come from `scores`; a kind that they lack is left whole, and then the budget is of
    the other alone. Attributes: `sparsity` asked for and `cut`, the share of weights that goes.
    Raises BadInput as `rates`, and for a budget that would leave a layer without a unit;
    UnknownName for `across`.
    """
    if across not in get_args(Across):
        raise UnknownName(f"across={across!r} is unknown{suggest(str(across), get_args(Across))}")
    if multiple < 1:
        raise BadInput(f"multiple={multiple}: it must be at least 1")
    have = [p for p in PARTS if p in scores]
    if not have:
        raise BadInput("these scores have neither 'attn' nor 'mlp'; make them with pruning.scores")
    weights = {p: scores[p].size * int(scores[p].attrs["weights"]) if p in have else 0
               for p in PARTS}  # fmt: skip
    rate = rates(weights["attn"], weights["mlp"], sparsity, gamma)
    out, gone = xr.Dataset(), 0.0
    for part in have:
        s = scores[part].transpose("layer", DIMS[part]).values
        if not np.isfinite(s).all():
            raise BadInput(f"the scores of {part} hold NaN or infinite values")
        k = round(rate[part] * s.size)
        keep = _keep(s, k, across, 1 if part == "attn" else multiple, part)
        if part == "mlp":
            _round_up(keep, s, multiple)
        out[part] = scores[part].copy(data=keep)
        out[part].attrs = {"weights": scores[part].attrs["weights"], "rate": rate[part]}
        gone += float((~keep).sum()) * int(scores[part].attrs["weights"])
    kept = {k: v for k, v in scores.attrs.items() if k in ("model", "checksum", "criterion")}
    return out.assign_attrs(
        provenance(technique="NIRVANA", sparsity=sparsity, gamma=gamma, across=across)
        | kept | {"cut": gone / sum(weights.values())}
    )  # fmt: skip


def _keep(s: np.ndarray, k: int, across: Across, least: int, part: str) -> np.ndarray:
    """Mark what stays when the k lowest go, at least `least` of each layer."""
    layers, n = s.shape
    least = min(least, n)
    best = np.argsort(-s, axis=1, kind="stable")
    keep = np.ones_like(s, dtype=bool)
    safe = np.zeros_like(keep)
    np.put_along_axis(safe, best[:, :least], True, axis=1)
    if k > (~safe).sum():
        raise BadInput(
            f"{k} of {s.size} units of {part} are to go, but each of {layers} layers keeps at "
            f"least {least}; lower the sparsity" + (" or raise gamma" if part == "attn" else "")
        )
    if across == "global":
        order = np.argsort(np.where(safe, np.inf, s), axis=None, kind="stable")
        keep.flat[order[:k]] = False
        return keep
    counts = np.diff(np.round(np.linspace(0, k, layers + 1)).astype(int))
    for row, bad, count in zip(keep, best, counts):
        row[bad[n - min(count, n - least) :]] = False
    return keep


def _round_up(keep: np.ndarray, s: np.ndarray, multiple: int) -> None:
    """Bring the best of those that go back, until each layer's number is a multiple."""
    for row, score in zip(keep, s):
        want = min(-(-int(row.sum()) // multiple) * multiple, len(row))
        gone = np.where(row, -np.inf, score)
        row[np.argsort(-gone, kind="stable")[: want - int(row.sum())]] = True
