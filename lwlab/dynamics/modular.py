"""Addition modulo M as a data set, the spectra of what is learnt on it, and a node's energy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lwlab.errors import BadInput

#: p_crit = 2.7482 log(M) / M, the constant of the authors' released code.
CRITICAL = 2.7482


@dataclass(frozen=True)
class Addition:
    """All M^2 sums a + b mod M, of which `train` are shown and `test` are held out.

    `x` [M^2, 2M] holds one-hot a beside one-hot b, `labels` [M^2] the sums, `targets` [M^2, M] the
    one-hot sums less 1/M, so that each row sums to nought. Row a M + b is the pair (a, b).
    """

    modulus: int
    fraction: float
    seed: int
    train: Tensor
    test: Tensor
    shuffled: bool = False

    @cached_property
    def x(self) -> Tensor:
        """Both summands as one-hot vectors, side by side: [M^2, 2M]."""
        eye = torch.eye(self.modulus)
        return torch.cat([eye.repeat_interleave(self.modulus, 0), eye.repeat(self.modulus, 1)], 1)

    @cached_property
    def labels(self) -> Tensor:
        """The sums modulo M: [M^2]."""
        n = torch.arange(self.modulus)
        sums = ((n[:, None] + n) % self.modulus).flatten()
        if self.shuffled:
            g = torch.Generator().manual_seed(self.seed)
            sums = sums[torch.randperm(self.modulus**2, generator=g)]
        return sums

    @cached_property
    def targets(self) -> Tensor:
        """One-hot sums less their mean 1/M: [M^2, M]."""
        return torch.eye(self.modulus)[self.labels] - 1 / self.modulus

    @property
    def critical(self) -> float:
        """The train fraction below which nothing generalises: 2.7482 log(M) / M."""
        return CRITICAL * math.log(self.modulus) / self.modulus


def addition(
    modulus: int = 23, fraction: float = 0.75, *, seed: int = 0, shuffled: bool = False
) -> Addition:
    """Return the sums modulo `modulus`, a share `fraction` of them, drawn by `seed`, for training.

    With `shuffled`, a placebo: each sum has the answer of another, drawn by `seed`. Raises BadInput
    for a modulus below 3 or a fraction outside (0, 1] that leaves nothing to train on. With
    fraction 1 nothing is held out and accuracies on it are NaN.
    """
    if modulus < 3:
        raise BadInput(f"modulus={modulus}: addition needs a modulus of 3 or more")
    if not 0 < fraction <= 1 or round(fraction * modulus**2) < 1:
        raise BadInput(
            f"fraction={fraction}: give the share of the {modulus**2} sums to train on, in (0, 1]"
        )
    order = torch.randperm(modulus**2, generator=torch.Generator().manual_seed(seed))
    n = round(fraction * modulus**2)
    return Addition(modulus, fraction, seed, order[:n], order[n:], shuffled)


def spectrum(weights: Tensor, modulus: int) -> Tensor:
    """Return the power of each node's two halves by frequency: [node, 2, 1..M//2].

    `weights` is W [2M, K]. The constant (frequency 0) is left out, since no target sees it.
    """
    halves = weights.T.reshape(-1, 2, modulus)
    power: Tensor = torch.fft.rfft(halves, dim=-1).abs()[..., 1:] ** 2
    return power


def purity(weights: Tensor, modulus: int) -> Tensor:
    """Return the largest share of a node's power that lies in one frequency: [node], 0 to 1."""
    power = spectrum(weights, modulus).sum(1)
    return power.max(-1).values / power.sum(-1).clamp_min(1e-30)


def energy(weights: Tensor, problem: Addition, rows: Tensor | None = None) -> Tensor:
    r"""Return each node's energy E(w) = 1/2 |Y~^T (X w)^2|^2: [node].

    What the node climbs while nodes learn apart (arXiv:2509.21519, stage II). `weights` is W
    [2M, K]; `rows` the samples that are summed over (default: all M^2).
    """
    rows = torch.arange(problem.modulus**2) if rows is None else rows
    x, y = problem.x[rows].to(weights), problem.targets[rows].to(weights)
    return (y.T @ (x @ weights) ** 2).square().sum(0) / 2


def energy_gradient(weights: Tensor, problem: Addition, rows: Tensor | None = None) -> Tensor:
    r"""Return dE/dw = X^T (2 X w * Y~ Y~^T (X w)^2) of each node, written out: [2M, node]."""
    rows = torch.arange(problem.modulus**2) if rows is None else rows
    x, y = problem.x[rows].to(weights), problem.targets[rows].to(weights)
    z = x @ weights
    return x.T @ (2 * z * (y @ (y.T @ z**2)))
