"""Linear probes: logistic regressions for every layer at once, and their held-out verdicts.

A probe asks whether a class can be read off a vector by one weighted sum. With 96 texts and 576
units a probe could learn any labels by heart, so units are standardised, weights are kept small
(L2) and only texts of groups that were held out count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lwlab.errors import BadInput, LwlabError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Probe:
    """Logistic regressions, one a layer: p(class 1) = sigmoid(weight . (x - mean) / scale + bias).

    weight, mean, scale: [layers, d]; bias: [layers].
    """

    weight: torch.Tensor
    bias: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor

    def score(self, x: torch.Tensor) -> torch.Tensor:
        """Log odds of class 1, [layers, n], for features [layers, n, d]."""
        z = (x.to(self.mean) - self.mean[:, None]) / self.scale[:, None]
        return torch.einsum("lnd,ld->ln", z, self.weight) + self.bias[:, None]

    def probability(self, x: torch.Tensor) -> torch.Tensor:
        """Probability of class 1, [layers, n]."""
        return self.score(x).sigmoid()


def fit_probe(x: torch.Tensor, y: torch.Tensor | Sequence[int], c: float = 0.05) -> Probe:
    """Fit one logistic regression a layer to features [layers, n, d] and their classes.

    y: [n], or [layers, n] where layers have labels of their own.

    Minimises |w|^2 / 2 + c sum_i log(1 + exp(-s_i (w . z_i + b))), s_i = +-1, over w and b, with z
    the features standardised on these rows: scikit-learn's `LogisticRegression(C=c)` behind a
    `StandardScaler`, to 1e-6 or so, in float64. Units that do not vary are left out (weight 0).
    All layers are solved together by Newton's method, in the span of the rows where d > n.

    Raises BadInput for shapes that do not fit, values that are not finite, c <= 0, labels other
    than 0 and 1, and rows of one class only.
    """
    y = _checked(x, y, c)
    span = _span(x)
    v, bias = _newton(span.rows, y, c)
    return Probe(torch.einsum("lk,lkd->ld", v, span.back), bias, span.mean, span.scale)


@dataclass(frozen=True)
class _Span:
    """Standardised rows in an orthonormal basis of their span: z = rows @ back, |w| = |v|.

    rows: [layers, n, k]; back: [layers, k, d], which takes v to the weights w = v @ back.
    """

    rows: torch.Tensor
    back: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """Other rows [layers, m, d] in this basis, [layers, m, k]; what lies outside has no say."""
        z = (x.to(self.mean) - self.mean[:, None]) / self.scale[:, None]
        return z @ self.back.mT


def _span(x: torch.Tensor) -> _Span:
    x = x.double()
    mean = x.mean(1)
    scale = x.std(1, correction=0)
    # Rows that are equal differ from their mean by rounding; that is no signal.
    still = scale <= 1e-7 * x.abs().amax(1)
    scale = torch.where(still, 1.0, scale)
    z = ((x - mean[:, None]) / scale[:, None]).masked_fill(still[:, None], 0.0)
    layers, n, d = z.shape
    if d <= n:
        eye = torch.eye(d, dtype=z.dtype, device=z.device).expand(layers, d, d)
        return _Span(z, eye, mean, scale)
    # z z' = q e q', so that z = (q sqrt(e)) (q' z / sqrt(e)).
    e, q = torch.linalg.eigh(z @ z.mT)
    real = e > 1e-10 * e.amax(1, keepdim=True).clamp(min=1e-300)
    root = torch.where(real, e, 1.0).sqrt()
    rows = (q * root[:, None]).masked_fill(~real[:, None], 0.0)
    back = (q.mT @ z / root[..., None]).masked_fill(~real[..., None], 0.0)
    return _Span(rows, back, mean, scale)


def _newton(
    r: torch.Tensor, y: torch.Tensor, c: float, steps: int = 60
) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimise the objective of `fit_probe` over rows r [layers, n, k]: weights and biases."""
    sign = 2 * y - 1
    rows = torch.cat([r, torch.ones_like(r[..., :1])], -1)
    ridge = torch.ones(rows.shape[-1], dtype=r.dtype, device=r.device)
    ridge[-1] = 0  # the bias is free
    w = torch.zeros_like(rows[:, 0])

    def loss(w: torch.Tensor) -> torch.Tensor:
        margin = sign * torch.einsum("lnk,lk->ln", rows, w)
        fit = torch.nn.functional.softplus(-margin).sum(1)
        return 0.5 * (ridge * w**2).sum(1) + c * fit

    now = loss(w)
    for _ in range(steps):
        p = torch.einsum("lnk,lk->ln", rows, w).sigmoid()
        slope = ridge * w + c * torch.einsum("lnk,ln->lk", rows, p - y)
        if float(slope.abs().max()) < 1e-9:
            break
        curve = (rows * (c * p * (1 - p))[..., None]).mT @ rows + torch.diag(ridge)
        step = torch.linalg.solve(curve, slope)
        size = torch.ones(len(w), 1, dtype=r.dtype, device=r.device)
        for _ in range(30):  # halve the steps that overshoot
            new = loss(w - size * step)
            worse = new > now + 1e-12 * now.abs()
            if not bool(worse.any()):
                break
            size = torch.where(worse[:, None], size / 2, size)
        w = w - size * step
        now = loss(w)
    else:
        if float(slope.abs().max()) > 1e-6:
            raise LwlabError(f"a probe did not settle in {steps} steps: c={c} is too large")
    return w[:, :-1], w[:, -1]


def _checked(x: torch.Tensor, y: torch.Tensor | Sequence[int], c: float) -> torch.Tensor:
    if x.ndim != 3 or not x.is_floating_point() or x.numel() == 0:
        raise BadInput(
            f"features must be floating-point [layers, n, d], not {x.dtype} {tuple(x.shape)}"
        )
    if not c > 0:
        raise BadInput(f"c={c}: the weight of the data against the penalty must be positive")
    if not bool(x.isfinite().all()):
        raise BadInput("the features hold NaN or infinity")
    labels = torch.as_tensor(y, device=x.device).double()
    if labels.shape not in (x.shape[1:2], x.shape[:2]):
        raise BadInput(f"{tuple(labels.shape)} labels for {x.shape[1]} rows; give one a row")
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise BadInput("labels must be 0 and 1")
    labels = labels.expand(x.shape[:2])
    share = labels.mean(1)
    if bool(((share == 0) | (share == 1)).any()):
        raise BadInput("all rows are of one class; a probe needs two to tell apart")
    return labels


def folds_of(labels: Sequence[int], groups: Sequence[int], folds: int = 5, seed: int = 0) -> Ints:
    """Deal whole groups into folds of about equal size, in an order drawn by `seed`: [n] numbers.

    Raises BadInput for fewer groups than folds, or a split that would train or test on one class.
    """
    y, of = np.asarray(labels), np.unique(np.asarray(groups), return_inverse=True)[1]
    count = int(of.max()) + 1
    if not 2 <= folds <= count:
        raise BadInput(f"folds={folds} of {count} groups: give 2 to {count}")
    order = np.random.default_rng(seed).permutation(count)
    sizes = np.bincount(of)
    load, where = np.zeros(folds), np.empty(count, dtype=np.int64)
    for g in order[np.argsort(-sizes[order], kind="stable")]:
        where[g] = int(load.argmin())
        load[where[g]] += sizes[g]
    fold = where[of]
    for k in range(folds):
        for part, rows in (("training", fold != k), ("test", fold == k)):
            if len(np.unique(y[rows])) < 2:
                raise BadInput(
                    f"the {part} half of fold {k} holds one class only; take fewer folds, or "
                    "groups that hold both classes"
                )
    return fold


def held_out(
    x: torch.Tensor, labels: Sequence[int] | Ints, fold: Ints, c: float = 0.05
) -> torch.Tensor:
    """Log odds of class 1 for every text from the probe that did not train on its fold.

    x [layers, n, d]; labels [n], or [draws, n] for several labellings of the same texts, which give
    [draws, layers, n] instead of [layers, n].
    """
    y = torch.as_tensor(np.asarray(labels))
    many = y if y.ndim == 2 else y[None]
    draws, layers = len(many), len(x)
    out = torch.empty(draws, layers, x.shape[1], dtype=torch.float64)
    for k in np.unique(fold):
        train, test = torch.as_tensor(fold != k), torch.as_tensor(fold == k)
        checked = [_checked(x[:, train], row[train], c) for row in many]
        span = _span(x[:, train])
        v, bias = _newton(span.rows.repeat(draws, 1, 1), torch.cat(checked), c)
        seen = span.of(x[:, test])
        v, bias = v.view(draws, layers, -1), bias.view(draws, layers, 1)
        out[:, :, test] = torch.einsum("lmk,jlk->jlm", seen, v) + bias
    return out if y.ndim == 2 else out[0]


def shuffled(labels: Sequence[int], fold: Ints, draws: int, seed: int = 0) -> Ints:
    """Labels exchanged among the texts of a fold, [draws, n]: no meaning, the same class counts."""
    rng, y = np.random.default_rng(seed), np.asarray(labels)
    out = np.tile(y, (draws, 1))
    for row in out:
        for k in np.unique(fold):
            row[fold == k] = rng.permutation(y[fold == k])
    return out
