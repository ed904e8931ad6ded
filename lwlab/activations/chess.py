r"""CHESS: which gated neurons to skip at a token, by one threshold a neuron; and its rivals.

One gated MLP: a = f(W_gate x), u = W_up x, y = W_down (a * u); neuron i of F. Leaving i out changes
y by a_i u_i W_down[:, i], but u_i is not known before W_up is read, so its size is replaced by a
mean over calibration tokens, U_i = mean |u_i|. A neuron is left out where its score falls under the
q-quantile T of all scores of the layer:

    cats          |a_i|                        (arXiv:2404.08763)
    chess         |a_i| U_i                    (arXiv:2409.01366)
    chess-down    |a_i| U_i ||W_down[:, i]||   (ours: the rest of what is lost)
    oracle        |a_i u_i|                    needs u: a bound, not a way to save time
    random        a number drawn for each token and neuron: the placebo

Positions are neurons' inputs at one token; thresholds of all but oracle and random are on |a_i|:
t_i = T / U_i. Losses are in nats a token, teacher-forced. The fast decoder with such thresholds is
`lwlab.activations.sparse_decode`; what it saves in time is measured by
`lwlab.activations.chess_speed.mlp_times`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch.nn import functional

from lwlab.activations.mlps import GatedMLP, gated_mlps
from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.models.model import Model
from lwlab.models.sites import Address
from lwlab.results import provenance
from lwlab.tracing import engine
from lwlab.tracing.edits import Edit

PAPER = "2409.01366"
RULES = ("cats", "chess", "chess-down", "oracle", "random")


def calibrate(
    model: Model,
    texts: str | Sequence[str],
    sparsity: Sequence[float] | float,
    rules: Sequence[str] = RULES[:2],
    layers: Iterable[int] | int | None = None,
    *,
    max_tokens: int = 256,
    skip: int = 1,
    max_bytes: float = 1e9,
) -> xr.Dataset:
    """Find the thresholds of several rules at several sparsities, in one pass over `texts`.

    Returns over (rule, sparsity, layer, neuron): `limit`, on |a_i| (cats, chess, chess-down), on
    |a_i u_i| (oracle), or the sparsity itself (random); over (layer, neuron): `up`, U_i; over
    (layer): `spread`, the standard deviation of U_i over its mean (0 would make chess cats). Of the
    n scores of a layer, floor(sparsity n) lie under T, but for ties and rounding; sparsity 0 gives
    nought. Quantiles are of all tokens together, not means of each text's. Texts are cut after
    `max_tokens`; the first `skip` tokens (an attention sink) are run and not counted.

    Raises MissingSite for a model whose MLPs are not gated, UnknownName for a rule, BadInput for
    sparsities outside [0, 1), texts without tokens to count, or more than `max_bytes` to keep;
    all before the run.
    """
    asked = check(sparsity, rules)
    mlps = gated_mlps(model, layers)
    rows = _rows(model, texts, max_tokens, skip)
    n, width = sum(r.shape[1] - skip for r in rows), model.d_mlp or 1
    if 8 * n * width * len(mlps) > max_bytes:
        raise BadInput(
            f"{n} tokens need {8 * n * width * len(mlps) / 1e6:.0f} MB of activations, over "
            f"max_bytes={max_bytes:g}: give fewer texts or layers"
        )
    a, u = _collect(model, mlps, rows, skip, n)
    limit = np.zeros((len(rules), len(asked), len(mlps), width), np.float32)
    up = np.zeros((len(mlps), width), np.float32)
    for k, m in enumerate(mlps):
        mean = u[k].mean(0, dtype=torch.float64).float()
        up[k] = mean.numpy()
        for r, rule in enumerate(rules):
            weight = _weight(rule, m, mean)
            scores = a[k] * (u[k] if rule == "oracle" else weight)
            cuts = asked if rule == "random" else _cuts(scores, asked)
            limit[r, :, k] = np.asarray(cuts)[:, None] / weight.numpy()[None]
    chosen = [m.layer for m in mlps]
    return xr.Dataset(
        {
            "limit": (("rule", "sparsity", "layer", "neuron"), limit),
            "up": (("layer", "neuron"), up),
            "spread": ("layer", up.std(1) / up.mean(1)),
        },
        {"rule": list(rules), "sparsity": asked, "layer": chosen},
        provenance(model, technique="chess", paper=PAPER, tokens=n, skip=skip),
    )


def losses(
    model: Model,
    texts: str | Sequence[str],
    limit: xr.DataArray,
    *,
    max_tokens: int = 256,
    seed: int = 0,
) -> xr.Dataset:
    """Return the loss with neurons left out by `limit`, and how many really were.

    `limit` is (rule, sparsity, layer, neuron), any part of what `calibrate` found (layers it lacks
    stay whole). Over (rule, sparsity, prompt): `nll`, nats a predicted token, every token of the
    text counted in, the first as well; (rule, sparsity, layer): `left_out`, the share of neurons
    left out, mean over tokens; (prompt): `dense` and `tokens` (predicted). Left out means a_i = 0:
    gate_i is set to 0, where f is 0. One text at a time. `seed` draws the random rule's neurons.
    Raises BadInput for limits that do not fit the model, hold NaN, or texts under two tokens;
    MissingSite for MLPs that are not gated.
    """
    limit = _fitting(model, limit)
    mlps = gated_mlps(model, [int(i) for i in limit.layer.values])
    rows = _rows(model, texts, max_tokens, 1)
    shape = (limit.sizes["rule"], limit.sizes["sparsity"])
    nll = np.zeros((*shape, len(rows)))
    out = np.zeros((*shape, len(mlps)))
    dense = np.array([_nll(model, r, []) for r in rows])
    for i, j in np.ndindex(shape):
        rule = str(limit.rule.values[i])
        mask = Mask(rule, torch.tensor(limit.values[i, j]), mlps, seed)
        for k, row in enumerate(rows):
            nll[i, j, k] = _nll(model, row, mask.edits())
        out[i, j] = mask.left_out()
    predicted = [r.shape[1] - 1 for r in rows]
    return xr.Dataset(
        {
            "nll": (("rule", "sparsity", "prompt"), nll, {"unit": "nats a token"}),
            "left_out": (("rule", "sparsity", "layer"), out),
            "dense": ("prompt", dense, {"unit": "nats a token"}),
            "tokens": ("prompt", predicted),
        },
        {"rule": limit.rule.values, "sparsity": limit.sparsity.values, "layer": limit.layer.values},
        provenance(model, technique="chess", paper=PAPER, n=len(rows), seed=seed),
    )


class Mask:
    """Edits that leave neurons out of a run, counting them: `limit` [layers, neurons] by `rule`."""

    def __init__(self, rule: str, limit: torch.Tensor, mlps: Sequence[GatedMLP], seed: int) -> None:
        self.rule, self.limit, self.mlps = rule, limit.float(), list(mlps)
        self.generator = torch.Generator().manual_seed(seed)
        self.out = [0] * len(self.mlps)
        self.seen = [0] * len(self.mlps)

    def edits(self) -> list[Edit]:
        """Return fresh edits for one run."""
        site = "neurons" if self.rule in ("oracle", "random") else "mlp_gate"
        return [Edit(Address(site, m.layer), self._cut(k)) for k, m in enumerate(self.mlps)]

    def left_out(self) -> list[float]:
        """Return the share left out in each layer so far."""
        return [o / max(s, 1) for o, s in zip(self.out, self.seen, strict=True)]

    def _cut(self, k: int) -> Callable[[torch.Tensor], torch.Tensor]:
        from lwlab_kernels.sparse_mlp import ACTIVATIONS

        f, limit = ACTIVATIONS[self.mlps[k].act], self.limit[k]

        def cut(x: torch.Tensor) -> torch.Tensor:
            if self.rule == "random":
                scores = torch.rand(x.shape, generator=self.generator).to(x.device)
            else:
                scores = (x if self.rule == "oracle" else f(x)).float().abs()
            out = scores < limit.to(x.device)
            self.out[k] += int(out.sum())
            self.seen[k] += out.numel()
            return x.masked_fill(out, 0)

        return cut


def check(sparsity: Sequence[float] | float, rules: Sequence[str]) -> list[float]:
    """Return sparsities as a list; raise BadInput or UnknownName for what cannot be asked."""
    asked = [float(q) for q in np.atleast_1d(np.asarray(sparsity, float))]
    if not asked or not all(0 <= q < 1 for q in asked):
        raise BadInput(f"sparsity={sparsity}: fractions from 0 up to, not including, 1")
    if isinstance(rules, str) or not rules:
        raise BadInput(f"rules={rules!r}: give some of {RULES} as a list")
    for rule in rules:
        if rule not in RULES:
            raise UnknownName(f"no rule is called {rule!r}{suggest(str(rule), RULES, limit=9)}")
    return asked


def _rows(model: Model, texts: Any, max_tokens: int, skip: int) -> list[torch.Tensor]:
    texts = [texts] if isinstance(texts, str) else list(texts)
    rows = [model.tokens(t).ids[:, :max_tokens] for t in texts]
    short = [i for i, r in enumerate(rows) if r.shape[1] <= max(skip, 0)]
    if not rows or skip < 0 or short:
        raise BadInput(
            f"every text must be longer than {max(skip, 0)} token(s), of which there are "
            f"{len(rows)} and text {short[0] if short else '-'} is not; skip={skip}"
        )
    return rows


def _collect(
    model: Model, mlps: list[GatedMLP], rows: list[torch.Tensor], skip: int, n: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """|a| and |u| of each layer, [tokens, neurons]."""
    from lwlab_kernels.sparse_mlp import ACTIVATIONS

    a, u = ([torch.empty(n, model.d_mlp or 1) for _ in mlps] for _ in range(2))
    reads = [Address(site, m.layer) for m in mlps for site in ("mlp_gate", "mlp_up")]
    at = 0
    for row in rows:
        found = engine.run(model, row, reads, logits=None).values
        to = at + row.shape[1] - skip
        for k, m in enumerate(mlps):
            g = found[Address("mlp_gate", m.layer)][0, skip:].float().cpu()
            a[k][at:to] = ACTIVATIONS[m.act](g).abs()
            u[k][at:to] = found[Address("mlp_up", m.layer)][0, skip:].float().cpu().abs()
        at = to
    return a, u


def _weight(rule: str, m: GatedMLP, up: torch.Tensor) -> torch.Tensor:
    if rule == "chess":
        return up
    if rule == "chess-down":
        return up * m.down.weight.detach().float().norm(dim=0).cpu()
    return torch.ones_like(up)


def _cuts(scores: torch.Tensor, asked: Sequence[float]) -> list[float]:
    """The smallest score kept, at each sparsity."""
    flat = scores.flatten().numpy()
    at = [int(q * flat.size) for q in asked]
    ordered = np.partition(flat, sorted(set(at)))
    return [float(ordered[i]) if i else 0.0 for i in at]


def _fitting(model: Model, limit: xr.DataArray) -> xr.DataArray:
    dims = ("rule", "sparsity", "layer", "neuron")
    for d in dims[:2]:
        if d not in limit.dims and d in limit.coords:
            limit = limit.expand_dims(d)
    if set(limit.dims) != set(dims) or any(d not in limit.coords for d in dims[:3]):
        raise BadInput(f"limit has dimensions {limit.dims}; calibrate() gives {dims}")
    check(0.0, [str(r) for r in limit.rule.values])
    if limit.sizes["neuron"] != model.d_mlp:
        raise BadInput(f"limit has {limit.sizes['neuron']} neurons; {model.name} has {model.d_mlp}")
    if bool(limit.isnull().any()):
        raise BadInput("limit holds NaN")
    return limit.transpose(*dims)


@torch.no_grad()
def _nll(model: Model, row: torch.Tensor, edits: list[Edit]) -> float:
    z = engine.run(model, row, (), edits, logits="all").logits
    if z is None:
        raise BadInput(f"{model.name} predicts no tokens, so it has no loss to watch")
    return float(functional.cross_entropy(z[0, :-1].float(), row[0, 1:].to(z.device)))
