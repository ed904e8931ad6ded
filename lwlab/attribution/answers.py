"""The metric from the last stream, projected on the answers alone, not on the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lwlab.attribution.pairs import Pair
from lwlab.models.sites import Address
from lwlab.tracing import engine
from lwlab.tracing.edits import Edit
from lwlab.tracing.sweep.readout import Readout


class Reader:
    """Runs a pair's model and gives its task's metric, one number for each row of the batch."""

    def __init__(self, pair: Pair) -> None:
        """Find out whether the answers' rows of the unembedding are enough."""
        self.pair, self.readout = pair, Readout(pair.model, pair.task)
        self.head = self.readout.head

    def run(self, data: engine.Batch, edits: Sequence[Edit], rows: torch.Tensor) -> torch.Tensor:
        """Metric [rows] of a run with edits; `rows` says which prompt each row of the batch is."""
        model = self.pair.model
        if self.head is None:
            return self.pair.metric(rows, engine.run(model, data, edits=edits).logits)
        at = Address("resid_post", model.n_layers - 1)
        h = engine.run(model, data, [at], edits, logits=None).values[at][:, -1]
        return self.readout(rows.cpu().numpy(), h)
