"""Which heads of the transfer blocks carry what the last token needs: taken away one by one."""

from __future__ import annotations

import torch
import xarray as xr

from lwlab.attribution.af1_parts import expected, labelled, ordered, prepare
from lwlab.attribution.af1_rows import Rows
from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.tasks.base import Task
from lwlab.tracing import lock


def prune(model: Model, task: Task | Rows, wait: int, until: int) -> xr.Dataset:
    """Take heads out of the transfer blocks of a subgraph, the least needed one first.

    A head is taken out by leaving its last token alone: it sees itself and the common start, as in
    the blocks from `until` on. At each step the head goes whose absence leaves the highest
    accuracy (of equals, the highest mean log-probability of the answers), until all are gone.

    Returns `correct` and `log_prob`, each (step, prompt), with coordinates `layer` and `head` of
    the one that went at each step, -1 at step 0, where none has. Raises BadInput unless
    0 <= wait < until <= n_layers, and as `af1.prepare`.
    """
    ordered(model, wait, until)
    if wait == until:
        raise BadInput(f"wait={wait}, until={until}: there is no transfer block to prune heads of")
    rows = prepare(model, task)
    chain = _Chain(rows, wait, until)
    heads = [(i, j) for i in range(until - wait) for j in range(model.n_heads or 0)]
    kept = torch.ones(1, until - wait, model.n_heads or 0, dtype=torch.bool)
    gone = [(-1 - wait, -1)]
    with lock(model), torch.no_grad():
        steps = [chain.run(kept)]
        while heads:
            tries = kept.repeat(len(heads), 1, 1)
            for t, (i, j) in zip(tries, heads):
                t[i, j] = False
            right, score = chain.run(tries)
            shares = zip(right.float().mean(1).tolist(), score.mean(1).tolist())
            best = max(enumerate(shares), key=lambda x: x[1])[0]
            kept = tries[best : best + 1]
            gone.append(heads.pop(best))
            steps.append((right[best : best + 1], score[best : best + 1]))
    found = [torch.cat(x) for x in zip(*steps)]
    about = {"technique": "AF1 pruning", "wait": wait, "until": until}
    out = labelled(rows, found, {"step": range(len(steps))}, **about)
    layers, numbers = zip(*((i + wait, j) for i, j in gone))
    return out.assign_coords(layer=("step", list(layers)), head=("step", list(numbers)))


class _Chain:
    """A subgraph to be run for many sets of heads: what the other tokens do is computed once."""

    def __init__(self, rows: Rows, wait: int, until: int) -> None:
        self.rows, self.wait, self.until = rows, wait, until
        self.keep = rows.require_solved()
        self.others: list[tuple[torch.Tensor, torch.Tensor]] = []
        with lock(rows.model), torch.no_grad():
            h = expected(rows, wait)[self.keep]
            self.start = h[:, -1:]
            for layer in range(wait, until):
                _, k, v = rows.project(layer, h[:, :-1], rows.shared)
                self.others.append((k, v))
                h = rows.block(layer, h, "peek")

    def run(self, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`Rows.read` for each set of heads, kept [sets, transfer blocks, heads]."""
        rows, n, sets = self.rows, len(self.keep), len(kept)
        h = self.start.repeat(sets, 1, 1)
        for i, (k, v) in enumerate(self.others):
            layer = self.wait + i
            both = k.repeat(sets, 1, 1, 1), v.repeat(sets, 1, 1, 1)
            alone, full = rows.last(layer, h, both)
            assert full is not None
            on = kept[:, i].to(h.device).repeat_interleave(n, 0)[:, None, :, None]
            h = rows.after(layer, h, torch.where(on, full, alone))
        for layer in range(self.until, rows.n_layers):
            h = rows.after(layer, h, rows.last(layer, h)[0])
        return rows.read(h[:, 0].view(sets, n, -1), self.keep)
