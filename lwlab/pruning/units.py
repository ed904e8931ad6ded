"""What can be cut out of a block as a whole: hidden neurons, and groups of heads that share keys.

A unit is a set of rows and columns. Which ones, the anatomy's views say: what reads a head out of
an activation reads its rows out of the numbers of the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from lwlab.errors import BadInput, MissingSite
from lwlab.models.model import Model
from lwlab.models.views import View

Part = Literal["attn", "mlp"]
PARTS: tuple[Part, ...] = get_args(Part)
DIMS: Mapping[str, str] = {"attn": "kv_head", "mlp": "neuron"}


@dataclass(frozen=True, eq=False)
class Slab:
    """The units of one part of one layer as they lie in one matrix.

    `index` [units, entries]: positions of each unit along `axis` of the weight at `path`. `out`:
    whether they are outputs of the product (rows of W in y = W x), whose biases go along.
    """

    path: str
    axis: int
    out: bool
    index: torch.Tensor

    def per_unit(self, entries: torch.Tensor) -> torch.Tensor:
        """Sum numbers of the shape of the weight over each unit: [units], in double precision."""
        along = entries.sum(1 - self.axis, dtype=torch.float64)
        return along[self.index.to(along.device)].sum(1)


def slabs(model: Model, part: Part) -> list[list[Slab]]:
    """Return, for each layer, the matrices that hold units of `part`.

    "mlp": a hidden neuron (its row of gate and up, its column of down). "attn": a key/value head
    with all query heads that read it (rows of q, k, v, columns of o).

    Raises, before anything is computed: MissingSite for a model without separate neurons or heads
    (experts, state-space mixers, one that was cut unevenly before), BadInput for query heads that
    are no multiple of the key/value heads, or weights that are no plain matrices.
    """
    a = model.anatomy
    if a.kind not in ("decoder", "encoder", "vision"):
        raise BadInput(f"{model.name} is of kind {a.kind!r}; units are known of single stacks only")
    if part == "mlp":
        a.require(["mlp_up", "neurons"])
        reads, writes, units = [s for s in ("mlp_gate", "mlp_up") if s in a.taps], "neurons", 0
    else:
        a.require(["q", "k", "v", "head_out"])
        if not a.n_heads or not a.n_kv_heads or a.n_heads % a.n_kv_heads:
            raise BadInput(
                f"{model.name}: {a.n_heads} query heads do not divide into groups for "
                f"{a.n_kv_heads} key/value heads, so no group can be cut alone"
            )
        reads, writes, units = ["q", "k", "v"], "head_out", a.n_kv_heads
    found = []
    for layer in range(model.n_layers):
        rows: dict[str, list[torch.Tensor]] = {}
        for site in reads:
            tap = a.taps[site]
            rows.setdefault(tap.at(layer), []).append(_index(model, tap, layer, True, units))
        own = [_slab(model, path, True, torch.cat(parts, 1)) for path, parts in rows.items()]
        tap = a.taps[writes]
        own.append(_slab(model, tap.at(layer), False, _index(model, tap, layer, False, units)))
        found.append(own)
    return found


def sizes(model: Model, part: Part) -> tuple[int, int]:
    """Return (units a layer, weights a unit), biases left out; raise as `slabs`."""
    first = slabs(model, part)[0]
    count = 0
    for s in first:
        w = weight(model, s)
        count += s.index.shape[1] * w.shape[1 - s.axis]
    return len(first[0].index), count


def weight(model: Model, slab: Slab) -> nn.Parameter:
    """The matrix of a slab."""
    found = model.module.get_submodule(slab.path).weight
    assert isinstance(found, nn.Parameter)
    return found


def _slab(model: Model, path: str, out: bool, index: torch.Tensor) -> Slab:
    linear = isinstance(model.module.get_submodule(path), nn.Linear)
    return Slab(path, int(out != linear), out, index)


def _index(model: Model, tap: object, layer: int, out: bool, units: int) -> torch.Tensor:
    """Positions of the units along the inputs or outputs of a product, [units, entries]."""
    path: str = tap.at(layer)  # type: ignore[attr-defined]
    view: View = tap.view  # type: ignore[attr-defined]
    module = model.module.get_submodule(path)
    w = getattr(module, "weight", None)
    conv = type(module).__name__ == "Conv1D"  # GPT-2's, whose weight is transposed
    if (
        not isinstance(w, nn.Parameter)
        or w.ndim != 2
        or not (conv or isinstance(module, nn.Linear))
    ):
        raise MissingSite(f"{model.name}: {path} is no plain matrix, so no unit can be cut from it")
    width = w.shape[int(out == conv)]
    if getattr(view, "clip", None) is not None:
        raise MissingSite(f"{model.name}: what {path} gives is clipped; its heads are not cut here")
    index = view.read(torch.arange(width))
    return index.reshape(units or index.numel(), -1)
