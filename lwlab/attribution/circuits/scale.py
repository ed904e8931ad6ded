"""The scale on which circuits are judged: 0 with every edge cut, 1 with none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lwlab.attribution.circuits.cut import MEMORY, Cutter, Value
from lwlab.attribution.circuits.graph import Bools
from lwlab.attribution.circuits.select import Floats
from lwlab.attribution.pairs import Pair
from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.results import provenance
from lwlab.tasks.base import Task

Asked = Task | Pair | Cutter


def cutter_of(model: Model, task: Asked, value: Value = "patch", memory: float = MEMORY) -> Cutter:
    """Return the cutter given in place of a task, or a new one."""
    if not isinstance(task, Cutter):
        return Cutter(model, task, value, memory=memory)
    if task.model.module is not model.module:
        raise BadInput(f"this cutter was made with {task.model.name}, not with {model.name}")
    return task


class Scale:
    """f as a function of metrics [circuits, prompts]: 0 with every edge cut, 1 with none."""

    def __init__(self, cutter: Cutter) -> None:
        """Run the model with all edges and with none; BadInput where the two score the same."""
        self.cutter = cutter
        self.groups = cutter.pair.task.groups.numpy()
        self.none, self.all = (m.double() for m in cutter.ends)
        self.effect = float(self.all.mean() - self.none.mean())
        if abs(self.effect) < 1e-9:
            raise BadInput(
                f"{cutter.pair.task.name}: with every edge cut the metric is what it is with none "
                f"cut ({float(self.all.mean()):.3g}), so no circuit can be told from another"
            )

    def each(self, metrics: torch.Tensor) -> torch.Tensor:
        """Shares of the effect by prompt, whose mean is f: [circuits, prompts]."""
        return (metrics.double() - self.none) / self.effect

    def of(self, metrics: torch.Tensor) -> Floats:
        """f of each circuit."""
        return np.asarray(self.each(metrics).mean(1).numpy())

    def run(self, tables: Bools | Sequence[Bools]) -> Floats:
        """Run circuits and return f of each."""
        return self.of(self.cutter.metrics(np.stack(list(tables))))

    def intervals(self, metrics: torch.Tensor, seed: int = 0, n: int = 2000) -> Floats:
        """95 % percentile bootstrap interval of f, the effect drawn along: [circuits, 2].

        `n` resamples of whole groups of prompts; NaN where there is one group only.
        """
        member = np.unique(self.groups, return_inverse=True)[1]
        count = int(member.max()) + 1
        if count < 2:
            return np.full((len(metrics), 2), np.nan)
        by_group = np.zeros((len(metrics) + 1, count))
        shares = torch.cat([self.each(metrics), self.each(self.all[None])]).numpy()
        np.add.at(by_group.T, member, shares.T)
        drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=n)
        sums = by_group @ drawn.T
        return np.asarray(np.quantile(sums[:-1] / sums[-1:], [0.025, 0.975], axis=1).T)

    def about(self, **extra: object) -> dict[str, Any]:
        """Provenance of what was measured with this scale."""
        ends = {"clean_metric": float(self.all.mean()), "empty_metric": float(self.none.mean())}
        c = self.cutter
        return provenance(c.model, c.pair.task, value=c.value, **ends, **extra)
