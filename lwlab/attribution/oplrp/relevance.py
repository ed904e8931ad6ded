"""One rule for each kind of operation: from the relevance of outputs to that of operands.

Notation: R is the relevance of the output, z the output, stab(z) = z + epsilon sign(z). A rule
returns one tensor for each operand, None where nothing goes; what goes to operands that no input
reaches (biases, above all) is counted as taken by constants.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lwlab.attribution.oplrp.graph import dtype_of, op
from lwlab.attribution.oplrp.ops import axes
from lwlab.attribution.oplrp.products import affine, attention, conv, linear, matmul, softmax
from lwlab.attribution.oplrp.step import Parts, Step, slopes, to
from lwlab.errors import BadInput


def route(s: Step) -> Parts:
    """Each number goes back where it came from."""
    kind = dtype_of(s.node)
    sample = next(g for g in s.given if g is not None)
    found = s.node(*[None if g is None else g.to(kind) for g in s.given])
    found = found if isinstance(found, tuple) else (found,)
    return [None if f is None else f.to(sample.dtype) for f in found]


def curve(s: Step) -> Parts:
    """R_x = R, or R x f'(x) / f(x)."""
    if s.rules.curve == "identity":
        return [s.out]
    x, y = s.need(0), s.values.output(s.node).to(s.out.dtype)
    g = s.back(s.out / s.stab(y))[0]
    return [None if g is None else x * g]


def norm(s: Step) -> Parts:
    """R_x = R; or the linear rule with a constant scale; or x times the gradient."""
    if s.rules.norm == "identity":
        return [s.out]
    n, x = s.node, s.need(0)
    if s.rules.norm == "gradient":
        g = s.back(s.out / s.stab(s.values.output(n).to(s.out.dtype)))[0]
        return [None if g is None else x * g]
    layer = op(n) == "NativeLayerNormBackward0"
    if not layer and op(n) != "NativeBatchNormBackward0":
        raise BadInput(f"{op(n)} has no rule with a constant scale: use norm='identity'")
    gain = 1.0 if n._saved_weight is None else n._saved_weight.detach()
    if layer:
        scale = n._saved_result2
        linear = (x - x.mean(-1, keepdim=True)) * scale * gain
        bias = None if n._saved_bias is None else n._saved_bias.detach()
        if x.shape[-1] != linear.shape[-1] or len(n._saved_normalized_shape) != 1:
            raise BadInput(f"{op(n)} over several axes has no rule with a constant scale")
        parts = [linear] if bias is None else [linear, bias.expand_as(linear)]
        weights = slopes(s, parts)
        g = s.out * weights[0] * gain
        taken = None if bias is None else (s.out * weights[1])
        moved = x * scale * (g - g.mean(-1, keepdim=True))
        return [moved, None, None if taken is None or bias is None else to(taken, bias)]
    if n._saved_training:
        raise BadInput("a batch norm in training mode mixes pictures: call module.eval() first")
    shape = [1, -1] + [1] * (x.ndim - 2)
    scale = (n._saved_running_var + n._saved_eps).rsqrt() * gain
    offset = -n._saved_running_mean * scale
    beta = s.operand(2)
    offset = (offset if beta is None else offset + beta).view(shape).expand_as(x)
    linear = x * scale.view(shape)
    weights = s.split([linear, offset])
    rest = (s.out * weights[1]).sum([0, *range(2, x.ndim)])
    return [s.out * weights[0], None, rest]


def add(s: Step) -> Parts:
    """R_a = R |a| / (|a| + |b|), or R a / (a + b); a constant the graph lacks takes nothing."""
    edges = s.node.next_functions
    missing = [k for k, (below, _) in enumerate(edges) if below is None]
    if len(edges) == 1 or missing:
        only = 0 if 0 not in missing else 1
        whole: Tensor | None = s.out
        rest: Tensor | None = None  # what the constant takes
        x = s.operand(only) if s.rules.add == "ratio" else None
        if x is not None:
            z = s.values.maybe(s.node)
            sign = -1.0 if op(s.node) != "AddBackward0" and only == len(edges) - 1 else 1.0
            sign *= float(s.node._saved_alpha) if only == 1 else 1.0
            share = s.out if z is None else s.out * sign * x / s.stab(z.to(x.dtype))
            rest = s.out - share
            whole = to(share, x)
        else:
            shape = edges[only][0]._input_metadata[edges[only][1]].shape
            whole = s.out.sum_to_size(tuple(shape)) if tuple(shape) != s.out.shape else s.out
        return [whole if k == only else rest for k in range(len(edges))]
    sign = -1.0 if op(s.node) == "SubBackward0" else 1.0
    a, b = s.need(0), s.need(1)
    wa, wb = s.split([a, b * (sign * s.node._saved_alpha)])
    return [to(s.out * wa, a), to(s.out * wb, b)]


def total(s: Step) -> Parts:
    """Sums and means over axes: R_i = R |x_i| / sum |x|, or R x_i / sum x."""
    x, r = s.need(0), s.out
    if op(s.node).endswith("1") and len(axes(s.node._saved_dim)):
        dims = sorted(d % x.ndim for d in axes(s.node._saved_dim))
        if not s.node._saved_keepdim:
            for d in dims:
                r = r.unsqueeze(d)
    else:
        dims = list(range(x.ndim))
    if s.rules.add == "ratio":
        return [x * (r / s.stab(x.sum(dims, keepdim=True) if dims else x))]
    size = x.abs()
    return [size * (r / ((size.sum(dims, keepdim=True) if dims else size) + s.rules.epsilon))]


def mul(s: Step) -> Parts:
    """R_a = R |a| / (|a| + |b|) between live factors (of a quotient, a and 1 / b); gains take none.

    "half": R / 2 each; "full": R each, and -R to a divisor.
    """
    divides = op(s.node) == "DivBackward0"
    live = [k for k, on in enumerate(s.live) if on]
    found: Parts = [None] * len(s.live)
    if len(live) < 2:
        k = live[0]
        below, i = s.node.next_functions[k]
        shape = tuple(below._input_metadata[i].shape)
        r = -s.out if divides and k == 1 and s.rules.mul == "full" else s.out
        found[k] = r if shape == r.shape else r.sum_to_size(shape)
        return found
    a, b = s.need(0), s.need(1)
    if s.rules.mul == "magnitude":
        u, v = a.abs(), (1 / b if divides else b).abs()
        per = s.out / (u + v + s.rules.epsilon)
        return [to(per * u, a), to(per * v, b)]
    share = 0.5 if s.rules.mul == "half" else 1.0
    other = -share if divides and s.rules.mul == "full" else share
    return [to((s.out * share).expand_as(s.out), a), to(s.out * other, b)]


KINDS: dict[str, Callable[[Step], Parts]] = {
    "route": route, "curve": curve, "norm": norm, "add": add, "sum": total, "mul": mul,
    "matmul": matmul, "affine": affine, "conv": conv, "linear": linear, "softmax": softmax,
    "attention": attention,
}  # fmt: skip
