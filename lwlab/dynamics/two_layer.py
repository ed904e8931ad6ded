"""A two-layer network in training: one that can be stepped, measured, saved and taken up again."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lwlab import paths
from lwlab.dynamics.modular import Addition, purity
from lwlab.errors import BadInput, Diverged

Optimizer = Literal["adam", "adamw", "muon"]
Start = Literal["random", "zero"]
Activation = Literal["square", "relu"]
Row = dict[str, float]


class Run:
    """One training run that can be stepped, looked at, saved and taken up again.

    `w` [2M, K] and `v` [K, M] are the weights, `step` how many steps are done. See `train` for the
    arguments and for what is raised.
    """

    def __init__(
        self,
        problem: Addition,
        *,
        width: int = 256,
        optimizer: Optimizer = "adam",
        rate: float = 5e-3,
        decay: float = 2e-4,
        start: Start = "random",
        activation: Activation = "square",
        seed: int = 0,
    ) -> None:
        """Draw W from N(0, 1/2M) and V from N(0, 1/K) (or nought) by `seed`."""
        _check(width, optimizer, rate, decay, start, activation)
        self.problem, self.step = problem, 0
        self.facts: dict[str, Any] = {
            **{"modulus": problem.modulus, "fraction": problem.fraction, "split": problem.seed},
            "shuffled": problem.shuffled,
            **{"width": width, "optimizer": optimizer, "rate": rate, "decay": decay},
            **{"start": start, "activation": activation, "seed": seed},
        }
        self.eta = decay * len(problem.train) / 2  # where J + decay |V|^2 / 2 is least in V
        g = torch.Generator().manual_seed(seed)
        m = problem.modulus
        self.w = (torch.randn(2 * m, width, generator=g) / math.sqrt(2 * m)).requires_grad_()
        v = torch.randn(width, m, generator=g) / math.sqrt(width)
        self.v = (torch.zeros_like(v) if start == "zero" else v).requires_grad_()
        self._x, self._y = problem.x[problem.train], problem.targets[problem.train]
        self._optimizers = _optimizers(optimizer, self.w, self.v, rate, decay)
        with torch.no_grad():
            self._f0 = self.hidden(self._x)

    def hidden(self, x: Tensor) -> Tensor:
        """F = sigma(x W): [sample, node]."""
        z = x @ self.w
        return z**2 if self.facts["activation"] == "square" else torch.relu(z)

    def advance(self) -> float:
        """Do one full-batch step; return the loss before it. Raises Diverged."""
        out = self.hidden(self._x) @ self.v
        loss = (out - out.mean(1, keepdim=True) - self._y).square().sum(1).mean()
        for o in self._optimizers:
            o.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        value = float(loss.detach())
        if not math.isfinite(value):
            raise Diverged(
                f"the loss is {value} at step {self.step}: the run with {self.facts} diverged. "
                f"A lower rate (it is {self.facts['rate']}) would work"
            )
        for o in self._optimizers:
            o.step()
        self.step += 1
        return value

    @torch.no_grad()
    def backprop(self) -> tuple[Tensor, Tensor]:
        """Return G_F = P(Y~ - F V) V^T (outputs centred) and F~, each [train sample, node]."""
        f = self.hidden(self._x)
        out = f @ self.v
        rest = self._y - (out - out.mean(1, keepdim=True))
        return (rest - rest.mean(0)) @ self.v.T, f - f.mean(0)

    @torch.no_grad()
    def ridge(self, eta: float | None = None) -> Tensor:
        """Return V_ridge = (F~^T F~ + eta I)^{-1} F~^T Y~; eta: decay n / 2 by default: [K, M].

        Raises BadInput where eta is 0 and F~^T F~ has no inverse.
        """
        eta = self.eta if eta is None else eta
        f = self.hidden(self._x).double()
        f = f - f.mean(0)
        if eta <= 0:
            raise BadInput("the ridge solution needs eta > 0: give eta=, or train with decay > 0")
        gram = f @ f.T + eta * torch.eye(len(f), dtype=f.dtype)
        return (f.T @ torch.linalg.solve(gram, self._y.double())).to(self.v)

    @torch.no_grad()
    def measure(self) -> Row:
        """Return the numbers of `train` at this step."""
        hidden = self.hidden(self.problem.x)
        out = hidden @ self.v
        right = (out.argmax(1) == self.problem.labels).float()
        train, test = self.problem.train, self.problem.test
        centred = out - out.mean(1, keepdim=True)
        g, f = self.backprop()
        own = self._y @ (self._y.T @ f)
        gap = math.nan
        if self.eta > 0:
            best = f @ self.ridge()
            gap = float((f @ self.v - best).norm() / best.norm())
        unit = f / f.norm(dim=0).clamp_min(1e-30)
        k = f.shape[1]
        return {
            "train_accuracy": float(right[train].mean()),
            "test_accuracy": float(right[test].mean()) if len(test) else math.nan,
            "loss": float((centred[train] - self._y).square().sum(1).mean()),
            "gradient": float(g.norm()),
            "alignment": float((g * own).sum() / (g.norm() * own.norm()).clamp_min(1e-30)),
            "moved": float((hidden[train] - self._f0).norm() / self._f0.norm()),
            "ridge_gap": gap,
            "overlap": float(((unit.T @ unit).abs().sum() - k) / (k * (k - 1))) if k > 1 else 0.0,
            "purity": float(purity(self.w, self.problem.modulus).median()),
        }

    def save(self, path: Path, rows: list[tuple[int, Row]]) -> None:
        """Write everything a resumed run needs, atomically."""
        held = io.BytesIO()
        state = [o.state_dict() for o in self._optimizers]
        values = {"w": self.w.detach(), "v": self.v.detach(), "f0": self._f0, "optimizers": state}
        torch.save({**values, "step": self.step, "rows": rows, "facts": self.facts}, held)
        paths.write_atomic(path, held.getvalue())

    def take_up(self, path: Path) -> list[tuple[int, Row]]:
        """Go on from what `save` wrote; return the rows measured so far. Raises BadInput."""
        saved = torch.load(path, weights_only=False)
        if saved["facts"] != self.facts:
            other = {k: v for k, v in saved["facts"].items() if self.facts.get(k) != v}
            raise BadInput(
                f"{path} holds another run ({other}): give another resume=, or delete that file"
            )
        with torch.no_grad():
            self.w.copy_(saved["w"])
            self.v.copy_(saved["v"])
        for o, state in zip(self._optimizers, saved["optimizers"], strict=True):
            o.load_state_dict(state)
        self._f0, self.step = saved["f0"], int(saved["step"])
        rows: list[tuple[int, Row]] = saved["rows"]
        return rows


def _check(
    width: int, optimizer: str, rate: float, decay: float, start: str, activation: str
) -> None:
    if width < 1:
        raise BadInput(f"width={width}: the hidden layer needs a node")
    if not rate > 0 or decay < 0:
        raise BadInput(f"rate={rate}, decay={decay}: the rate is above 0 and the decay not below")
    for value, known, what in (
        (optimizer, ("adam", "adamw", "muon"), "optimizer"),
        (start, ("random", "zero"), "start"),
        (activation, ("square", "relu"), "activation"),
    ):
        if value not in known:
            raise BadInput(f"{what}={value!r}; there are {', '.join(known)}")


def _optimizers(
    name: str, w: Tensor, v: Tensor, rate: float, decay: float
) -> list[torch.optim.Optimizer]:
    if name == "adam":
        return [torch.optim.Adam([w, v], lr=rate, weight_decay=decay)]
    if name == "adamw":
        return [torch.optim.AdamW([w, v], lr=rate, weight_decay=decay)]
    return [
        torch.optim.Muon([w], lr=10 * rate, weight_decay=decay, momentum=0.95),
        torch.optim.Adam([v], lr=rate, weight_decay=decay),
    ]
