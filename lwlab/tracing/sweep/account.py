"""What a sweep will take, engine by engine: rows, operations, bytes."""

from __future__ import annotations

import numpy as np

from lwlab.tracing.sweep import packed
from lwlab.tracing.sweep.choose import reads
from lwlab.tracing.sweep.cost import (
    block_flops,
    forward_bytes,
    forward_flops,
    packed_cost,
    resume_bytes,
    site_bytes,
)
from lwlab.tracing.sweep.request import Request
from lwlab.tracing.sweep.work import Work


def held(request: Request, engine: str, length: int) -> int:
    """Bytes of what the runs before the cells leave, and need on their way, for one prompt."""
    model = request.model
    per = sum(site_bytes(model, a.site) for a in reads(request, engine))
    # Beside the unedited values: the twin's, or the new ones.
    per += sum(site_bytes(model, a.site) for a in request.addresses())
    logits = 2 * model.dtype.itemsize * (model.d_vocab or 0)
    return length * per + logits + forward_bytes(model, length)


def least(request: Request, engine: str, length: int) -> int:
    """Bytes an engine needs beside that for one cell of a prompt."""
    if engine == "packed":
        return packed.least_bytes(request.model, length)
    return resume_bytes(request.model, length) if engine == "resume" else 0


def bytes_at_work(work: Work, engine: str) -> int:
    """Bound on the bytes that a chunk of prompts takes while its cells run."""
    r, t = work.request, work.base.lengths
    total = sum(held(r, engine, int(i)) for i in t)
    c = work.cells
    if engine == "packed":
        rows = int((t[c.prompt] - c.position).sum())
        return total + packed.most_bytes(r.model, rows, work.memory)
    if engine == "resume":
        copies = sum(resume_bytes(r.model, int(i)) for i in t[c.prompt])
        return total + min(copies, max(work.memory, least(r, engine, int(t.max()))))
    return total


def estimate(work: Work, engine: str) -> tuple[int, int]:
    """Rows and operations that the engine will take for a chunk's cells, by formula."""
    r, cells = work.request, work.cells
    lengths = work.base.lengths[cells.prompt]
    columns = work.readout.columns
    if engine == "packed":
        keys = np.stack([cells.spec, cells.layer, lengths, cells.position])
        kinds, counts = np.unique(keys, axis=1, return_counts=True)
        rows = flops = 0
        for (j, layer, t, p), k in zip(kinds.T.tolist(), counts.tolist()):
            each = packed_cost(r.model, r.specs[j].site, layer, t, p, columns)
            rows, flops = rows + k * each[0], flops + k * each[1]
        return rows, flops
    if engine == "resume":
        layers = r.model.n_layers - cells.layer
        block = {int(t): block_flops(r.model, int(t)) for t in np.unique(lengths)}
        read = 2 * (r.model.d_model or 0) * columns
        flops = sum(int(n) * block[int(t)] + read for n, t in zip(layers, lengths))
        return int((layers * lengths).sum()), flops
    flops = sum(forward_flops(r.model, int(t), columns) for t in lengths)
    return int(lengths.sum()), flops
