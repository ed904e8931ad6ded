"""The weight matrices of a model's blocks, by layer and name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.models.model import Model


@dataclass(frozen=True, eq=False)
class Matrix:
    """One linear map: its `layer`, its name within the block ("mlp.up_proj") and its weights.

    `turned` marks weights stored [inputs, outputs] (GPT-2's Conv1D); `weight` is always a view
    [outputs, inputs].
    """

    layer: int
    name: str
    module: nn.Module
    turned: bool = False

    @property
    def weight(self) -> torch.Tensor:
        """The weights [outputs, inputs], a view without gradient."""
        w = self.module.weight
        assert isinstance(w, torch.Tensor)
        return w.detach().T if self.turned else w.detach()


def matrices(
    model: Model,
    layers: Iterable[int] | int | None = None,
    modules: str | Iterable[str] | None = None,
) -> list[Matrix]:
    """Return the matrices of linear maps in the blocks, in the order of layers and of definition.

    `modules` keeps those whose name in the block is one of these or ends with ".name"
    ("mlp.up_proj" or "up_proj"). Embeddings, the unembedding, norms, biases, convolutions and
    stacked expert weights are no such matrices.

    Raises BadInput for layers out of range or blocks without linear maps, UnknownName for a module
    that no block has.
    """
    wanted = None if modules is None else [modules] if isinstance(modules, str) else list(modules)
    blocks = model.module.get_submodule(model.anatomy.blocks)
    found = []
    for layer in model.anatomy.layers(layers):
        block = blocks.get_submodule(str(layer))
        for name, part in block.named_modules():
            turned = type(part).__name__ == "Conv1D" and hasattr(part, "nf")
            if isinstance(part, nn.Linear) or turned:
                found.append(Matrix(layer, name, part, turned))
    if not found:
        raise BadInput(f"{model.name}: the blocks at {model.anatomy.blocks!r} hold no linear maps")
    if wanted is None:
        return found
    names = {m.name for m in found}
    for w in wanted:
        if not any(_named(n, w) for n in names):
            raise UnknownName(f"{model.name} has no module {w!r} in a block{suggest(w, names)}")
    return [m for m in found if any(_named(m.name, w) for w in wanted)]


def _named(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def module_names(found: list[Matrix]) -> list[str]:
    """Names in the order of first appearance."""
    return list(dict.fromkeys(m.name for m in found))
