"""What a model does at the two ends of an edge, in a form that can run inside a trace.

`Shares`: from heads' outputs to what they add to the stream. `norms`: from a stream to what a
sublayer reads. Neither calls a module as the model does, because inside a running trace that would
be one more event of the trace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from lwlab.attribution.wiring import matrix
from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.models.sample import sample
from lwlab.tracing import engine
from lwlab.tracing._nnsight import lock
from lwlab.tracing.rules import norm_surrogate

Norm = Callable[[int, Tensor], Tensor]


class Shares:
    """What heads add to the stream.

    share_h = W_O z_h, times the scale w / rms of the norm behind W_O where there is one.
    """

    def __init__(self, model: Model) -> None:
        """Take the matrices and the scales' forms, where a sandwich norm needs them."""
        a, self.model = model.anatomy, model
        self.scales: dict[int, Callable[[Tensor], Tensor]] = {}
        if a.attn_post is not None:
            for i in range(model.n_layers):
                path = a.attn_post.replace("{}", str(i))
                self.scales[i] = norm_surrogate(model.module.get_submodule(path), path)

    def __call__(self, layer: int, z: Tensor) -> Tensor:
        """Shares [rows, heads, positions, d_model] of head_out [rows, positions, heads, d_head]."""
        path = (self.model.anatomy.o_proj or "").replace("{}", str(layer))
        module = self.model.module.get_submodule(path)
        w = matrix(module)
        w = w.reshape(z.shape[2], -1, w.shape[1])
        shares = torch.einsum("nphe,hed->nhpd", z.to(w.dtype), w)
        if layer in self.scales:
            x = shares.sum(1)
            bias: Any = getattr(module, "bias", None)
            x = x if bias is None else x + bias
            with torch.enable_grad():
                x = x.detach().requires_grad_(True)
                (scale,) = torch.autograd.grad(self.scales[layer](x).sum(), x)
            shares = shares * scale[:, None]
        return shares


def norms(model: Model) -> dict[str, Norm]:
    """Find what turns the stream into attn_in and mlp_in: {site: (layer, stream) -> values}.

    It is the module of the first block that was seen to hand the very tensor over, or nothing
    where the sublayer is handed the stream itself. Raises BadInput where neither is seen.
    """
    x = sample(model)
    assert x is not None  # decoders have one
    data = engine.batch(model, x)
    prefix = f"{model.anatomy.blocks}.0"
    block = model.module.get_submodule(prefix)
    sites = [s for s in ("attn_in", "mlp_in") if s in model.anatomy.taps]
    handed: dict[str, Tensor] = {}
    made: list[tuple[str, Tensor, Tensor]] = []
    hooks = []
    for site in sites:
        target = model.module.get_submodule(model.anatomy.taps[site].at(0))

        def before(_m: Any, args: Any, kwargs: Any, site: str = site) -> None:
            handed.setdefault(site, args[0] if args else kwargs["hidden_states"])

        hooks.append(target.register_forward_pre_hook(before, with_kwargs=True))
    for path, sub in block.named_modules():
        if path and not list(sub.children()):

            def after(_m: Any, args: Any, out: Any, path: str = path) -> None:
                if args and isinstance(out, Tensor) and isinstance(args[0], Tensor):
                    made.append((path, args[0], out))

            hooks.append(sub.register_forward_hook(after))

    def enter(_m: Any, args: Any, kwargs: Any) -> None:
        handed["stream"] = args[0] if args else kwargs["hidden_states"]

    hooks.append(block.register_forward_pre_hook(enter, with_kwargs=True))
    try:
        args, inputs = data.fresh()
        with lock(model), torch.no_grad():
            model.module(*args, **inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {site: _norm(model, site, handed, made, prefix) for site in sites}


def _norm(model: Model, site: str, handed: dict[str, Tensor], made: list[Any], prefix: str) -> Norm:
    path = next((p for p, _, out in made if out is handed[site]), None)
    if path is None:
        taps = model.anatomy.taps
        same = (
            site == "mlp_in" and "resid_mid" in taps and taps["resid_mid"].path == taps[site].path
        )
        if same or (site == "attn_in" and handed[site] is handed["stream"]):
            return lambda _layer, x: x
        raise BadInput(
            f"{model.name}: no module of its blocks was seen to make {site}, so what a receiver "
            "makes of a stream is not known and its edges cannot be cut"
        )
    blocks = prefix.rpartition(".")[0]

    def norm(layer: int, x: Tensor) -> Tensor:
        module = model.module.get_submodule(f"{blocks}.{layer}.{path}")
        forward = cast("Callable[[Any, Tensor], Tensor]", type(module).forward)
        return forward(module, x.to(model.dtype))

    return norm
