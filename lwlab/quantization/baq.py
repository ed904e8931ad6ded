"""BAQ: bits for every column of a matrix, in closed form, so that all columns lose the same.

Zhang, Wang, Lasaulce & Debbah 2025, "BAQ: Efficient Bit Allocation Quantization for Large
Language Models" (arXiv:2506.05664). Where column j of N loses c_j 4^-R_j at R_j bits,

    min sum_j c_j 4^-R_j   subject to  mean_j R_j = R

has the solution  R_j = R + log2(c_j / GM(c)) / 2,  at which every column loses GM(c) 4^-R; the
total over that of uniform bits is the gain GM(c) / AM(c) <= 1 (geometric over arithmetic mean).

Levels need not be powers of two, so bits are a *rate*, log2 of the number of levels: no packed
format stores one column at 2.3 and the next at 3.1 bits. `layer_bits` applies the formula across
layers, where whole bits and megabytes can be had.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.models.model import Model
from lwlab.quantization.baq_bits import (
    PAPER,
    THETA,
    Allocation,
    allocation,
    check_rate,
    gain,
    layer_bits,
    levels,
)
from lwlab.quantization.baq_columns import Columns, round_columns
from lwlab.quantization.calibrate import Moments
from lwlab.quantization.matrices import Matrix, matrices, module_names
from lwlab.results import label, provenance
from lwlab.tracing import lock

__all__ = [
    "ALLOCATIONS",
    "PAPER",
    "THETA",
    "Allocation",
    "Columns",
    "Study",
    "allocation",
    "gain",
    "layer_bits",
    "levels",
    "round_columns",
    "study",
]

ALLOCATIONS = ("uniform", "baq", "shuffled", "diagonal", "coded")


@dataclass(frozen=True, eq=False)
class Study:
    """What `study` returns.

    `table`: loss and rate (layer, module, allocation), gain and weights (layer, module), objective
    tr(D H D^T) (layer, module, allocation). `columns(layer, module)`: bits and loss (allocation,
    column). `weights[allocation]`: rounded matrices by (layer, module), for `installed`.
    """

    table: xr.Dataset
    weights: Mapping[str, Mapping[tuple[int, str], torch.Tensor]]
    _columns: Mapping[tuple[int, str], xr.Dataset]

    def columns(self, layer: int, module: str) -> xr.Dataset:
        """Bits and losses of one matrix, column by column; module may be the end of a name."""
        for (at, name), found in self._columns.items():
            if at == layer and (name == module or name.endswith(f".{module}")):
                return found
        names = [f"{at} {name}" for at, name in self._columns]
        raise UnknownName(f"no matrix {layer} {module!r}{suggest(f'{layer} {module}', names)}")

    def rate(self, allocation: str) -> float:
        """Mean bits a weight, parameter-weighted, over all matrices (scales not counted)."""
        t = self.table
        return float((t.rate.sel(allocation=allocation) * t.weights).sum() / t.weights.sum())


def study(
    model: Model, moments: Moments, rate: int = 3,
    allocations: Sequence[str] = ("uniform", "baq", "shuffled"), *,
    layers: Iterable[int] | int | None = None, modules: str | Iterable[str] | None = None,
    theta: float = THETA, damp: float = 0.01, seed: int = 0,
) -> Study:  # fmt: skip
    """Round matrices at a mean of `rate` bits by GPTQ with several allocations over columns.

    "uniform": 2^rate levels everywhere; this first pass gives the column losses L_j. "baq": levels
    from L_j at the same mean rate. "shuffled": the same levels, dealt out at random. "diagonal":
    L_j replaced by H_jj. "coded": as "baq" with fit=False, whose rate may differ.

    `moments`: `hessians(model, texts, layers=...)`, whose layers are those rounded unless `layers`
    says which. Those of the model as it is serve for all matrices (the paper's code takes them
    again behind each rounded layer). The allocation is inside each matrix: all have the same mean.

    Raises BadInput for a rate other than 1..16 whole bits, matrices that `moments` lacks;
    UnknownName for an allocation or module: before any rounding.
    """
    check_rate(rate)
    if int(rate) != rate:
        raise BadInput(f"rate={rate}: the uniform pass needs whole bits, 1..16")
    for name in allocations:
        if name not in ALLOCATIONS:
            raise UnknownName(f"no allocation {name!r}{suggest(name, ALLOCATIONS)}")
    names = list(dict.fromkeys(("uniform", *allocations)))
    there = sorted({layer for layer, _ in moments}) if layers is None else layers
    chosen = matrices(model, there, modules)
    for m in chosen:
        if (m.layer, m.name) not in moments:
            raise BadInput(f"moments lack ({m.layer}, {m.name!r}): make them with hessians")
    rng = np.random.default_rng(seed)
    weights: dict[str, dict[tuple[int, str], torch.Tensor]] = {name: {} for name in names}
    columns: dict[tuple[int, str], xr.Dataset] = {}
    objective: dict[tuple[int, str], list[float]] = {}
    with lock(model), torch.no_grad():
        for m in chosen:
            key = m.layer, m.name
            done = _matrix(m, moments[key], int(rate), names, theta, damp, rng)
            for name, (found, _) in done.items():
                weights[name][key] = found.weight
            objective[key] = [found.objective for found, _ in done.values()]
            columns[key] = _labelled(done)
    return Study(
        _table(model, chosen, columns, objective, names, rate, theta, seed), weights, columns
    )


def _matrix(
    m: Matrix, h: torch.Tensor, rate: int, names: Sequence[str], theta: float, damp: float,
    rng: np.random.Generator,
) -> dict[str, tuple[Columns, NDArray[np.int64]]]:  # fmt: skip
    n = m.weight.shape[1]
    same = np.full(n, 2**rate, dtype=np.int64)
    first = round_columns(m.weight, h, torch.from_numpy(same), damp=damp)
    losses = first.losses.numpy()
    flat = not losses.any()  # nothing is lost, so nothing is to be moved
    fitted = same if flat else levels(losses, rate, theta=theta)
    done = {"uniform": (first, same)}
    for name in names[1:]:
        if name == "baq" or flat:
            counts = fitted
        elif name == "shuffled":
            counts = rng.permutation(fitted)
        elif name == "coded":
            counts = levels(losses, rate, theta=theta, fit=False)
        else:
            counts = levels(h.diagonal().numpy(), rate, theta=theta)
        done[name] = round_columns(m.weight, h, torch.from_numpy(counts), damp=damp), counts
    return done


def _labelled(done: Mapping[str, tuple[Columns, NDArray[np.int64]]]) -> xr.Dataset:
    coords = {"allocation": list(done)}
    bits = np.stack([np.log2(counts) for _, counts in done.values()])
    loss = np.stack([found.losses.numpy() for found, _ in done.values()])
    parts = {"bits": bits, "loss": loss}
    return xr.Dataset(
        {k: label(v, ("allocation", "column"), coords).drop_attrs() for k, v in parts.items()}
    )


def _table(
    model: Model, chosen: list[Matrix], columns: Mapping[tuple[int, str], xr.Dataset],
    objective: Mapping[tuple[int, str], list[float]], names: list[str], rate: float, theta: float,
    seed: int,
) -> xr.Dataset:  # fmt: skip
    at, modules = list(dict.fromkeys(m.layer for m in chosen)), module_names(chosen)
    shape = (len(at), len(modules))
    loss, rates, goal = (np.full((*shape, len(names)), np.nan) for _ in range(3))
    gains, counts = np.full(shape, np.nan), np.zeros(shape, int)
    for m in chosen:
        i, key = (at.index(m.layer), modules.index(m.name)), (m.layer, m.name)
        c = columns[key]
        loss[i], rates[i], goal[i] = c.loss.sum("column"), c.bits.mean("column"), objective[key]
        gains[i], counts[i] = gain(c.loss.sel(allocation="uniform").values), m.weight.numel()
    dims = ("layer", "module", "allocation")
    return xr.Dataset(
        {
            "loss": (dims, loss), "rate": (dims, rates, {"unit": "bits a weight"}),
            "objective": (dims, goal), "gain": (dims[:2], gains), "weights": (dims[:2], counts),
        },
        coords={"layer": at, "module": modules, "allocation": names},
        attrs=provenance(model, technique="BAQ", paper=PAPER, target=rate, theta=theta, seed=seed),
    )  # fmt: skip
