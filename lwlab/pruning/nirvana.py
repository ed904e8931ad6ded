"""NIRVANA: what a neuron or a group of heads carries of the tangent kernel under sign descent.

Training with Adam moves a weight by the sign of its gradient, so that the network's output changes
by the kernel K(x, x') = sum_i df(x)/dw_i sign(df(x')/dw_i). A weight's part of K(x, x) is
|df/dw_i|; removing it changes f by w_i df/dw_i to first order. Their common measure
|w_i df/dw_i| ranks weights. No labels are needed. (NIRVANA: Structured pruning
reimagined for large language models compression; code: iDEA-iSAIL-Lab-UIUC/NIRVANA on GitHub.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import torch
import xarray as xr
from torch import nn
from torch.nn import functional as F

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.models.model import Model
from lwlab.pruning.units import DIMS, PARTS, Part, Slab, sizes, slabs, weight
from lwlab.results import label, provenance
from lwlab.tracing import engine
from lwlab.tracing._nnsight import lock

Criterion = Literal["nirvana", "taylor", "wanda", "magnitude", "random"]
Entries = Callable[[Slab], torch.Tensor]


def scores(
    model: Model,
    texts: str | Sequence[str] = (),
    criterion: Criterion = "nirvana",
    *,
    parts: Sequence[Part] = PARTS,
    seed: int = 0,
) -> xr.Dataset:
    """Score every unit: `attn` (layer, kv_head) and `mlp` (layer, neuron), as in `units.slabs`.

    A unit's score is the sum over the entries of its rows and columns (biases left out) of

    * "nirvana": |W_ij df/dW_ij|, f = mean over texts and vocabulary of the highest logit at any
      position (`output`); one forward and one backward pass
    * "taylor": the same with the loss of the next token for f (needs no labels but the text)
    * "wanda": |W_ij| ||X_j||, X_j what reaches input j over all tokens
    * "magnitude": |W_ij|; `texts` are not read
    * "random": a number drawn by `seed`; `texts` are not read

    Attribute `weights` of each variable: weights of one unit. Weights and gradients of the model
    are left as they were.

    Raises, before anything is run: UnknownName for a criterion or part; BadInput for no texts where
    they are read, a text of one token for "taylor", a model without logits; and as `units.slabs`.
    """
    if criterion not in get_args(Criterion):
        raise UnknownName(
            f"criterion={criterion!r} is unknown{suggest(str(criterion), get_args(Criterion))}"
        )
    for part in parts:
        if part not in PARTS:
            raise UnknownName(f"part {part!r} is unknown{suggest(str(part), PARTS)}")
    units = {part: slabs(model, part) for part in parts}
    if not units:
        raise BadInput("parts is empty: score 'attn', 'mlp' or both")
    n = 0
    if criterion in ("nirvana", "taylor", "wanda"):
        data = _read(model, texts, 2 if criterion == "taylor" else 1)
        n = len(data.tokens) if data.tokens is not None else 1
    every = [s for layers in units.values() for own in layers for s in own]
    if criterion in ("nirvana", "taylor"):
        found = _saliency(model, data, every, output if criterion == "nirvana" else _loss)
    elif criterion == "wanda":
        found = _wanda(model, data, every)
    elif criterion == "magnitude":
        found = {s: s.per_unit(weight(model, s).detach().abs()) for s in every}
    else:
        generator = torch.Generator().manual_seed(seed)
        found = {s: torch.rand(len(s.index), generator=generator).double() for s in every}
    out = xr.Dataset()
    for part, layers in units.items():
        values = torch.stack([torch.stack([found[s].cpu() for s in own]).sum(0) for own in layers])
        coords = {"layer": range(model.n_layers), DIMS[part]: range(values.shape[1])}
        out[part] = label(values, ("layer", DIMS[part]), coords, name=part).drop_attrs()
        out[part].attrs.update(weights=sizes(model, part)[1], long_name=f"{criterion} score")
    return out.assign_attrs(
        provenance(model, technique="NIRVANA", criterion=criterion, n=n, seed=seed)
    )


def output(logits: torch.Tensor, mask: torch.Tensor, _ids: Any = None) -> torch.Tensor:
    """f: mean over texts and vocabulary of the highest logit at any of a text's own positions.

    logits: [texts, positions, tokens]; mask: [texts, positions], 0 on padding.
    """
    if not mask.all():  # else a copy of all logits less
        logits = logits.masked_fill(mask[..., None] == 0, float("-inf"))
    return logits.amax(1).float().mean()


def _loss(logits: torch.Tensor, mask: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    target = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), target.flatten())


def kernel(model: Model, texts: Sequence[str]) -> xr.DataArray:
    """The tangent kernel under sign descent, K (prompt, partner) = sum_i g_i(x) sign(g_i(x')).

    g(x) = df(x)/dw over all matrices of the blocks; f as in `output`, of one text alone. K(x, x) is
    the L1 norm of g(x). A step of eta against sign(g(x')) changes f(x) by -eta K to first order.
    Holds one gradient of these weights for each text in memory. Raises BadInput for
    no texts or a model without logits.
    """
    blocks = model.module.get_submodule(model.anatomy.blocks)
    every = [p for p in dict.fromkeys(blocks.parameters()) if p.ndim == 2]
    for text in texts:
        _read(model, text, 1)
    if not len(texts):
        raise BadInput("texts is empty: the kernel is between texts, so give one at least")
    rows = []
    for text in texts:
        data = _read(model, text, 1)
        with _differentiable(model, every):
            f = _run(model, data, output)
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(f, every)]))
    g = torch.stack(rows)
    found = g @ g.sign().T
    coords = {"prompt": range(len(texts)), "partner": range(len(texts))}
    out = label(found, ("prompt", "partner"), coords, name="kernel")
    return out.assign_attrs(
        provenance(model, technique="sign kernel", n=len(texts), long_name="K(x, x')")
    )


def _read(model: Model, texts: str | Sequence[str], least: int) -> Any:
    """Check the model and the texts; return them as a batch."""
    if model.kind != "decoder" or "logits" not in model.anatomy.taps:
        raise BadInput(f"{model.name} gives no next-token logits, which this criterion reads")
    if not len(texts):
        raise BadInput(
            "the calibration set is empty: give texts, for example lw.tasks.corpus(n=4, tokens=64, "
            "model=model)"
        )
    tokens = model.tokens(texts, "right")
    if int(tokens.lengths.min()) < least:
        raise BadInput(f"a text of one token predicts nothing: {list(tokens.texts)!r:.80}")
    return engine.batch(model, tokens)


def _run(model: Model, data: Any, objective: Callable[..., torch.Tensor]) -> torch.Tensor:
    args, inputs = data.fresh()
    logits = engine.tensor_of(model.module(*args, **inputs))
    return objective(logits, data.tokens.mask, data.tokens.ids)


@contextlib.contextmanager
def _differentiable(model: Model, weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Gradients for these weights alone; what the parameters had before comes back after."""
    if torch.is_inference_mode_enabled():
        raise BadInput("gradients need autograd: leave torch.inference_mode() first")
    with lock(model), torch.enable_grad():
        before = [(p, p.requires_grad, p.grad) for p in model.module.parameters()]
        chosen = {id(p) for p in weights}
        try:
            for p, _, _ in before:
                p.grad = None
                p.requires_grad_(id(p) in chosen)
            yield
        finally:
            for p, flag, grad in before:
                p.requires_grad_(flag)
                p.grad = grad


def _saliency(
    model: Model, data: Any, every: Sequence[Slab], objective: Callable[..., torch.Tensor]
) -> dict[Slab, torch.Tensor]:
    """Sum |W dF/dW| over units as soon as each gradient is there, so that only one is held."""
    found: dict[Slab, torch.Tensor] = {}
    holds: dict[nn.Parameter, list[Slab]] = {}
    for s in every:
        holds.setdefault(weight(model, s), []).append(s)

    def reduce(p: torch.Tensor) -> None:
        assert p.grad is not None
        with torch.no_grad():
            entries = (p.detach() * p.grad).abs()
            for s in holds[p]:  # type: ignore[index]
                found[s] = s.per_unit(entries)
        p.grad = None

    with _differentiable(model, list(holds)):
        hooks = [p.register_post_accumulate_grad_hook(reduce) for p in holds]  # type: ignore[no-untyped-call]
        try:
            _run(model, data, objective).backward()  # type: ignore[no-untyped-call]
        finally:
            for hook in hooks:
                hook.remove()
    if missing := [s.path for s in every if s not in found]:
        raise BadInput(f"{model.name}: the logits do not depend on {missing[0]}")
    return found


def _wanda(model: Model, data: Any, every: Sequence[Slab]) -> dict[Slab, torch.Tensor]:
    norms: dict[str, torch.Tensor] = {}
    mask = data.tokens.mask.flatten().bool()

    def note(path: str) -> Callable[..., None]:
        def hook(_m: nn.Module, args: tuple[Any, ...]) -> None:
            rows = args[0].flatten(0, -2).float()
            norms[path] = rows[mask.to(rows.device)].norm(dim=0)

        return hook

    with lock(model), torch.no_grad():
        hooks = [
            model.module.get_submodule(p).register_forward_pre_hook(note(p))
            for p in dict.fromkeys(s.path for s in every)
        ]
        try:
            _run(model, data, output)
        finally:
            for hook in hooks:
                hook.remove()
        found = {}
        for s in every:
            x = norms[s.path]
            inputs = s.axis if not s.out else 1 - s.axis
            found[s] = s.per_unit(weight(model, s).abs() * (x if inputs == 1 else x[:, None]))
    return found
