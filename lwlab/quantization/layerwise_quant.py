"""Layer-wise quantisation: two bit-widths, and an order in which layers get the lower one.

Dumitru et al. 2024, "Layer-Wise Quantization: A Pragmatic and Effective Method for Quantizing LLMs
Beyond Integer Bit-Levels" (arXiv:2406.17415). The layers are sorted by importance; the k least
important of L get `low` bits and the others `high`, so that the mean is (k low + (L - k) high) / L:
any average, in steps of (high - low) / L. Embeddings, norms and the unembedding stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import xarray as xr

from lwlab.errors import BadInput
from lwlab.models.model import Model, Prompts
from lwlab.quantization.calibrate import Moments
from lwlab.quantization.layerwise_quant_orders import (
    PAPER,
    least_first,
    lim,
    random_orders,
    sensitivity,
    zd,
)
from lwlab.quantization.layerwise_quant_runs import (
    WHOLE,
    Rounder,
    Scorer,
    installed,
    width,
)
from lwlab.results import label, provenance
from lwlab.stats import Estimate

__all__ = [
    "PAPER",
    "WHOLE",
    "Rounder",
    "Scorer",
    "installed",
    "lead",
    "least_first",
    "lim",
    "losses",
    "lowered",
    "plan",
    "random_orders",
    "sensitivity",
    "uniform",
    "zd",
]


def lowered(n_layers: int, mean_bits: float, low: int = 2, high: int = 4) -> int:
    """How many of `n_layers` get `low` bits so that their mean is at most `mean_bits`.

    L - floor(L (mean - low) / (high - low)): the fewest. Raises BadInput for a mean outside
    low..high, which no allocation meets, or widths that are not low < high.
    """
    if not width(low, "low") < width(high, "high"):
        raise BadInput(f"low={low}, high={high}: the lower width comes first")
    if not low <= mean_bits <= high:
        raise BadInput(
            f"a mean of {mean_bits:g} bits cannot be met with {low} and {high}: it lies outside"
        )
    return n_layers - math.floor(n_layers * (mean_bits - low) / (high - low) + 1e-9)


def plan(
    model: Model, order: Sequence[int], k: int | None = None, *, low: int = 2, high: int = 4,
    mean_bits: float | None = None, megabytes: float | None = None, group: int | None = 64,
    symmetric: bool = False,
) -> xr.DataArray:  # fmt: skip
    """Give the first layers of `order` `low` bits and the others `high`: bits over (layer,).

    How many: `k` of them, or as few as meet a budget of `mean_bits` a weight (without scales) or of
    `megabytes` for the packed matrices. 16 stands for weights as they are. The result goes to
    `fake_quantized` (`.where(bits < 16)` if it holds 16); its attributes tell `k`, `mean_bits`,
    `megabytes`.

    Raises BadInput for an order that is not one of all layers, other than one budget, or a budget
    that cannot be met.
    """
    n = model.n_layers
    whole = _order(order, n)
    given = [name for name, v in (("k", k), ("mean_bits", mean_bits), ("megabytes", megabytes))
             if v is not None]  # fmt: skip
    if len(given) != 1:
        raise BadInput(f"give one of k, mean_bits, megabytes; {' and '.join(given) or 'none'} came")
    least = lowered(n, high if mean_bits is None else mean_bits, low, high)
    rounder = Rounder(model, group, symmetric=symmetric)

    def bits(count: int) -> dict[int, int]:
        return {i: low if i in whole[:count] else high for i in range(n)}

    if k is not None:
        least = _count(k, n)
    if megabytes is not None:
        smallest = rounder.megabytes(bits(n))
        if not megabytes >= smallest - 1e-9:
            raise BadInput(
                f"{megabytes:g} MB cannot be met: all layers at {low} bits take {smallest:.2f} MB"
            )
        least = next(c for c in range(n + 1) if rounder.megabytes(bits(c)) <= megabytes + 1e-9)
    chosen = bits(least)
    return label(
        [chosen[i] for i in range(n)], ("layer",), {"layer": list(range(n))}, name="bits",
        **provenance(model, technique="layer-wise quantisation", paper=PAPER, k=least,
                     mean_bits=sum(chosen.values()) / n, megabytes=rounder.megabytes(chosen),
                     group=group or 0, symmetric=symmetric),
    )  # fmt: skip


def losses(
    model: Model, prompts: Prompts | Scorer, orders: Mapping[str, Sequence[int]],
    ks: Iterable[int], *, low: int = 2, high: int = WHOLE, group: int | None = 64,
    symmetric: bool = False,
    base: str = "rtn", moments: Moments | None = None,
    modules: str | Iterable[str] | None = None, max_tokens: int = 256,
) -> xr.Dataset:  # fmt: skip
    """Loss when the first k layers of each order have `low` bits and the others `high`.

    `orders`: layers from the least important on, by name (`least_first`, `random_orders`). `base`:
    "rtn" rounds to nearest; "gptq" needs `moments` of every layer that is rounded.

    Returns nll (order, k, prompt), nats a predicted token; base_nll (prompt) of the model as it is;
    tokens (prompt); mean_bits (k) without scales; megabytes (order, k) of the packed matrices,
    scales included, 16 bits a weight where nothing is rounded. Weights are back afterwards, bit for
    bit. Texts are cut after `max_tokens`.

    Raises BadInput for widths other than 1..8 and 16 or low >= high, orders that are not
    permutations of the layers, k outside 0..n_layers, a group that does not divide the inputs of a
    matrix, texts under two tokens, or a model that is no decoder: before any text is read.
    """
    n, counts = model.n_layers, [_count(k, model.n_layers) for k in ks]
    if not width(low, "low") < width(high, "high"):
        raise BadInput(f"low={low}, high={high}: the lower width comes first")
    if not orders or not counts:
        raise BadInput("name at least one order and one k")
    lists = {name: _order(order, n, name) for name, order in orders.items()}
    rounder = Rounder(
        model, group, symmetric=symmetric, base=base, moments=moments, modules=modules
    )
    scorer = Scorer.of(model, prompts, max_tokens)
    nll = np.zeros((len(lists), len(counts), len(scorer)))
    size = np.zeros(nll.shape[:2])
    clean = scorer.base
    with rounder:
        for i, order in enumerate(lists.values()):
            for j, k in enumerate(counts):
                bits = {layer: low if at < k else high for at, layer in enumerate(order)}
                nll[i, j] = scorer.nll(rounder.set(bits))
                size[i, j] = rounder.megabytes(bits)
    return xr.Dataset(
        {
            "nll": (("order", "k", "prompt"), nll, {"unit": "nats per token"}),
            "base_nll": ("prompt", clean, {"unit": "nats per token"}),
            "tokens": ("prompt", scorer.tokens),
            "mean_bits": ("k", [(k * low + (n - k) * high) / n for k in counts]),
            "megabytes": (("order", "k"), size, {"unit": "10^6 bytes"}),
        },
        coords={"order": list(lists), "k": counts, "prompt": range(len(scorer))},
        attrs=provenance(
            model, technique="layer-wise quantisation", paper=PAPER, low=low, high=high,
            group=group or 0, symmetric=symmetric, base=base, n=len(scorer),
        ),
    )  # fmt: skip


def uniform(
    model: Model, prompts: Prompts | Scorer, bits: Iterable[int] = (2, 4, 8),
    groups: Iterable[int | None] = (32, 64, None), *, symmetric: bool = False,
    modules: str | Iterable[str] | None = None, max_tokens: int = 256,
) -> xr.Dataset:  # fmt: skip
    """All layers at the same bits, for each group size: nll (bits, group, prompt), megabytes.

    Group 0 stands for whole rows (None). Raises as `losses` does.
    """
    widths, sizes = [width(b) for b in bits], list(groups)
    rounders = [Rounder(model, g, symmetric=symmetric, modules=modules) for g in sizes]
    scorer = Scorer.of(model, prompts, max_tokens)
    nll = np.zeros((len(widths), len(sizes), len(scorer)))
    size = np.zeros(nll.shape[:2])
    for j, rounder in enumerate(rounders):
        with rounder:
            for i, b in enumerate(widths):
                same = dict.fromkeys(range(model.n_layers), b)
                nll[i, j] = scorer.nll(rounder.set(same))
                size[i, j] = rounder.megabytes(same)
    return xr.Dataset(
        {
            "nll": (("bits", "group", "prompt"), nll, {"unit": "nats per token"}),
            "megabytes": (("bits", "group"), size, {"unit": "10^6 bytes"}),
            "base_nll": ("prompt", scorer.base, {"unit": "nats per token"}),
            "tokens": ("prompt", scorer.tokens),
        },
        coords={"bits": widths, "group": [g or 0 for g in sizes], "prompt": range(len(scorer))},
        attrs=provenance(
            model, technique="uniform rounding", symmetric=symmetric, n=len(scorer)
        ),
    )  # fmt: skip


def lead(
    found: xr.Dataset, order: str, others: Sequence[str], k: int, *,
    n: int = 2000, seed: int = 0, level: float = 0.95,
) -> Estimate:  # fmt: skip
    """By how much `order` beats the median of `others` at k layers: nats a token, with interval.

    median over others of mean nll - mean nll of `order`; positive: `order` is better. The interval
    is a percentile bootstrap over texts (the same for all orders) and over the others. Raises
    BadInput for orders or a k that `found` lacks.
    """
    for name in (order, *others):
        if name not in found.order.values:
            raise BadInput(f"no order {name!r} here; there are {found.order.values.tolist()}")
    if k not in found.k.values or not others:
        raise BadInput(f"k={k}, {len(others)} others: there are k = {found.k.values.tolist()}")
    nll, weight = found.nll.sel(k=k), found.tokens.values.astype(float)
    mine, theirs = nll.sel(order=order).values, nll.sel(order=list(others)).values
    rng = np.random.default_rng(seed)
    prompts = rng.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), n) * weight
    prompts /= prompts.sum(1, keepdims=True)
    drawn = rng.integers(len(others), size=(n, len(others)))
    draws = np.median(np.take_along_axis(prompts @ theirs.T, drawn, 1), 1) - prompts @ mine
    weight = weight / weight.sum()
    centre = float(np.median(theirs @ weight) - mine @ weight)
    if len(mine) < 2:
        return Estimate(centre, math.nan, math.nan)
    ends = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(centre, float(ends[0]), float(ends[1]))


def _order(order: Sequence[int], n: int, name: str = "order") -> list[int]:
    found = [int(i) for i in order]
    if sorted(found) != list(range(n)):
        raise BadInput(f"{name} names layers {found}: give each of 0..{n - 1} once")
    return found


def _count(k: int, n: int) -> int:
    if isinstance(k, bool) or int(k) != k or not 0 <= k <= n:
        raise BadInput(f"k={k!r}: give a number of layers from 0 to {n}")
    return int(k)
