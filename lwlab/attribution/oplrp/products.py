"""Rules of what is linear in each operand: products with weights, convolutions, attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from lwlab.attribution.oplrp.graph import Node, op
from lwlab.attribution.oplrp.ops import axes, linear_conv, pattern
from lwlab.attribution.oplrp.step import Parts, Step, slopes, to
from lwlab.errors import BadInput


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
    if slope is None and live[0] and w.ndim == 2:
        # Relevance often starts at one logit of very many: the other columns have nothing to give.
        asked = r.flatten(0, -2).any(0)
        if 2 * int(asked.sum()) < len(asked):
            w, r = w[:, asked], r[..., asked]
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
    bare = w.abs()
    z, size = forward(x, w), forward(x.abs(), bare)
    sign = torch.where(z < 0, -1.0, 1.0)
    slope = slope * z / s.stab(z + gamma / 2 * (z + sign * size))
    own = x.abs() * back(sign * slope, x, bare)
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
    slope, taken = slopes(s, [z, bias])
    slope = s.out * slope
    parts = _product(s, x_, w, slope * z, s.live[1:], slope)
    return [to(s.out * taken, b), *parts]


def conv(s: Step) -> Parts:
    """The same for convolutions, with gamma_conv."""
    n, x, w, gamma = s.node, s.need(0), s.need(1), s.rules.gamma_conv
    b = s.operand(2) if len(n.next_functions) > 2 else None
    if s.live[1] or not s.live[0]:
        raise BadInput("a convolution whose weights depend on the inputs has no rule")
    z = linear_conv(n, x, w)
    bias = None if b is None else b.view(-1, *[1] * (z.ndim - 2)).expand_as(z)
    weights = slopes(s, [z] if bias is None else [z, bias])
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
    x = _unmasked(s, p) if s.rules.softmax == "taylor" else None
    return [_soft(s, x, p, s.out, ops_axis(s.node))]


def _unmasked(s: Step, p: Tensor) -> Tensor:
    """What a softmax read; where a mask was added that the graph does not hold, without it.

    Such a mask adds 0 to what is seen: then log p differs from the rest by one number a row, which
    is checked.
    """
    try:
        return s.need(0)
    except BadInput:
        below = s.node.next_functions[0][0]
        sides = [e for e in below.next_functions if e[0] is not None]
        if op(below) != "AddBackward0" or len(sides) != 1:
            raise
        x = s.values.output(*sides[0]).to(p.dtype).expand_as(p)
        dim = ops_axis(s.node)
        seen = p > 1e-5
        shift = torch.where(seen, p.clamp(min=1e-5).log() - x, 0.0)
        middle = shift.sum(dim, keepdim=True) / seen.sum(dim, keepdim=True).clamp(min=1)
        if bool((torch.where(seen, shift - middle, 0.0).abs() > 1e-3 * (1 + x.abs().max())).any()):
            raise
        return x


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
    return r if group == 1 else r.view(len(r), -1, group, *r.shape[2:]).sum(2)
