"""A fixed set of neurons, cut out of the weights once: plain torch is as fast as a kernel here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
import xarray as xr
from torch.nn import functional as F

from lwlab.activations.mlps import GatedMLP, gated_mlps
from lwlab.activations.swap import Prompt, Swapped, SwappedMLP, by_layer, check_prompt, swapped
from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.models.sites import Address
from lwlab.results import label, provenance
from lwlab.tracing import engine


class PackedMLP(SwappedMLP):
    """The MLP of `chosen` neurons alone, as three smaller dense matrices."""

    def __init__(self, mlp: GatedMLP, chosen: torch.Tensor, prompt: Prompt) -> None:
        super().__init__(mlp, prompt)
        idx = chosen.nonzero()[:, 0].to(mlp.gate.weight.device)
        self.gate, self.up = (m.weight.detach()[idx] for m in (mlp.gate, mlp.up))
        self.down = mlp.down.weight.detach()[:, idx].contiguous()

    def few(self, rows: torch.Tensor) -> tuple[torch.Tensor, int]:
        """See `SwappedMLP.few`."""
        from lwlab_kernels.sparse_mlp import ACTIVATIONS

        f = ACTIVATIONS[self.__dict__["mlp"].act]
        h = f(F.linear(rows, self.gate)) * F.linear(rows, self.up)
        return F.linear(h, self.down), len(rows) * len(self.gate)


@contextlib.contextmanager
def fixed_neurons(
    model: Model, sets: xr.DataArray, *, prompt: Prompt = "dense"
) -> Iterator[Swapped]:
    """Within the block, MLPs compute only the neurons that `sets` marks, packed once.

    y = sum_{i in S} f(gate_i . x) (up_i . x) down_i, S = where sets[layer] is true; layers that
    `sets` lacks stay as they are. sets: booleans (layer, neuron), such as `core_set` gives.
    prompt="dense": only passes over a single position (decoding) are cut, "sparse": all.

    The time falls with the size of the set: bytes read are what decoding costs. The yielded
    `model` runs by plain forward passes, `generate` and scores made of them; sites inside the
    exchanged MLPs cannot be traced meanwhile. Under the model's lock; the MLPs are put back at the
    end, also after an exception. Raises BadInput for sets that do not fit the model, MissingSite
    for MLPs that are not gated (see `gated_mlps`). Wang et al. 2024, CoreInfer (arXiv:2410.18311).
    """
    check_prompt(prompt)
    if sets.dtype != bool:
        raise BadInput(f"sets holds {sets.dtype}; give booleans, true for neurons to keep")
    rows = by_layer(sets, model, "sets")
    mlps = gated_mlps(model, list(rows))
    with swapped(
        model, [PackedMLP(m, rows[m.layer], prompt) for m in mlps], "fixed neurons"
    ) as out:
        yield out


def core_set(
    model: Model,
    prompts: str | Sequence[str],
    keep: float,
    layers: Iterable[int] | int | None = None,
    *,
    rank: Literal["frequency", "size"] = "frequency",
    alpha: float = 0.4,
) -> xr.DataArray:
    """The neurons that matter most to a text, as booleans (layer, neuron).

    h = f(gate) * up of every token, each prompt run by itself. rank="frequency": a token's own set
    is the `alpha` part of its positive h that is largest; kept are the keep * d_mlp neurons that
    are in most tokens' sets (CoreInfer, arXiv:2410.18311). rank="size": those of largest mean |h|.
    Ties go to the neuron that comes first.

    Raises BadInput for keep or alpha outside (0, 1], MissingSite for a model without neurons.
    """
    if not 0 < keep <= 1 or not 0 < alpha <= 1:
        raise BadInput(f"keep={keep}, alpha={alpha}: fractions above 0, at most 1")
    if rank not in ("frequency", "size"):
        raise BadInput(f"rank={rank!r}: 'frequency' or 'size'")
    model.anatomy.require("neurons")
    chosen = model.anatomy.layers(layers)
    reads = [Address("neurons", i) for i in chosen]
    score = torch.zeros(len(chosen), model.d_mlp or 0, dtype=torch.float64)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise BadInput("there is no prompt to find a core set of")
    for text in texts:
        found = engine.run(model, text, reads, logits=None).values
        for k, address in enumerate(reads):
            h = found[address].flatten(0, 1).float().cpu()
            if rank == "size":
                score[k] += h.abs().sum(0, dtype=torch.float64)
                continue
            order = h.sort(1, descending=True).indices.argsort(1)
            size = ((h > 0).sum(1, keepdim=True) * alpha).floor()
            score[k] += (order < size).sum(0)
    n = max(1, round(keep * score.shape[1]))
    best = score.sort(dim=1, descending=True, stable=True).indices[:, :n]
    out = torch.zeros_like(score, dtype=torch.bool).scatter_(1, best, True)
    return label(
        out, ("layer", "neuron"), {"layer": chosen}, name="core_set",
        **provenance(model, technique="core set", paper="2410.18311", keep=keep, rank=rank),
    )  # fmt: skip
