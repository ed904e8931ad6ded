r"""AF1 (all for one): how little of a model does mental arithmetic, and where it does it.

Mamidanna et al. 2025, arXiv:2509.09650. A model of n blocks is asked sums that differ in their
operands only. Of its blocks,

* 0 .. wait - 1 do nothing that depends on the other operands (*waiting*): the stream h^l_t of token
  t entering block l = wait is replaced by what it is on average given that token (context-aware
  mean ablation, CAMA),  h~^l_t(x) = mean over x' with x'_t = x_t of h^l_t(x');
* wait .. until - 1 let the last token look at all others, and every other one at itself only and at
  what the prompts share at their start (*transfer*, attention-based peeking, ABP);
* until .. n - 1 let the last token look at itself and at that start only (the rest at one token).

Accuracy is the share of right answers (greedy, whole vocabulary) among the prompts that the full
model answers right, which is the paper's faithfulness. Results keep the prompts apart: dimension
`prompt` holds the solved ones only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import xarray as xr

from lwlab.attribution.af1_heads import prune
from lwlab.attribution.af1_parts import chance, expected, labelled, ordered, prepare, rising
from lwlab.attribution.af1_rows import Rows
from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.models.model import Model
from lwlab.tasks.base import Task
from lwlab.tracing import lock

__all__ = [
    "TECHNIQUES", "Rows", "Subgraph", "chance", "expected", "find", "knockout", "prepare", "prune",
    "subgraph", "waiting", "windows",
]  # fmt: skip
#: What may stand in for the waiting blocks: `waiting`.
TECHNIQUES = ("cama", "mean", "zero", "skip", "alone")


class Subgraph(NamedTuple):
    """What `find` found: blocks of waiting, first block of the last token alone, accuracy."""

    wait: int
    until: int
    accuracy: float

    @property
    def transfer(self) -> int:
        """Number of transfer blocks."""
        return self.until - self.wait


def waiting(
    model: Model,
    task: Task | Rows,
    techniques: str | Iterable[str] = ("cama",),
    layers: Iterable[int] | None = None,
) -> xr.Dataset:
    """Replace what enters block `wait`, for each of `layers` (default: all), and run on in full.

    Techniques: those of `expected`, and "alone", the stream of a run in which every token looked at
    itself and the common start only. Returns `correct` and `log_prob` (of the answer, nats), each
    (technique, wait, prompt). Raises BadInput for layers out of range or order, UnknownName, and
    as `prepare`.
    """
    names = [techniques] if isinstance(techniques, str) else list(dict.fromkeys(techniques))
    for name in names:
        if name not in TECHNIQUES:
            raise UnknownName(f"no technique {name!r}{suggest(name, TECHNIQUES)}")
    n = model.n_layers
    waits = rising("layers", range(n) if layers is None else layers, 0, n)
    rows = prepare(model, task)
    keep = rows.require_solved()
    live: list[torch.Tensor] = []
    order: list[tuple[str, int]] = []
    with lock(model), torch.no_grad():
        alone = rows.base[0]
        h = rows.base[0][:0]
        for layer in range(n + 1):
            if layer in waits:
                live = [alone if s == "alone" else expected(rows, layer, s) for s in names]
                h = torch.cat([h, *(x[keep] for x in live)])
                order += [(s, layer) for s in names]
            if layer == n:
                break
            if "alone" in names:
                alone = rows.block(layer, alone, "alone")
            if len(h):
                h = rows.block(layer, h, "full")
        found = rows.read(h[:, -1].view(len(order), len(keep), -1), keep)
    index = torch.tensor([[order.index((s, w)) for w in waits] for s in names])
    coords = {"technique": names, "wait": waits}
    return labelled(rows, [x[index] for x in found], coords, technique="AF1 waiting")


def windows(
    model: Model,
    task: Task | Rows,
    waits: Iterable[int] | None = None,
    transfers: Iterable[int] | None = None,
) -> xr.Dataset:
    """Run the AF1 subgraph for every number of waiting and of transfer blocks.

    Default: every wait, and transfers of 0, 1, 2, 3, 4, 6 and 8 blocks.

    Returns `correct` and `log_prob`, each (wait, transfer, prompt), NaN where wait + transfer goes
    beyond the model. Raises BadInput for numbers out of range or order, and as `prepare`.
    """
    n = model.n_layers
    begins = rising("waits", range(n) if waits is None else waits, 0, n)
    common = [k for k in (0, 1, 2, 3, 4, 6, 8) if k <= n]
    sizes = rising("transfers", common if transfers is None else transfers, 0, n)
    rows = prepare(model, task)
    keep = rows.require_solved()
    ends: list[tuple[int, int]] = []
    peeking: dict[int, torch.Tensor] = {}
    with lock(model), torch.no_grad():
        lone = rows.base[0][:0, -1:]
        for layer in range(n + 1):
            if layer in begins:
                peeking[layer] = expected(rows, layer)[keep]
            for w, h in peeking.items():
                if layer - w in sizes:
                    lone = torch.cat([lone, h[:, -1:]])
                    ends.append((w, layer - w))
            if layer == n:
                break
            if len(lone):
                lone = rows.after(layer, lone, rows.last(layer, lone)[0])
            peeking = {w: h for w, h in peeking.items() if layer - w < sizes[-1]}
            if peeking:
                moved = rows.block(layer, torch.cat(list(peeking.values())), "peek")
                peeking = dict(zip(peeking, torch.split(moved, len(keep))))
        found = rows.read(lone[:, 0].view(len(ends), len(keep), -1), keep)
    grids = []
    for x in found:
        grid = torch.full((len(begins), len(sizes), len(keep)), float("nan"))
        for (w, k), values in zip(ends, x.float().cpu()):
            grid[begins.index(w), sizes.index(k)] = values
        grids.append(grid)
    return labelled(rows, grids, {"wait": begins, "transfer": sizes}, technique="AF1")


def subgraph(model: Model, task: Task | Rows, wait: int, until: int) -> xr.Dataset:
    """Run one AF1 subgraph: wait before block `wait`, transfer before block `until`, then alone.

    Returns `correct`, `log_prob` (prompt) and `logits` (prompt, token). Raises BadInput unless
    0 <= wait <= until <= n_layers, and as `prepare`.
    """
    ordered(model, wait, until)
    rows = prepare(model, task)
    keep = rows.require_solved()
    with lock(model), torch.no_grad():
        h = expected(rows, wait)[keep]
        for layer in range(wait, until):
            h = rows.block(layer, h, "peek")
        h = h[:, -1:]
        for layer in range(until, model.n_layers):
            h = rows.after(layer, h, rows.last(layer, h)[0])
        found = [x[0] for x in rows.read(h[None, :, 0], keep)]
        z = model.unembed(h[:, 0]).float()
    out = labelled(rows, found, {}, technique="AF1", wait=wait, until=until)
    return out.assign(logits=(("prompt", "token"), z.cpu().numpy()))


def knockout(
    model: Model,
    task: Task | Rows,
    cuts: Iterable[int | Iterable[int]] | None = None,
    *,
    wait: int = 0,
) -> xr.Dataset:
    """Blind the last token in some blocks of the otherwise full model.

    `cuts`: a block, or a set of blocks, for each run (default: each block by itself). There the
    last token sees itself and the common start only. With `wait`, it also enters that block as its
    average over all prompts (the last token's CAMA), and cuts are of blocks from there on. Returns
    `correct` and `log_prob`, each (cut, prompt), with coordinate `cut` as "20" or "20+21". Raises
    BadInput for a block that does not exist or an empty set, and as `prepare`.
    """
    n = model.n_layers
    rising("wait", [wait], 0, n - 1)
    wanted = range(wait, n) if cuts is None else cuts
    sets = [sorted({c} if isinstance(c, int) else set(c)) for c in wanted]
    for cut in sets:
        rising("cuts", cut, wait, n - 1)
    if not sets:
        raise BadInput("cuts= names no block to cut")
    rows = prepare(model, task)
    keep = rows.require_solved()
    births = [wait or cut[0] for cut in sets]
    order = sorted(range(len(sets)), key=births.__getitem__)
    joined = 0
    with lock(model), torch.no_grad():
        h = rows.base[0][:0, -1:]
        for layer in range(n):
            while joined < len(order) and births[order[joined]] == layer:
                enters = expected(rows, layer) if wait else rows.base[layer]
                h, joined = torch.cat([h, enters[keep, -1:]]), joined + 1
            if not joined:
                continue
            _, k, v = rows.project(layer, rows.base[layer][keep, :-1], rows.shared)
            others = k.repeat(joined, 1, 1, 1), v.repeat(joined, 1, 1, 1)
            alone, full = rows.last(layer, h, others)
            here = torch.tensor([layer in sets[i] for i in order[:joined]], device=h.device)
            here = here.repeat_interleave(len(keep))[:, None, None, None]
            assert full is not None
            h = rows.after(layer, h, torch.where(here, alone, full))
        found = rows.read(h[:, 0].view(len(order), len(keep), -1), keep)
    back = torch.tensor(order).argsort()
    names = ["+".join(map(str, s)) for s in sets]
    return labelled(rows, [x[back] for x in found], {"cut": names}, technique="AF1 knockout")


def find(grid: xr.Dataset, threshold: float = 0.9) -> Subgraph | None:
    """Of `windows`, the cell that waits longest and then transfers shortest, at `threshold` or up.

    Returns None where no cell reaches it. Raises BadInput for a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise BadInput(f"threshold={threshold}; it is an accuracy, above 0 and at most 1")
    share = grid.correct.mean("prompt", skipna=False)
    for w in reversed(share.wait.values.tolist()):
        for k in share.transfer.values.tolist():
            a = float(share.sel(wait=w, transfer=k))
            if a >= threshold:
                return Subgraph(int(w), int(w + k), a)
    return None
