"""Plain forward passes for scores: no trace, no gradient, one thread at a time on a module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lwlab.errors import BadInput

if TYPE_CHECKING:
    from lwlab.models import Model


def batches(
    model: Model, rows: Sequence[Sequence[int]], batch: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield (index of the first row, logits [rows, columns, d_vocab]) of right-padded id rows.

    Raises BadInput for a batch size under 1 or a model that does not predict the next token.
    """
    if batch < 1:
        raise BadInput(f"batch is {batch}; it must be at least 1.")
    if model.kind != "decoder":
        raise BadInput(
            f"{model.name} is of kind {model.kind!r} and does not predict the next token; "
            "this needs a decoder."
        )
    from lwlab.tracing import lock

    for first in range(0, len(rows), batch):
        part = rows[first : first + batch]
        width = max(map(len, part))
        # What stands in the padding does not matter: causal attention never looks to the right.
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in part])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in part])
        inputs = {"input_ids": ids, "attention_mask": mask}
        taken = {k: v.to(model.device) for k, v in inputs.items() if k in model.forward_names}
        with lock(model), torch.no_grad():
            out = model.module(**taken)
        yield first, getattr(out, "logits", out)
