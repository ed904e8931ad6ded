"""What an attribution is of: one forward pass with its graph, and one number for each prompt."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lwlab.errors import BadInput
from lwlab.models.model import Model, Prompts
from lwlab.models.sites import Address
from lwlab.tasks.base import Task
from lwlab.tracing import engine, lock
from lwlab.tracing.edits import Edit

#: What is asked: an id a prompt, or a function of the output to one number a prompt.
Target = int | Sequence[int] | Tensor | Callable[[Tensor], Tensor] | None
Start = Literal["one", "value"]


@dataclass(frozen=True)
class Asked:
    """One forward pass with its graph: what is asked of it, and the tensors that were read.

    `output` [n] or [n, ids]; `weights`, in its shape, say which of it is asked for, so that the
    number of prompt i is sum(output[i] * weights[i]).
    """

    output: Tensor
    weights: Tensor
    reads: dict[Address | None, Tensor]
    data: engine.Batch

    @property
    def value(self) -> Tensor:
        """The number asked for [n], in the graph."""
        weighed = self.output * self.weights
        return weighed if weighed.ndim == 1 else weighed.sum(1)

    def start(self, how: Start) -> Tensor:
        """What relevance begins with: 1 (or -1) at what is asked for, or its own value."""
        return self.weights if how == "one" else (self.weights * self.output).detach()


def ask(
    model: Model,
    prompts: Prompts | Task,
    target: Target = None,
    sites: Sequence[Address] = (),
    *,
    contrast: bool = False,
    edits: Sequence[Edit] = (),
    grad: bool = True,
) -> Asked:
    """Run the model once, with its graph unless `grad` is off; arguments as in `scores`.

    Key None of `reads` holds the pictures of a vision model. Raises BadInput for a target that is
    not one number a prompt.
    """
    given = list(prompts.clean) if isinstance(prompts, Task) else prompts
    data = engine.batch(model, given)
    reads: dict[Address | None, Tensor] = {}
    if data.tokens is None:
        data = _leaves(data, grad)
        floats = [x for x in (*data.args, *data.inputs.values()) if _is_float(x)]
        if floats:
            reads[None] = floats[0]
    bare = "logits" not in model.anatomy.taps
    last = Address("resid_post", model.n_layers - 1)
    if bare and not callable(target):
        raise BadInput(
            f"{model.name} has no logits: give target=, a function of its last stream [prompts, "
            "positions, d_model] to one number a prompt (for example `similarity`)"
        )
    with lock(model), _tracked(model):
        wanted = [*sites, last] if bare else list(sites)
        trace = engine.run(model, data, wanted, edits, grad=grad)
        output = trace.values[last] if bare else trace.logits
        assert output is not None
        with torch.set_grad_enabled(grad):
            picked, weights = _pick(model, prompts, target, output, contrast)
    reads.update({a: trace.values[a] for a in sites})
    return Asked(picked, weights, reads, trace.batch)


def similarity(model: Model, prompts: Prompts, others: Prompts) -> Callable[[Tensor], Tensor]:
    """A target for encoders: cosine of each prompt's mean last stream with that of another text.

    The other side and the prompt's own length are constants, so it is linear in the stream.
    """
    mine = model.tokens(prompts).mask
    theirs = model.tokens(others).mask
    if len(mine) != len(theirs):
        raise BadInput(f"{len(mine)} prompts and {len(theirs)} others: give one for each")
    last = Address("resid_post", model.n_layers - 1)
    other = engine.run(model, others, [last], logits=None).values[last]
    weights = mine / mine.sum(1, keepdim=True)
    goal = (other * (theirs / theirs.sum(1, keepdim=True))[..., None]).sum(1)
    goal = goal / goal.norm(dim=1, keepdim=True)

    def cosine(h: Tensor) -> Tensor:
        pooled = (h * weights[..., None]).sum(1)
        return (pooled * (goal / pooled.detach().norm(dim=1, keepdim=True))).sum(1)

    return cosine


def _leaves(data: engine.Batch, grad: bool) -> engine.Batch:
    """The same inputs, with pictures that gradients can be taken of."""

    def leaf(x: Any) -> Any:
        return x.detach().clone().requires_grad_(grad) if _is_float(x) else x

    inputs = {k: leaf(v) for k, v in data.inputs.items()}
    return engine.Batch(inputs, data.tokens, tuple(map(leaf, data.args)))


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _pick(
    model: Model, prompts: Prompts | Task, target: Target, output: Tensor, contrast: bool
) -> tuple[Tensor, Tensor]:
    n = len(output)
    if callable(target):
        found = target(output)
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        if shape != (n,):
            raise BadInput(
                f"the target gave {shape}; relevance is of one number a prompt, a tensor of "
                f"shape ({n},)"
            )
        return found, torch.ones_like(found)
    if output.ndim != 2:
        raise BadInput(f"logits of shape {tuple(output.shape)}: give target=, a function of them")
    if target is None and isinstance(prompts, Task):
        target = prompts.answer_ids
    ids = output.detach().argmax(1) if target is None else torch.as_tensor(target)
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise BadInput(f"target is {ids.dtype}; it takes whole numbers, or a function")
    ids = ids.to(output.device).reshape(-1)
    if len(ids) not in (1, n):
        raise BadInput(f"{len(ids)} targets for {n} prompts: give one, or one for each")
    if bool(((ids < 0) | (ids >= output.shape[1])).any()):
        raise BadInput(f"target {ids.tolist()}: ids go from 0 to {output.shape[1] - 1}")
    weights = torch.zeros_like(output)
    weights.scatter_(1, ids.expand(n)[:, None], 1.0)
    if contrast:
        if not isinstance(prompts, Task):
            raise BadInput("contrast=True needs a task, whose foils are subtracted")
        weights.scatter_(1, prompts.foil_ids.to(output.device)[:, None], -1.0)
    return output, weights


@contextlib.contextmanager
def _tracked(model: Model) -> Iterator[None]:
    """Let the graph hold frozen parameters while inside: a bias takes its share of a sum."""
    frozen = [p for p in model.module.parameters() if not p.requires_grad and _is_float(p)]
    try:
        for p in frozen:
            p.requires_grad_(True)
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)
