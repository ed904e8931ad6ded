"""Attention statistics block by block: scores by a plain matrix product, reduced in the cache.

A block is some queries of some groups of heads against the keys that any of them sees. Its rows are
whole, so one block gives all of a query's statistics, and adds to the columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from lwlab_kernels.attention import AttnStats
from lwlab_kernels.attention.visible import Visible
from lwlab_kernels.choose import Backend

QUERIES = 128
"""Queries in a block where there is memory for them: enough for the product to be fast, few enough
that causal ones are not multiplied with many keys that they do not see."""


@dataclass
class Out:
    """Where the statistics go, and what says which keys are seen."""

    rows: torch.Tensor
    """[3, heads, T] float32: entropy, sink mass, distance."""
    column: torch.Tensor
    """[heads, S] float64."""
    bounds: torch.Tensor
    """[2, B, T] int32: `Visible.lo` and `.hi`."""
    ends: torch.Tensor
    """[B] int32: the key after the sink."""


class Reduce(Protocol):
    """Reduce scores z [heads, queries, keys], which may be overwritten, into `out`.

    They belong to heads first, first + 1, ... (`per` of them to a batch row), queries start, ...
    and keys lo, ...
    """

    def __call__(
        self, z: torch.Tensor, first: int, per: int, start: int, lo: int, out: Out
    ) -> None:
        """Fill `out.rows`, add to `out.column`."""
        ...


def blockwise(
    q: torch.Tensor,
    k: torch.Tensor,
    scale: float,
    see: Visible,
    bias: torch.Tensor | None,
    softcap: float | None,
    sink: int,
    memory: int,
    backend: Backend,
) -> AttnStats:
    """Attention statistics by blocks, reduced by numba or triton (see `attn_stats`)."""
    reduce = reducer(backend)
    (B, H, T, d), (_, G, S, _) = q.shape, k.shape
    groups, share = B * G, H // max(1, G)
    step = max(1, min(QUERIES, T, memory // max(1, 4 * share * S)))
    wide = max(1, min(groups, memory // max(1, 4 * share * step * S)))
    buffer = q.new_empty(wide * share * step * S, dtype=torch.float32)
    out = Out(
        torch.empty(3, B * H, T, dtype=torch.float32, device=q.device),
        torch.zeros(B * H, S, dtype=torch.float64, device=q.device),
        torch.stack([see.lo, see.hi]).int(),
        (see.first + sink).int(),
    )
    query, key = q.reshape(groups, share, T, d), k.reshape(groups, S, d)
    bounds = out.bounds.cpu()
    for start in range(0, T if H else 0, step):
        stop = min(start + step, T)
        n = stop - start
        lo, hi = _span(bounds[..., start:stop])
        for g in range(0, groups, wide):
            m = min(wide, groups - g)
            z = buffer[: m * share * n * (hi - lo)].view(m, share * n, hi - lo)
            x = query[g : g + m, :, start:stop].reshape(m, share * n, d).float() * scale
            torch.bmm(x, key[g : g + m, lo:hi].float().mT, out=z)
            if softcap is not None:
                z.div_(softcap).tanh_().mul_(softcap)
            z = z.view(m * share, n, hi - lo)
            if bias is not None:
                z += _heads(bias[:, :, start:stop, lo:hi], g * share, len(z))
            if see.dense is not None:
                dense = see.dense[:, None, start:stop, lo:hi].expand(-1, H, -1, -1)
                z.masked_fill_(~_heads(dense, g * share, len(z)), -torch.inf)
            reduce(z, g * share, H, start, lo, out)
    found = out.rows.view(3, B, H, T)
    column = out.column.float().view(B, H, S)
    return AttnStats(found[0], found[1], found[2], column, backend)


def _span(bounds: torch.Tensor) -> tuple[int, int]:
    """First and last + 1 key that any query of bounds [2, B, n] sees."""
    some = bounds[1] > bounds[0]
    if not bool(some.any()):
        return 0, 0
    return int(bounds[0][some].min()), int(bounds[1][some].max())


def _heads(x: torch.Tensor, first: int, n: int) -> torch.Tensor:
    """Heads first..first + n - 1 of [B, H, ...], counted through the batch: [n, ...]."""
    H = x.shape[1]
    return torch.stack([x[i // H, i % H] for i in range(first, first + n)])


def reducer(backend: Backend) -> Reduce:
    """The reduction of a block, compiled on first use."""
    if backend == "numba":
        from lwlab_kernels.attention.cpu import reduce
    else:
        from lwlab_kernels.attention.gpu import reduce
    return reduce
