"""Quantiles of every unit with a known relative error, from counts in logarithmic bins.

A value x > 0 falls into bin ceil(log_g x) with g = (1 + e) / (1 - e); answering with the bin's
2 g^i / (g + 1) is never off by more than the share e. Counts of two parts of a corpus add up
exactly. (DDSketch: Masson, Rim and Lee 2019, arXiv:1908.10693.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lwlab.errors import BadInput

TINY, HUGE = 1e-4, 1e6


class Quantiles:
    """Counts [units, bins] of `units` series.

    Quantiles are within the relative error `error` of an exact order statistic. Values below `TINY`
    in size count as 0 (an absolute error of 1e-4), those above `HUGE` as HUGE; the reader's
    smallest and largest values bound both.
    """

    def __init__(self, units: int, error: float = 0.05) -> None:
        self.half = bins(error)
        self.error = error
        self.log_g = math.log((1 + error) / (1 - error))
        self.counts = torch.zeros(units, 2 * self.half + 1, dtype=torch.int32)
        self.n = 0

    def add(self, rows: torch.Tensor) -> None:
        """Add rows [n, units] of finite values."""
        x = rows.float()
        size = x.abs()
        # Bin 1 begins at TINY; everything below it is bin 0, which both signs share.
        place = (size.clamp(TINY, HUGE) / TINY).log_().div_(self.log_g).ceil_().clamp_(1, self.half)
        place = place.mul_(x.sign()).masked_fill_(size < TINY, 0).long() + self.half
        place += torch.arange(x.shape[1]) * self.counts.shape[1]
        new = torch.bincount(place.flatten(), minlength=self.counts.numel())
        self.counts += new.view_as(self.counts)
        self.n += len(rows)

    def merge(self, other: Quantiles) -> None:
        """Add what another sketch of the same error counted."""
        self.counts += other.counts
        self.n += other.n

    def at(self, shares: Sequence[float], low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """The value of rank floor(q (n - 1)) at each share q, [shares, units], within [low, high].

        Ranks as in `torch.quantile(..., interpolation="lower")`.
        """
        ranks = torch.tensor([math.floor(q * (self.n - 1)) for q in shares])
        below = self.counts.long().cumsum(1)
        found = torch.searchsorted(below, ranks.expand(len(below), -1).contiguous(), right=True)
        step = (found - self.half).double()
        g = math.exp(self.log_g)
        value = TINY * torch.exp(step.abs() * self.log_g) * 2 / (1 + g)
        value = torch.where(step == 0, 0.0, value * step.sign()).T
        return torch.maximum(torch.minimum(value, high), low)


def bins(error: float) -> int:
    """Bins on one side of zero. Raises BadInput for an error outside 0.001 to 0.5."""
    if not 0.001 <= error <= 0.5:
        raise BadInput(f"quantile_error={error}; use 0.001 to 0.5, a share of the value")
    return math.ceil(math.log(HUGE / TINY) / math.log((1 + error) / (1 - error)))
