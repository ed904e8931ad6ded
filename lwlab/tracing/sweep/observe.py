"""Runs that a sweep starts from: activations by token, block arguments, answers.

Values of prompts of unequal length lie end to end, [tokens, ...], without padding; `at` finds a
token of a prompt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lwlab.models.model import Model
from lwlab.models.sites import Address
from lwlab.models.tokens import Tokens
from lwlab.tracing import engine
from lwlab.tracing._nnsight import lock
from lwlab.tracing.batch import batch
from lwlab.tracing.blocks import Call, together

Values = dict[Address, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Seen:
    """What runs of some prompts left: `values[address]` [tokens, ...] and last-token `logits`.

    `lengths` [prompts] and `offsets` [prompts] say where a prompt's tokens lie. `calls[length]`
    are the arguments of each block in a run of prompts of that length.
    """

    lengths: NDArray[np.int64]
    offsets: NDArray[np.int64]
    values: Values
    logits: torch.Tensor
    calls: dict[int, tuple[Call, ...]]

    def rows(self, prompts: NDArray[np.int64], address: Address) -> torch.Tensor:
        """Values of prompts of one length, [prompts, positions, ...]."""
        t = int(self.lengths[prompts[0]])
        index = torch.from_numpy(self.offsets[prompts][:, None] + np.arange(t))
        return self.values[address][index]


def by_length(lengths: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """Length -> which prompts have it."""
    return {int(t): np.flatnonzero(lengths == t) for t in np.unique(lengths)}


def observe(model: Model, tokens: Tokens, reads: Iterable[Address]) -> Seen:
    """Run prompts, those of one length together and without padding, and keep what is named."""
    lengths = np.asarray(tokens.lengths.cpu().numpy())
    ends = np.cumsum(lengths)
    reads = list(dict.fromkeys(reads))
    values: Values = {}
    logits: dict[int, torch.Tensor] = {}
    found: dict[int, tuple[Call, ...]] = {}
    for t, rows in by_length(lengths).items():
        data = batch(model, together(tokens, rows.tolist()))
        with lock(model), noted(model) as notes:
            trace = engine.run(model, data, reads)
        found[t] = tuple(notes[: model.n_layers])
        where = torch.from_numpy(np.concatenate([ends[i] - t + np.arange(t) for i in rows]))
        for a, v in trace.values.items():
            v = v.reshape(-1, *v.shape[2:])
            if a not in values:
                values[a] = v.new_empty(int(ends[-1]), *v.shape[1:])
            values[a][where.to(v.device)] = v
        assert trace.logits is not None
        logits |= {int(i): z for i, z in zip(rows, trace.logits)}
    z = torch.stack([logits[i] for i in range(len(lengths))])
    return Seen(lengths, ends - lengths, values, z, found)


@contextlib.contextmanager
def noted(model: Model) -> Iterator[list[Call]]:
    """While inside, note the arguments of each block but its stream."""
    calls: list[Call] = []

    def before(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        if not args:
            kwargs.pop("hidden_states")
        calls.append((args[1:], kwargs))

    stack = model.module.get_submodule(model.anatomy.blocks)
    with contextlib.ExitStack() as hooks:
        for layer in stack.children():
            hooks.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
        yield calls
