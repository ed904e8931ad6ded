"""How a site sits inside a module's tensor: the whole of it, some columns, or columns by head.

Every view obeys read(write(t, x)) == x and write(t, read(t)) == t, within `clip` where it has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


class View(Protocol):
    """A two-way window on a tensor whose last axis holds features."""

    def read(self, t: torch.Tensor) -> torch.Tensor:
        """Return the site's values."""
        ...

    def write(self, t: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Return `t` with the site's values replaced by `new`."""
        ...


@dataclass(frozen=True)
class Whole:
    """The tensor itself."""

    def read(self, t: torch.Tensor) -> torch.Tensor:
        """Return `t`."""
        return t

    def write(self, t: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Return `new` in the type of `t`."""
        return new.to(t.dtype)


@dataclass(frozen=True)
class Heads:
    """Columns start:stop of [..., features] as [..., heads, features / heads].

    With `clip`, what is read is clamped to [-clip, clip], as the model is about to do (OLMo).
    """

    heads: int
    start: int = 0
    stop: int | None = None
    clip: float | None = None

    def read(self, t: torch.Tensor) -> torch.Tensor:
        """[..., f] -> [..., heads, d]."""
        part = t[..., self.start : self.stop]
        part = part if self.clip is None else part.clamp(-self.clip, self.clip)
        return part.reshape(*part.shape[:-1], self.heads, -1)

    def write(self, t: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Put [..., heads, d] back among the other columns."""
        stop = t.shape[-1] if self.stop is None else self.stop
        return torch.cat([t[..., : self.start], new.flatten(-2).to(t.dtype), t[..., stop:]], -1)


@dataclass(frozen=True)
class Columns:
    """Columns start:stop of [..., features], not split into heads (fused gate and up)."""

    start: int
    stop: int

    def read(self, t: torch.Tensor) -> torch.Tensor:
        """[..., f] -> [..., stop - start]."""
        return t[..., self.start : self.stop]

    def write(self, t: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Put the columns back among the others."""
        return torch.cat([t[..., : self.start], new.to(t.dtype), t[..., self.stop :]], -1)


@dataclass(frozen=True)
class Interleaved:
    """GPT-NeoX's fused projection: for each head its q, k and v lie side by side.

    [..., heads * parts * d] -> part number `part`: [..., heads, d].
    """

    heads: int
    part: int
    parts: int = 3

    def read(self, t: torch.Tensor) -> torch.Tensor:
        """[..., heads * parts * d] -> [..., heads, d]."""
        return self._split(t)[..., self.part, :]

    def write(self, t: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Put [..., heads, d] back between the other parts."""
        pieces = list(self._split(t).unbind(-2))
        pieces[self.part] = new.to(t.dtype)
        return torch.stack(pieces, -2).flatten(-3)

    def _split(self, t: torch.Tensor) -> torch.Tensor:
        return t.reshape(*t.shape[:-1], self.heads, self.parts, -1)
