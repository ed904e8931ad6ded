"""Task vectors: what fine-tuning added to every tensor of weights, and sums of them.

    tau_k = theta_k - theta_0,   theta = theta_0 + sum_k c_k^(tensor) tau_k^(tensor)

for tasks k. With one c for all this is task arithmetic (Ilharco et al., arXiv:2212.04089). TIES
(Yadav et al., arXiv:2306.01708) keeps the largest entries of each tau, lets them vote on the sign
of every weight, and averages those that agree.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.models.loading import wrap
from lwlab.models.model import Model
from lwlab.results import label, provenance
from lwlab.tracing import lock

#: The layer of a tensor that belongs to no block (embeddings, last norm, head).
OUTSIDE = -1


@dataclass(frozen=True, eq=False)
class Vectors:
    """Task vectors over one base model: `tau[task][tensor]`, and the block of each tensor.

    `layer[tensor]` counts blocks from 0 and is -1 for what belongs to none. A tied embedding is one
    tensor, outside the blocks.
    """

    base: Model
    tau: Mapping[str, Mapping[str, Tensor]]
    layer: Mapping[str, int]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in the order given."""
        return list(self.tau)

    @property
    def tensors(self) -> list[str]:
        """Names of the tensors of weights, in the order of the module."""
        return list(self.layer)

    def only(self, *tasks: str) -> Vectors:
        """Return the vectors of some of the tasks; raises UnknownName."""
        for task in tasks:
            if task not in self.tau:
                raise UnknownName(f"no task {task!r}{suggest(task, self.tau)}")
        return replace(self, tau={task: self.tau[task] for task in tasks})


def vectors(base: Model, tuned: Mapping[str, Model]) -> Vectors:
    """Subtract the weights of `base` from those of each model in `tuned` (task name to model).

    Raises BadInput, before anything is computed: no models, a model whose tensors have other names
    or shapes than the base's, weights that are not finite, or a model without its weights here.
    """
    if not tuned:
        raise BadInput("tuned is empty: give at least one fine-tuned model, {'name': model}")
    start = _weights(base, "the base")
    others = {task: _weights(model, f"task {task!r}") for task, model in tuned.items()}
    for task, theirs in others.items():
        for name in sorted(set(start) ^ set(theirs)):
            who, whom = (base.name, task) if name in start else (task, base.name)
            raise BadInput(
                f"{task!r} is no fine-tune of {base.name}: {name} is in {who} and not in {whom}; "
                "models can be merged whose weights have the same names and shapes"
            )
        for name, w in theirs.items():
            if w.shape != start[name].shape:
                raise BadInput(
                    f"{task!r} is no fine-tune of {base.name}: {name} has shape {tuple(w.shape)}, "
                    f"the base's has {tuple(start[name].shape)}"
                )
    tau = {
        task: {n: (w - start[n].to(w.device)).detach() for n, w in theirs.items()}
        for task, theirs in others.items()
    }
    return Vectors(base, tau, {n: _block(base, n) for n in start})


def outside(v: Vectors) -> list[str]:
    """Return the tensors that belong to no block."""
    return [n for n in v.tensors if v.layer[n] == OUTSIDE]


def combine(
    v: Vectors, coefficients: float | Mapping[str, float] | xr.DataArray, *, name: str = "merged"
) -> Model:
    """Return theta_0 + sum_k c_k tau_k as a Model of its own.

    `coefficients`: one number for all, one a task (a mapping), or an array over any of `task`,
    `layer` (0 to L-1, and -1 for what is outside the blocks) and `tensor`, other dimensions none.
    Where the sum is exactly one whole task (one coefficient 1, the rest 0), the weights are that
    model's to the rounding of one subtraction and addition.

    Raises BadInput for coefficients that are not finite or do not cover the vectors, UnknownName
    for a task that there is not.
    """
    c = per_tensor(v, coefficients).values
    with lock(v.base.module):
        module = copy.deepcopy(v.base.module)
    weights = dict(module.named_parameters())
    with torch.no_grad():
        for j, n in enumerate(v.tensors):
            parts = [float(c[i, j]) * v.tau[k][n] for i, k in enumerate(v.tasks)]
            weights[n].add_(torch.stack(parts).sum(0))
    return wrap(
        module, v.base.anatomy, v.base.tokenizer, name=f"{v.base.name} {name}",
        example=v.base.example, check=False,
    )  # fmt: skip


def per_tensor(
    v: Vectors, coefficients: float | Mapping[str, float] | xr.DataArray
) -> xr.DataArray:
    """Return coefficients in full, (task, tensor); raises as `combine` does."""
    coords = {"task": v.tasks, "tensor": v.tensors}
    if isinstance(coefficients, Mapping):
        for task in coefficients:
            if task not in v.tau:
                raise UnknownName(f"no task {task!r}{suggest(str(task), v.tau)}")
        if missing := [k for k in v.tasks if k not in coefficients]:
            raise BadInput(f"no coefficient is given for {', '.join(missing)} (0 leaves one out)")
        values = [float(coefficients[k]) for k in v.tasks]
        coefficients = xr.DataArray(values, {"task": v.tasks}, ("task",))
    if not isinstance(coefficients, xr.DataArray):
        coefficients = xr.DataArray(float(coefficients))
    if extra := set(coefficients.dims) - {"task", "layer", "tensor"}:
        raise BadInput(
            f"coefficients have the dimensions {coefficients.dims}: {', '.join(map(str, extra))} "
            "is none of task, layer, tensor"
        )
    c = coefficients
    layers = xr.DataArray([v.layer[n] for n in v.tensors], {"tensor": v.tensors}, ("tensor",))
    try:
        if "layer" in c.dims:
            c = c.sel(layer=layers).drop_vars("layer")
        if "task" in c.dims:
            c = c.sel(task=v.tasks)
        if "tensor" in c.dims:
            c = c.sel(tensor=v.tensors)
    except KeyError as error:
        raise BadInput(f"coefficients leave something out: {error}") from None
    full = c.broadcast_like(xr.DataArray(np.zeros((len(v.tasks), len(v.tensors))), coords,
                                         ("task", "tensor")))  # fmt: skip
    full = full.transpose("task", "tensor")
    if not np.isfinite(full.values.astype(float)).all():
        raise BadInput("coefficients are not all finite numbers")
    return full


def sizes(v: Vectors) -> xr.DataArray:
    """|tau_k| by block: the Euclidean norm of a task's change (task, layer), -1 outside blocks."""
    layers = [OUTSIDE, *range(v.base.n_layers)]
    total = np.zeros((len(v.tasks), len(layers)))
    for i, task in enumerate(v.tasks):
        for n, t in v.tau[task].items():
            total[i, v.layer[n] + 1] += float(t.double().square().sum())
    return label(
        np.sqrt(total), ("task", "layer"), {"task": v.tasks, "layer": layers}, name="size of tau",
        **provenance(v.base),
    )  # fmt: skip


def elect(v: Vectors, keep: float = 0.2) -> Vectors:
    """Return the vectors trimmed and with one sign a weight: the first two steps of TIES.

    Of each tau the share `keep` largest in magnitude (over all tensors together) stays; the sign of
    their sum is elected; entries of the other sign become 0. Raises BadInput for a share outside
    (0, 1].
    """
    if not (math.isfinite(keep) and 0 < keep <= 1):
        raise BadInput(f"keep={keep}: a share above 0 and at most 1")
    trimmed: dict[str, dict[str, Tensor]] = {}
    for task, tau in v.tau.items():
        size = torch.cat([t.abs().flatten() for t in tau.values()])
        k = max(round(keep * len(size)), 1)
        least = size.kthvalue(len(size) - k + 1).values
        trimmed[task] = {n: torch.where(t.abs() >= least, t, 0.0) for n, t in tau.items()}
    signs = {n: torch.stack([t[n] for t in trimmed.values()]).sum(0).sign() for n in v.tensors}
    kept = {
        task: {n: torch.where(t.sign() == signs[n], t, 0.0) for n, t in tau.items()}
        for task, tau in trimmed.items()
    }
    return replace(v, tau=kept)


def ties(v: Vectors, keep: float = 0.2) -> Vectors:
    """Return the one vector "ties": of each weight the mean of the entries that `elect` left."""
    kept = elect(v, keep)
    mean = {}
    for n in v.tensors:
        every = torch.stack([t[n] for t in kept.tau.values()])
        mean[n] = every.sum(0) / (every != 0).sum(0).clamp(min=1)
    return replace(v, tau={"ties": mean})


def _weights(model: Model, who: str) -> dict[str, Tensor]:
    if model.remote:
        raise BadInput(f"{who}, {model.name}, was loaded with remote=: merging needs its weights")
    found = {n: p.detach() for n, p in model.module.named_parameters()}
    for n, p in found.items():
        if p.is_meta or not bool(torch.isfinite(p).all()):
            raise BadInput(f"{who}, {model.name}: {n} holds values that are not finite numbers")
    return found


def _block(model: Model, name: str) -> int:
    prefix = model.anatomy.blocks + "."
    return int(name[len(prefix) :].split(".")[0]) if name.startswith(prefix) else OUTSIDE
