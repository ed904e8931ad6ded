"""Transposed weights, one component at a time: what observables are carried back through.

Nothing here knows an architecture by name. Linear maps are transposed by autograd through the
model's own modules, and norms are measured: their gain, offset and whether they centre.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lwlab.errors import BadInput, MissingSite
from lwlab.models.model import Model
from lwlab.models.sites import Address
from lwlab.tracing import engine, lock
from lwlab.tracing.edits import Edit


@dataclass(frozen=True)
class Norm:
    """N(x) = gain * c(x) / s(x) + offset; c(x) = x - mean(x) where `centred`.

    s(x) is the root mean square of c(x), epsilon included; where not `scaled`, s = 1 and c is the
    identity (an architecture without a norm at this place).
    """

    gain: torch.Tensor
    offset: torch.Tensor
    centred: bool
    scaled: bool

    def back(self, y: torch.Tensor) -> torch.Tensor:
        """[..., d] -> [..., d]: gain * y, centred with the norm; the slope at s = 1."""
        g = self.gain * y
        return g - g.mean(-1, keepdim=True) if self.centred else g

    def centre(self, x: torch.Tensor) -> torch.Tensor:
        """c(x)."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def slope(self, x: torch.Tensor, normed: torch.Tensor) -> torch.Tensor:
        """1 / s(x), [...], of inputs [..., d] and what the norm made of them."""
        if not self.scaled:
            return torch.ones(x.shape[:-1])
        straight = self.gain * self.centre(x)
        return ((normed - self.offset) * straight).sum(-1) / straight.pow(2).sum(-1)


def probes(d: int) -> torch.Tensor:
    """Five inputs that give a norm away, [5, d]: u, -u, 2u, u + 100, and an unrelated one."""
    g = torch.Generator().manual_seed(0)
    sizes = 50 + 100 * torch.rand((d + 1) // 2, generator=g)
    u = torch.stack([sizes, -sizes], 1).flatten()[:d]
    if d % 2:  # an odd one out would leave a mean
        u[-1], u[-2] = sizes[-1], u[-2] - sizes[-1]
    return torch.stack([u, -u, 2 * u, u + 100, 100 * torch.randn(d, generator=g)])


def norm_of(x: torch.Tensor, y: torch.Tensor, where: str) -> Norm:
    """The norm that made y [5, d] of x = `probes(d)`; BadInput where none of these forms did."""
    half = y.dtype not in (torch.float32, torch.float64)
    x, y = x.double(), y.double().cpu()
    odd, offset = (y[0] - y[1]) / 2, (y[0] + y[1]) / 2
    scaled = bool((y[2] - y[0]).norm() < 0.1 * odd.norm())
    centred = scaled and bool((y[3] - y[0]).norm() < 1e-2 * odd.norm())
    gain = odd / x[0] * (x[0].pow(2).mean().sqrt() if scaled else 1.0)
    norm = Norm(gain, offset, centred, scaled)
    c = norm.centre(x[4])
    made = gain * c / (c.pow(2).mean().sqrt() if scaled else 1.0) + offset
    if not (made - y[4]).norm() <= (3e-2 if half else 1e-3) * y[4].norm():
        raise BadInput(f"the norm {where} is of no kind that a direction can be carried through")
    return Norm(gain.float(), offset.float(), centred, scaled)


def require(model: Model) -> None:
    """Raise MissingSite or BadInput for a model through which observables cannot be carried."""
    a = model.anatomy
    lock(model)  # refuses a model whose weights are elsewhere
    if a.kind != "decoder":
        raise BadInput(f"observables are of next-token logits; {model.name} is of kind {a.kind!r}")
    if a.unembed is None or a.d_model is None:
        raise MissingSite(f"{model.name} has no unembedding, so there are no logits to observe")
    a.require(["attn_in", "v", "head_out", "attn_out", "resid_pre", "resid_post"])
    if a.stream_norms or a.o_proj is None:
        raise BadInput(
            f"{model.name} norms its stream after each sum: no direction passes as it is"
        )
    if getattr(a.taps["v"].view, "clip", None) is not None:
        raise BadInput(f"{model.name} clips its values, so its heads are not linear in them")


def final_norm(model: Model) -> Norm:
    """The norm before the unembedding."""
    a = model.anatomy
    assert a.d_model is not None
    if a.final_norm is None:
        one = torch.ones(a.d_model)
        return Norm(one, 0 * one, False, False)
    return _module_norm(model, a.final_norm)


def post_norm(model: Model, layer: int) -> Norm | None:
    """The norm that sandwich architectures put between heads and stream, or None."""
    path = model.anatomy.attn_post
    return None if path is None else _module_norm(model, path.replace("{}", str(layer)))


def input_norms(model: Model, layers: Sequence[int], site: str = "attn_in") -> dict[int, Norm]:
    """What lies between the stream and `site` (attn_in or mlp_in) at each layer, measured."""
    a = model.anatomy
    assert a.d_model is not None
    x = probes(a.d_model)
    stream = stream_of(model, site)
    edits = [Edit(Address(stream, i), x[:, None].to(model.device)) for i in layers]
    reads = [Address(site, i) for i in layers]
    trace = engine.run(model, torch.ones(len(x), 1, dtype=torch.long), reads, edits, logits=None)
    return {
        i: norm_of(x.to(model.dtype), trace.values[r][:, 0], f"before {r}")
        for i, r in zip(layers, reads)
    }


def stream_of(model: Model, site: str) -> str:
    """The stream that attention or the MLP reads."""
    serial = site == "mlp_in" and not model.anatomy.parallel
    return "resid_mid" if serial else "resid_pre"


def _module_norm(model: Model, path: str) -> Norm:
    x = probes(model.d_model or 0).to(model.device, model.dtype)
    with lock(model), torch.no_grad():
        y = engine.tensor_of(model.module.get_submodule(path)(x))
    return norm_of(x.cpu(), y, path)


def transposed(
    f: Callable[[torch.Tensor], torch.Tensor], y: torch.Tensor, width: int, model: Model
) -> torch.Tensor:
    """W^T y, [k, width], of the affine map f: [k, width] -> [k, ...] and y [k, ...]."""
    with torch.enable_grad():
        x = torch.zeros(len(y), width, device=model.device, dtype=model.dtype, requires_grad=True)
        (back,) = torch.autograd.grad((f(x) * y.to(model.device, model.dtype)).sum(), x)
    return back.float().detach().cpu()


def heads_back(model: Model, layer: int, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Carry y [d_model], a direction at what attention adds before any norm, back through heads.

    Returns W_O^hT y, [heads, d_head], and W_V^hT W_O^hT y, [heads, d_model]; with grouped
    queries, head h has the values of group h // (heads / groups).
    """
    a = model.anatomy
    assert a.o_proj is not None
    assert a.n_heads
    assert a.n_kv_heads
    assert a.d_head
    assert a.d_model
    o = model.module.get_submodule(a.o_proj.replace("{}", str(layer)))
    v, view = model.module.get_submodule(a.taps["v"].at(layer)), a.taps["v"].view
    group = torch.arange(a.n_heads) // (a.n_heads // a.n_kv_heads)
    with lock(model):
        u = transposed(o, y[None], a.n_heads * a.d_head, model).reshape(a.n_heads, a.d_head)
        spread = torch.zeros(a.n_heads, a.n_kv_heads, a.d_head)
        spread[torch.arange(a.n_heads), group] = u
        return u, transposed(lambda x: view.read(v(x)), spread, a.d_model, model)
