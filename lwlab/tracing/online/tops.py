"""The largest activations of every unit, and where in the corpus they were.

One 64-bit key holds a value and its place: the float's bits in an order-preserving form above, the
place (complemented, so that of equal values the first in the corpus wins) below. The k largest keys
of two parts are the k largest of their union, so merging is exact and order does not matter.
"""

from __future__ import annotations

import torch

from lwlab.errors import BadInput

POSITIONS = 2**13
PROMPTS = 2**19
_PLACES = 2**32
_NONE = -(2**63)


class Tops:
    """The `k` largest values of `units` series, as keys [units, k]."""

    def __init__(self, units: int, k: int) -> None:
        self.keys = torch.full((units, k), _NONE, dtype=torch.int64)

    def add(self, rows: torch.Tensor, prompt: torch.Tensor, position: torch.Tensor) -> None:
        """Add rows [n, units] that were read at `prompt` [n] and `position` [n]."""
        place = place_of(prompt, position)
        keys = (ordered(rows.T.contiguous()).long() << 32) + (_PLACES - 1 - place)
        new = keys.topk(min(self.keys.shape[1], keys.shape[1]), dim=1).values
        self._join(new)

    def merge(self, other: Tops) -> None:
        """Add what another part of the corpus held."""
        self._join(other.keys)

    def _join(self, keys: torch.Tensor) -> None:
        k = self.keys.shape[1]
        self.keys = torch.cat([self.keys, keys], 1).topk(k, dim=1).values

    def results(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Values (NaN beyond the rows there were), prompts and positions (-1), each [units, k]."""
        empty = self.keys == _NONE
        value = unordered((self.keys >> 32).to(torch.int32))
        place = _PLACES - 1 - (self.keys & (_PLACES - 1))
        return (
            value.masked_fill(empty, float("nan")),
            (place // POSITIONS).masked_fill(empty, -1),
            (place % POSITIONS).masked_fill(empty, -1),
        )


def place_of(prompt: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """One number for a place in the corpus. Raises BadInput beyond 2^19 prompts or 2^13 tokens."""
    if len(prompt) and (int(prompt.max()) >= PROMPTS or int(position.max()) >= POSITIONS):
        raise BadInput(
            f"top contexts reach prompt {PROMPTS - 1} and position {POSITIONS - 1}, not "
            f"{int(prompt.max())} and {int(position.max())}: give shorter prompts, or top=0"
        )
    return prompt.long() * POSITIONS + position.long()


def ordered(x: torch.Tensor) -> torch.Tensor:
    """Float32 values as int32 in the same order (no NaN)."""
    bits = (x.float() + 0.0).view(torch.int32)  # + 0.0: minus zero is zero
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def unordered(keys: torch.Tensor) -> torch.Tensor:
    """The inverse of `ordered`."""
    return torch.where(keys < 0, keys ^ 0x7FFFFFFF, keys).view(torch.float32)
