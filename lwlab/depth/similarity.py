"""How alike are layers? Linear CKA and angular distance of every pair of layers at once.

CKA: Kornblith et al. 2019 (arXiv:1905.00414); its estimate over a corpus in minibatches: Nguyen,
Raghu and Kornblith 2021 (arXiv:2010.15327), with the unbiased HSIC of Song et al. 2012. Angular
distance: Gromov et al. 2024 (arXiv:2403.17887). Pair loops make L^2 matrix products of the same
features; here each layer's Gram matrix is made once and all pairs are one more product.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import xarray as xr

from lwlab.errors import BadInput
from lwlab.models.model import Model, Prompts
from lwlab.results import label, provenance
from lwlab.tracing.rows import feature_batches, features_of

Form = Literal["gram", "feature"]
BLOCK = 2**25
"""Numbers in one block of Gram matrices: 134 MB in float32."""


def linear_cka(
    features: torch.Tensor, *, unbiased: bool = False, form: Form | None = None
) -> torch.Tensor:
    """Linear CKA of every pair of layers, [layers, layers], from features [layers, n, d].

    CKA(X, Y) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = X X', L = Y Y'. HSIC is the
    squared Frobenius product of the centred Grams, or with `unbiased` (n >= 4) the estimator that
    is zero on average for independent features of any n; that one may be negative.
    `form`: "gram" (n x n matrices, in row blocks of bounded memory) or "feature" (d x d); by
    default the one with fewer operations, feature space from n = L d^2 / (2 d + L) on.
    Half types are computed in float32; float64 stays. Tolerance in float32: 1e-5, but 5e-3 where
    one row is 10,000 times the others; float64 has no such trouble. A layer whose rows are all
    equal has no CKA: NaN. Raises BadInput for another shape, too few rows, or values that are not
    finite.
    """
    h = hsic(features, unbiased=unbiased, form=form)
    return _normalised(h).to(_working(features))


def _normalised(h: torch.Tensor) -> torch.Tensor:
    own = h.diagonal()
    scale = own.clamp(min=0).sqrt()
    out = h / (scale[:, None] * scale[None])
    out[:, own <= 0] = math.nan
    out[own <= 0] = math.nan
    return out


def hsic(
    features: torch.Tensor, *, unbiased: bool = False, form: Form | None = None
) -> torch.Tensor:
    """HSIC of every pair of layers, [layers, layers] in float64, as `linear_cka` uses it.

    Each layer is scaled to a root-mean-square row norm of 1 first, so that a massive activation
    does not overflow; ratios such as CKA do not depend on it.
    """
    _check(features, 4 if unbiased else 2)
    n_layers, n, d = features.shape
    if form is None:
        form = "feature" if n * (2 * d + n_layers) > n_layers * d * d else "gram"
    if form not in ("gram", "feature"):
        raise BadInput(f"form={form!r}; use 'gram', 'feature' or None")
    x = _Centred(features)
    whole = _gram_products(x, not unbiased) if form == "gram" else _feature_products(x)
    if not unbiased:
        return whole / (n - 1) ** 2
    # Off the diagonal: K~ = K - diag. The rows of a centred Gram add up to zero, so those of K~
    # to minus its diagonal, and all three terms of the estimator follow from the diagonals.
    own = x.own
    pairs = own @ own.T
    totals = own.sum(1)
    off = whole if form == "gram" else whole - pairs
    return (off + totals[:, None] * totals[None] / ((n - 1) * (n - 2)) - 2 * pairs / (n - 2)) / (
        n * (n - 3)
    )


class _Centred:
    """Each layer's rows, centred and scaled to a root-mean-square norm of 1, one at a time.

    In a buffer that is used again: fresh memory for all layers costs more than the arithmetic.
    `own`: the Grams' diagonals, [layers, n], of the layers that were taken.
    """

    def __init__(self, features: torch.Tensor) -> None:
        self.features, self.type = features, _working(features)
        self.n = features.shape[1]
        self.mean = features.mean(1, keepdim=True, dtype=self.type)
        self.buffer = torch.empty(features.shape[1:], dtype=self.type, device=features.device)
        self.own = self.mean.new_zeros(features.shape[:2], dtype=torch.float64)

    def layer(self, i: int, out: torch.Tensor | None = None) -> torch.Tensor:
        x, b = self.features[i].to(self.type), self.buffer if out is None else out
        torch.sub(x, self.mean[i], out=b)
        norm = b.norm() / self.n**0.5
        # Rows that are equal but for rounding have no direction of their own.
        if norm <= 8 * torch.finfo(self.type).eps * x.norm() / self.n**0.5:
            b.zero_()
        else:
            b.div_(norm)
        self.own[i] = torch.linalg.vecdot(b, b)
        return b


def _gram_products(x: _Centred, diagonal: bool) -> torch.Tensor:
    """<X_i X_i', X_j X_j'> for all i, j, with or without the Grams' diagonals, in blocks."""
    n_layers, n, _ = x.features.shape
    out = torch.zeros(n_layers, n_layers, dtype=torch.float64, device=x.mean.device)
    rows = max(1, min(n, BLOCK // (n_layers * n)))
    k = x.mean.new_empty(n_layers, rows, n)
    for a in range(0, n, rows):
        here = min(rows, n - a)
        for i in range(n_layers):
            b = x.layer(i)
            torch.mm(b[a : a + here], b.T, out=k[i, :here])
            if not diagonal:
                k[i, :here, a : a + here].diagonal().zero_()
        flat = k[:, :here].flatten(1)
        out += (flat @ flat.T).double()
    return out


def _feature_products(x: _Centred) -> torch.Tensor:
    """The same numbers as |X_i' X_j|^2: d x d matrices, one row of layers a product."""
    n_layers, n, d = x.features.shape
    out = torch.zeros(n_layers, n_layers, dtype=torch.float64, device=x.mean.device)
    wide = x.mean.new_empty(n, n_layers, d)
    for i in range(n_layers):
        wide[:, i] = x.layer(i)
    for i in range(n_layers):
        c = wide[:, i].T @ wide[:, i:].reshape(n, -1)
        out[i, i:] = c.view(d, n_layers - i, d).square().sum((0, 2)).double()
    return out + out.triu(1).T


class CorpusCKA:
    """CKA over a corpus in minibatches: sums of unbiased HSIC, never the features.

    The mean over batches of an unbiased HSIC is unbiased whatever the batch size, so unlike the
    mean of minibatch CKAs it tends to CKA over everything (arXiv:2010.15327, eq. 3). `add` takes
    features [layers, n, d] with n >= 4, `merge` joins two parts of a corpus, `result` gives
    [layers, layers].
    """

    def __init__(self) -> None:
        self.total: torch.Tensor | None = None
        self.batches = 0
        self.rows = 0

    def add(self, features: torch.Tensor) -> None:
        """Add one batch of rows. Raises BadInput as `linear_cka`, or for other layers."""
        h = _scaled_hsic(features)
        self._join(h, 1, features.shape[1])

    def merge(self, other: CorpusCKA) -> None:
        """Add what another part of the corpus gave."""
        if other.total is not None:
            self._join(other.total, other.batches, other.rows)

    def _join(self, h: torch.Tensor, batches: int, rows: int) -> None:
        if self.total is not None and self.total.shape != h.shape:
            raise BadInput(f"{len(h)} layers after batches of {len(self.total)}")
        self.total = h if self.total is None else self.total + h
        self.batches, self.rows = self.batches + batches, self.rows + rows

    def result(self) -> torch.Tensor:
        """Return CKA, [layers, layers] in float64. Raises BadInput when nothing was added."""
        if self.total is None:
            raise BadInput("no batch was added yet")
        return _normalised(self.total / self.batches)


def _scaled_hsic(features: torch.Tensor) -> torch.Tensor:
    """Unbiased HSIC on the features' own scale, which batches must share to be added."""
    h = hsic(features, unbiased=True)
    x = features.double()
    square = (x - x.mean(1, keepdim=True)).square().sum((1, 2)) / x.shape[1]
    return h * square[:, None] * square[None]


def angular_distance(features: torch.Tensor) -> torch.Tensor:
    """Angle between every pair of layers at each row, in units of pi: [n, layers, layers].

    d(x, y) = arccos(x . y / |x| |y|) / pi, from features [layers, n, d]; 0 for the same direction,
    0.5 for orthogonal ones, 1 for opposite ones. The diagonal is exactly 0; in float32 distances
    below 0.01 are uncertain by up to 2e-4, others by 1e-5. A zero row has no direction: NaN.
    Raises BadInput as `linear_cka`.
    """
    _check(features, 1)
    x = features.to(_working(features)).transpose(0, 1)
    norm = x.norm(dim=2)
    cosine = torch.bmm(x, x.transpose(1, 2))
    cosine /= norm[:, :, None] * norm[:, None]
    out = cosine.clamp_(-1, 1).arccos_().div_(math.pi)
    same = torch.arange(x.shape[1], device=x.device)
    out[:, same, same] = torch.where(norm > 0, 0.0, math.nan).to(out.dtype)
    return out


def _working(features: torch.Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _check(features: torch.Tensor, least: int) -> None:
    if features.ndim != 3 or not features.is_floating_point() or features.numel() == 0:
        raise BadInput(
            "features must be floating-point [layers, rows, d_model], not "
            f"{features.dtype} of shape {tuple(features.shape)}"
        )
    if features.shape[1] < least:
        raise BadInput(f"{features.shape[1]} rows; this needs at least {least}")
    # One sum is twenty times cheaper than looking at each value; only a bad one needs the look.
    if not bool(features.sum().isfinite()) and not bool(features.isfinite().all()):
        raise BadInput("the features hold NaN or infinity")


def layer_cka(
    model: Model,
    prompts: Prompts,
    site: str = "resid_post",
    *,
    layers: Iterable[int] | int | None = None,
    front: int = 1,
    batch: int | None = None,
    unbiased: bool = True,
) -> xr.DataArray:
    """CKA between all layers of a model, (layer, other_layer); the rows are token positions.

    Positions below `front` are left out: position 0 holds a massive activation in many models and
    would decide everything. With `batch`, a corpus of any length is read in minibatches of so many
    rows (`CorpusCKA`; a remainder below 4 rows is dropped) and no more than that is ever in memory.
    Raises BadInput for prompts with too few positions or a site without one vector a position.
    """
    if batch is not None and batch < 4:
        raise BadInput(f"batch={batch}; the unbiased estimate needs at least 4 rows")
    if batch is not None and not unbiased:
        raise BadInput("minibatches need the unbiased estimate: leave out unbiased=False")
    chosen = model.anatomy.layers(layers)
    if batch is None:
        x = features_of(model, prompts, site, chosen, front)
        value, rows, batches = linear_cka(x, unbiased=unbiased), x.shape[1], 1
    else:
        corpus = CorpusCKA()
        for x in feature_batches(model, prompts, site, chosen, front, batch):
            corpus.add(x)
        value, rows, batches = corpus.result(), corpus.rows, corpus.batches
    return _pairs(
        value, chosen, "CKA",
        provenance(
            model, technique="linear CKA", paper="1905.00414", site=site, front=front, rows=rows,
            batches=batches, estimator="unbiased" if unbiased else "biased",
        ),
    )  # fmt: skip


def layer_angles(
    model: Model,
    prompts: Prompts,
    site: str = "resid_pre",
    *,
    layers: Iterable[int] | int | None = None,
    front: int = 1,
) -> xr.DataArray:
    """Mean angular distance between all layers of a model, (layer, other_layer), in units of pi.

    The mean is over positions from `front` on, of all prompts. arXiv:2403.17887 reads
    `resid_pre` at l and l + n: small distances say that the n layers between hardly turn the
    stream. Raises BadInput as `layer_cka`.
    """
    chosen = model.anatomy.layers(layers)
    x = features_of(model, prompts, site, chosen, front)
    attrs = provenance(
        model, technique="angular distance", paper="2403.17887", site=site, front=front,
        rows=x.shape[1],
    )  # fmt: skip
    return _pairs(angular_distance(x).mean(0), chosen, "distance", attrs)


def _pairs(
    value: torch.Tensor, layers: Sequence[int], name: str, attrs: dict[str, object]
) -> xr.DataArray:
    coords = {"layer": list(layers), "other_layer": list(layers)}
    return label(value, ("layer", "other_layer"), coords, name=name, **attrs)
