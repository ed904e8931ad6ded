"""The gated MLPs of a model, as the weights that a sparse computation needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from lwlab.errors import MissingSite
from lwlab.models.model import Model


@dataclass(frozen=True, eq=False)
class GatedMLP:
    """y = W_down (f(W_gate x) * W_up x) at `layer`: module, its path, its maps, the name of f."""

    layer: int
    path: str
    module: nn.Module
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear
    act: str


def gated_mlps(model: Model, layers: Iterable[int] | int | None = None) -> list[GatedMLP]:
    """Return the MLPs of `layers`.

    Raises MissingSite for a model whose MLPs are not gated, have biases, keep gate and up in one
    matrix (Phi-3) or experts, or use an activation other than silu, gelu, gelu_tanh and relu;
    BadInput for layers out of range.
    """
    a = model.anatomy
    chosen = a.layers(layers)
    a.require(["mlp_gate", "mlp_up", "mlp_out"])
    if a.down is None or a.act is None:
        raise MissingSite(f"{a.name}: the MLP's down projection or activation is not known")
    out = []
    for i in chosen:
        paths = [p.replace("{}", str(i)) for p in (a.taps["mlp_gate"].path, a.taps["mlp_up"].path,
                                                   a.down)]  # fmt: skip
        maps = [model.module.get_submodule(p) for p in paths]
        path = paths[0].rpartition(".")[0]
        if len(set(paths)) < 3 or not all(p.startswith(f"{path}.") for p in paths):
            raise MissingSite(f"{a.name}: gate, up and down are not three maps of one MLP: {paths}")
        if not all(isinstance(m, nn.Linear) and m.bias is None for m in maps):
            raise MissingSite(
                f"{a.name}: the MLP at {path} has biases or maps that are no nn.Linear"
            )
        name = _activation(
            model.module.get_submodule(a.act.replace("{}", str(i))), f"{a.name} {path}"
        )
        gate, up, down = (m for m in maps if isinstance(m, nn.Linear))
        module = model.module.get_submodule(path)
        out.append(GatedMLP(i, path, module, gate, up, down, name))
    return out


def _activation(f: nn.Module, where: str) -> str:
    """Name the activation by what it computes: architectures give the same one many classes."""
    from lwlab_kernels.sparse_mlp import ACTIVATIONS

    x = torch.linspace(-6, 6, 97, dtype=torch.float64)
    with torch.no_grad():
        y = f(x)
    for name, known in ACTIVATIONS.items():
        if torch.allclose(known(x), y, atol=1e-9, rtol=1e-9):
            return name
    raise MissingSite(f"{where}: {type(f).__name__} is none of {', '.join(ACTIVATIONS)}")
