"""The resume engine: edited copies of a prompt join at their layer, on the model's own blocks.

What comes before the edited layer is not run again, and copies edited at different layers share
the products of the layers above. Serves every architecture whose blocks map a stream to a stream.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lwlab.errors import BadInput, NoFiring
from lwlab.models.model import Model
from lwlab.models.sites import Address
from lwlab.tracing import blocks as opened
from lwlab.tracing import engine
from lwlab.tracing._nnsight import lock
from lwlab.tracing.blocks import Blocks, together
from lwlab.tracing.sweep.cost import block_flops, forward_bytes, resume_bytes
from lwlab.tracing.sweep.observe import Seen, by_length
from lwlab.tracing.sweep.work import Work

_TOKENS = 2048  # tokens that go through a block at once


def streams(model: Model) -> list[Address]:
    """What the engine reads of the unedited run."""
    n = model.n_layers
    return [Address("resid_pre", i) for i in range(n)] + [Address("resid_post", n - 1)]


def refusal(model: Model) -> str | None:
    """Why the blocks of a model cannot be resumed, or None."""
    try:
        opened.check_replayable(model)
    except BadInput as error:
        return str(error)
    return None if model.anatomy.unembed else f"{model.name} has no unembedding of its own"


def opened_at(model: Model, seen: Seen, tokens: Any, length: int) -> Blocks:
    """The blocks as they were called on prompts of one length; BadInput if they keep a state."""
    rows = np.flatnonzero(seen.lengths == length)
    held = tuple(seen.rows(rows, a) for a in streams(model))
    blocks = Blocks(model, together(tokens, rows.tolist()), held, seen.calls[length])
    opened.verify(blocks)
    return blocks


def run(work: Work, tokens: Any) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
    """Yield (cells, their metrics); `tokens` are those of the chunk's prompts."""
    r = work.request
    for t, rows in by_length(work.base.lengths).items():
        blocks = opened_at(r.model, work.base, tokens, t)
        local = {int(p): i for i, p in enumerate(rows)}
        mine = np.flatnonzero(np.isin(work.cells.prompt, rows))
        size = max(1, work.memory // resume_bytes(r.model, t))
        for first in range(0, len(mine), size):
            index = mine[first : first + size]
            yield index, _walk(work, blocks, local, index, t)


def _walk(
    work: Work, blocks: Blocks, local: Mapping[int, int], index: NDArray[np.int64], t: int
) -> torch.Tensor:
    r, n = work.request, work.request.model.n_layers
    cells = work.cells.take(index)
    live: torch.Tensor | None = None
    order: list[NDArray[np.int64]] = []
    firsts = [int(i) for i in np.unique(cells.layer)]
    with lock(r.model), torch.no_grad():
        for layer in range(firsts[0], n):
            born = np.flatnonzero(cells.layer == layer)
            parts = []
            if live is not None:
                parts += [
                    _block(work, blocks, layer, x) for x in torch.split(live, _per_call(work, t))
                ]
            for at in range(0, len(born), _per_call(work, t)):
                some = born[at : at + _per_call(work, t)]
                order.append(some)
                which = [local[int(p)] for p in cells.prompt[some]]
                h = blocks.streams[layer][which]
                with placed(work, layer, index[some], t):
                    parts.append(_block(work, blocks, layer, h))
            if parts:
                live = torch.cat([p.to(parts[-1].device) for p in parts])
        assert live is not None
        done = np.concatenate(order)
        metric = work.readout(work.prompts[cells.prompt[done]], live[:, -1])
    read = 2 * len(done) * (r.model.d_model or 0) * work.readout.columns
    work.flops += read
    work.tick(read, 0)
    out = torch.empty_like(metric)
    out[torch.from_numpy(done).to(out.device)] = metric
    return out


def _per_call(work: Work, t: int) -> int:
    """Copies that go through a block at once, in a quarter of the budget."""
    least = forward_bytes(work.request.model, t)
    return max(1, min(_TOKENS // t, work.memory // 4 // least))


def _block(work: Work, blocks: Blocks, layer: int, h: torch.Tensor) -> torch.Tensor:
    k, t = h.shape[:2]
    out = blocks.block(layer, h.clone())  # some blocks add in place
    flops = k * block_flops(work.request.model, t)
    work.rows += k * t
    work.flops += flops
    work.tick(flops, 0)
    return out


@contextlib.contextmanager
def placed(work: Work, layer: int, index: NDArray[np.int64], t: int) -> Iterator[None]:
    """While inside, the block puts new values into its rows: row i is that of cell index[i].

    Raises NoFiring where a module that holds a site was not called.
    """
    model, k = work.request.model, len(index)
    row = {int(c): i for i, c in enumerate(index)}
    counts: dict[str, int] = {}
    with contextlib.ExitStack() as hooks:
        for group in work.groups(index):
            cells = work.cells.take(group)
            spec, unit = work.request.specs[cells.spec[0]], int(cells.unit[0])
            tap = model.anatomy.taps[spec.site]
            value = work.values(group)
            rows = torch.tensor([row[int(c)] for c in group])
            columns = torch.from_numpy(cells.position)
            name = f"{spec.site}.{layer}"
            counts.setdefault(name, 0)

            def put(
                given: torch.Tensor, tap: Any = tap, spec: Any = spec, unit: int = unit,
                value: torch.Tensor = value, rows: torch.Tensor = rows,
                columns: torch.Tensor = columns, name: str = name,
            ) -> torch.Tensor:  # fmt: skip
                counts[name] += 1
                site = tap.view.read(given.reshape(k, t, -1)).clone()
                part = site[rows, columns]
                spec.read(part, unit).copy_(value)
                site[rows, columns] = part
                new: torch.Tensor = tap.view.write(given.reshape(k, t, -1), site)
                return new.reshape(given.shape)

            module = model.module.get_submodule(tap.at(layer))
            hooks.callback(_hook(module, tap, put).remove)
        yield
    if silent := [name for name, n in counts.items() if n == 0]:
        raise NoFiring(f"the edits of {silent} never ran: the block did not call their modules")
    work.fired += k


def _hook(module: Any, tap: Any, put: Any) -> Any:
    def after(_m: Any, _a: Any, out: Any) -> Any:
        new = put(engine.tensor_of(out))
        return (new, *out[1:]) if isinstance(out, tuple) else new

    def before(_m: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = None if args else next(iter(kwargs))
        given = args[0] if key is None else kwargs[key]
        new = put(given)
        if tap.shared:
            given.copy_(new)  # the block keeps this tensor as its residual
            return None
        return ((new, *args[1:]), kwargs) if key is None else (args, {**kwargs, key: new})

    if tap.end == "output":
        return module.register_forward_hook(after)
    return module.register_forward_pre_hook(before, with_kwargs=True)
