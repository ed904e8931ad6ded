"""What an engine is handed: cells that are left to run, the runs before them, and an account."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lwlab.models.sites import Address
from lwlab.tracing.sweep.cost import forward_flops
from lwlab.tracing.sweep.observe import Seen, Values
from lwlab.tracing.sweep.readout import Readout
from lwlab.tracing.sweep.request import Request
from lwlab.tracing.sweep.values import Cells

Tick = Callable[[int, int], None]


@dataclass(eq=False)
class Work:
    """One chunk of prompts: `prompts` are their numbers in the task, `news` the new values.

    `memory` bounds in bytes what the engine holds beside this. `rows` and `flops` count what it
    did: token rows that went through a layer, and floating-point operations of matrix products.
    """

    request: Request
    readout: Readout
    prompts: NDArray[np.int64]
    cells: Cells
    base: Seen
    news: Values
    memory: int
    tick: Tick
    rows: int = 0
    flops: int = 0
    fired: int = 0

    def values(self, index: NDArray[np.int64]) -> torch.Tensor:
        """New values of cells of one site, layer and unit, [cells, features]."""
        c = self.cells.take(index)
        spec = self.request.specs[c.spec[0]]
        new = spec.read(self.news[Address(spec.site, int(c.layer[0]))], int(c.unit[0]))
        token = self.base.offsets[c.prompt] + c.position
        return new[torch.from_numpy(token).to(new.device)]

    def groups(self, index: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Split cells into those of one site, layer and unit."""
        c = self.cells.take(index)
        keys = np.stack([c.layer, c.spec, c.unit])
        _, member = np.unique(keys, axis=1, return_inverse=True)
        member = member.ravel()
        return [index[member == k] for k in range(int(member.max(initial=-1)) + 1)]

    def forward_flops(self, length: int) -> int:
        """Operations of one whole forward pass of one prompt."""
        return forward_flops(self.request.model, length, self.readout.columns)
