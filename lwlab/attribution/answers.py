"""The metric from the last stream, projected on the answers alone, not on the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from lwlab.attribution.pairs import Pair
from lwlab.models.sites import Address
from lwlab.tasks.base import Task
from lwlab.tracing import engine
from lwlab.tracing.edits import Edit
from lwlab.tracing.read import scores as measure

#: Metrics that look at no other token than answers and foils.
_OF_ANSWERS = ("logit_diff", "logit")


class Reader:
    """Runs a pair's model and gives its task's metric, one number for each row of the batch."""

    def __init__(self, pair: Pair) -> None:
        """Find out whether the answers' rows of the unembedding are enough."""
        self.pair, task, model = pair, pair.task, pair.model
        a = model.anatomy
        head = model.module.get_submodule(a.unembed) if a.unembed else None
        self.head = head if type(head) is nn.Linear and "final_norm" in a.taps else None
        if not isinstance(task, Task) or task.metric.name not in _OF_ANSWERS:
            self.head = None
        if self.head is None:
            return
        table = torch.cat([task.answer_sets, task.foil_sets], 1)
        self.ids = torch.unique(table[table >= 0])
        self.task = replace(
            task, answer_sets=self._column(task.answer_sets), foil_sets=self._column(task.foil_sets)
        )

    def _column(self, sets: torch.Tensor) -> torch.Tensor:
        columns = torch.searchsorted(self.ids, sets.clamp(min=0))
        return columns.masked_fill(sets < 0, -1)

    def run(self, data: engine.Batch, edits: Sequence[Edit], rows: torch.Tensor) -> torch.Tensor:
        """Metric [rows] of a run with edits; `rows` says which prompt each row of the batch is."""
        model, head = self.pair.model, self.head
        if head is None:
            return self.pair.metric(rows, engine.run(model, data, edits=edits).logits)
        at = Address("final_norm")
        h = engine.run(model, data, [at], edits, logits=None).values[at][:, -1]
        ids, a = self.ids.to(head.weight.device), model.anatomy
        with torch.no_grad():
            bias = None if head.bias is None else head.bias[ids]
            z = nn.functional.linear(
                h.to(head.weight.device) * a.logit_scale, head.weight[ids], bias
            )
        z = z if a.softcap is None else a.softcap * torch.tanh(z / a.softcap)
        return measure(self.task.subset(rows).metric, z)
