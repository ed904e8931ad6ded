"""The plain engine: one whole forward pass for each cell. Slow, for every model and every site."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from lwlab.models.sites import Address
from lwlab.tracing import engine
from lwlab.tracing.batch import batch
from lwlab.tracing.blocks import together
from lwlab.tracing.edits import Edit
from lwlab.tracing.sweep.readout import scored
from lwlab.tracing.sweep.request import Spec
from lwlab.tracing.sweep.work import Work

_PROMPTS = 16


class Put(Edit):
    """New values [rows, features] of one unit go into one column of each row of the batch."""

    def __init__(
        self, at: Address, spec: Spec, unit: int, value: torch.Tensor, columns: torch.Tensor
    ) -> None:
        super().__init__(at, value)
        self.spec, self.unit, self.new, self.at_columns = spec, unit, value, columns

    def __call__(self, site: torch.Tensor) -> torch.Tensor:
        """Return a copy of the site [rows, positions, ...] with the values in place."""
        self.fired += 1
        out = site.clone()
        # OPT hands its MLP [rows * positions, features]
        view = out if len(out) == len(self.new) else out.view(len(self.new), -1, out.shape[-1])
        rows = torch.arange(len(view), device=view.device)
        columns = self.at_columns.to(view.device)
        part = view[rows, columns]
        self.spec.read(part, self.unit).copy_(self.new)
        view[rows, columns] = part
        return out


def run(work: Work) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
    """Yield (cells, their metrics): prompts of one length share the pass of a cell."""
    cells = work.cells
    length = work.base.lengths[cells.prompt]
    keys = np.stack([cells.layer, cells.spec, cells.unit, cells.at_position, length])
    _, member = np.unique(keys, axis=1, return_inverse=True)
    member = member.ravel()
    for key in range(int(member.max(initial=-1)) + 1):
        every = np.flatnonzero(member == key)
        for first in range(0, len(every), _PROMPTS):
            index = every[first : first + _PROMPTS]
            yield index, _one(work, index)
            flops = len(index) * work.forward_flops(int(length[index[0]]))
            work.flops += flops
            work.tick(flops, len(index))


def _one(work: Work, index: NDArray[np.int64]) -> torch.Tensor:
    r, here = work.request, work.cells.take(index)
    spec, layer, unit = r.specs[here.spec[0]], int(here.layer[0]), int(here.unit[0])
    prompts = work.prompts[here.prompt]
    data = batch(r.model, together(r.prompts.tokens, prompts.tolist()))
    value = work.values(index)
    edit = Put(Address(spec.site, layer), spec, unit, value, torch.from_numpy(here.position))
    trace = engine.run(r.model, data, edits=[edit])
    assert trace.logits is not None
    work.rows += int(work.base.lengths[here.prompt].sum())
    return scored(r.task, prompts, trace.logits)
