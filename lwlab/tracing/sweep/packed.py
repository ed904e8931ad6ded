"""The packed engine: of each edited copy only the tokens from the edited one on, all in one pack.

A causal model computes the tokens before the edited one as it did, so a copy ("branch") holds the
rows p..T-1 and reads the keys and values before p from the unedited run. Branches of all layers,
positions, prompts and sites lie in one matrix, whose rows share each product of a layer. A branch
joins at its layer's attention: of the layer it joins at, only its edited row is projected. Sites
that reach other tokens only through the next layer cost one row there (`rows.after`). In the last
layer only keys, values and the last row are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from lwlab.errors import NoFiring
from lwlab.models.model import Model
from lwlab.tracing._nnsight import lock
from lwlab.tracing.sweep.adapter import Adapter
from lwlab.tracing.sweep.cost import LOCAL
from lwlab.tracing.sweep.rows import Base, Landing, after, joining
from lwlab.tracing.sweep.work import Work

Ints = NDArray[np.int64]
_TILE = 512  # rows of a product: enough for its full rate, few enough for the caches
_LEAST = 16
_PACK = 8192  # rows of a pack: more gain nothing


def row_bytes(model: Model) -> int:
    """What one row holds: stream, queries, keys, values, and its share of copies of them."""
    a = model.anatomy
    heads, kv = (a.n_heads or 0) * (a.d_head or 0), (a.n_kv_heads or 0) * (a.d_head or 0)
    return 2 * ((a.d_model or 0) + heads + 2 * kv) * model.dtype.itemsize


def tile_bytes(model: Model, rows: int) -> int:
    """What the products of a tile of rows hold on their way through a block."""
    a = model.anatomy
    return rows * (3 * (a.d_mlp or 0) + 4 * (a.d_model or 0)) * model.dtype.itemsize


def most_bytes(model: Model, rows: int, memory: int) -> int:
    """Bound on what the engine holds for `rows` rows in a budget."""
    tile, room = _room(model, memory)
    return tile_bytes(model, tile) + min(rows, max(room, 1), _PACK) * row_bytes(model)


def _room(model: Model, memory: int) -> tuple[int, int]:
    """Rows of a tile, and of a pack, that a budget has room for."""
    tile = max(_LEAST, min(_TILE, memory // 3 // tile_bytes(model, 1)))
    return tile, max(1, memory - tile_bytes(model, tile)) // row_bytes(model)


def least_bytes(model: Model, length: int) -> int:
    """What the engine needs to run one cell of a prompt at all."""
    return tile_bytes(model, _LEAST) + length * row_bytes(model)


class Pack:
    """The live rows: their stream, place in the rotary table, and branches by (length, position).

    `groups[(t, p)]` holds the first rows of branches [n] and their prompts [n].
    """

    def __init__(self, work: Work, adapter: Adapter, index: Ints, tile: int = _TILE) -> None:
        """Reserve the rows of cells `index`; products take `tile` rows at a time."""
        self.tile = tile
        self.work, self.adapter, self.index = work, adapter, index
        self.cells = work.cells.take(index)
        self.base = Base(work, adapter)
        self.t = work.base.lengths[self.cells.prompt]
        self.m = self.t - self.cells.position
        a, size = adapter.a, int(self.m.sum())
        like = self.base.stream(0)
        self.h = like.new_empty(size, int(a.d_model or 0))
        self.q = like.new_empty(size, int(a.n_heads or 0), int(a.d_head or 0))
        self.k, self.v = (
            like.new_empty(size, int(a.n_kv_heads or 0), int(a.d_head or 0)) for _ in "kv"
        )
        self.n = 0
        self.spot = np.zeros(size, np.int64)  # token of the unedited run that a row stands for
        self.groups: dict[tuple[int, int], tuple[Ints, Ints]] = {}
        self.ends: list[Ints] = []
        self.order: list[Ints] = []

    def join(self, layer: int, land: Landing) -> None:
        """Add branches: rows of the unedited run, the first one of each replaced."""
        c = land.cells
        m, t = self.m[c], self.t[c]
        starts = self.n + np.concatenate([[0], np.cumsum(m)[:-1]])
        total = int(m.sum())
        token = np.repeat(self.base.token(self.cells.prompt[c], self.cells.position[c]), m)
        token += np.arange(total) - np.repeat(starts - self.n, m)
        here, rows = slice(self.n, self.n + total), self.base.index(token)
        first = self.base.index(starts)
        for mine, base, new in (
            (self.h, self.base.stream(layer), land.h), (self.q, self.base.q, land.q),
            (self.k, self.base.k, land.k), (self.v, self.base.v, land.v),
        ):  # fmt: skip
            torch.index_select(base, 0, rows, out=mine[here])
            mine[first] = new
        self.spot[here] = token
        for t_p in np.unique(np.stack([t, self.cells.position[c]]), axis=1).T:
            key = (int(t_p[0]), int(t_p[1]))
            some = (t == key[0]) & (self.cells.position[c] == key[1])
            old = self.groups.get(key, (starts[:0], starts[:0]))
            prompts = self.cells.prompt[c][some]
            self.groups[key] = (
                np.concatenate([old[0], starts[some]]), np.concatenate([old[1], prompts])
            )  # fmt: skip
        self.n += total
        self.ends.append(starts + m - 1)
        self.order.append(c)

    def tiles(self, n: int) -> Iterator[slice]:
        """Rows 0..n in pieces of about the same size."""
        pieces = max(1, -(-n // self.tile))
        edges = [n * i // pieces for i in range(pieces + 1)]
        for a, b in pairwise(edges):
            if b > a:
                yield slice(a, b)

    def project(self, layer: int, sites: str) -> None:
        """Queries, keys and values of the rows that were live before this layer."""
        for s in self.tiles(self.n):
            x = self.adapter.normed(layer, self.h[s])
            turn = self.base.turn(self.base.index(self.spot[s]))
            for site, raw in zip(sites, self.adapter.project(layer, x, sites)):
                mine = {"q": self.q, "k": self.k, "v": self.v}[site]
                mine[s] = raw if site == "v" else self.adapter.finish(layer, site, raw, turn)

    def attend(self, layer: int, last: bool) -> None:
        """Put the heads' outputs in the queries' place (`last`: of the last rows alone)."""
        for (t, p), (starts, prompts) in self.groups.items():
            m, per = t - p, max(1, 4 * self.tile // t)
            for i in range(0, len(starts), per):
                rows = self.base.index(starts[i : i + per, None] + np.arange(m))
                first = self.base.token(prompts[i : i + per], 0)
                before = self.base.index(first[:, None] + np.arange(p))
                k = torch.cat([self.base.k[before], self.k[rows]], 1)
                v = torch.cat([self.base.v[before], self.v[rows]], 1)
                asks = rows[:, -1:] if last else rows
                mask = self.base.mask(t)[t - 1 : t] if last else self.base.mask(t)[p:]
                self.q[asks] = self.adapter.attend(layer, self.q[asks], k, v, mask)


def run(work: Work, adapter: Adapter) -> Iterator[tuple[Ints, torch.Tensor]]:
    """Yield (cells, their metrics), a pack at a time."""
    model, cells = work.request.model, work.cells
    spec_local = np.array([s.site in LOCAL for s in work.request.specs])
    joins = cells.layer + spec_local[cells.spec]
    order = np.lexsort((cells.position, cells.prompt, joins))
    m = (work.base.lengths[cells.prompt] - cells.position)[order]
    tile, room = _room(model, work.memory)
    size = max(int(m.max(initial=1)), min(_PACK, room))
    ends = np.cumsum(m)
    first = 0
    while first < len(order):
        done = int(ends[first] - m[first])
        stop = max(first + 1, int(np.searchsorted(ends, done + size, side="right")))
        index = order[first:stop]
        yield index, _walk(work, Pack(work, adapter, index, tile))
        first = stop


def _walk(work: Work, pack: Pack) -> torch.Tensor:
    model, adapter = work.request.model, pack.adapter
    n, cells = model.n_layers, pack.cells
    local = np.array([s.site in LOCAL for s in work.request.specs])[cells.spec]
    out = torch.full((len(cells),), float("nan"), dtype=torch.float64)
    finals: list[tuple[Ints, torch.Tensor]] = []
    landing: list[tuple[Ints, torch.Tensor]] = []
    fired = 0
    with lock(model), torch.no_grad():
        for layer in range(int(cells.layer.min()), n):
            last = layer == n - 1
            pack.base.enter(layer)
            now = np.flatnonzero(~local & (cells.layer == layer))
            if pack.n:
                pack.project(layer, "qkv" if adapter.fused or not last else "kv")
                if last and not adapter.fused:
                    _last_queries(pack, layer)
            for land in joining(pack, layer, now, landing):
                pack.join(layer, land)
                fired += len(land.cells)
            landing = []
            if pack.n:
                pack.attend(layer, last)
                if last:
                    finals.append(_last_rows(pack, layer))
                else:
                    for s in pack.tiles(pack.n):
                        pack.h[s] = adapter.after(layer, pack.h[s], pack.q[s])
            ends = np.flatnonzero(local & (cells.layer == layer))
            if len(ends):
                landing = after(pack, layer, ends)
                if last:
                    finals += landing
                    fired += sum(len(c) for c, _ in landing)
            work.rows += pack.n + sum(len(c) for c, _ in landing)
            _tick(work, adapter)
        for c, h in finals:
            out[torch.from_numpy(c)] = work.readout(work.prompts[cells.prompt[c]], h).double().cpu()
            adapter.flops += 2 * len(c) * h.shape[1] * work.readout.columns
    _tick(work, adapter)
    if fired != len(cells):
        raise NoFiring(f"{len(cells) - fired} of {len(cells)} edits of a pack never took place")
    work.fired += fired
    return out


def _tick(work: Work, adapter: Adapter) -> None:
    work.tick(adapter.flops, 0)
    work.flops += adapter.flops
    adapter.flops = 0


def _last_queries(pack: Pack, layer: int) -> None:
    """Queries of the last row of each branch that was live before the last layer."""
    rows = np.concatenate(pack.ends)
    for at in pack.tiles(len(rows)):
        i = pack.base.index(rows[at])
        x = pack.adapter.normed(layer, pack.h[i])
        (raw,) = pack.adapter.project(layer, x, "q")
        turn = pack.base.turn(pack.base.index(pack.spot[rows[at]]))
        pack.q[i] = pack.adapter.finish(layer, "q", raw, turn)


def _last_rows(pack: Pack, layer: int) -> tuple[Ints, torch.Tensor]:
    """Last streams of the branches' last rows, [branches, d_model], and their cells."""
    rows = np.concatenate(pack.ends)
    parts = []
    for at in pack.tiles(len(rows)):
        i = pack.base.index(rows[at])
        parts.append(pack.adapter.after(layer, pack.h[i], pack.q[i]))
    return np.concatenate(pack.order), torch.cat(parts)
