"""`rules`: the same forward pass with another backward pass, by value-preserving grafts.

A graft takes its value from the real forward and its gradient from a surrogate, so logits stay
bit-identical while gradients follow the propagation rules of layer-wise relevance propagation:

* ln: a norm's scale is a constant. LayerNorm y = g (x - mean x) [1/std] + b, RMSNorm
  y = g x [1/rms], with the brackets detached.
* identity: an activation is a constant gain, y = x [f(x)/x]; so is the soft cap of logits.
* half: each factor of a gated product gets half, d(g u) -> (u dg + g du) / 2.
* attention: the pattern is a constant; relevance flows through values alone.

Linear maps keep their ordinary gradient (the 0-rule). Sources: Ali et al. 2022 (arXiv:2202.07304)
for ln and attention; Jafari et al. 2025, RelP (arXiv:2508.21258) for the set. The derivation here
is our own; LRP is claimed as patented technology by one of its groups (free for personal and
scientific use).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.tracing._nnsight import envoy, lock
from lwlab.tracing.order import module_order

_TINY = 1e-6


class Graft(torch.autograd.Function):
    """Value of the first argument, gradient to the second."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, surrogate: torch.Tensor) -> torch.Tensor:
        """Return `value`."""
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[None, torch.Tensor]:
        """Send the gradient to `surrogate`."""
        return None, grads[0]


def graft(value: torch.Tensor, surrogate: torch.Tensor) -> torch.Tensor:
    """Return `value` with the gradient of `surrogate` (equal shapes)."""
    out: torch.Tensor = Graft.apply(value, surrogate)  # type: ignore[no-untyped-call]
    return out


@contextlib.contextmanager
def rules(
    model: Model,
    *,
    ln: bool = True,
    identity: bool = True,
    half: bool = True,
    attention: bool = False,
) -> Iterator[Model]:
    """Give a view of `model` whose gradients follow the rules that are switched on.

    >>> with lw.rules(model, attention=True) as ruled:
    ...     coefficients = lw.grads(ruled, task.corrupt, task, "resid_pre")

    The view is a copy: `model` itself, and other threads using it, keep ordinary gradients, and
    the view keeps its rules for as long as it is held. They also hold in raw traces of `ruled.nn`.
    With all of them on, a model without biases conserves relevance: sum_positions <resid_l, c_l>
    is the metric, at every layer l.

    Raises BadInput for a model that is ruled already, an architecture whose layers need a rule
    that is not here (mixture of experts, state-space mixers, anatomies found by structure) or a
    norm of an unknown kind.
    """
    if model.rules:
        raise BadInput(f"{model.name} already follows {model.rules}: name all rules in one call")
    on = {"ln": ln, "identity": identity, "half": half, "attention": attention}
    names = tuple(k for k, v in on.items() if v)
    why = model.anatomy.refuses_rules
    if why and names:
        raise BadInput(f"{model.name}: no backward rules for this architecture: {why}")
    with lock(model):
        view = model.ruled(_store(model.nn, plan(model, on)), names)
    yield view


Step = tuple[str, str, Any]


def plan(model: Model, on: dict[str, bool]) -> list[Step]:
    """List what to graft where, (rule, module path, detail), in the order of the forward pass."""
    a = model.anatomy
    steps: list[Step] = []
    order = module_order(model)
    if on["ln"]:
        for path, module in model.module.named_modules():
            if _is_norm(module) and (path, "output") in order:
                steps.append(("ln", path, norm_surrogate(module, path)))
    for layer in range(a.n_layers):
        if on["identity"] and a.act:
            path = a.act.replace("{}", str(layer))
            if not isinstance(model.module.get_submodule(path), nn.ReLU):  # ReLU obeys it already
                steps.append(("identity", path, None))
        if on["half"] and a.gated and a.down:
            steps.append(("half", a.down.replace("{}", str(layer)), None))
        if on["attention"]:
            for site in ("q", "k"):
                tap = a.taps[site]
                steps.append(("attention", tap.at(layer), tap.view))
    if on["identity"] and a.softcap is not None and a.unembed:
        steps.append(("softcap", "", a.unembed))
    return sorted(
        steps, key=lambda s: order.get((s[1], "input" if s[0] == "half" else "output"), -1)
    )


def _store(nn_: Any, steps: list[Step]) -> Any:
    with nn_.edit() as (_, edited):
        _apply(edited, steps)
    return edited


def _apply(nn_: Any, steps: list[Step]) -> None:
    if not torch.is_grad_enabled():
        return
    for rule, path, detail in steps:
        here = envoy(nn_, path)
        if rule == "half":
            x = here.input
            here.input = graft(x, 0.5 * x)
        elif rule == "softcap":
            x, out = envoy(nn_, detail).output, here.output
            out.logits = graft(out.logits, x * gain(x, out.logits, limit=1.0))
        elif rule == "attention":
            y = here.output
            here.output = detail.write(y, detail.read(y).detach())
        else:
            x, y = here.input, here.output
            surrogate = detail(x) if rule == "ln" else x * gain(x, y)
            here.output = graft(y, surrogate)


def gain(x: torch.Tensor, y: torch.Tensor, limit: float = 0.5) -> torch.Tensor:
    """f(x) / x as a constant, and where x is nearly 0 its limit, 1/2 for the smooth gates."""
    with torch.no_grad():
        near = x.abs() < _TINY
        return torch.where(near, torch.full_like(x, limit), y / x.masked_fill(near, 1.0))


def _is_norm(module: nn.Module) -> bool:
    name = type(module).__name__
    return isinstance(module, nn.LayerNorm) or name.endswith(("RMSNorm", "LayerNorm"))


def norm_surrogate(module: nn.Module, path: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return x -> y with the norm's scale detached; raise BadInput if no known form equals it."""
    weight, bias = (getattr(module, k, None) for k in ("weight", "bias"))
    eps = next(
        (float(e) for k in ("variance_epsilon", "eps") if (e := getattr(module, k, None))), 1e-5
    )
    device = weight.device if isinstance(weight, torch.Tensor) else torch.device("cpu")
    dtype = weight.dtype if isinstance(weight, torch.Tensor) else torch.float32
    shape = getattr(module, "normalized_shape", (8,))  # OLMo's norm has no weight, only a shape
    width = weight.numel() if isinstance(weight, torch.Tensor) else int(shape[-1])
    x = torch.linspace(-2.0, 3.0, 3 * width, device=device, dtype=dtype).reshape(3, width)
    slack = 1 if dtype in (torch.float32, torch.float64) else 100  # half types round the output
    with torch.no_grad():
        y = module(x)
        for centred in (False, True):
            for offset in (0.0, 1.0):
                form = _form(centred, offset, eps, weight, bias)
                if torch.allclose(form(x), y, rtol=1e-3 * slack, atol=1e-4 * slack):
                    return form
    raise BadInput(f"the norm at {path} ({type(module).__name__}) is of no kind the ln rule knows")


def _form(
    centred: bool, offset: float, eps: float, weight: Any, bias: Any
) -> Callable[[torch.Tensor], torch.Tensor]:
    def surrogate(x: torch.Tensor) -> torch.Tensor:
        h = x.to(torch.promote_types(x.dtype, torch.float32))
        h = h - h.mean(-1, keepdim=True) if centred else h
        scale = torch.rsqrt(h.detach().pow(2).mean(-1, keepdim=True) + eps)
        y = h * scale
        y = y * (weight.float() + offset) if weight is not None else y
        y = y + bias.float() if bias is not None else y
        return y.to(x.dtype)

    return surrogate
