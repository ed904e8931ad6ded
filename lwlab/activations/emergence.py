r"""How the ratio max|h| / median|h| of a layer grows in training: five parameters, and rivals.

f(t) = A exp(-lambda x) log(x) + K with x = gamma t + t0 (arXiv:2508.03616). It rises to a peak at
lambda x log x = 1, that is t_peak = (exp(W(1/lambda)) - t0) / gamma with Lambert's W, then falls to
K; a small lambda puts the peak beyond the end: a logarithm that still grows.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.optimize import curve_fit
from scipy.special import lambertw

from lwlab.activations.massive_dynamics import PAPER, massive
from lwlab.errors import BadInput
from lwlab.models.model import Prompts
from lwlab.results import provenance

Array = npt.NDArray[np.float64]
NAMES = ("A", "lambda", "gamma", "t0", "K")


def curve(t: npt.ArrayLike, A: float, lam: float, gamma: float, t0: float, K: float) -> Array:
    """f(t) = A exp(-lambda x) log(x) + K, x = gamma t + t0. Raises BadInput where x <= 0."""
    x = gamma * np.asarray(t, float) + t0
    if np.any(x <= 0):
        raise BadInput(f"x = gamma t + t0 must be above 0: gamma={gamma:g}, t0={t0:g}")
    return np.asarray(A * np.exp(-lam * x) * np.log(x) + K)


def peak(lam: float, gamma: float, t0: float) -> float:
    """t at which f is highest (A > 0): (exp(W(1/lambda)) - t0) / gamma; may be below 0."""
    if lam <= 0 or gamma <= 0:
        raise BadInput(f"a peak needs lambda and gamma above 0, not {lam:g} and {gamma:g}")
    return float((math.exp(float(lambertw(1 / lam).real)) - t0) / gamma)


def first_order(t: Array, K: float, tau: float, c: float) -> Array:
    """Return K (1 - exp(-t / tau)) + c, the simplest step response."""
    return np.asarray(K * (1 - np.exp(-t / tau)) + c)


def second_order(t: Array, K: float, tau: float, zeta: float, c: float) -> Array:
    """Return an under-damped step response of time constant tau and damping zeta in (0, 1)."""
    w = np.sqrt(1 - zeta**2)
    swing = np.exp(-zeta * t / tau) * (np.cos(w * t / tau) + zeta / w * np.sin(w * t / tau))
    return np.asarray(K * (1 - swing) + c)


def logarithm(t: Array, a: float, b: float, c: float) -> Array:
    """a + b log(t + c)."""
    return np.asarray(a + b * np.log(t + c))


def constant(t: Array, c: float) -> Array:
    """c at every step."""
    return np.full_like(t, c)


#: Rival: its function, starting points (for t and r scaled to 0..1), and bounds.
RIVALS: Mapping[str, tuple[Callable[..., Array], Sequence[Sequence[float]], tuple[Any, Any]]] = {
    "emergence": (
        curve,
        [(a, lam, g, t0, 0.3) for a in (1.0, 3.0) for lam in (0.05, 0.5, 3.0) for g in (1.0, 30.0)
         for t0 in (0.3, 1.0)],
        ([-100, 1e-4, 1e-3, 1e-6, -10], [100, 50, 1e4, 50, 10]),
    ),
    "first order": (
        first_order, [(1.0, 0.1, 0.0), (1.0, 0.01, 0.0)], ([-10, 1e-5, -10], [10, 10, 10]),
    ),
    "second order": (
        second_order, [(1.0, 0.05, z, 0.0) for z in (0.3, 0.8)],
        ([-10, 1e-5, 0.01, -10], [10, 10, 0.99, 10]),
    ),
    "logarithm": (logarithm, [(1.0, 0.2, 0.01)], ([-10, -10, 1e-6], [10, 10, 10])),
    "constant": (constant, [(0.5,)], ([-10], [10])),
}  # fmt: skip


def fit(steps: npt.ArrayLike, ratios: npt.ArrayLike) -> xr.Dataset:
    """Fit the curve and its rivals to one layer's course, by least squares.

    `steps` and `ratios` are [n], n >= 8 and finite. Both are scaled to 0..1 for the fit (bounded
    trust region, the best of several starts) and the parameters scaled back.

    Returns over (rival): `r2` = 1 - RSS/TSS and `aic` = n log(RSS/n) + 2 k; over (rival, step):
    `fitted`; over (parameter): `parameters` of the five-parameter curve, in steps and ratios, and
    `peak`, its t_peak. The parameters trade off against each other: compare curves, not numbers.
    Raises BadInput for too few, unsorted or constant data.
    """
    t, r = np.asarray(steps, float), np.asarray(ratios, float)
    if t.shape != r.shape or t.ndim != 1 or len(t) < 8:
        raise BadInput(
            f"a course needs 8 steps or more with a ratio each, not {t.shape}, {r.shape}"
        )
    if not (np.isfinite(t).all() and np.isfinite(r).all() and (np.diff(t) > 0).all()):
        raise BadInput("steps must grow, and neither steps nor ratios may hold NaN")
    span, low = float(t[-1] - t[0]), float(r.min())
    height = float(r.max() - r.min())
    if height <= 0:
        raise BadInput("the ratios are all equal: there is no course to fit")
    x, y = (t - t[0]) / span, (r - low) / height
    best = {name: _least(*RIVALS[name], x, y) for name in RIVALS}
    n, total = len(t), float(((y - y.mean()) ** 2).sum())
    fitted = np.stack([RIVALS[k][0](x, *p) for k, p in best.items()])
    rss = ((fitted - y) ** 2).sum(1)
    sizes = np.array([len(p) for p in best.values()])
    A, lam, gamma, t0, K = best["emergence"]
    back = (A * height, lam, gamma / span, t0 - gamma * t[0] / span, K * height + low)
    return xr.Dataset(
        {
            "r2": ("rival", 1 - rss / total),
            "aic": ("rival", n * np.log(np.maximum(rss, 1e-300) / n) + 2 * sizes),
            "fitted": (("rival", "step"), fitted * height + low),
            "parameters": ("parameter", list(back)),
            "peak": ((), peak(back[1], back[2], back[3])),
        },
        {"rival": list(best), "step": t, "parameter": list(NAMES)},
        provenance(technique="massive-dynamics", paper=PAPER, n=n),
    )


def emergence(name: str, steps: Sequence[int], texts: Prompts) -> xr.DataArray:
    """Return the ratio r_l of a model's checkpoints over (step, prompt, layer).

    `name` says where a checkpoint is, with {step} in it: "toys/char-llama@{step}",
    "EleutherAI/pythia-14m@step{step}". One model is held at a time. Raises BadInput for a name
    without {step}.
    """
    from lwlab.models.loading import load

    if "{step}" not in name:
        raise BadInput(f"{name!r} has no {{step}} in it: 'toys/char-llama@{{step}}' would have")
    rows = [massive(load(name.format(step=s), check=False), texts).ratio for s in steps]
    out = xr.concat(rows, xr.DataArray(list(steps), dims="step", name="step"))
    out.attrs = provenance(name, technique="massive-dynamics", paper=PAPER)
    return out.rename("ratio")


def _least(
    f: Callable[..., Array],
    starts: Sequence[Sequence[float]],
    bounds: tuple[Any, Any],
    x: Array,
    y: Array,
) -> tuple[float, ...]:
    found: list[tuple[float, tuple[float, ...]]] = []
    for start in starts:
        try:
            with warnings.catch_warnings():  # a poor start may overflow on its way, and a parameter
                warnings.simplefilter("ignore")  # that does not matter has no covariance
                p, _ = curve_fit(f, x, y, start, bounds=bounds, method="trf", max_nfev=2000)
        except RuntimeError:  # this start did not converge; another will
            continue
        found.append((float(((f(x, *p) - y) ** 2).sum()), tuple(float(v) for v in p)))
    if not found:
        raise BadInput("no fit converged; are there enough steps, and are they spread out?")
    return min(found)[1]
