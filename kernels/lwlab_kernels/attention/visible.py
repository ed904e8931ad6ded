"""Which keys a query sees: an interval, and a dense mask only where there are holes in it."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from lwlab.errors import BadInput, UnknownName, suggest


class Visible(NamedTuple):
    """Query i of a batch row sees keys lo..hi-1, less those false in `dense`."""

    lo: torch.Tensor
    """[B, T] int64."""
    hi: torch.Tensor
    """[B, T] int64; hi <= lo for a query that is padding or sees nothing."""
    first: torch.Tensor
    """[B] int64: the first real key, where the sink is."""
    dense: torch.Tensor | None
    """[B, T, S] bool, or None where the intervals say all."""

    def rows(self, queries: slice, S: int) -> torch.Tensor:
        """[B, queries, S] bool: what these queries see."""
        j = torch.arange(S, device=self.lo.device)
        inside = (j >= self.lo[:, queries, None]) & (j < self.hi[:, queries, None])
        return inside if self.dense is None else inside & self.dense[:, queries]


def visible(
    B: int,
    T: int,
    S: int,
    mask: Literal["causal", "full"] | torch.Tensor,
    window: int | None,
    keys: torch.Tensor | None,
    device: torch.device,
) -> Visible:
    """Intervals from a mask, a window and real keys (see `attn_stats`), or BadInput."""
    if window is not None and window < 1:
        raise BadInput(f"window={window} must be at least 1, or None")
    at = torch.arange(S - T, S, device=device)
    lo, hi = torch.zeros(B, T, dtype=torch.long, device=device), torch.full_like(at, S).repeat(B, 1)
    dense = None
    if isinstance(mask, torch.Tensor):
        dense = _dense(mask, B, T, S)
    elif mask == "causal":
        hi = (at + 1).repeat(B, 1)
    elif mask != "full":
        raise UnknownName(f"unknown mask {mask!r}{suggest(str(mask), ('causal', 'full'))}")
    if window is not None:
        lo, hi = (at - window + 1).clamp(min=0).expand_as(lo), hi.minimum(at + window)
    first = torch.zeros(B, dtype=torch.long, device=device)
    if keys is not None:
        if keys.shape != (B, S) or keys.dtype != torch.bool:
            raise BadInput(
                f"keys is {keys.dtype} of shape {tuple(keys.shape)}; it must be bool [{B}, {S}]"
            )
        own_lo, own_hi, holes = _interval(keys)
        lo, hi, first = lo.maximum(own_lo[:, None]), hi.minimum(own_hi[:, None]), own_lo
        if bool(holes.any()):
            dense = keys[:, None].expand(B, T, S) if dense is None else dense & keys[:, None]
    if dense is not None:
        own_lo, own_hi, holes = _interval(dense)
        lo, hi = lo.maximum(own_lo), hi.minimum(own_hi)
        dense = dense if bool(holes.any()) else None
    if keys is not None:
        hi = torch.where(keys[:, S - T :], hi, lo)
    return Visible(lo, hi, first, dense)


def _dense(mask: torch.Tensor, B: int, T: int, S: int) -> torch.Tensor:
    if mask.dtype != torch.bool:
        raise BadInput(f"mask is {mask.dtype}; give bool, true where seen (or floats as bias=)")
    if mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if (
        mask.ndim not in (2, 3)
        or mask.shape[-2:] != (T, S)
        or mask.shape[:-2] not in ((), (B,), (1,))
    ):
        raise BadInput(
            f"mask has shape {tuple(mask.shape)}; it must be [{T}, {S}], [{B}, {T}, {S}] or "
            f"[{B}, 1, {T}, {S}]"
        )
    return mask.expand(B, T, S)


def _interval(seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """First, last + 1 true of the last axis (0, 0 for none), and whether there are holes."""
    n = seen.sum(-1)
    if not seen.shape[-1]:
        return n, n, n != n
    places = seen.to(torch.uint8)
    lo = places.argmax(-1)
    hi = torch.where(n > 0, seen.shape[-1] - places.flip(-1).argmax(-1), 0)
    return lo, hi, hi - lo != n
