"""Pre-LN, Pre-RMSNorm and Pre-CRMSNorm: one function, three networks.

Jiang, Gu, Zhu & Pan 2023, "Pre-RMSNorm and Pre-CRMSNorm Transformers: Equivalent and Efficient
Pre-LN Transformers" (arXiv:2305.14858).

    LN(x)  = g (x - mean x) / sqrt(var x + eps) + b
    RMS(x) = g x / sqrt(mean x^2 + eps) + b          equal to LN(x) where mean x = 0

In a Pre-LN transformer the stream x is read through LN alone, so what is added along the vector
1 = (1, ..., 1) is never seen. With P = I - 1 1^T / d put behind everything that writes to it,

    E <- P E (token and position embeddings),   W <- P W and c <- P c for y = W z + c,

mean x = 0 at every depth and every LN is an RMSNorm.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import xarray as xr
from torch import nn
from torch.nn import functional as F

from lwlab.errors import BadInput
from lwlab.models.model import Model, Prompts
from lwlab.normalization import places as ns
from lwlab.normalization.layers import CRMSNorm, RMSNorm
from lwlab.results import label, provenance
from lwlab.tracing import engine, lock
from lwlab.tracing.edits import Edit
from lwlab.tracing.labels import own_positions
from lwlab.tracing.read import addresses

PAPER = "2305.14858"
Form = Literal["ln", "rms", "crms"]
_SLACK = {torch.float64: 1e-9, torch.float32: 1e-3}


def convert(
    model: Model,
    to: Form = "rms",
    *,
    recentre: bool = True,
    along: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Model:
    """Return a Pre-LN model as the same function with other norms; `model` stays as it is.

    `to`: "rms" gives RMSNorm with the same gain, bias and eps; "crms" stores the stream without its
    last coordinate (d - 1 numbers) and moves gains and biases into what reads the norms; "ln" keeps
    the norms and only recentres what writes to the stream. The unembedding gets weights of its own.
    `dtype` converts in another precision.

    Two ways to be wrong on purpose: `recentre=False` swaps the norms without moving the mean, and
    `along` [d_model] takes out that direction in place of the mean.

    Raises BadInput for post-norm models, models without LayerNorm (see `norms`), writers that are
    not known, "crms" without recentring, or where the converted logits are others after all.
    """
    if to not in ("ln", "rms", "crms"):
        raise BadInput(f"to={to!r}: use 'ln', 'rms' or 'crms'")
    wrong = not recentre or along is not None
    if wrong and (to == "crms" or (along is not None and not recentre)):
        raise BadInput(
            "a compressed stream stands for one whose mean is zero: to='crms' needs recentring, "
            "and along= says what recentring takes out"
        )
    found, paths = ns.require_layernorms(model, "pre-rmsnorm"), ns.writers(model)
    module = ns.copied(model, dtype)
    width = int(model.d_model or 0)
    if recentre:
        _centre(module, paths, _unit(along, width))
    if to == "rms":
        for norm in found:
            old: Any = module.get_submodule(norm.path)
            new = RMSNorm(getattr(old, "weight", None), getattr(old, "bias", None), norm.eps)
            module.set_submodule(norm.path, new)
    elif to == "crms":
        _compress(module, found, paths, width)
    suffix = {"ln": "recentred", "rms": "pre-rms", "crms": "pre-crms"}[to]
    suffix += "" if recentre else " (not recentred)"
    suffix += " (another direction)" if along is not None else ""
    out = ns.rewrapped(model, module.eval(), suffix, width - 1 if to == "crms" else None)
    slack = max(_SLACK.get(m.dtype, 0.2) for m in (model, out))
    if not wrong and (gap := ns.agree(model, out)) > slack:
        raise BadInput(
            f"{model.name}: converted to {to!r} its logits differ by {gap:.2g} of the largest, so "
            "something reads its stream without a norm, or writes to it by another way"
        )
    return out


def stream_mean(model: Model, prompts: Prompts, *, draws: int = 20, seed: int = 0) -> xr.Dataset:
    """Measure how much of the stream lies along 1 = (1, ..., 1), and along random directions.

    share = |mean x| / rms x = |cos(x, 1)| at each (prompt, layer, position); layer l is the stream
    entering block l, and the last one leaves the last block. `random` (draw, layer) is the median
    |cos(x, u)| over all prompts and positions for random directions u: what chance gives. No unit.

    Works on every model with a stream, RMSNorm or post-norm. Raises as `lw.cache` does.
    """
    if draws < 1:
        raise BadInput(f"draws={draws}: at least one random direction")
    data = engine.batch(model, prompts)
    if data.tokens is None:
        raise BadInput(f"{model.name} reads no tokens; the mean is measured at tokens' positions")
    n = model.n_layers
    at = [*addresses(model, ["resid_pre"], list(range(n))),
          *addresses(model, ["resid_post"], [n - 1])]  # fmt: skip
    values = engine.run(model, data, at, logits=None).values
    x = torch.stack([own_positions(values[a], data.tokens) for a in at], 1).double()
    g = torch.Generator().manual_seed(seed)
    u = torch.randn(draws, x.shape[-1], generator=g, dtype=torch.float64).to(x.device)
    ones = torch.ones(1, x.shape[-1], dtype=torch.float64, device=x.device)
    size = x.norm(dim=-1)
    cos = [(x @ (v / v.norm())).abs() / size for v in (*ones, *u)]
    random = torch.stack([c.transpose(0, 1).flatten(1).nanmedian(-1).values for c in cos[1:]])
    layers = {"layer": list(range(n + 1))}
    share = label(cos[0], ("prompt", "layer", "position"), layers, long_name="|mean| / rms")
    chance = label(random, ("draw", "layer"), layers, long_name="|cos| with a random direction")
    return xr.Dataset(
        {"share": share, "random": chance},
        attrs=provenance(model, technique="pre-rmsnorm", paper=PAPER, seed=seed),
    )


def shifted(model: Model, prompts: Prompts, c: float, layer: int = 0) -> torch.Tensor:
    """Return the last logits [prompts, tokens] with c added to every coordinate of a stream.

    x_l <- x_l + c 1 at every position of `layer`. A Pre-LN model does not see it. A compressed
    model has no coordinate to hold it: there 1 stands for the d - 1 that are stored.
    """
    at = model.anatomy.address(f"resid_pre.{layer}")
    z = engine.run(model, prompts, (), [Edit(at, lambda x: x + c)]).logits
    assert z is not None
    return z


def compare(model: Model, others: dict[str, Model], prompts: Prompts) -> xr.Dataset:
    """Compare the logits of other models with those of `model` at every position.

    Returns over (variant): `max_abs` = max |z' - z|, `relative` = that / max |z|, and `kl`, the
    mean KL(model || variant) in nats a position. Computed in float64. Raises BadInput for no
    models.
    """
    if not others:
        raise BadInput("others is empty: name at least one model to compare with")
    data = engine.batch(model, prompts)
    if data.tokens is None:
        raise BadInput(f"{model.name} reads no tokens, so there are no positions to compare at")
    mask = data.tokens.mask.bool()
    base = _logits(model, data)[mask]
    rows = []
    for other in others.values():
        z = _logits(other, data)[mask]
        gap = float((z - base).abs().max())
        rows.append((gap, gap / float(base.abs().max()), float(_kl(base, z).mean())))
    names = ("max_abs", "relative", "kl")
    return xr.Dataset(
        {
            k: label([r[i] for r in rows], ("variant",), {"variant": list(others)})
            for i, k in enumerate(names)
        },
        attrs=provenance(model, technique="pre-rmsnorm", paper=PAPER),
    )


def sgd_step(model: Model, prompts: Prompts, lr: float = 0.1, *, project: bool = False) -> Model:
    """Return a copy after one step of plain gradient descent on next-token cross-entropy.

    W <- W - lr G; with `project`, G <- P G for everything that writes to the stream. Projected, a
    converted model and its Pre-LN original stay one function: dL/dW = P dL/d(PW) by the chain rule.
    (So for plain gradients. An optimiser that scales each coordinate, as Adam does, must scale
    before it projects, or not at all.)

    Raises BadInput for prompts of unequal length or one token, or lr <= 0. The unembedding of the
    copy is untied.
    """
    if not lr > 0:
        raise BadInput(f"lr={lr}: give a positive learning rate")
    data = engine.batch(model, prompts)
    if data.tokens is None or data.tokens.require_equal_length("a training step") < 2:
        raise BadInput("a training step predicts next tokens: give prompts of two tokens or more")
    paths = ns.writers(model) if project else ()
    module = ns.copied(model).requires_grad_(True)
    ids = data.tokens.ids
    with lock(module), torch.enable_grad():
        z = engine.tensor_of(module(ids))
        loss = F.cross_entropy(z[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        if project:
            for path in paths:
                writer: Any = module.get_submodule(path)
                bias = getattr(writer, "bias", None)
                _project(writer, writer.weight.grad, None if bias is None else bias.grad)
        for p in module.parameters():
            if p.grad is not None:
                p.sub_(lr * p.grad)
                p.grad = None
    return ns.rewrapped(model, module, "after a step", model.d_model)


def _unit(along: torch.Tensor | None, width: int) -> torch.Tensor:
    if along is None:
        return torch.full((width,), width**-0.5, dtype=torch.float64)
    u = torch.as_tensor(along).detach().cpu().double()
    if u.shape != (width,) or not bool(torch.isfinite(u).all()) or not float(u.norm()):
        raise BadInput(
            f"along has shape {tuple(u.shape)}; give {width} finite numbers, not all zero"
        )
    return u / u.norm()


def _centre(module: nn.Module, paths: tuple[str, ...], u: torch.Tensor) -> None:
    """W <- (I - u u^T) W for each writer, its bias too."""
    for path in paths:
        writer: Any = module.get_submodule(path)
        v = u.to(writer.weight)
        w = ns.matrix(writer)
        w -= v[:, None] * (v @ w)
        if getattr(writer, "bias", None) is not None:
            writer.bias.data -= v * (v @ writer.bias.data)


def _project(writer: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """G <- P G, along the axis of the gradient that is the stream's."""
    weight -= weight.mean(0 if isinstance(writer, nn.Linear) else -1, keepdim=True)
    if bias is not None:
        bias -= bias.mean()


def _compress(module: nn.Module, found: list[ns.Norm], paths: tuple[str, ...], width: int) -> None:
    """Store the stream without its last coordinate, which is minus the sum of the others."""
    for norm in found:
        old: Any = module.get_submodule(norm.path)
        if not norm.readers:
            raise BadInput(f"no matrix reads the norm {norm.name} directly: nothing to fold into")
        g, bias = ns.gain(old, norm, width), getattr(old, "bias", None)
        for path in norm.readers:
            reader: Any = module.get_submodule(path)
            w = ns.matrix(reader)
            b = None if reader.bias is None else reader.bias.data
            if bias is not None:
                b = w @ bias.detach() + (0 if b is None else b)
            w = w * g.to(w.dtype)
            ns.set_matrix(reader, w[:, :-1] - w[:, -1:], b)
        module.set_submodule(norm.path, CRMSNorm(norm.eps))
    for path in paths:
        writer: Any = module.get_submodule(path)
        b = getattr(writer, "bias", None)
        ns.set_matrix(writer, ns.matrix(writer)[:-1].clone(), None if b is None else b.data[:-1])


def _logits(model: Model, data: engine.Batch) -> torch.Tensor:
    z = engine.run(model, data, logits="all").logits
    if z is None:
        raise BadInput(f"{model.name} has no logits to compare")
    return z.double()


def _kl(base: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    p, q = base.log_softmax(-1), other.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)
