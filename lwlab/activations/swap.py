"""MLPs exchanged for others while a block of code runs.

nnsight replaces each module's `forward`, so a `forward` that somebody else exchanges afterwards is
not called, or breaks traces. A *submodule* can be exchanged: plain forward passes and `generate`
take the new one, and a trace sees every site except those of what was taken out. The model that
the contexts yield says so (MissingSite), so that no engine takes the old weights for the model's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import xarray as xr
from torch import nn

from lwlab.activations.mlps import GatedMLP
from lwlab.errors import BadInput
from lwlab.models.anatomy import Anatomy
from lwlab.models.model import Model
from lwlab.results import label, provenance
from lwlab.tracing import lock

Prompt = Literal["dense", "sparse"]


class SwappedMLP(nn.Module):
    """Stands in for an MLP: `few` of its neurons for one token at a time, and it counts them.

    With prompt="dense" a pass over several positions is the original's.
    """

    def __init__(self, mlp: GatedMLP, prompt: Prompt) -> None:
        super().__init__()
        # Out of nn.Module's sight: the original is not a child, or its weights would count twice.
        self.__dict__["original"] = mlp.module
        self.__dict__["mlp"] = mlp
        self.prompt = prompt
        self.tokens = 0
        self.active = 0

    def few(self, rows: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Output [tokens, d_model] and how many neurons were computed in all."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What the MLP gives for x [prompts, positions, d_model]."""
        if self.prompt == "dense" and x.ndim > 2 and x.shape[-2] > 1:
            y = self.__dict__["original"](x, *args, **kwargs)
            assert isinstance(y, torch.Tensor)
            return y
        rows = x.reshape(-1, x.shape[-1])
        y, active = self.few(rows)
        self.tokens += len(rows)
        self.active += active
        return y.reshape(*x.shape[:-1], y.shape[-1])


@dataclass(frozen=True)
class Swapped:
    """What the contexts yield: `model`, whose name says what runs in it, and counters."""

    model: Model
    parts: Sequence[SwappedMLP]

    def active(self) -> xr.DataArray:
        """Fraction of neurons computed, over layer: mean of the tokens so far, NaN before one.

        `tokens` counts them; tokens that the original served (dense prompts) are not among them.
        """
        shares = [
            p.active / (p.tokens * p.__dict__["mlp"].gate.out_features)
            if p.tokens
            else float("nan")
            for p in self.parts
        ]
        return label(
            shares, "layer",
            {"layer": [p.__dict__["mlp"].layer for p in self.parts],
             "tokens": ("layer", [p.tokens for p in self.parts])},
            name="active", **provenance(self.model),
        )  # fmt: skip


@contextlib.contextmanager
def swapped(model: Model, parts: Sequence[SwappedMLP], name: str) -> Iterator[Swapped]:
    """Put `parts` in the place of their MLPs, under the model's lock; put those back at the end."""
    kept: list[tuple[nn.Module, str, nn.Module]] = []
    with lock(model):
        try:
            for part in parts:
                parent, _, child = part.__dict__["mlp"].path.rpartition(".")
                block = model.module.get_submodule(parent)
                kept.append((block, child, block._modules[child]))  # type: ignore[arg-type]
                block._modules[child] = part
            now = replace(
                model, name=f"{model.name} ({name})", checksum="", anatomy=_anatomy(model, parts)
            )
            yield Swapped(now, parts)
        finally:
            for block, child, old in reversed(kept):
                block._modules[child] = old


def _anatomy(model: Model, parts: Sequence[SwappedMLP]) -> Anatomy:
    """Leave out the sites of MLPs that no pass reaches; with dense prompts, prompts reach all."""
    a = model.anatomy
    if all(p.prompt == "dense" for p in parts):
        return a
    path = a.taps["mlp_gate"].path.rpartition(".")[0]
    for site, tap in a.taps.items():
        if tap.path == path or tap.path.startswith(f"{path}."):
            a = a.without(site, "the MLPs are exchanged for sparse ones at the moment")
    return a


def check_prompt(prompt: str) -> None:
    """Raise BadInput for what is neither "dense" nor "sparse"."""
    if prompt not in ("dense", "sparse"):
        raise BadInput(f"prompt={prompt!r}: 'dense' (decoding alone is sparse) or 'sparse'")


def by_layer(values: xr.DataArray, model: Model, what: str) -> dict[int, torch.Tensor]:
    """Rows of a (layer, neuron) array as tensors; raise BadInput for other dimensions or sizes."""
    if tuple(values.dims) != ("layer", "neuron") or "layer" not in values.coords:
        raise BadInput(f"{what} has dimensions {values.dims}; give (layer, neuron), with layers")
    if values.sizes["neuron"] != model.d_mlp:
        raise BadInput(
            f"{what} has {values.sizes['neuron']} neurons; {model.name} has {model.d_mlp}"
        )
    layers = [int(i) for i in values.coords["layer"].values]
    model.anatomy.layers(layers)
    return {i: torch.as_tensor(values.values[k]) for k, i in enumerate(layers)}
