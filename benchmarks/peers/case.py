"""One question put to every way of sweeping: the same tokens, the same cells, the same score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

import lwlab as lw
from lwlab.errors import BadInput
from lwlab.tasks import Task

Cell = tuple[int, ...]  # layer, position[, head]

#: Ordinary sentences to stand before a prompt, so that it becomes as long as a case wants.
_BEFORE = (
    "It was a quiet morning in the small town by the river. The market had just opened, and people "
    "walked slowly between the stalls, looking at bread, apples and flowers. A dog slept in the "
    "sun. Two children counted the boats that came down from the hills. The baker told everyone "
    "that it would rain before the evening, but nobody believed him. Far away a train could be "
    "heard, and the clock on the church struck nine. In the school the teacher wrote the date on "
    "the board and asked who had read the story about the fox and the winter. Most hands went "
    "up. Then the bell rang, the doors opened, and everybody ran out into the warm light. "
)


@dataclass(frozen=True)
class Case:
    """A clean and a corrupt prompt of one length, and the logit difference of two names."""

    model: lw.Model
    task: Task
    clean: torch.Tensor
    corrupt: torch.Tensor

    @classmethod
    def of(cls, model: lw.Model, task: Task) -> Case:
        """Tokenize a task of one prompt."""
        assert len(task) == 1, "one prompt: the peers patch prompt by prompt"
        clean, corrupt = task.tokens(model, "clean").ids, task.tokens(model, "corrupt").ids
        assert clean.shape == corrupt.shape
        return cls(model, task, clean, corrupt)

    @property
    def width(self) -> int:
        """Tokens in the prompt."""
        return int(self.clean.shape[1])

    def score(self, last: torch.Tensor) -> torch.Tensor:
        """Logit of the answer minus logit of the foil; `last` [rows, vocabulary] -> [rows]."""
        answer, foil = self.task.answer_ids[0], self.task.foil_ids[0]
        return last[:, answer] - last[:, foil]

    def heads(self, site: str) -> int | None:
        """How many heads a site has in this model, or None."""
        return self.model.anatomy.heads(site)


def ioi(model: lw.Model, tokens: int = 14, seed: int = 0) -> Case:
    """The indirect-object prompt whose second name is exchanged, made `tokens` long.

    A longer one has ordinary sentences before it, so the changed token stands late.
    """
    task = lw.tasks.ioi(model, n=1, seed=seed)
    short = int(task.lengths[0])
    if tokens == short:
        return Case.of(model, task)
    words = _BEFORE.split()
    starts = [" ".join(words[i:]) + " " for i in range(len(words))]
    for before in (
        f"{more}{start}" for start in starts for more in ("", "Once, ", "And so, then, ")
    ):
        if len(model.tokens(before + task.clean[0]).ids[0]) != tokens:
            continue
        longer = replace(
            task,
            clean=(before + task.clean[0],),
            corrupt=(before + task.corrupt[0],),
            lengths=torch.tensor([tokens]),
            positions={k: v + tokens - short for k, v in task.positions.items()},
        )
        return Case.of(model, longer)
    raise BadInput(f"no prompt of exactly {tokens} tokens can be made; choose another number")


def unlike(model: lw.Model) -> Case:
    """Two prompts that differ in every token: no cell is a no-op."""
    task = ioi(model).task
    other = "Two old friends saw that her brother had already bought some red books for"
    case = Case.of(model, replace(task, corrupt=(other,), changed=tuple(task.positions)))
    assert bool((case.corrupt != case.clean).all())
    return case


def grid(layers: Sequence[int], positions: Sequence[int], heads: int | None = None) -> list[Cell]:
    """Every cell of some layers, positions and heads."""
    if heads is None:
        return [(i, p) for i in layers for p in positions]
    return [(i, p, h) for i in layers for p in positions for h in range(heads)]


def sample(cells: Sequence[Cell], n: int, seed: int = 0) -> list[Cell]:
    """At most `n` of the cells: one drawn from each of `n` equal stretches of the list."""
    if n >= len(cells):
        return list(cells)
    step, draw = len(cells) / n, np.random.default_rng(seed).uniform(size=n)
    return [cells[int((i + u) * step)] for i, u in enumerate(draw)]


def values(result: Any, cells: Sequence[Cell]) -> np.ndarray[Any, Any]:
    """Take the cells of prompt 0 out of a labelled sweep."""
    names = ("layer", "position", "head" if "head" in result.dims else "kv_head")
    out = [float(result.isel(prompt=0).sel(dict(zip(names, cell)))) for cell in cells]
    return np.array(out)
