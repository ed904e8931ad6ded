r"""How features appear while a two-layer network learns to add: lazy, alone, and together.

The network is Yhat = sigma(X W) V with K hidden nodes; it is trained on
J = 1/n sum_i |(Yhat_i - mean of Yhat_i) - Y~_i|^2. With F = sigma(XW), F~ its columns centred over
the samples and R = P(Y~ - F V) the residual, the signal that reaches the hidden layer is
G_F = R V^T (P centres over samples). Source: arXiv:2509.21519 ("Li2").

* I, lazy: F hardly moves, V goes to V_ridge = (F~^T F~ + eta I)^{-1} F~^T Y~, and the training sums
  are learnt by heart. There G_F = eta (F~ F~^T + eta I)^{-1} Y~ Y~^T F~ (F~^T F~ + eta I)^{-1}.
* II, alone: what weight decay leaves of G_F points along Y~ Y~^T F~, in which node j sees only
  itself: each climbs its own `lwlab.dynamics.energy`, whose maxima are single frequencies.
* III, together: once the label is explained, G_F leaves that direction, and nodes act on others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import xarray as xr

from lwlab.dynamics.modular import Addition, energy, energy_gradient, purity, spectrum
from lwlab.dynamics.two_layer import Activation, Optimizer, Row, Run, Start
from lwlab.errors import BadInput
from lwlab.results import provenance

PAPER = "2509.21519"
SAVE_EVERY = 2.0
UNITS = {
    "train_accuracy": "share of the training sums",
    "test_accuracy": "share of the held-out sums",
    "loss": "squared error a sample",
    "gradient": "Frobenius norm of G_F",
    "alignment": "cosine of G_F and Y~ Y~^T F~",
    "moved": "|F - F_0| / |F_0|",
    "ridge_gap": "|F~ (V - V_ridge)| / |F~ V_ridge|",
    "overlap": "mean |cosine| between two nodes' activations",
    "purity": "median share of a node's power in one frequency",
}


def stream(
    run: Run, steps: int, *, every: int = 10, rows: list[tuple[int, Row]] | None = None
) -> Iterator[tuple[int, Row]]:
    """Train `run` up to `steps`, yielding (step, numbers) every `every` steps and at both ends."""
    if steps < 1 or every < 1:
        raise BadInput(f"steps={steps}, every={every}: both count steps, from 1")
    while True:
        if run.step % every == 0 or run.step == steps:
            yield run.step, run.measure()
        if run.step >= steps:
            return
        run.advance()


def train(
    problem: Addition,
    *,
    steps: int = 600,
    every: int = 10,
    width: int = 256,
    optimizer: Optimizer = "adam",
    rate: float = 5e-3,
    decay: float = 2e-4,
    start: Start = "random",
    activation: Activation = "square",
    seed: int = 0,
    resume: str | Path | None = None,
    watch: Callable[[int, Row], None] | None = None,
) -> xr.Dataset:
    r"""Train Yhat = sigma(XW)V on `problem` and return its numbers over (step).

    optimizer: "adam" (decay in its L2 form, as in the paper's code), "adamw" (decay apart from the
    gradient) or "muon" (W by Muon, whose update is the orthogonal factor of the momentum; V by
    Adam). rate, decay: learning rate (of Muon: ten times that, whose updates have unit singular
    values) and weight decay. start: V "random" or "zero". resume: a file where the run is kept
    every two seconds and taken up from; watch(step, numbers) is called at each measurement.

    Returns a Dataset of what `UNITS` names, and `weights` (feature, node) after the last step.
    Raises BadInput for arguments that cannot work or a `resume` that holds another run, Diverged
    when the loss stops being a number.
    """
    run = Run(
        problem, width=width, optimizer=optimizer, rate=rate, decay=decay, start=start,
        activation=activation, seed=seed,
    )  # fmt: skip
    file = None if resume is None else Path(resume)
    rows = run.take_up(file) if file is not None and file.exists() else []
    written = time.monotonic()
    for step, numbers in stream(run, steps, every=every):
        if rows and rows[-1][0] >= step:
            continue
        rows.append((step, numbers))
        if watch is not None:
            watch(step, numbers)
        if file is not None and (time.monotonic() - written > SAVE_EVERY or step == steps):
            run.save(file, rows)
            written = time.monotonic()
    return labelled(run, rows)


def labelled(run: Run, rows: list[tuple[int, Row]]) -> xr.Dataset:
    """Return the rows of a run and its weights as a Dataset over step."""
    found = xr.Dataset(
        {k: ("step", [r[k] for _, r in rows], {"units": unit}) for k, unit in UNITS.items()},
        {"step": [s for s, _ in rows]},
    )
    m = run.problem.modulus
    names = [f"{half}={i}" for half in "ab" for i in range(m)]
    found["weights"] = (("feature", "node"), run.w.detach().numpy().copy(), {"units": ""})
    found = found.assign_coords(feature=names)
    found.attrs = {**provenance(technique="li2-grokking", paper=PAPER), **run.facts}
    found.attrs |= {"critical": run.problem.critical, "n": len(run.problem.train)}
    return found


def stages(found: xr.Dataset, *, known: float = 0.99, general: float = 0.95) -> dict[str, float]:
    """Return the step at which each stage ends, NaN where it does not.

    "lazy": first step with train accuracy of `known`; "alone": first with test accuracy of
    `general`, from which on nodes act together.
    """
    ends = {}
    for name, series, bar in (
        ("lazy", found.train_accuracy, known),
        ("alone", found.test_accuracy, general),
    ):
        there = found.step.values[(series >= bar).values]
        ends[name] = float(there[0]) if len(there) else math.nan
    return ends


def ascent(
    problem: Addition, *, starts: int = 64, steps: int = 400, seed: int = 0, rate: float = 0.5
) -> xr.Dataset:
    r"""Climb E(w) on the unit sphere from random starts, on all M^2 sums, over (start).

    w <- (w + rate g/|g|) / |...| with g = dE/dw in float64. Returns `energy` (E, at |w| = 1),
    `purity`, `frequency` of each half (start, half), and `slope`, the share of g that is tangent to
    the sphere where it ended (0 at a maximum). Theorem 2: at a maximum both halves hold one and the
    same frequency and E = M/4 for odd M (M/2 for the frequency M/2 of an even one); the paper's
    M/16 is this at |w|^2 = 1/2, E being of degree 4 in w. Raises BadInput for fewer than one start.
    """
    if starts < 1 or steps < 1:
        raise BadInput(f"starts={starts}, steps={steps}: both count from 1")
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(2 * problem.modulus, starts, generator=g, dtype=torch.float64)
    w /= w.norm(dim=0)
    for i in range(steps):
        up = energy_gradient(w, problem)
        w = w + rate * 0.99**i * up / up.norm(dim=0).clamp_min(1e-30)
        w /= w.norm(dim=0)
    up = energy_gradient(w, problem)
    tangent = up - w * (w * up).sum(0)
    power = spectrum(w, problem.modulus)
    found = xr.Dataset(
        {
            "energy": ("start", energy(w, problem).numpy()),
            "purity": ("start", purity(w, problem.modulus).numpy()),
            "frequency": (("start", "half"), (power.argmax(-1) + 1).numpy()),
            "slope": ("start", (tangent.norm(dim=0) / up.norm(dim=0)).numpy()),
            "weights": (("feature", "start"), w.numpy()),
        },
        {"half": ["a", "b"]},
    )
    found.attrs = {
        **provenance(technique="li2-grokking", paper=PAPER),
        **{"modulus": problem.modulus, "seed": seed, "expected_energy": problem.modulus / 4},
    }
    return found
