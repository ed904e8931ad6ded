"""nnsight as its documentation shows it: one trace a cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nnsight
import numpy as np
import torch

from peers.case import Case, Cell


class Traces:
    """Patch the residual stream entering a block, one trace after another."""

    def __init__(self, nn: Any, case: Case) -> None:
        self.nn, self.case = nn, case
        with torch.no_grad(), nn.trace(case.clean):
            saved = nnsight.save([])
            for layer in nn.model.layers:
                saved.append(layer.input)
        self.clean = [x.clone() for x in saved]

    @torch.no_grad()
    def one_by_one(self, cells: Sequence[Cell]) -> np.ndarray[Any, Any]:
        """One trace a cell."""
        out = []
        for layer, p in cells:
            value = self.clean[layer][:, p]
            with self.nn.trace(self.case.corrupt):
                self.nn.model.layers[layer].input[:, p] = value
                z = nnsight.save(self.nn.output.logits[:, -1])
            out.append(float(self.case.score(z)[0]))
        return np.array(out)
