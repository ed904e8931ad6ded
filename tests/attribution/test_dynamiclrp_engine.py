"""The engine: every rule against a loop over single numbers; promises against what was recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lwlab.attribution.oplrp import (
    SETS,
    Graph,
    Rules,
    layout,
    op,
    propagate,
    recording,
    uncovered,
)
from lwlab.errors import BadInput, UnknownName


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return draw(*shape, seed=seed).requires_grad_()


def relevance(y: Tensor, inputs: list[Tensor], start: Tensor, rules: Any = "epsilon") -> list[Any]:
    return [r.numpy() for r in propagate(y, inputs, start=start, rules=rules).inputs]


# -- rules, one number at a time ------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.3, 50.0])
def test_a_product_with_weights_shares_by_contribution_gamma_favours_its_own_sign(
    gamma: float,
) -> None:
    x, w, r = leaf(3, 5), draw(5, 4, seed=1), draw(3, 4, seed=2)
    expected = np.zeros((3, 5))
    for i in range(3):
        for j in range(4):
            parts = [float(x[i, k].detach() * w[k, j]) for k in range(5)]
            z = sum(parts)
            counted = [p * (1 + gamma if p * z > 0 else 1) for p in parts]
            for k in range(5):
                expected[i, k] += counted[k] / sum(counted) * float(r[i, j])
    (got,) = relevance(x @ w, [x], r, Rules(gamma_linear=gamma))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    (turned,) = relevance(w.T @ x.T, [x], r.T.contiguous(), Rules(gamma_linear=gamma))
    np.testing.assert_allclose(turned, expected, rtol=1e-4, atol=1e-5)


def test_gamma_is_the_textbook_weight_where_inputs_and_output_are_positive() -> None:
    x = draw(2, 5).abs().requires_grad_()
    w = draw(5, 3, seed=1) + 1
    w2 = w + 0.25 * w.clamp(min=0)
    z, z2 = (x @ w).detach(), (x @ w2).detach()
    assert bool((z > 0).all())
    (got,) = relevance(x @ w, [x], torch.ones(2, 3), Rules(gamma_linear=0.25))
    np.testing.assert_allclose(got, (x * ((1 / z2) @ w2.T)).detach(), rtol=1e-4)


@pytest.mark.parametrize("add", ["magnitude", "ratio"])
def test_sums_differences_and_means_share_by_size(add: Any) -> None:
    a, b, r = leaf(2, 3), leaf(2, 3, seed=1), draw(2, 3, seed=2)

    def shares(*parts: Tensor) -> list[Tensor]:
        if add == "ratio":
            return [p / sum(parts) for p in parts]
        return [p.abs() / sum(q.abs() for q in parts) for p in parts]

    for y, parts in (
        (a + b, (a, b)), (a - b, (a, -b)), (torch.add(a, b, alpha=3), (a, 3 * b)),
        (torch.sub(a, b, alpha=2), (a, -2 * b)),
    ):  # fmt: skip
        got = relevance(y, [a, b], r, Rules(add=add))
        for g, s in zip(got, shares(*parts)):
            np.testing.assert_allclose(g, (s * r).detach(), rtol=1e-4, atol=1e-6)
    columns = [a[:, i] for i in range(3)]
    for y in (a.sum(1), a.mean(-1), a.sum(1, keepdim=True)[:, 0]):
        (got,) = relevance(y, [a], r[:, 0], Rules(add=add))
        expected = torch.stack(shares(*columns), 1) * r[:, :1]
        np.testing.assert_allclose(got, expected.detach(), rtol=1e-4, atol=1e-6)


def test_products_share_between_live_factors_and_gains_take_nothing() -> None:
    a, b, gain, r = leaf(2, 3), leaf(2, 1, seed=1), draw(3, seed=3), draw(2, 3, seed=2)
    u, v = a.detach().abs(), b.detach().abs()
    got = relevance(a * b, [a, b], r)
    np.testing.assert_allclose(got[0], u / (u + v) * r, rtol=1e-5)
    np.testing.assert_allclose(got[1], (v / (u + v) * r).sum(1, keepdim=True), rtol=1e-4)
    got = relevance(a / b, [a, b], r)
    np.testing.assert_allclose(got[0], u / (u + 1 / v) * r, rtol=1e-5)
    half = relevance(a * b, [a, b], r, Rules(mul="half"))
    np.testing.assert_allclose(half[0], r / 2)
    np.testing.assert_allclose(half[1], r.sum(1, keepdim=True) / 2, rtol=1e-5)
    weight = nn.Parameter(gain)
    for y in (a * gain, a * weight, weight * a, a / weight, 3.0 * a, a / 2.0):
        np.testing.assert_allclose(relevance(y, [a], r)[0], r)
    small = leaf(1, 3)  # broadcast up by a constant
    np.testing.assert_allclose(relevance(small * gain.expand(2, 3), [small], r)[0], r.sum(0)[None])


def test_products_of_two_activations_give_half_to_each_side() -> None:
    a, b, r = leaf(4, 3, 5), leaf(4, 5, 2, seed=1), draw(4, 3, 2, seed=2)
    z = (a @ b).detach()
    expected = [
        a * ((r / z / 2) @ b.mT), b * (a.mT @ (r / z / 2)),
    ]  # fmt: skip
    for g, e in zip(relevance(a @ b, [a, b], r), expected):
        np.testing.assert_allclose(g, e.detach(), rtol=1e-3, atol=1e-5)
    full = relevance(a @ b, [a, b], r, Rules(bilinear="full"))
    np.testing.assert_allclose(full[0], 2 * expected[0].detach(), rtol=1e-3, atol=1e-5)


def test_softmax_passes_by_identity_or_by_taylor_or_not_at_all() -> None:
    x, r = leaf(2, 4), draw(2, 4, seed=1)
    p = x.softmax(-1)
    np.testing.assert_allclose(relevance(p, [x], r)[0], r)
    taylor = x * (r - p * r.sum(-1, keepdim=True))
    got = relevance(p, [x], r, Rules(softmax="taylor"))[0]
    np.testing.assert_allclose(got, taylor.detach(), rtol=1e-5)
    with pytest.raises(BadInput, match="hold constant"):
        relevance(x.softmax(-1), [x], r, Rules(softmax="constant"))


def test_biases_are_split_off_before_the_product() -> None:
    x, r = leaf(3, 4), draw(3, 2, seed=1)
    lin = nn.Linear(4, 2)
    z, b = (x @ lin.weight.T).detach(), lin.bias.detach()
    to_z = r * z.abs() / (z.abs() + b.abs())
    walk = propagate(lin(x), [x], start=r, rules="epsilon")
    expected = (x * ((to_z / z) @ lin.weight)).detach()
    np.testing.assert_allclose(walk.inputs[0], expected, rtol=1e-4, atol=1e-6)
    assert walk.constants["AccumulateGrad"] == pytest.approx(float((r - to_z).sum()), abs=1e-5)
    assert walk.gap < 1e-5


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_convolutions_are_matrix_products_over_patches(gamma: float) -> None:
    x, r = leaf(2, 3, 6, 6), draw(2, 4, 3, 3, seed=1)
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
    (got,) = relevance(conv(x), [x], r, Rules(gamma_conv=gamma))
    patches = F.unfold(x, 3, stride=2, padding=1).mT.reshape(-1, 27).detach().requires_grad_()
    flat = conv.weight.detach().flatten(1).T
    (rows,) = relevance(
        patches @ flat, [patches], r.flatten(2).mT.reshape(-1, 4), Rules(gamma_linear=gamma)
    )
    folded = F.fold(torch.tensor(rows).view(2, 9, 27).mT, (6, 6), 3, stride=2, padding=1)
    np.testing.assert_allclose(got, folded, rtol=1e-3, atol=1e-5)


def test_a_norm_in_one_piece_is_its_parts_when_its_scale_is_constant() -> None:
    x, r = leaf(3, 8), draw(3, 8, seed=1)
    norm = nn.LayerNorm(8)
    with torch.no_grad():
        norm.weight.copy_(draw(8, seed=4))
        norm.bias.copy_(draw(8, seed=5))
    rules = Rules(add="ratio", norm="constant")
    centred = x - x.mean(-1, keepdim=True)
    scale = (x.var(-1, keepdim=True, correction=0) + norm.eps).rsqrt()
    parts = centred * scale.detach() * norm.weight + norm.bias
    a, b = (relevance(y, [x], r, rules)[0] for y in (norm(x), parts))
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(relevance(norm(x), [x], r)[0], r)


def test_a_batch_norm_in_evaluation_is_part_of_the_convolution_below() -> None:
    conv, norm = nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3).eval()
    with torch.no_grad():
        norm.running_mean.copy_(draw(3))
        norm.running_var.copy_(draw(3, seed=1).abs() + 0.5)
        norm.bias.copy_(draw(3, seed=2))
    x, r = leaf(2, 2, 5, 5), draw(2, 3, 3, 3, seed=3)
    folded = torch.nn.utils.fusion.fuse_conv_bn_eval(conv.eval(), norm).requires_grad_()
    rules = Rules(norm="constant")
    a, b = (relevance(y, [x], r, rules)[0] for y in (norm(conv(x)), folded(x)))
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    with pytest.raises(BadInput, match=r"module\.eval"):
        relevance(norm.train()(conv(x)), [x], r, rules)


@pytest.mark.parametrize("rules", sorted(SETS))
def test_fused_attention_is_attention_written_out(rules: str) -> None:
    x, r = leaf(2, 3, 5, 8), draw(2, 3, 5, 8, seed=1)
    w = [draw(8, 8, seed=s) / 3 for s in (2, 3, 4)]
    q, k, v = (x @ m for m in w)
    fused = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert op(fused.grad_fn).startswith("ScaledDotProduct")
    mask = torch.full((5, 5), float("-inf")).triu(1)
    parts = (q @ k.mT * 8**-0.5 + mask).softmax(-1) @ v
    a, b = (relevance(y, [x], r, rules)[0] for y in (fused, parts))
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())


ROUTES: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda x: x.view(6, 4), "reshape": lambda x: x.mT.reshape(4, 6),
    "slice": lambda x: x[:, 1:, ::2], "select": lambda x: x[1], "index": lambda x: x[[1, 0, 1]],
    "cat": lambda x: torch.cat([x, x[:1]], 0), "stack": lambda x: torch.stack([x, x], 1),
    "split": lambda x: x.split(2, 2)[1], "sizes": lambda x: x.split([1, 3], -1)[1],
    "unbind": lambda x: x.unbind(0)[1], "expand": lambda x: x[:, None].expand(2, 5, 3, 4),
    "repeat": lambda x: x.repeat(1, 2, 1), "permute": lambda x: x.permute(2, 0, 1),
    "pad": lambda x: F.pad(x, (1, 0)), "gather": lambda x: x.gather(2, torch.ones(2, 3, 1).long()),
    "pool": lambda x: F.max_pool2d(x, (1, 2)), "topk": lambda x: x.topk(2, -1)[0],
    "max": lambda x: x.max(-1)[0], "squeeze": lambda x: x[:, :, :1].squeeze(-1),
    "flip": lambda x: x.flip(1), "roll": lambda x: x.roll(1, 0),
    "where": lambda x: torch.where(x > 0, x, 0.0), "fill": lambda x: x.masked_fill(x > 0, 0.0),
    "clone": lambda x: x.clone(), "negate": lambda x: -x,
}  # fmt: skip


@pytest.mark.parametrize("route", sorted(ROUTES))
def test_routing_sends_relevance_where_numbers_came_from(route: str) -> None:
    x = leaf(2, 3, 4)
    y = ROUTES[route](x)
    r = draw(*y.shape, seed=1)
    (got,) = relevance(y, [x], r)
    # Numbers of x are all different, so each number of y tells where it came from.
    values, expected = x.detach().flatten().tolist(), np.zeros(24)
    for value, part in zip(y.detach().abs().flatten().tolist(), r.flatten().tolist()):
        sign = value if value in values else -value
        if sign in values:
            expected[values.index(sign)] += part
    np.testing.assert_allclose(got.flatten(), expected, rtol=1e-5, atol=1e-6)


# -- promises -------------------------------------------------------------------------------------


def branches(x: Tensor, w: list[Tensor]) -> Tensor:
    """Sums of sums of views of splits: nothing that an addition reads was saved."""
    h = x + (x @ w[0]).relu()
    for m in w[1:]:
        left, right = (h @ m).split(2, -1)
        h = h + torch.cat([right, left], -1).view(3, 4).transpose(0, 1).contiguous().t()
    return h.mean(0) + h.sum(0)


@pytest.mark.parametrize("rules", ["epsilon", "paper", "relp", "gradient"])
def test_promises_equal_a_run_in_which_everything_was_recorded(rules: str) -> None:
    x, w = leaf(3, 4), [draw(4, 4, seed=s) for s in range(1, 5)]
    with recording() as known:
        y = branches(x, w)
    a = propagate(y, [x], start=torch.ones(4), rules=rules)
    b = propagate(y, [x], start=torch.ones(4), rules=rules, known=known)
    np.testing.assert_allclose(a.inputs[0], b.inputs[0], rtol=1e-5, atol=1e-6)
    assert not b.promises
    seen = [(p, known.get(p.node.next_functions[p.operand])) for p in a.promises]
    assert len(seen) >= 8
    for promise, value in seen:
        assert value is not None
        np.testing.assert_allclose(promise.value, value, rtol=1e-5, atol=1e-6)
    assert max(len(p.path) for p in a.promises) >= 5  # a chain was really walked
    assert all(op(n) in ("MmBackward0", "ReluBackward0") for p in a.promises for n in p.args)


def test_what_was_overwritten_in_place_is_not_recorded() -> None:
    x = leaf(3, 4)
    with recording() as known:
        top = x.topk(2)[0]
        first = top.grad_fn
        top /= top.sum(-1, keepdim=True)  # as mixtures of experts do
        y = (top @ draw(2, 2)).sum()
    assert (first, 0) not in known
    a, b = (propagate(y, [x], known=k).inputs[0] for k in (known, None))
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_graph_a_thousand_sums_deep_needs_no_recursion() -> None:
    x = leaf(4)
    y = x
    for i in range(1500):
        y = y + x * (1.0 / (i + 1))
    walk = propagate(y.sum(), [x])
    assert float(walk.inputs[0].sum()) == pytest.approx(1, abs=1e-4)


def test_what_a_consumer_saved_stands_in_for_a_constant_that_the_graph_lacks() -> None:
    x, c = leaf(5), draw(5, seed=1).abs() + 1
    shifted = x * x + c  # c is in no graph
    y = (shifted.rsqrt() * x).sum()
    walk = propagate(y, [x], start=y.detach(), rules="gradient")
    slope = torch.autograd.grad(y, x, retain_graph=True)[0]
    np.testing.assert_allclose(walk.inputs[0], (x * slope).detach(), rtol=1e-3, atol=1e-4)


def test_a_position_bias_that_the_graph_lacks_is_not_taken_for_a_mask() -> None:
    x, r = leaf(2, 4), draw(2, 4, seed=1)
    y = ((x * 1.0) + draw(2, 4, seed=2)).softmax(-1)
    with pytest.raises(BadInput, match="AddBackward0 cannot be rebuilt"):
        relevance(y, [x], r, Rules(softmax="taylor"))


def test_an_operand_that_nobody_has_is_named_with_what_would_help() -> None:
    x, c = leaf(2, 5), draw(2, 5, seed=1)
    with recording() as known:
        y = ((x + c).relu_() + (x + c)).sum()
    with pytest.raises(BadInput, match=r"AddBackward0 cannot be rebuilt.*recording"):
        propagate(y, [x], rules="epsilon")
    assert propagate(y, [x], rules="epsilon", known=known).inputs[0].isfinite().all()


# -- the whole ------------------------------------------------------------------------------------


def test_relevance_is_conserved_and_the_weights_share_in_parallel_is_not() -> None:
    net = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(6, 6, bias=False), nn.GELU())])
    x = leaf(3, 6)
    walk = propagate(net(x)[:, 0], [x], start=torch.tensor([1.0, 2.0, 3.0]))
    assert float(walk.inputs[0].sum()) == pytest.approx(6, rel=1e-4)
    assert walk.gap < 1e-4
    assert max(walk.error.values()) < 1e-5
    assert walk.parallel == pytest.approx(4 * 6, rel=1e-3)  # once for each of four products


def test_one_row_of_a_batch_does_not_see_another() -> None:
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0)
    x = draw(3, 5, 8)
    both, alone = x.clone().requires_grad_(), x[1:2].clone().requires_grad_()
    a = propagate(net(both)[:, 0, 0], [both], start=torch.ones(3)).inputs[0][1]
    b = propagate(net(alone)[:, 0, 0], [alone], start=torch.ones(1)).inputs[0][0]
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_the_gradient_set_is_input_times_gradient() -> None:
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0, activation="gelu")
    x = leaf(2, 5, 8)
    y = net(x)[:, 0, 0]
    (got,) = relevance(y, [x], y.detach(), "gradient")
    slope = torch.autograd.grad(y.sum(), x)[0].detach()
    x = x.detach()
    np.testing.assert_allclose(
        got, (x * slope).detach(), atol=1e-4 * float((x * slope).abs().max())
    )


def test_relevance_is_read_off_between_and_flows_on() -> None:
    x, w = leaf(2, 4), draw(4, 4, seed=1)
    h = (x @ w).relu()
    y = (h @ w).relu()[:, 0]
    r_x, r_h = relevance(y, [x, h], torch.ones(2))
    assert r_h.sum() == pytest.approx(r_x.sum(), rel=1e-4)
    np.testing.assert_allclose(r_x, relevance(h, [x], torch.tensor(r_h))[0], rtol=1e-3, atol=1e-5)


def test_the_layout_holds_every_node_and_rings_those_with_promises() -> None:
    x, w = leaf(3, 4), [draw(4, 4, seed=s) for s in range(1, 4)]
    walk = propagate(branches(x, w).sum(), [x])
    nodes, lines = layout(walk)
    assert len(nodes) == len(walk.graph.nodes)
    assert nodes.promised.sum() == len({p.node for p in walk.promises})
    assert not nodes.duplicated(["x", "y"]).any()
    assert (lines.y2 > lines.y).all()


# -- bad input ------------------------------------------------------------------------------------


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


def test_an_operation_without_a_rule_is_refused_passed_stopped_or_given_one() -> None:
    x, w = leaf(2, 4), nn.Parameter(draw(4, 1, seed=1))  # a frozen w would not save Twice's output
    y = (Twice.apply(x) @ w).sum()
    assert uncovered(Graph(y)) == {"TwiceBackward": 1}
    with pytest.raises(BadInput, match=r"no rule for TwiceBackward \(1 times\).*unknown='pass'"):
        propagate(y, [x])
    passed = propagate(y, [x], unknown="pass", rules="epsilon").inputs[0]
    np.testing.assert_allclose(passed.sum(), 1, rtol=1e-5)
    stopped = propagate(y, [x], unknown="stop", rules="epsilon")
    assert float(stopped.inputs[0].abs().sum()) == 0
    assert stopped.lost["TwiceBackward"] == pytest.approx(1, rel=1e-5)
    mine = Rules(custom={"TwiceBackward": lambda node, given, values: list(given)})
    np.testing.assert_allclose(propagate(y, [x], rules=mine).inputs[0], passed, rtol=1e-5)
    wrong = Rules(custom={"TwiceBackward": lambda node, given, values: []})
    with pytest.raises(BadInput, match="returned 0 relevances for 1 operands"):
        propagate(y, [x], rules=wrong)


def test_an_unknown_operation_off_the_way_is_no_obstacle() -> None:
    x, w = leaf(2, 4), nn.Parameter(draw(4, 1, seed=1))
    walk = propagate((x @ Twice.apply(w)).sum(), [x])
    assert float(walk.inputs[0].sum()) == pytest.approx(1, rel=1e-4)


def test_bad_input_is_refused_with_the_reason() -> None:
    x, w = leaf(2, 4), draw(4, 3, seed=1)
    y = x @ w
    for call, match in (
        (lambda: propagate(y, [x]), "relevance is of one number"),
        (lambda: propagate(y, [x], start=torch.ones(3)), r"start has shape \(3,\)"),
        (lambda: propagate(y, [x], start=y * float("nan")), "NaN or infinity"),
        (lambda: propagate(y, [x], start=y * 0), "zero everywhere"),
        (lambda: propagate(y, []), "at least one"),
        (lambda: propagate(y.detach().sum(), [x]), "no graph behind it"),
        (lambda: propagate(3.0, [x]), "float"),
        (lambda: propagate(y.sum(), [leaf(2, 4)]), "input 0, of shape .* is not in the graph"),
        (lambda: propagate(y.sum(), [w]), "input 0 has no graph"),
        (lambda: Rules(epsilon=0), "above 0"),
        (lambda: Rules(gamma_conv=-1), "gamma"),
    ):
        with pytest.raises(BadInput, match=match):
            call()
    for call, match in (
        (lambda: propagate(y.sum(), [x], rules="papr"), "did you mean 'paper'"),
        (lambda: propagate(y.sum(), [x], unknown="skip"), "Available: error, pass, stop"),
        (lambda: Rules(add="magnitud"), "did you mean 'magnitude'"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UnknownName, match=match):
            call()


def test_a_graph_that_was_used_up_or_overwritten_says_so() -> None:
    x = leaf(2, 4)
    used = (x * x).tanh().sum()
    used.backward()
    with pytest.raises(BadInput, match="freed by a backward pass"):
        propagate(used, [x])
    h = x * 1.0
    y = (h * h).sum()
    h.add_(1)
    with pytest.raises(BadInput, match="overwritten in place"):
        propagate(y, [x])


def test_half_precision_comes_back_in_single() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.SiLU(), nn.Linear(6, 1)).to(torch.bfloat16)
    x = draw(3, 6).to(torch.bfloat16).requires_grad_()
    walk = propagate(net(x)[:, 0], [x], start=torch.ones(3))
    assert walk.inputs[0].dtype == torch.float32
    assert walk.gap < 1e-2
