"""From the last stream of edited rows to the task's metric, by the answers' columns alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.tasks.base import Task
from lwlab.tracing._nnsight import lock

#: Metrics that look at no other token than answers and foils.
OF_ANSWERS = ("logit_diff", "logit")
_ROWS = 256  # rows unembedded at once where the whole vocabulary is needed


def scored(task: Any, prompts: NDArray[np.int64], logits: torch.Tensor) -> torch.Tensor:
    """The metric of logits [rows, tokens], row i being of prompt `prompts[i]`; [rows]."""
    values: torch.Tensor = task.subset(torch.from_numpy(prompts)).metric(logits)
    if values.shape != (len(prompts),):
        raise BadInput(f"the metric returned {tuple(values.shape)} for {len(prompts)} rows")
    if not bool(torch.isfinite(values).all()):
        raise BadInput("the metric gave NaN or infinity")
    return values


class Readout:
    """The metric of last-token streams h [rows, d_model]: m(softcap(U N(h)))."""

    def __init__(self, model: Model, task: Any) -> None:
        """Find out whether the answers' rows of the unembedding are enough."""
        self.model, self.task = model, task
        a = model.anatomy
        head = model.module.get_submodule(a.unembed) if a.unembed else None
        norm = model.module.get_submodule(a.final_norm) if a.final_norm else None
        self.norm = norm
        answers = isinstance(task, Task) and task.measure in OF_ANSWERS
        self.head = head if type(head) is nn.Linear and answers else None
        if self.head is not None:
            table = torch.cat([task.answer_sets, task.foil_sets], 1)
            self.ids = torch.unique(table[table >= 0])
            self.task = replace(
                task, answer_sets=self._column(task.answer_sets),
                foil_sets=self._column(task.foil_sets),
            )  # fmt: skip
            ids = self.ids.to(self.head.weight.device)
            self.weight = self.head.weight.detach()[ids]
            self.bias = None if self.head.bias is None else self.head.bias.detach()[ids]

    def _column(self, sets: torch.Tensor) -> torch.Tensor:
        columns = torch.searchsorted(self.ids, sets.clamp(min=0))
        return columns.masked_fill(sets < 0, -1)

    @property
    def columns(self) -> int:
        """Tokens that are unembedded for each row."""
        return len(self.ids) if self.head is not None else int(self.model.d_vocab or 0)

    def __call__(self, prompts: NDArray[np.int64], h: torch.Tensor) -> torch.Tensor:
        """Metric [rows] of h [rows, d_model], row i being of prompt `prompts[i]` of the task."""
        with lock(self.model), torch.no_grad():
            if self.head is None:
                parts = [
                    scored(self.task, prompts[i : i + _ROWS], self.model.unembed(h[i : i + _ROWS]))
                    for i in range(0, len(h), _ROWS)
                ]
                return torch.cat(parts)
            a = self.model.anatomy
            h = h if self.norm is None else self.norm(h)
            z = nn.functional.linear(
                h.to(self.weight.device) * a.logit_scale, self.weight, self.bias
            )
            z = z if a.softcap is None else a.softcap * torch.tanh(z / a.softcap)
            return scored(self.task, prompts, z)
