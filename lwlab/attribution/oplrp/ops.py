"""What is known of each operation: its kind (which rule it gets), its saved tensors, its forward.

A row tells how to get an operand or the output back from what autograd saved, and how to run the
operation again; `lwlab.attribution.oplrp.relevance` has one rule a kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lwlab.attribution.oplrp.graph import Node, shape_of

Forward = Callable[[Node, Sequence[Tensor]], Any]


@dataclass(frozen=True)
class Op:
    """`kind` chooses the rule. `saved`: the attribute that holds operand k, "" where none does.

    `result`: the attribute that holds the output. `forward` takes the node and its operands and
    returns the output, a tuple where there are several. `needs`: how many operands it takes, 0
    for all.
    """

    kind: str
    forward: Forward | None = None
    saved: tuple[str, ...] = ()
    result: str = ""
    needs: int = 0


def axis(value: int) -> int:
    """Undo the unsigned form in which autograd keeps a negative axis."""
    return int(value) - 2**64 if value >= 2**63 else int(value)


def axes(values: Any) -> tuple[int, ...]:
    """Undo it for several."""
    return tuple(axis(v) for v in values)


def _slice(n: Node, x: Sequence[Tensor]) -> Tensor:
    index: list[Any] = [slice(None)] * x[0].ndim
    start, end = axis(n._saved_start), axis(n._saved_end)
    index[axis(n._saved_dim)] = slice(start, None if end >= 2**62 else end, n._saved_step)
    return x[0][tuple(index)]


def _index(n: Node, x: Sequence[Tensor]) -> Tensor:
    return x[0][tuple(slice(None) if i is None else i for i in n._saved_indices)]


def _mean(n: Node, x: Sequence[Tensor]) -> Tensor:
    return x[0].mean(axes(n._saved_dim), n._saved_keepdim)


def _sum(n: Node, x: Sequence[Tensor]) -> Tensor:
    return x[0].sum(axes(n._saved_dim), n._saved_keepdim)


def _gelu(n: Node, x: Sequence[Tensor]) -> Tensor:
    return F.gelu(x[0], approximate=n._saved_approximate)


def _layer_norm(n: Node, x: Sequence[Tensor]) -> Tensor:
    y = (x[0] - n._saved_result1) * n._saved_result2
    y = y if n._saved_weight is None else y * n._saved_weight
    return y if n._saved_bias is None else y + n._saved_bias


def _batch_norm(n: Node, x: Sequence[Tensor]) -> Tensor:
    bias = x[2] if len(x) > 2 else None
    mean, var = n._saved_running_mean, n._saved_running_var
    return F.batch_norm(x[0], mean, var, n._saved_weight, bias, n._saved_training, 0, n._saved_eps)


def linear_conv(n: Node, x: Tensor, w: Tensor) -> Tensor:
    """The convolution of a node without its bias."""
    return torch.convolution(
        x, w, None, n._saved_stride, n._saved_padding, n._saved_dilation, n._saved_transposed,
        n._saved_output_padding, n._saved_groups,
    )  # fmt: skip


def _conv(n: Node, x: Sequence[Tensor]) -> Tensor:
    y = linear_conv(n, x[0], x[1])
    return y if len(x) < 3 else y + x[2].view(-1, *[1] * (y.ndim - 2))


def pattern(n: Node, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (mask added) and their softmax, of a fused attention."""
    scale = n._saved_scale if n._saved_scale is not None else query.shape[-1] ** -0.5
    scores = query @ key.mT * scale
    mask = getattr(n, "_saved_attn_mask", None)
    mask = getattr(n, "_saved_attn_bias", None) if mask is None else mask
    if getattr(n, "_saved_is_causal", False):
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, float("-inf"))
    if mask is not None:
        hard = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, float("-inf")) if hard else scores + mask
    return scores, scores.softmax(-1).nan_to_num(0.0)


def _clamp(n: Node, x: Sequence[Tensor]) -> Tensor:
    return x[0].clamp(n._saved_min, n._saved_max)


def _hardtanh(n: Node, x: Sequence[Tensor]) -> Tensor:
    return x[0].clamp(n._saved_min_val, n._saved_max_val)


def _reshape(n: Node, x: Sequence[Tensor]) -> Tensor:
    return x[0].reshape(shape_of(n))


def _split(n: Node, x: Sequence[Tensor]) -> Any:
    return torch.split(x[0], n._saved_split_size, axis(n._saved_dim))


def _split_sizes(n: Node, x: Sequence[Tensor]) -> Any:
    return torch.split(x[0], [int(s) for s in n._saved_split_sizes], axis(n._saved_dim))


def _gather(n: Node, x: Sequence[Tensor]) -> Tensor:
    return x[0].gather(axis(n._saved_dim), n._saved_index)


def _winners(n: Node, x: Sequence[Tensor]) -> Tensor:
    at, dim = n._saved_indices, axis(n._saved_dim)
    if getattr(n, "_saved_keepdim", True):
        return x[0].gather(dim, at)
    return x[0].gather(dim, at.unsqueeze(dim)).squeeze(dim)


def _pool(n: Node, x: Sequence[Tensor]) -> Tensor:
    at = n._saved_result1
    return x[0].flatten(-2).gather(-1, at.flatten(-2)).view(at.shape)


def _avg_pool(n: Node, x: Sequence[Tensor]) -> Tensor:
    return F.avg_pool2d(
        x[0], n._saved_kernel_size, n._saved_stride or None, n._saved_padding,
        n._saved_ceil_mode, n._saved_count_include_pad, n._saved_divisor_override,
    )  # fmt: skip


def _adaptive(n: Node, x: Sequence[Tensor]) -> Tensor:
    tall, wide = shape_of(n)[-2:]
    return F.adaptive_avg_pool2d(x[0], (tall, wide))


def _embedding(n: Node, x: Sequence[Tensor]) -> Tensor:
    return x[0][n._saved_indices]


_GROUPED = getattr(torch, "_grouped_mm", None)


def _grouped(n: Node, x: Sequence[Tensor]) -> Tensor:
    assert _GROUPED is not None
    y: Tensor = _GROUPED(x[0], x[1], offs=n._saved_offs)
    return y


def _on(function: Callable[[Tensor], Tensor]) -> Forward:
    return lambda n, x: function(x[0])


_SELF = ("_saved_self",)
_PAIR = ("_saved_self", "_saved_other")


def _route(forward: Forward | None, *names: str) -> dict[str, Op]:
    return {f"{n}Backward0": Op("route", forward) for n in names}


def _curve(function: Callable[[Tensor], Tensor], *names: str) -> dict[str, Op]:
    """Curves that save what they read."""
    return {f"{n}Backward0": Op("curve", _on(function), _SELF) for n in names}


def _kept(function: Callable[[Tensor], Tensor], *names: str) -> dict[str, Op]:
    """Curves that save what they gave."""
    return {f"{n}Backward0": Op("curve", _on(function), (), "_saved_result") for n in names}


OPS: dict[str, Op] = {
    "AccumulateGrad": Op("leaf"),
    # routing: every number of the output is one of the input, or a constant
    **_route(_reshape, "View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze"),
    **{f"SqueezeBackward{i}": Op("route", _reshape) for i in (1, 2, 3)},
    **_route(_on(lambda x: x), "Alias", "Clone", "ToCopy", "Detach", "LiftFresh"),
    **_route(_on(lambda x: x.t()), "T"),
    **_route(lambda n, x: x[0].transpose(axis(n._saved_dim0), axis(n._saved_dim1)), "Transpose"),
    **_route(lambda n, x: x[0].permute(axes(n._saved_dims)), "Permute"),
    **_route(lambda n, x: x[0].expand(shape_of(n)), "Expand"),
    **_route(lambda n, x: x[0].repeat([int(r) for r in n._saved_repeats]), "Repeat"),
    **_route(lambda n, x: x[0].flip(axes(n._saved_dims)), "Flip"),
    **_route(lambda n, x: x[0].roll(n._saved_shifts, axes(n._saved_dims)), "Roll"),
    **_route(lambda n, x: x[0].select(axis(n._saved_dim), axis(n._saved_index)), "Select"),
    **_route(lambda n, x: x[0].index_select(axis(n._saved_dim), n._saved_index), "IndexSelect"),
    **_route(lambda n, x: F.pad(x[0], axes(n._saved_pad)), "ConstantPadNd"),
    **_route(lambda n, x: torch.cat(list(x), axis(n._saved_dim)), "Cat"),
    **_route(lambda n, x: torch.stack(list(x), axis(n._saved_dim)), "Stack"),
    **_route(lambda n, x: x[0].unbind(axis(n._saved_dim)), "Unbind"),
    **_route(lambda n, x: x[0].as_strided(n._saved_size, n._saved_stride), "AsStrided"),
    **_route(_slice, "Slice"),
    **_route(_index, "Index"),
    **_route(_split, "Split"),
    **_route(_split_sizes, "SplitWithSizes"),
    **_route(_winners, "Topk", "Sort"),
    **{n: Op("route", _winners) for n in ("MaxBackward0", "MinBackward0")},
    "GatherBackward0": Op("route", _gather, _SELF),
    "MaxPool2DWithIndicesBackward0": Op("route", _pool, _SELF),
    "EmbeddingBackward0": Op("route", _embedding),
    "WhereBackward0": Op("route", lambda n, x: torch.where(n._saved_condition, x[0], x[1])),
    "MaskedFillBackward0": Op("route"),
    # one number in, one number out
    **_kept(torch.relu, "Relu"),
    **_kept(torch.sigmoid, "Sigmoid"),
    **_kept(torch.tanh, "Tanh"),
    **_kept(torch.exp, "Exp"),
    **_kept(torch.sqrt, "Sqrt"),
    **_kept(torch.rsqrt, "Rsqrt"),
    **_kept(torch.reciprocal, "Reciprocal"),
    **_curve(F.silu, "Silu"),
    **_curve(F.mish, "Mish"),
    **_curve(F.hardswish, "Hardswish"),
    **_curve(F.hardsigmoid, "Hardsigmoid"),
    **_curve(torch.erf, "Erf"),
    **_curve(torch.log, "Log"),
    **_curve(torch.sin, "Sin"),
    **_curve(torch.cos, "Cos"),
    **_curve(torch.abs, "Abs"),
    "NegBackward0": Op("curve", _on(torch.neg)),
    "GeluBackward0": Op("curve", _gelu, _SELF),
    "PowBackward0": Op("curve", lambda n, x: x[0] ** n._saved_exponent, _SELF),
    "HardtanhBackward0": Op("curve", _hardtanh, _SELF),
    "ClampBackward1": Op("curve", _clamp, _SELF),
    "LeakyReluBackward0": Op(
        "curve", lambda n, x: F.leaky_relu(x[0], n._saved_negative_slope), _SELF
    ),
    "EluBackward0": Op("curve", lambda n, x: F.elu(x[0], n._saved_alpha), _SELF),
    "SoftplusBackward0": Op(
        "curve", lambda n, x: F.softplus(x[0], n._saved_beta, n._saved_threshold), _SELF
    ),
    "MulBackward1": Op("curve", lambda n, x: x[0] * n._saved_other),
    "DivBackward1": Op("curve", lambda n, x: x[0] / n._saved_other),
    # norms in one piece
    "NativeLayerNormBackward0": Op("norm", _layer_norm, ("_saved_input",), needs=1),
    "NativeBatchNormBackward0": Op("norm", _batch_norm, ("_saved_input", "_saved_weight")),
    "NativeGroupNormBackward0": Op("norm", None, ("_saved_input", "_saved_weight")),
    # sums and products
    "AddBackward0": Op("add", lambda n, x: x[0] + n._saved_alpha * x[1]),
    "SubBackward0": Op("add", lambda n, x: x[0] - n._saved_alpha * x[1]),
    "RsubBackward1": Op("add"),
    "SumBackward0": Op("sum", _on(torch.sum)),
    "SumBackward1": Op("sum", _sum),
    "MeanBackward0": Op("sum", _on(torch.mean)),
    "MeanBackward1": Op("sum", _mean),
    "MulBackward0": Op("mul", lambda n, x: x[0] * x[1], _PAIR),
    "DivBackward0": Op("mul", lambda n, x: x[0] / x[1], _PAIR),
    # what is linear in each operand
    "MmBackward0": Op("matmul", lambda n, x: x[0] @ x[1], ("_saved_self", "_saved_mat2")),
    "BmmBackward0": Op("matmul", lambda n, x: x[0] @ x[1], ("_saved_self", "_saved_mat2")),
    "MvBackward0": Op("linear", lambda n, x: x[0] @ x[1], ("_saved_self", "_saved_vec")),
    "DotBackward0": Op("linear", lambda n, x: x[0] @ x[1], ("_saved_self", "_saved_tensor")),
    "AddmmBackward0": Op(
        "affine", lambda n, x: n._saved_beta * x[0] + n._saved_alpha * (x[1] @ x[2]),
        ("", "_saved_mat1", "_saved_mat2"),
    ),
    "BaddbmmBackward0": Op(
        "affine", lambda n, x: n._saved_beta * x[0] + n._saved_alpha * (x[1] @ x[2]),
        ("", "_saved_batch1", "_saved_batch2"),
    ),
    "ConvolutionBackward0": Op("conv", _conv, ("_saved_input", "_saved_weight")),
    "GroupedMmBackward0": Op("linear", _grouped, ("_saved_self", "_saved_mat2")),
    "CumsumBackward0": Op("linear", lambda n, x: x[0].cumsum(axis(n._saved_dim))),
    "AvgPool2DBackward0": Op("linear", _avg_pool, _SELF),
    "AdaptiveAvgPool2DBackward0": Op(
        "linear", _adaptive, _SELF
    ),
    # attention
    "SoftmaxBackward0": Op(
        "softmax", lambda n, x: x[0].softmax(axis(n._saved_dim)), (), "_saved_result"
    ),
    "SafeSoftmaxBackward0": Op("softmax", None, (), "_saved_result"),
    **{
        f"ScaledDotProduct{name}Backward0": Op(
            "attention", None, ("_saved_query", "_saved_key", "_saved_value"), "_saved_output"
        )
        for name in ("FlashAttentionForCpu", "FlashAttention", "EfficientAttention")
    },
}  # fmt: skip

#: Operations that make the scale of a norm, where it is not one piece.
SCALES = ("RsqrtBackward0", "SqrtBackward0", "ReciprocalBackward0", "StdBackward0",
          "VarBackward0", "LinalgVectorNormBackward0")  # fmt: skip
#: What a consumer's saved result says of its operand.
INVERSES: dict[str, Callable[[Tensor], Tensor]] = {
    "RsqrtBackward0": lambda y: y**-2,
    "SqrtBackward0": lambda y: y**2,
    "ReciprocalBackward0": lambda y: 1 / y,
}
