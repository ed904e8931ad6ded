"""What skipping neurons saves in time, measured: the MLPs of a model one token at a time."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch.nn import functional as F

from lwlab.activations.mlps import GatedMLP, gated_mlps
from lwlab.activations.swap import by_layer
from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.models.sites import Address
from lwlab.results import label, provenance
from lwlab.tracing import engine, lock

WAYS = ("dense", "kernel", "indexing")


def mlp_times(
    model: Model,
    texts: str | Sequence[str],
    limit: xr.DataArray,
    *,
    tokens: int = 8,
    rounds: int = 5,
) -> xr.Dataset:
    """Time all MLPs of `limit`'s layers on real inputs, a token at a time, three ways.

    `limit` is (sparsity, layer, neuron), on |a_i|: one rule of `chess.calibrate`. "dense" is the
    model's own three products; "kernel" is `lw.kernels.sparse_mlp`, which reads up_i and down_i
    only where |a_i| >= t_i; "indexing" says the same in torch (`up[idx]`, `down_t[idx]`: copies).
    A token passes through every layer before the next way is tried, so weights come from memory as
    they do in decoding, and the ways take turns: what disturbs the machine disturbs all three.

    Returns over (sparsity, way): `seconds` a token for all layers, median over rounds; over
    (sparsity, way, round): `rounds`, each round's mean a token; over (sparsity): `active`, the
    share of neurons used; over (sparsity, way): `error`, the largest |y - masked y| relative to
    the largest |masked y| of the layer, the masked MLP in float64 being the truth.
    Raises BadInput for limits that do not fit or numbers below 1, MissingSite for MLPs that are
    not gated.
    """
    from lwlab_kernels.sparse_mlp import sparse_mlp

    if tokens < 1 or rounds < 1:
        raise BadInput(f"tokens={tokens}, rounds={rounds}: one or more of each")
    if set(limit.dims) != {"sparsity", "layer", "neuron"}:
        raise BadInput(
            f"limit has dimensions {limit.dims}; give (sparsity, layer, neuron): select one rule"
        )
    limit = limit.transpose("sparsity", "layer", "neuron")
    rows = [by_layer(part.drop_vars("sparsity"), model, "limit") for part in limit]
    mlps = gated_mlps(model, list(rows[0]))
    x = _inputs(model, texts, mlps, tokens)
    turned = [m.down.weight.detach().T.contiguous() for m in mlps]
    times = np.zeros((len(rows), len(WAYS), rounds))
    active, error = np.zeros(len(rows)), np.zeros((len(rows), len(WAYS)))
    with torch.no_grad():
        for q, part in enumerate(rows):

            def kernel(
                k: int, v: torch.Tensor, part: dict[int, torch.Tensor] = part
            ) -> torch.Tensor:
                m = mlps[k]
                return sparse_mlp(
                    v, m.gate.weight, m.up.weight, turned[k], threshold=part[m.layer], act=m.act
                ).y

            def indexing(
                k: int, v: torch.Tensor, part: dict[int, torch.Tensor] = part
            ) -> torch.Tensor:
                return indexed(mlps[k], turned[k], part[mlps[k].layer], v)

            def dense(k: int, v: torch.Tensor) -> torch.Tensor:
                y: torch.Tensor = mlps[k].module(v)
                return y

            ways: tuple[Callable[[int, torch.Tensor], torch.Tensor], ...] = (
                dense, kernel, indexing,
            )  # fmt: skip
            for k, m in enumerate(mlps):
                truths, used = _masked(m, part[m.layer], x[k])
                active[q] += used / len(mlps)
                for w, way in enumerate(ways):  # also the warm-up: kernels compile at first use
                    y = torch.cat([way(k, v[None]) for v in x[k]])
                    off = (y - truths).abs().amax(2).amin(0) / truths.abs().amax()
                    error[q, w] = max(error[q, w], float(off.max()))
            for r in range(rounds):
                for t in range(tokens):
                    for w, way in enumerate(ways):
                        begun = time.perf_counter()
                        for k in range(len(mlps)):
                            way(k, x[k][t : t + 1])
                        times[q, w, r] += (time.perf_counter() - begun) / tokens
    return xr.Dataset(
        {
            "seconds": (("sparsity", "way"), np.median(times, axis=2)),
            "rounds": (("sparsity", "way", "round"), times),
            "active": ("sparsity", active),
            "error": (("sparsity", "way"), error),
        },
        {"sparsity": limit.sparsity.values, "way": list(WAYS)},
        provenance(model, technique="chess", tokens=tokens, threads=torch.get_num_threads()),
    )


def decode_times(
    model: Model, text: str, limit: xr.DataArray, *, steps: int = 3, rounds: int = 4
) -> xr.DataArray:
    """Time decoding: seconds a token of the whole model, dense and with neurons skipped.

    `limit` is (layer, neuron), on |a_i|. After `text`, `steps` tokens are decoded one by one with
    keys and values kept, in turns with and without `sparse_decode`. Over (way, round), `way` being
    "dense" and "sparse"; what is not MLP (attention, unembedding) is in both. Raises as
    `sparse_decode` does, and BadInput for numbers below 1.
    """
    from lwlab.activations.sparse import sparse_decode

    if steps < 1 or rounds < 1:
        raise BadInput(f"steps={steps}, rounds={rounds}: one or more of each")
    ids = model.tokens(text).ids[:, :256].to(model.device)
    times = np.zeros((2, rounds))

    def run() -> float:
        past, seconds, token = copy.deepcopy(start.past_key_values), 0.0, first
        for _ in range(steps):
            begun = time.perf_counter()
            out = model.module(token, past_key_values=past, use_cache=True)
            seconds += time.perf_counter() - begun
            past, token = out.past_key_values, out.logits[:, -1:].argmax(-1)
        return seconds / steps

    with torch.no_grad(), lock(model):
        start: Any = model.module(ids, use_cache=True)
        first = start.logits[:, -1:].argmax(-1)
        with sparse_decode(model, limit):
            run()  # kernels compile at first use
        run()
        for r in range(rounds):
            times[0, r] = run()
            with sparse_decode(model, limit):
                times[1, r] = run()
    return label(
        times, ("way", "round"), {"way": ["dense", "sparse"]}, name="seconds a token",
        **provenance(model, technique="chess", steps=steps, threads=torch.get_num_threads()),
    )  # fmt: skip


def indexed(
    m: GatedMLP, down_t: torch.Tensor, limit: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    """y [1, d_model] of x [1, d_model] by indexing: the sparse MLP as torch says it."""
    from lwlab_kernels.sparse_mlp import ACTIVATIONS

    a = ACTIVATIONS[m.act](F.linear(x, m.gate.weight))[0]
    idx = (a.abs() >= limit).nonzero()[:, 0]
    h = a[idx] * F.linear(x, m.up.weight[idx])[0]
    return (h @ down_t[idx])[None]


def _inputs(
    model: Model, texts: str | Sequence[str], mlps: list[GatedMLP], tokens: int
) -> list[torch.Tensor]:
    """What the MLPs read at the last `tokens` tokens of the first text, [tokens, d_model]."""
    text = texts if isinstance(texts, str) else next(iter(texts), "")
    ids = model.tokens(text).ids[:, :256]
    if ids.shape[1] < tokens:
        raise BadInput(f"tokens={tokens}: the first text has {ids.shape[1]}")
    reads = [Address("mlp_in", m.layer) for m in mlps]
    found = engine.run(model, ids, reads, logits=None).values
    return [found[r][0, -tokens:].contiguous() for r in reads]


def _masked(m: GatedMLP, limit: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The dense MLP with everything else masked, in float64, and the share of neurons used.

    [2, tokens, d_model]: with the thresholds a hair (1e-5) lower, and higher: of a neuron that is
    this close to its threshold, rounding decides.
    """
    from lwlab_kernels.sparse_mlp import ACTIVATIONS

    gate, up, down = (w.weight.double() for w in (m.gate, m.up, m.down))
    a, u = ACTIVATIONS[m.act](x.double() @ gate.T), x.double() @ up.T
    keep = [~(a.abs() < limit.double() * hair) for hair in (1 - 1e-5, 1 + 1e-5)]
    return torch.stack([(a * u * k) @ down.T for k in keep]), float(keep[0].double().mean())
