"""Node attribution: heads, MLPs and the input, scored by one gradient each.

AtP: Nanda 2023, "Attribution patching"; Kramár et al. 2024 (arXiv:2403.00745). A node's score is
the sum of the scores of its outgoing edges (`attribution.edges`), at a fraction of their cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import xarray as xr

from lwlab.attribution.first_order import FIRST, Part, Progress, Stage
from lwlab.attribution.pairs import Pair, Values
from lwlab.attribution.scored import RULES, Request, study
from lwlab.attribution.wiring import Wiring
from lwlab.models.model import Model
from lwlab.models.sites import Address
from lwlab.tasks.base import Task

#: Techniques by name, as those of `attribution.edges`.
TECHNIQUES = ("atp", "ig-inputs", "ig-activations", "relp")


class Nodes:
    """The outputs of senders: one column, or one a position."""

    def __init__(self, wiring: Wiring, width: int = 1) -> None:
        """Take the wiring of a model or of a ruled view of it; `width` counts positions, or 1."""
        self.wiring, self.width = wiring, width

    def takes(self, stage: Stage) -> list[Address]:
        """Where the stage's senders enter the stream."""
        return [at for at, _ in self._outputs(stage)]

    def collect(self, stage: Stage, values: Values, metric: torch.Tensor) -> Iterator[Part]:
        """The gradient at each output; heads of a layer share one."""
        outputs = self._outputs(stage)
        found = torch.autograd.grad(metric.sum(), [values[at] for at, _ in outputs])
        for (_, senders), g in zip(outputs, found):
            yield Part(senders, g[None].float())

    def _outputs(self, stage: Stage) -> list[tuple[Address, slice]]:
        g, out = self.wiring.graph, []
        for i in range(stage.senders.start, stage.senders.stop):
            node = g.senders[i]
            if node.kind == "input":
                out.append((FIRST, slice(i, i + 1)))
            elif node.kind == "mlp":
                out.append((Address("mlp_out", node.layer), slice(i, i + 1)))
            elif node.head == 0:
                out.append((Address("attn_out", node.layer), slice(i, i + g.n_heads)))
        return out


def scores(
    model: Model,
    task: Task | Pair,
    technique: str | Iterable[str] = "atp",
    *,
    by_position: bool = False,
    steps: int = 5,
    tolerance: float | None = 0.05,
    max_steps: int = 80,
    rules: str | Iterable[str] = RULES,
    normalise: bool = True,
    memory: float = 2**30,
    progress: Progress | None = None,
) -> xr.DataArray:
    """Estimate what each head, each MLP and the input would do with its clean output.

    score(u) = sum_positions <u(x) - u(x'), dm/du>, with u what the node adds to the stream; with
    `by_position` the summands. The gradient is that of the corrupt run ("atp"), follows `rules`
    ("relp"), or is averaged on a way from corrupt to clean ("ig-inputs", "ig-activations"); what
    these mean, `steps`, `tolerance`, the gap that is reported and the errors are as in
    `edges.scores`.

    Returns (prompt, sender) or (prompt, sender, position), preceded by (technique) where several
    are named.
    """
    asked = Request(technique, TECHNIQUES, steps, tolerance, max_steps, rules, memory)
    dims = ("sender", "position") if by_position else ("sender",)
    return study(
        model, task, asked, Nodes, dims, normalise=normalise, progress=progress,
        long_name="node score",
    )  # fmt: skip
