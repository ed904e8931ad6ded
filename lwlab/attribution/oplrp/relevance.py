"""One rule for each kind of operation: from the relevance of outputs to that of operands.

Notation: R is the relevance of the output, z the output, stab(z) = z + epsilon sign(z). A rule
returns one tensor for each operand, None where nothing goes; what goes to operands that no input
reaches (biases, above all) is counted as taken by constants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lwlab.attribution.oplrp.graph import Node, dtype_of, op
from lwlab.attribution.oplrp.ops import OPS, axes, linear_conv, pattern
from lwlab.attribution.oplrp.promises import Values
from lwlab.attribution.oplrp.rules import Rules
from lwlab.errors import BadInput

Parts = list[Tensor | None]


@dataclass
class Step:
    """One node about to hand its relevance on."""

    node: Node
    given: Sequence[Tensor | None]
    live: Sequence[bool]
    values: Values
    rules: Rules
    parallel: float = 0.0  # what the weights would get, if they got theirs beside the inputs

    @property
    def out(self) -> Tensor:
        """Relevance of the (only) output."""
        first = self.given[0]
        assert first is not None
        return first

    def operand(self, k: int) -> Tensor | None:
        """Operand k in the precision of the relevance, or None for an unknown constant."""
        value = self.values.operand(self.node, k)
        return None if value is None else value.detach().to(self.out.dtype)

    def need(self, k: int) -> Tensor:
        """Operand k, which must be had."""
        value = self.operand(k)
        if value is None:
            raise BadInput(f"{op(self.node)}: operand {k} is a constant the graph does not hold")
        return value

    def stab(self, z: Tensor) -> Tensor:
        """z, moved away from zero."""
        return z + torch.where(z < 0, -self.rules.epsilon, self.rules.epsilon)

    def split(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Weights by which a sum hands its relevance to its parts."""
        if self.rules.add == "ratio":
            z = self.stab(sum(parts[1:], parts[0]))
            return [p / z for p in parts]
        size = sum((p.abs() for p in parts[1:]), parts[0].abs()) + self.rules.epsilon
        return [p.abs() / size for p in parts]

    def back(self, given: Tensor) -> Parts:
        """What the operation's own backward makes of a tensor, one for each operand."""
        kind = dtype_of(self.node)
        found = self.node(given.to(kind))
        found = found if isinstance(found, tuple) else (found,)
        return [None if f is None else f.to(given.dtype) for f in found]


def _to(x: Tensor, like: Tensor) -> Tensor:
    """Undo a broadcast: sum over what `like` does not have."""
    return x if x.shape == like.shape else x.sum_to_size(like.shape)


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
        weights = _slopes(s, parts)
        g = s.out * weights[0] * gain
        taken = None if bias is None else (s.out * weights[1])
        moved = x * scale * (g - g.mean(-1, keepdim=True))
        return [moved, None, None if taken is None or bias is None else _to(taken, bias)]
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


def _slopes(s: Step, parts: Sequence[Tensor]) -> list[Tensor]:
    """As `split`, but the first weight is divided by the first part: R w is R_part / part."""
    first = parts[0]
    if s.rules.add == "ratio" or len(parts) == 1:
        z = s.stab(sum(parts[1:], first))
        return [1 / z, *(p / z for p in parts[1:])]
    size = sum((p.abs() for p in parts[1:]), first.abs()) + s.rules.epsilon
    return [torch.where(first < 0, -1.0, 1.0) / size, *(p.abs() / size for p in parts[1:])]


def add(s: Step) -> Parts:
    """R_a = R |a| / (|a| + |b|), or R a / (a + b); a constant the graph lacks takes nothing."""
    edges = s.node.next_functions
    missing = [k for k, (below, _) in enumerate(edges) if below is None]
    if len(edges) == 1 or missing:
        only = 0 if 0 not in missing else 1
        whole: Tensor | None = s.out
        x = s.operand(only) if s.rules.add == "ratio" else None
        if x is not None:
            z = s.values.maybe(s.node)
            sign = -1.0 if op(s.node) != "AddBackward0" and only == len(edges) - 1 else 1.0
            sign *= float(s.node._saved_alpha) if only == 1 else 1.0
            whole = s.out if z is None else s.out * sign * x / s.stab(z.to(x.dtype))
            whole = _to(whole, x)
        else:
            shape = edges[only][0]._input_metadata[edges[only][1]].shape
            whole = s.out.sum_to_size(tuple(shape)) if tuple(shape) != s.out.shape else s.out
        return [whole if k == only else None for k in range(len(edges))]
    sign = -1.0 if op(s.node) == "SubBackward0" else 1.0
    a, b = s.need(0), s.need(1)
    wa, wb = s.split([a, b * (sign * s.node._saved_alpha)])
    return [_to(s.out * wa, a), _to(s.out * wb, b)]


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
        return [_to(per * u, a), _to(per * v, b)]
    share = 0.5 if s.rules.mul == "half" else 1.0
    other = -share if divides and s.rules.mul == "full" else share
    return [_to((s.out * share).expand_as(s.out), a), _to(s.out * other, b)]


def matmul(s: Step) -> Parts:
    """z = x w: R_x = x (R / stab(z)) w^T; between two activations each side gets half, or all."""
    x, w = s.need(0), s.need(1)
    return _product(s, x, w, s.out, s.live)


def _product(
    s: Step, x: Tensor, w: Tensor, r: Tensor, live: Sequence[bool], slope: Tensor | None = None
) -> Parts:
    """The rule of a matrix product; `slope` is R / z where it is known better than by division."""
    if all(live[:2]):
        t = (r / s.stab(x @ w) if slope is None else slope) * _share(s)
        return [x * (t @ w.mT), w * (x.mT @ t)]
    s.parallel += float(r.double().sum())
    if slope is None:
        slope = r / s.stab(x @ w)
    if live[0]:
        return [_fan(s, x, w, slope, s.rules.gamma_linear, torch.matmul, _left), None]
    turned = _fan(s, w.mT, x.mT, slope.mT, s.rules.gamma_linear, torch.matmul, _left)
    return [None, turned.mT]


def _left(slope: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return slope @ w.mT


def _fan(
    s: Step, x: Tensor, w: Tensor, slope: Tensor, gamma: float,
    forward: Callable[[Tensor, Tensor], Tensor],
    back: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """R_x from R / z through z = x w; with gamma, contributions of z's own sign count more.

    c_ij = x_i w_ij counts 1 + gamma times where it has the sign of z_j = sum_i c_ij, and
    R_i = sum_j (counted c_ij) R_j / sum_i (counted c_ij). For x >= 0 and z > 0 that is the weight
    w + gamma max(w, 0). The part of c with the sign of z is (c + sign(z) |c|) / 2: two products.
    """
    if not gamma:
        return x * back(slope, x, w)
    z, size = forward(x, w), forward(x.abs(), w.abs())
    sign = torch.where(z < 0, -1.0, 1.0)
    slope = slope * z / s.stab(z + gamma / 2 * (z + sign * size))
    own = x.abs() * back(sign * slope, x, w.abs())
    return (1 + gamma / 2) * x * back(slope, x, w) + gamma / 2 * own


def _share(s: Step) -> float:
    return 0.5 if s.rules.bilinear == "half" else 1.0


def affine(s: Step) -> Parts:
    """b + x w: a sum of two, then a product."""
    b, x, w = s.operand(0), s.need(1), s.need(2)
    x_ = x * s.node._saved_alpha
    z = x_ @ w
    if b is None:
        return [None, *_product(s, x_, w, s.out, s.live[1:])]
    bias = (b * s.node._saved_beta).expand_as(z)
    slope, taken = _slopes(s, [z, bias])
    slope = s.out * slope
    parts = _product(s, x_, w, slope * z, s.live[1:], slope)
    return [_to(s.out * taken, b), *parts]


def conv(s: Step) -> Parts:
    """The same for convolutions, with gamma_conv."""
    n, x, w, gamma = s.node, s.need(0), s.need(1), s.rules.gamma_conv
    b = s.operand(2) if len(n.next_functions) > 2 else None
    if s.live[1] or not s.live[0]:
        raise BadInput("a convolution whose weights depend on the inputs has no rule")
    z = linear_conv(n, x, w)
    bias = None if b is None else b.view(-1, *[1] * (z.ndim - 2)).expand_as(z)
    weights = _slopes(s, [z] if bias is None else [z, bias])
    slope = s.out * weights[0]
    s.parallel += float((slope * z).double().sum())

    def back(slope: Tensor, x: Tensor, w: Tensor) -> Tensor:
        found: Tensor = torch.ops.aten.convolution_backward(
            slope, x, w, None, n._saved_stride, n._saved_padding, n._saved_dilation,
            n._saved_transposed, n._saved_output_padding, n._saved_groups, [True, False, False],
        )[0]  # fmt: skip
        return found

    to_x = _fan(s, x, w, slope, gamma, partial(linear_conv, n), back)
    taken = None if bias is None else (s.out * weights[1]).sum([0, *range(2, z.ndim)])
    return [to_x, None, taken]


def linear(s: Step) -> Parts:
    """Anything else that is linear in each operand, by its own backward."""
    z = s.values.output(s.node).to(s.out.dtype)
    count = sum(s.live)
    slope = s.out / s.stab(z) * (_share(s) if count > 1 else 1.0)
    back = s.back(slope)
    return [
        x * g if on and g is not None and (x := s.need(k)) is not None else None
        for k, (on, g) in enumerate(zip(s.live, back))
    ]


def _soft(s: Step, scores: Tensor | None, p: Tensor, r: Tensor, dim: int) -> Tensor:
    if s.rules.softmax == "identity":
        return r
    assert scores is not None
    moved = scores * (r - p * r.sum(dim, keepdim=True))
    return torch.where(p == 0, 0.0, moved)


def softmax(s: Step) -> Parts:
    """R_x = R, or x (R - s sum R)."""
    p = s.values.output(s.node).to(s.out.dtype)
    x = s.need(0) if s.rules.softmax == "taylor" else None
    return [_soft(s, x, p, s.out, ops_axis(s.node))]


def ops_axis(node: Node) -> int:
    """The axis of a softmax."""
    return axes([node._saved_dim])[0]


def attention(s: Step) -> Parts:
    """Attention in one piece, as its parts: z = P v, P = softmax(q k^T)."""
    q, k, v = s.need(0), s.need(1), s.need(2)
    group = q.shape[1] // k.shape[1]  # query heads that share a key and a value
    k, v = (x.repeat_interleave(group, 1) if group > 1 else x for x in (k, v))
    scores, p = pattern(s.node, q, k)
    z = p @ v
    if s.rules.softmax == "constant" or not (s.live[0] or s.live[1]):
        return [None, None, _ungroup(v * (p.mT @ (s.out / s.stab(z))), group)]
    half = _share(s) if s.live[2] else 1.0
    slope = s.out / s.stab(z) * half
    to_p = p * (slope @ v.mT)
    to_scores = _soft(s, scores, p, to_p, -1)
    t = to_scores / s.stab(q @ k.mT) * (_share(s) if s.live[0] and s.live[1] else 1.0)
    to_k, to_v = (_ungroup(x, group) for x in (k * (t.mT @ q), v * (p.mT @ slope)))
    found: Parts = [q * (t @ k), to_k, to_v]
    return [f if on else None for f, on in zip(found, s.live)]


def _ungroup(r: Tensor, group: int) -> Tensor:
    return r if group == 1 else r.unflatten(1, (-1, group)).sum(2)


KINDS: dict[str, Callable[[Step], Parts]] = {
    "route": route, "curve": curve, "norm": norm, "add": add, "sum": total, "mul": mul,
    "matmul": matmul, "affine": affine, "conv": conv, "linear": linear, "softmax": softmax,
    "attention": attention,
}  # fmt: skip


def kind_of(node: Node) -> str | None:
    """The kind of an operation, None where there is no row for it."""
    row = OPS.get(op(node))
    return None if row is None else row.kind
