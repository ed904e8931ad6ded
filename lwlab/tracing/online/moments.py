"""Mean, variance, skewness and kurtosis of every unit, one batch at a time, in float64.

Sums of powers lose all digits when a mean is large beside its spread. Central moments do not: a
batch's are taken around its own mean, and two sets are joined by Chan's formulas in Pebay's form
(Formulas for robust, one-pass parallel computation of covariances and arbitrary-order statistical
moments, Sandia report SAND2008-6212).
"""

from __future__ import annotations

import torch


class Moments:
    """Count, mean and the central sums of order 2 to 4 of `units` series; also smallest, largest.

    `add` takes [rows, units]; `merge` joins another set, in any order, to rounding.
    """

    FIELDS = ("mean", "m2", "m3", "m4", "low", "high")

    def __init__(self, units: int) -> None:
        self.n = 0
        for field in self.FIELDS:
            setattr(self, field, torch.zeros(units, dtype=torch.float64))
        self.low.fill_(float("inf"))
        self.high.fill_(float("-inf"))

    mean: torch.Tensor
    m2: torch.Tensor
    m3: torch.Tensor
    m4: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def add(self, rows: torch.Tensor) -> None:
        """Add rows [n, units]; an empty batch changes nothing."""
        if len(rows) == 0:
            return
        new = Moments(rows.shape[1])
        x = rows.double()
        new.n, new.mean = len(x), x.mean(0)
        new.low, new.high = x.amin(0), x.amax(0)
        centred = x - new.mean
        square = centred.square()
        new.m2 = square.sum(0)
        new.m3 = torch.linalg.vecdot(square, centred, dim=0)
        new.m4 = torch.linalg.vecdot(square, square, dim=0)
        self.merge(new)

    def merge(self, other: Moments) -> None:
        """Add what another set holds."""
        a, b = self.n, other.n
        if b == 0:
            return
        n = a + b
        d = other.mean - self.mean if a else torch.zeros_like(other.mean)
        cross = d * d * a * b / n
        self.m4 = (
            self.m4 + other.m4 + cross * d * d * (a * a - a * b + b * b) / (n * n)
            + 6 * d * d * (a * a * other.m2 + b * b * self.m2) / (n * n)
            + 4 * d * (a * other.m3 - b * self.m3) / n
        )  # fmt: skip
        self.m3 = (
            self.m3 + other.m3 + cross * d * (a - b) / n + 3 * d * (a * other.m2 - b * self.m2) / n
        )
        self.m2 = self.m2 + other.m2 + cross
        self.mean = self.mean + d * b / n if a else other.mean.clone()
        self.low = torch.minimum(self.low, other.low)
        self.high = torch.maximum(self.high, other.high)
        self.n = n

    def results(self) -> dict[str, torch.Tensor]:
        """Mean, standard deviation (of the population), skewness, excess kurtosis, min and max.

        A unit that never changes has no skewness and no kurtosis: NaN.
        """
        variance = self.m2 / self.n
        still = variance <= (8 * torch.finfo(torch.float64).eps * self.mean.abs()) ** 2
        spread = torch.where(still, torch.nan, variance)
        return {
            "mean": self.mean,
            "std": variance.clamp(min=0).sqrt(),
            "skew": self.m3 / self.n / spread**1.5,
            "kurtosis": self.m4 / self.n / spread**2 - 3,
            "min": self.low,
            "max": self.high,
        }
