"""Where a model reads its residual stream through a norm, and what writes to the stream.

Found by running the model once: a norm counts if what it is given *is* the stream, bit by bit.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from lwlab.errors import BadInput
from lwlab.models.loading import wrap
from lwlab.models.model import Model, Prompts
from lwlab.models.sample import sample
from lwlab.models.sites import Address
from lwlab.tracing import engine, lock
from lwlab.tracing.order import module_order

KINDS = ("LayerNorm", "RMSNorm", "frozen")


@dataclass(frozen=True)
class Norm:
    """One norm that reads the stream.

    `reads` is the stream it is given, `readers` are the linear maps that read what it makes.
    `kind` is measured: "LayerNorm" ignores a constant added to every coordinate, "RMSNorm" does
    not, "frozen" is linear (up to its bias).
    """

    path: str
    layer: int | None
    reads: Address
    kind: str
    eps: float
    readers: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its layer and its module's own name, as in "0.ln_1" or "ln_f"."""
        own = self.path.rpartition(".")[2]
        return own if self.layer is None else f"{self.layer}.{own}"


def norms(model: Model) -> list[Norm]:
    """Return the norms that read the stream, in the order in which they run.

    Raises BadInput for a post-norm architecture (its norms *are* the stream), a model without norms
    that read its stream, one that runs elsewhere, or one whose kind of input is unknown.
    """
    a = model.anatomy
    if model.remote:
        raise BadInput(f"{model.name} runs on a server: its weights are not here to be changed")
    if a.stream_norms:
        raise BadInput(
            f"{model.name} is post-norm: the output of a norm is the stream itself, so neither the "
            "mean nor the scale can be taken out; take a pre-norm model (GPT-2, OPT, Pythia, Phi)"
        )
    x = sample(model)
    if x is None:
        raise BadInput(f"{model.name}: no sample input is known; pass example= to lw.wrap")
    streams = _streams(model, x)
    given, made = _run(model, x)
    found = []
    for path, order in sorted(given.items(), key=lambda item: item[1][0]):
        module, tensor = model.module.get_submodule(path), order[1]
        if not type(module).__name__.endswith("Norm"):
            continue
        reads = next((at for at, s in streams.items() if _same(s, tensor)), None)
        if reads is None:
            continue
        readers = tuple(
            p for p, (_, t) in given.items()
            if is_linear(model.module.get_submodule(p)) and _same(made[path], t)
        )  # fmt: skip
        inside = path.startswith(a.blocks + ".")
        layer = int(path[len(a.blocks) + 1 :].split(".")[0]) if inside else None
        kind, eps = _kind(module, tensor)
        found.append(Norm(path, layer, reads, kind, eps, readers))
    if not found:
        raise BadInput(
            f"{model.name} has no norm that reads its stream, so there is nothing to convert or "
            "remove"
        )
    return found


def require_layernorms(model: Model, what: str) -> list[Norm]:
    """Return `norms(model)`, or raise BadInput where one of them is no LayerNorm."""
    found = norms(model)
    kinds = {n.kind for n in found}
    if "RMSNorm" in kinds:
        raise BadInput(
            f"{model.name} normalises by RMSNorm, and {what} starts from LayerNorm: there is no "
            "mean to move. See how large its mean is with normalization.stream_mean, or freeze its "
            "scales with normalization.freeze"
        )
    if "frozen" in kinds:
        names = ", ".join(n.name for n in found if n.kind == "frozen")
        raise BadInput(
            f"{model.name}: {names} divide by a constant already; {what} needs LayerNorm"
        )
    return found


def writers(model: Model) -> tuple[str, ...]:
    """Paths of the modules whose outputs are added to the stream: embeddings, W_O, W_down.

    Raises BadInput where the anatomy does not name them.
    """
    a = model.anatomy
    known = a.o_proj and a.down and tuple(a.writes) == ("attn_out", "mlp_out")
    if not known or model.kind == "vision" or a.attn_post:
        raise BadInput(
            f"{model.name} ({a.name}): what writes to its stream is not known matrix by matrix; it "
            "is for models of tokens with attention and dense MLPs, whose outputs are added as "
            "they are"
        )
    assert a.o_proj
    assert a.down
    order = module_order(model)
    first = order[f"{a.blocks}.0", "input"]
    before = [
        path for path, m in model.module.named_modules()
        if order.get((path, "output"), first) < first and _width(m) == a.d_model
    ]  # fmt: skip
    return (
        *before, *(p.replace("{}", str(i)) for i in range(a.n_layers) for p in (a.o_proj, a.down)),
    )  # fmt: skip


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a matrix: torch's Linear, or GPT-2's Conv1D."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def matrix(module: Any) -> torch.Tensor:
    """The weight of a linear map as a view [out, in]; of an embedding, [d_model, tokens]."""
    weight: torch.Tensor = module.weight.data
    return weight if isinstance(module, nn.Linear) else weight.T


def set_matrix(module: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Give a linear map or an embedding another weight [out, in] and bias [out] in place."""
    turned = weight if isinstance(module, nn.Linear) else weight.T
    module.weight = nn.Parameter(turned.contiguous())
    if bias is not None or getattr(module, "bias", None) is not None:
        module.bias = None if bias is None else nn.Parameter(bias.contiguous())
    out, into = weight.shape
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = out, into
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = out
    else:
        module.nf, module.nx = out, into


def gain(module: Any, norm: Norm, width: int) -> torch.Tensor:
    """The gain g of a norm: its weight, its weight + 1 (Gemma), or ones where it has none.

    Raises BadInput where none of them gives what the norm computes.
    """
    weight, bias = (getattr(module, k, None) for k in ("weight", "bias"))
    like = torch.zeros(width) if weight is None else weight.detach()
    x = torch.linspace(-2.0, 3.0, width, device=like.device, dtype=like.dtype) ** 3
    h = x - x.mean() if norm.kind == "LayerNorm" else x
    h = h * torch.rsqrt(h.square().mean() + norm.eps)
    with torch.no_grad():
        y = module(x[None])[0] - (0 if bias is None else bias)
    for g in (like + 1,) if weight is None else (like, like + 1):
        if torch.allclose(h * g, y, rtol=1e-2, atol=1e-3 * float(y.abs().max())):
            return g.clone()
    raise BadInput(f"the norm {norm.name} ({type(module).__name__}) is of no kind known here")


def copied(model: Model, dtype: torch.dtype | None = None, *, name: str | None = None) -> nn.Module:
    """A copy of the module in `dtype`, its unembedding untied from the embedding.

    The stream is written by the embedding and read by the unembedding; whoever changes what is
    written must not change what is read.
    """
    with lock(model.module):
        module = copy.deepcopy(model.module)
    module = module if dtype is None else module.to(dtype)
    head = model.anatomy.unembed
    if head is not None:
        lead: Any = module.get_submodule(head)
        if any(p is lead.weight for n, p in module.named_parameters() if not n.startswith(head)):
            lead.weight = nn.Parameter(lead.weight.detach().clone())
            config: Any = getattr(module, "config", None)
            if config is not None:
                config.tie_word_embeddings = False
    return module.eval()


def shared(model: Model) -> nn.Module:
    """A copy of the module's structure over the same weights, for other norms in old places."""
    with lock(model.module):
        own = [*model.module.parameters(), *model.module.buffers()]
        return copy.deepcopy(model.module, {id(p): p for p in own}).eval()


def rewrapped(
    model: Model, module: nn.Module, suffix: str, d_model: int | None = None, *, check: bool = True
) -> Model:
    """Make a Model of a changed copy, with the anatomy and tokenizer of the original."""
    anatomy = model.anatomy if d_model is None else replace(model.anatomy, d_model=d_model)
    return wrap(
        module, anatomy, model.tokenizer, name=f"{model.name} {suffix}", example=model.example,
        check=check,
    )  # fmt: skip


def untied(model: Model, dtype: torch.dtype | None = None) -> Model:
    """The same model as a copy in `dtype`, its unembedding a matrix of its own."""
    return rewrapped(model, copied(model, dtype), "untied")


def agree(model: Model, other: Model) -> float:
    """max |z' - z| / max |z| of the logits of two models on a short input."""
    x = sample(model)
    assert x is not None
    a, b = (engine.run(m, x, logits="all").logits for m in (model, other))
    if a is None or b is None:
        raise BadInput(f"{model.name} has no logits to compare")
    return float((a.double() - b.double()).abs().max() / a.double().abs().max())


def _streams(model: Model, x: Prompts) -> dict[Address, torch.Tensor]:
    a = model.anatomy
    at = [
        Address(s, i) for i in range(a.n_layers) for s in ("resid_pre", "resid_mid", "resid_post")
        if s in a.taps and (s != "resid_post" or i == a.n_layers - 1)
    ]  # fmt: skip
    values = engine.run(model, x, at, logits=None).values
    return {k: values[k] for k in at}


Seen = dict[str, tuple[int, torch.Tensor]]


def _run(model: Model, x: Prompts) -> tuple[Seen, dict[str, torch.Tensor]]:
    """What norms and matrices are given, with its order, and what norms make of it."""
    given: Seen = {}
    made: dict[str, torch.Tensor] = {}

    def note(path: str) -> Any:
        def hook(_: Any, args: Any, out: Any) -> None:
            if args and isinstance(args[0], torch.Tensor) and isinstance(out, torch.Tensor):
                given.setdefault(path, (len(given), args[0].detach()))
                made.setdefault(path, out.detach())

        return hook

    wanted = {
        p: m for p, m in model.module.named_modules()
        if is_linear(m) or type(m).__name__.endswith("Norm")
    }  # fmt: skip
    args, inputs = engine.batch(model, x).fresh()
    with lock(model.module), torch.no_grad():
        handles = [m.register_forward_hook(note(p)) for p, m in wanted.items()]
        try:
            model.module(*args, **inputs)
        finally:
            for handle in handles:
                handle.remove()
    return given, made


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.numel() == b.numel() and torch.equal(a.flatten(), b.flatten())


def _width(module: nn.Module) -> int | None:
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    return module.out_features if isinstance(module, nn.Linear) else None


def _kind(module: nn.Module, x: torch.Tensor) -> tuple[str, float]:
    """Tell a norm's kind by what it does to its own input, shifted and stretched."""
    with torch.no_grad():
        shift = float(x.double().square().mean().sqrt()) + 1.0
        zero, y = module(torch.zeros_like(x)), module(x)
        size = float((y - zero).abs().max())
        stretched = float((module(2 * x) - zero - 2 * (y - zero)).abs().max())
        shifted = float((module(x + shift) - y).abs().max())
    eps = next(
        (float(e) for k in ("variance_epsilon", "eps") if (e := getattr(module, k, None))), 1e-5
    )
    if stretched < 1e-3 * size:
        return "frozen", eps
    return ("LayerNorm" if shifted < 1e-2 * size else "RMSNorm"), eps
