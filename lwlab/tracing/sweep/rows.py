"""One row of a layer: what an edit does to the edited token itself, before others can see it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from lwlab.models.anatomy import Anatomy
from lwlab.models.sites import Address
from lwlab.tracing.sweep.adapter import Adapter, tables
from lwlab.tracing.sweep.work import Work

if TYPE_CHECKING:
    from lwlab.tracing.sweep.packed import Pack

Ints = NDArray[np.int64]
_STAGES = (
    "q", "head_out", "attn_out", "resid_mid", "mlp_in", "mlp_gate", "mlp_up", "neurons", "mlp_out",
    "resid_post",
)  # fmt: skip


def needs(anatomy: Anatomy, sites: set[str]) -> set[str]:
    """Sites of the unedited run that rows of an edited site are completed with."""
    out = {"resid_pre", "q", "k", "v"}
    upstream = {"q", "head_out"} & sites
    out |= {"head_out"} if upstream else set()
    if anatomy.parallel:
        out |= {"mlp_out"} if {"q", "head_out", "attn_out"} & sites else set()
        out |= {"attn_out"} if set(_STAGES[4:9]) & sites else set()
    elif set(_STAGES[4:9]) & sites:
        out |= {"resid_mid"}
    if {"mlp_gate", "mlp_up"} & sites:
        out |= {"mlp_up"} | ({"mlp_gate"} if anatomy.gated else set())
    return out


@dataclass(frozen=True, eq=False)
class Landing:
    """Edited rows of branches that join a layer: stream h, and q, k, v ready for attention."""

    cells: Ints
    h: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


class Base:
    """The unedited run of a chunk, layer by layer: its queries, keys and values by token."""

    def __init__(self, work: Work, adapter: Adapter) -> None:
        """Number the tokens; nothing is copied."""
        self.work, self.adapter, self.seen = work, adapter, work.base
        self.device = work.base.values[Address("resid_pre", 0)].device
        self.layer = -1
        self.q = self.k = self.v = torch.empty(0)
        self._turn: tuple[torch.Tensor, torch.Tensor] | None = None
        self._masks: dict[int, torch.Tensor] = {}

    def index(self, i: Ints) -> torch.Tensor:
        """Numbers as an index on the model's device."""
        return torch.from_numpy(np.ascontiguousarray(i)).to(self.device)

    def token(self, prompt: Ints, position: Any) -> Ints:
        """Where tokens of prompts lie."""
        return np.asarray(self.seen.offsets[prompt] + position)

    def site(self, name: str, layer: int) -> torch.Tensor:
        """Values of a site, [tokens, ...]."""
        return self.seen.values[Address(name, layer)]

    def stream(self, layer: int) -> torch.Tensor:
        """The stream entering a layer, [tokens, d_model]."""
        return self.site("resid_pre", layer)

    def enter(self, layer: int) -> None:
        """Make the layer's queries, keys and values, rotary table and masks ready."""
        self.layer = layer
        like = self.stream(layer)
        turns = []
        for t, calls in self.seen.calls.items():
            turn, self._masks[t] = tables(calls[layer], t, like)
            turns.append((t, turn))
        self._turn = None
        if turns[0][1] is not None:
            held = dict(turns)
            pairs: Any = [held[int(t)] for t in self.seen.lengths]
            self._turn = torch.cat([c for c, _ in pairs]), torch.cat([s for _, s in pairs])
        self.q, self.k, self.v = (self.site(s, layer) for s in "qkv")
        self.q, self.k = (
            self.adapter.finish(layer, s, x, self._turn) for s, x in (("q", self.q), ("k", self.k))
        )

    def turn(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Rotary (cos, sin) of tokens, [rows, d], or None."""
        return None if self._turn is None else (self._turn[0][tokens], self._turn[1][tokens])

    def mask(self, length: int) -> torch.Tensor:
        """Additive mask of prompts of one length, [length, length]."""
        return self._masks[length]


def joining(
    pack: Pack, layer: int, now: Ints, landing: list[tuple[Ints, torch.Tensor]]
) -> Iterator[Landing]:
    """Branches that join at a layer: streams that come from below, and cells `now` of its own."""
    adapter, base = pack.adapter, pack.base
    arriving = list(landing)
    for group in _groups(pack, now):
        site, new = _new(pack, group)
        token = _tokens(pack, group)
        if site == "resid_pre":
            arriving.append((group, new))
            continue
        turn = base.turn(token)
        h = base.stream(layer)[token]
        q, k, v = base.q[token], base.k[token], base.v[token]
        if site == "attn_in":
            q, k, v = adapter.project(layer, new, "qkv")
            q = adapter.finish(layer, "q", q, turn)
        else:  # k or v, of one key/value head
            raw = base.site(site, layer)[token]
            spec, unit = _spec(pack, group)
            spec.read(raw, unit).copy_(new)
            raw = adapter.clip(site, raw)
            k, v = (raw, v) if site == "k" else (k, raw)
        if site != "v":
            k = adapter.finish(layer, "k", k, turn)
        yield Landing(group, h, q, k, v)
    for group, h in arriving:
        for at in pack.tiles(len(group)):
            turn = base.turn(_tokens(pack, group[at]))
            q, k, v = adapter.project(layer, adapter.normed(layer, h[at]), "qkv")
            q, k = (adapter.finish(layer, s, x, turn) for s, x in (("q", q), ("k", k)))
            yield Landing(group[at], h[at], q, k, v)


def after(pack: Pack, layer: int, ends: Ints) -> list[tuple[Ints, torch.Tensor]]:
    """Streams leaving `layer` at the edited tokens of cells of local sites: [(cells, rows)].

    In the last layer a token that is not the last reaches nothing: it leaves as it was.
    """
    last = layer == pack.work.request.model.n_layers - 1
    out: list[tuple[Ints, torch.Tensor]] = []
    if last:
        dead = pack.m[ends] > 1
        if dead.any():
            c = ends[dead]
            token = pack.base.token(pack.cells.prompt[c], pack.t[c] - 1)
            out.append((c, pack.base.site("resid_post", layer)[pack.base.index(token)]))
        ends = ends[~dead]
    for group in _groups(pack, ends):
        for at in pack.tiles(len(group)):
            out.append((group[at], _through(pack, layer, group[at])))
    return out


def _through(pack: Pack, layer: int, c: Ints) -> torch.Tensor:
    """Take edited rows of one site, layer and unit to the end of the block."""
    adapter, base = pack.adapter, pack.base
    site, new = _new(pack, c)
    stage, token = _STAGES.index(site), _tokens(pack, c)
    if site == "resid_post":
        return new

    def there(name: str) -> torch.Tensor:
        return base.site(name, layer)[token]

    x = new
    spec, unit = _spec(pack, c)
    if spec.unit is not None:
        x = there(site).clone()
        spec.read(x, unit).copy_(new)
    if site == "q":
        x = adapter.finish(layer, "q", adapter.clip("q", x), base.turn(token))
        x = _attended(pack, layer, c, x)
    if stage < 2:
        x = adapter.write(layer, x)
    if stage < 3:
        if adapter.a.parallel:
            return there("resid_pre") + x + there("mlp_out")
        x = there("resid_pre") + x
    if stage < 4:
        return x + adapter.mlp(layer, adapter.normed(layer, x, 2))
    mid = there("resid_pre") + there("attn_out") if adapter.a.parallel else there("resid_mid")
    if site == "mlp_in":
        x = adapter.mlp(layer, x)
    elif site != "mlp_out":
        if site == "mlp_gate":
            x = adapter.activate(layer, x, there("mlp_up"))
        elif site == "mlp_up":
            x = adapter.activate(layer, there("mlp_gate") if adapter.a.gated else None, x)
        x = adapter.close(layer, x)
    return mid + x


def _attended(pack: Pack, layer: int, c: Ints, q: torch.Tensor) -> torch.Tensor:
    """Heads' outputs of edited queries [rows, heads, d], on the unedited keys and values."""
    base, out = pack.base, torch.empty_like(q)
    where = np.stack([pack.t[c], pack.cells.position[c]])
    for t, p in np.unique(where, axis=1).T:
        some = np.flatnonzero((where[0] == t) & (where[1] == p))
        own = base.index(base.token(pack.cells.prompt[c[some]], 0)[:, None] + np.arange(t))
        i, mask = base.index(some), base.mask(int(t))[p : p + 1]
        z = pack.adapter.attend(layer, q[i][:, None], base.k[own], base.v[own], mask)
        out[i] = z[:, 0]
    return out


def _tokens(pack: Pack, c: Ints) -> torch.Tensor:
    return pack.base.index(pack.base.token(pack.cells.prompt[c], pack.cells.position[c]))


def _groups(pack: Pack, c: Ints) -> list[Ints]:
    """Cells of one site and unit each."""
    if not len(c):
        return []
    keys = np.stack([pack.cells.spec[c], pack.cells.unit[c]])
    _, member = np.unique(keys, axis=1, return_inverse=True)
    member = member.ravel()
    return [c[member == k] for k in range(int(member.max()) + 1)]


def _spec(pack: Pack, c: Ints) -> tuple[Any, int]:
    return pack.work.request.specs[pack.cells.spec[c[0]]], int(pack.cells.unit[c[0]])


def _new(pack: Pack, c: Ints) -> tuple[str, torch.Tensor]:
    return _spec(pack, c)[0].site, pack.work.values(pack.index[c])
