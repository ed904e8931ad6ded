"""LinEAS: affine maps on activations, all learnt at once from one distributional loss.

Each map moves its units one by one, T_l(z) = omega_l * z + b_l, at every token. For a text i,
xi_l^i is the token mean of T_l(z_l) **with all maps active** (each sees what those below do), and
eta_l^j that of a target text j with none. The loss is what is left between the two distributions,

    C = sum_l (1/d) sum_k W_2^2(xi_{l,k}, eta_{l,k}),

the mean over i of (sort(xi)_i - sort(eta)_i)^2 for equally many texts: no pairs are needed, and two
distributions that differ in anything but their mean still differ. Rodriguez, Klein, Gualdoni et
al., "LinEAS: End-to-end Learning of Activation Steering with a Distributional Loss"
(arXiv:2503.10679). The steps here are ours: Adam, with the penalties' proximal map in its metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import xarray as xr

from lwlab.errors import BadInput, Diverged
from lwlab.models.model import Model
from lwlab.models.tokens import Tokens
from lwlab.results import label, provenance
from lwlab.steering.affine import (
    Places,
    apply,
    check_texts,
    edits,
    moved,
    places,
    pooled,
    result,
)  # fmt: skip
from lwlab.steering.distance import quantiles, wasserstein
from lwlab.tracing.edits import Edit

__all__ = ["edits", "learn", "lin_act", "loss", "moved", "slopes"]

PAPER = "2503.10679"
SITE = "mlp_in"
_BETAS, _EPS = (0.9, 0.999), 1e-12


def learn(
    model: Model,
    source: Sequence[str],
    target: Sequence[str],
    layers: Iterable[int] | int | None = None,
    *,
    site: str = SITE,
    steps: int = 30,
    rate: float = 1e-3,
    l1: float = 0.0,
    group: float = 0.0,
    first: int = 1,
) -> xr.Dataset:
    """Learn the maps: C + l1 |theta|_1 + group sum_l |theta_l|_2, theta = (omega - 1, b).

    A step is one of Adam (m and v with bias correction, D = sqrt(v)): theta - rate m / D; then the
    penalties' proximal map in the same metric, a soft threshold by rate l1 / D at each coordinate
    and a shrinkage of each layer by rate group / mean(D). A coordinate at the identity stays there
    while |m| <= l1: nothing moves at all where l1 is above the largest `slopes`. Without penalties
    this is Adam. One forward and one backward a step, up to the last of `layers` (default: all).

    Returns `scale` = omega - 1 and `bias` = b (layer, unit), `loss` = C (step), before each step
    and after the last. `first`: tokens before it are not in the means (a first token with a massive
    activation would rule them); the maps act on every token. Raises BadInput for an empty class, a
    text without tokens from `first` on, layers that do not exist, or numbers out of range; Diverged
    for a loss that is no number, ten times the first one, or above it in the end.
    """
    if steps < 1 or not rate > 0 or l1 < 0 or group < 0:
        raise BadInput(
            f"steps={steps}, rate={rate}, l1={l1}, group={group}: take at least one step, a rate "
            "above zero and penalties of zero or more"
        )
    at, own, eta = _ends(model, source, target, layers, site, first)
    theta = torch.zeros(2, len(at), eta.shape[-1], device=eta.device)
    m, v = torch.zeros_like(theta), torch.zeros_like(theta)
    history: list[float] = []
    for step in range(steps + 1):
        theta.requires_grad_(step < steps)
        c = _distance(model, own, at, theta, eta, first, grad=step < steps).sum()
        history.append(float(c.detach()))
        _watch(history, rate, last=step == steps)
        if step == steps:
            break
        (g,) = torch.autograd.grad(c, [theta])
        m = _BETAS[0] * m + (1 - _BETAS[0]) * g
        v = _BETAS[1] * v + (1 - _BETAS[1]) * g**2
        metric = (v / (1 - _BETAS[1] ** (step + 1))).sqrt() + _EPS
        theta = theta.detach() - rate * (m / (1 - _BETAS[0] ** (step + 1))) / metric
        theta = _proximal(theta, metric, rate * l1, rate * group)
    out = result(
        model, at, theta[0], theta[1], technique="lineas", paper=PAPER, steps=steps, rate=rate,
        l1=l1, group=group, first=first, n=len(source), n_target=len(target),
    )  # fmt: skip
    return out.assign(loss=label(history, ("step",), {"step": range(steps + 1)}).drop_attrs())


def lin_act(
    model: Model,
    source: Sequence[str],
    target: Sequence[str],
    layers: Iterable[int] | int | None = None,
    *,
    site: str = SITE,
    slope: bool = True,
    incremental: bool = False,
    limit: float = 3.0,
    first: int = 1,
) -> xr.Dataset:
    """The same maps in closed form, each from its own layer alone (Lin-AcT).

    omega = cov(sort u, sort v) / var(u), held in [0, limit] because var(u) of a few texts may be
    next to nothing; b = mean v - omega mean u. With slope=False omega = 1: the mean shift.
    `incremental`: layer after layer, with the maps below it active, which needs a pass a layer;
    otherwise all from one pass of the base model. Returns and raises as `learn` does.
    """
    if not limit > 0:
        raise BadInput(f"limit={limit}: slopes need room above zero")
    at, own, eta = _ends(model, source, target, layers, site, first)
    theta = torch.zeros(2, len(at), eta.shape[-1], device=eta.device)
    with torch.no_grad():
        u = None if incremental else pooled(model, own, at, first=first)
        for i, place in enumerate(at):
            x = u[i] if u is not None else pooled(
                model, own, [place], _active(at[:i], theta), first=first
            )[0]  # fmt: skip
            theta[:, i] = torch.stack(_closed_form(x, eta[i], limit if slope else None))
    kind = "lin-act" if slope else "mean shift"
    return result(
        model, at, theta[0], theta[1], technique=kind, paper=PAPER, incremental=incremental,
        limit=limit, first=first, n=len(source), n_target=len(target),
    )  # fmt: skip


def loss(
    model: Model,
    source: Sequence[str],
    target: Sequence[str],
    maps: xr.Dataset | None = None,
    *,
    layers: Iterable[int] | int | None = None,
    site: str = SITE,
    strength: float = 1.0,
    first: int = 1,
) -> xr.DataArray:
    """C of texts, layer by layer (layer): the sum is the loss that `learn` takes down.

    With `maps`, at their site and layers and with them active; without, that of the base model.
    Raises as `learn` and `edits` do.
    """
    if maps is not None:
        site, layers = str(maps.attrs["site"]), [int(i) for i in maps["layer"].values]
    at, own, eta = _ends(model, source, target, layers, site, first)
    active = [Edit(a, f) for a, f in edits(maps, strength).items()] if maps is not None else []  # type: ignore[arg-type]
    with torch.no_grad():
        u = pooled(model, own, at, active, first=first)
    gap = torch.stack([wasserstein(x, y).mean() for x, y in zip(u, eta)])
    found = label(gap, ("layer",), {"layer": [a.layer for a in at]}, name="loss")
    return found.assign_attrs(
        provenance(model, site=site, paper=PAPER, n=len(source), long_name="distance left")
    )


def slopes(
    model: Model,
    source: Sequence[str],
    target: Sequence[str],
    layers: Iterable[int] | int | None = None,
    *,
    site: str = SITE,
    first: int = 1,
) -> xr.Dataset:
    """Gradient of C at the identity: `scale` and `bias` (layer, unit).

    Its largest size is the l1 from which on `learn` leaves every map at the identity. Raises as
    `learn` does.
    """
    at, own, eta = _ends(model, source, target, layers, site, first)
    theta = torch.zeros(2, len(at), eta.shape[-1], device=eta.device, requires_grad=True)
    c = _distance(model, own, at, theta, eta, first, grad=True).sum()
    (g,) = torch.autograd.grad(c, [theta])
    return result(model, at, g[0], g[1], technique="slopes at the identity", paper=PAPER)


def _ends(
    model: Model,
    source: Sequence[str],
    target: Sequence[str],
    layers: Iterable[int] | int | None,
    site: str,
    first: int,
) -> tuple[Places, Tokens, torch.Tensor]:
    """Check everything; return the places, the source texts, and the target's means."""
    at = places(model, site, layers)
    own = check_texts(model, source, "source", first)
    other = check_texts(model, target, "target", first)
    with torch.no_grad():
        return at, own, pooled(model, other, at, first=first)


def _active(at: Places, theta: torch.Tensor) -> list[Edit]:
    return [Edit(a, apply(theta[0, i], theta[1, i])) for i, a in enumerate(at)]


def _distance(
    model: Model,
    own: Tokens,
    at: Places,
    theta: torch.Tensor,
    eta: torch.Tensor,
    first: int,
    grad: bool,
) -> torch.Tensor:
    """Delta of every place with the maps active, [places]."""
    xi = pooled(model, own, at, _active(at, theta), first=first, grad=grad)
    with torch.set_grad_enabled(grad):
        return torch.stack([wasserstein(x, y).mean() for x, y in zip(xi, eta)])


def _proximal(theta: torch.Tensor, metric: torch.Tensor, l1: float, group: float) -> torch.Tensor:
    """Soft threshold by l1 / metric, then shrink each layer [2, layers, d] by group / its mean."""
    theta = theta.sign() * (theta.abs() - l1 / metric).clamp(min=0)
    if group:
        size = theta.pow(2).sum((0, 2), keepdim=True).sqrt()
        by = group / metric.mean((0, 2), keepdim=True)
        theta = theta * (1 - by / size.clamp(min=_EPS)).clamp(min=0)
    return theta


def _closed_form(
    u: torch.Tensor, v: torch.Tensor, limit: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(omega - 1, b) of u [n, d] to v [m, d]; omega = 1 without a limit."""
    omega = torch.ones_like(u[0])
    if limit is not None:
        a, b, weight = quantiles(u, v)
        da, db = a - u.mean(0), b - v.mean(0)
        cov, var = ((weight[:, None] * da * x).sum(0) for x in (db, da))
        omega = torch.where(var > 0, cov / var.clamp(min=1e-30), omega).clamp(0, limit)
    return omega - 1, v.mean(0) - omega * u.mean(0)


def _watch(history: Sequence[float], rate: float, last: bool) -> None:
    start, now = history[0], history[-1]
    if not torch.isfinite(torch.tensor(now)) or now > 10 * start > 0 or (last and now > start > 0):
        raise Diverged(
            f"the loss went from {start:.3g} to {now:.3g} in {len(history) - 1} steps at rate "
            f"{rate:g}: take a smaller one (1e-3 suits most), or more steps"
        )
