r"""The lazy neuron: how few of its neurons a rectified network uses for one token, and why.

Activation sparsity is counted for each token by itself: the share of the entries of
a = relu(p) [neurons] that are not nought, mean over tokens. A neuron that is nought for every token
is *dead*, which is something else: none need be dead where 95 % are nought at any one token.

Why (at initialisation): let logits f = V a with V [classes, neurons] of independent entries with
mean nought, and l the cross-entropy. dl/dp_i = sum_c (softmax(f)_c - y_c) V_ci where p_i > 0, and
nought elsewhere. A larger V_ci raises f_c by V_ci a_i and so softmax_c: their covariance is
positive, E[dl/dp_i] > 0, and a gradient step turns active neurons down, whatever the labels.

Li et al. 2022, arXiv:2210.06313. The networks trained here are in `lwlab.activations.lazy_mlp` and
`toys/char-relu`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn
from torch.nn import functional

from lwlab.errors import BadInput, MissingSite
from lwlab.models.model import Model, Prompts
from lwlab.results import label, provenance
from lwlab.tracing import cache, lock

PAPER = "2210.06313"
RECTIFIERS = (nn.ReLU, nn.ReLU6)


def rectifies(model: Model) -> bool:
    """Whether the activation of the model's MLPs is exactly nought below nought.

    Asked of the activation itself, at points in [-6, 0). Raises MissingSite for a model whose
    activation is not known.
    """
    act = model.anatomy.act
    if act is None:
        raise MissingSite(
            f"{model.name}: the activation of its MLPs is not known; for a network of ReLU modules "
            "there is rectified()"
        )
    f = model.module.get_submodule(act.replace("{}", "0"))
    with torch.no_grad():
        return bool((f(torch.linspace(-6, -1e-3, 97)) == 0).all())


def activity(
    model: Model, inputs: Prompts, layers: Iterable[int] | int | None = None
) -> xr.Dataset:
    """Return how many neurons are not nought, counted for each token.

    Over (prompt, layer): `nonzero`, the share of neurons whose activation is not nought at a token,
    mean over the input's own positions. Over (layer, neuron): `fires`, the share of all positions
    at which the neuron is not nought (0: dead on these inputs). `inputs` are texts, or pictures for
    a vision model. Raises BadInput for a model whose activation is never exactly nought (see
    `energy`), MissingSite for one without neurons.
    """
    model.anatomy.require("neurons")
    if not rectifies(model):
        raise BadInput(
            f"the activation of {model.name} is never exactly nought, so counting zeros would say "
            "0 % sparse and mean nothing; energy() measures how few neurons carry most of it, and "
            "lwlab.activations.chess puts the small ones to nought"
        )
    h = cache(model, inputs, "neurons", layers).neurons
    h = h.transpose("prompt", "layer", "position", "neuron")
    there = ~np.isnan(h.values[:, :1, :, :1])
    live = (h.values != 0) & there
    count = there.sum(axis=2)[:, :, 0]
    return xr.Dataset(
        {
            "nonzero": (("prompt", "layer"), live.mean(axis=3).sum(axis=2) / count),
            "fires": (("layer", "neuron"), live.sum(axis=(0, 2)) / there.sum()),
        },
        {"layer": h.layer.values},
        provenance(model, technique="lazy-neuron", paper=PAPER, n=int(h.sizes["prompt"])),
    )


def energy(
    model: Model,
    inputs: Prompts,
    layers: Iterable[int] | int | None = None,
    *,
    shares: Sequence[float] = (0.9, 0.99),
    skip: int = 0,
) -> xr.DataArray:
    """Return the least share of neurons that holds a `share` of a token's sum_i h_i^2.

    Over (share, prompt, layer), mean over positions from `skip` on: the measure for activations
    that are never exactly nought (GELU, SwiGLU), where h is what W_down reads. A token all of whose
    neurons are nought counts as 0. Raises BadInput for shares outside (0, 1) or a skip that leaves
    nothing, MissingSite for a model without neurons.
    """
    if not shares or not all(0 < s < 1 for s in shares):
        raise BadInput(f"shares={tuple(shares)}: fractions between 0 and 1, such as (0.9, 0.99)")
    h = cache(model, inputs, "neurons", layers).neurons
    h = h.transpose("prompt", "layer", "position", "neuron")
    if not 0 <= skip < h.sizes["position"]:
        raise BadInput(f"skip={skip}: inputs have {h.sizes['position']} positions at most")
    out = np.full((len(shares), h.sizes["prompt"], h.sizes["layer"]), np.nan)
    for i, j in np.ndindex(out.shape[1:]):
        rows = h.values[i, j, skip:]
        rows = rows[~np.isnan(rows[:, 0])].astype(np.float64) ** 2
        if not len(rows):
            raise BadInput(f"skip={skip} leaves nothing of input {i}")
        held = -np.sort(-rows, axis=1).cumsum(axis=1)
        # The first neurons whose sum reaches the share; rounding may leave the last sum short.
        for k, s in enumerate(shares):
            needed = (held < s * held[:, -1:]).sum(axis=1) + (held[:, -1] > 0)
            out[k, i, j] = needed.mean() / rows.shape[1]
    return label(
        out, ("share", "prompt", "layer"), {"share": list(shares), "layer": h.layer.values},
        name="energy", **provenance(model, technique="lazy-neuron", paper=PAPER, skip=skip),
    )  # fmt: skip


def course(name: str, steps: Sequence[int], inputs: Prompts) -> xr.DataArray:
    """Return `nonzero` of a model's checkpoints over (step, prompt, layer).

    `name` says where a checkpoint is, with {step} in it: "toys/char-relu@{step}". Raises BadInput
    for a name without {step}, and as `activity` does.
    """
    from lwlab.models.loading import load

    if "{step}" not in name:
        raise BadInput(f"{name!r} has no {{step}} in it: 'toys/char-relu@{{step}}' would have")
    rows = [activity(load(name.format(step=s), check=False), inputs).nonzero for s in steps]
    out = xr.concat(rows, xr.DataArray(list(steps), dims="step", name="step"))
    out.attrs = provenance(name, technique="lazy-neuron", paper=PAPER)
    return out


def rectified(model: Model, inputs: torch.Tensor) -> xr.DataArray:
    """Return the share of units that is not nought behind each rectifier of a network.

    For networks of nn.ReLU or nn.ReLU6 modules (convolutions: every channel and pixel is a unit),
    over (prompt, place); a module that is called several times gives as many places, called
    "module", "module (2)", in the order of the forward pass. Plain hooks under the model's lock,
    taken off at the end. Raises MissingSite for a network without such a module.
    """
    found = [(n, m) for n, m in model.module.named_modules() if isinstance(m, RECTIFIERS)]
    if not found:
        raise MissingSite(f"{model.name} has no nn.ReLU or nn.ReLU6 module to count zeros behind")
    places: list[str] = []
    rows: list[torch.Tensor] = []
    handles = []
    for name, module in found:

        def count(_m: nn.Module, _x: Any, out: torch.Tensor, name: str = name) -> None:
            times = sum(p == name or p.startswith(f"{name} (") for p in places)
            places.append(f"{name} ({times + 1})" if times else name)
            rows.append((out != 0).flatten(1).float().mean(1))

        handles.append(module.register_forward_hook(count))
    try:
        with lock(model.module), torch.no_grad():
            model.module(inputs.to(model.device, model.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return label(
        torch.stack(rows, 1), ("prompt", "place"), {"place": places}, name="nonzero",
        **provenance(model, technique="lazy-neuron", paper=PAPER),
    )  # fmt: skip


def first_move(
    draws: int = 2000, units: int = 256, classes: int = 10, *, seed: int = 0
) -> xr.Dataset:
    """Return the gradient that a neuron sees at initialisation: the paper's argument, by drawing.

    For each draw: p [units] standard normal, V [classes, units] normal with variance 1/units,
    f = V relu(p), a label drawn evenly, l the cross-entropy. Over (draw): `active`, the mean of
    dl/dp_i over units with p_i > 0 (positive: going down turns them down), and `inactive`, the
    largest |dl/dp_i| over the others. Raises BadInput for numbers below 2.
    """
    if min(draws, units, classes) < 2:
        raise BadInput(f"draws={draws}, units={units}, classes={classes}: two or more of each")
    g = torch.Generator().manual_seed(seed)
    p = torch.randn(draws, units, generator=g).requires_grad_()
    v = torch.randn(draws, classes, units, generator=g) / units**0.5
    y = torch.randint(classes, (draws,), generator=g)
    with torch.enable_grad():
        f = torch.einsum("dcu,du->dc", v, p.relu())
        (slope,) = torch.autograd.grad(functional.cross_entropy(f, y, reduction="sum"), p)
    on = p.detach() > 0
    active = (slope * on).sum(1) / on.sum(1).clamp(min=1)
    return xr.Dataset(
        {
            "active": ("draw", active.numpy()),
            "inactive": ("draw", (slope * ~on).abs().amax(1).numpy()),
        },
        attrs=provenance(technique="lazy-neuron", paper=PAPER, n=draws, seed=seed),
    )
