"""Orders of layers and two bit-widths: against loops over single weights, and on the real model."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import xarray as xr
from lwlab_kernels.quant import pack

import lwlab as lw
from lwlab.errors import BadInput, UnknownName
from lwlab.quantization import fake_quantized, gptq, hessians, matrices
from lwlab.quantization import layerwise_quant as lq

Toy = Callable[[str], lw.Model]
IDS = torch.randint(3, 100, (4, 20), generator=torch.Generator().manual_seed(0))


def snapshot(model: lw.Model) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.module.named_parameters()}


def same(model: lw.Model, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(p, before[n]) for n, p in model.module.named_parameters())


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_lim_is_a_loop_over_tokens(toy: Toy, name: str) -> None:
    model = toy(name)
    found = lw.cache(model, IDS, ["resid_pre", "resid_post"])
    cosines = np.zeros((model.n_layers, 4, 20))
    flat = np.zeros(model.n_layers)
    for layer in range(model.n_layers):
        a, b = (found[s].sel(layer=layer).values.astype(float) for s in ("resid_pre", "resid_post"))
        for p in range(4):
            for t in range(20):
                x, y = a[p, t], b[p, t]
                cosines[layer, p, t] = x @ y / math.sqrt((x @ x) * (y @ y))
        x, y = a.ravel(), b.ravel()
        flat[layer] = x @ y / math.sqrt((x @ x) * (y @ y))
    np.testing.assert_allclose(lq.lim(model, IDS), -cosines[:, :, 1:].mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(
        lq.lim(model, IDS, skip=5), -cosines[:, :, 5:].mean((1, 2)), atol=1e-6
    )
    np.testing.assert_allclose(lq.lim(model, IDS, skip=0, flatten=True), -flat, atol=1e-6)


def test_lim_leaves_padding_out(toy: Toy) -> None:
    model = toy("gpt2")
    long, short = "the cat sat on the mat and the dog ran", "a dog ran"
    both = lq.lim(model, [long, short])
    counts = [int(n) - 1 for n in model.tokens([long, short]).lengths]
    alone = [lq.lim(model, t) for t in (long, short)]
    want = (counts[0] * alone[0] + counts[1] * alone[1]) / sum(counts)
    np.testing.assert_allclose(both, want, atol=1e-6)
    assert both.attrs["tokens"] == sum(counts)


def test_a_layer_that_writes_nothing_has_lim_minus_one() -> None:
    from lwlab.models import toys

    module, _ = toys.tiny("llama")
    model = lw.wrap(module)
    with torch.no_grad():
        for m in matrices(model, 1, ["o_proj", "down_proj"]):
            m.module.weight.zero_()
    found = lq.lim(model, IDS)
    assert float(found.sel(layer=1)) == pytest.approx(-1, abs=1e-12)
    assert lq.least_first(found)[0] == 1


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("pooled", [False, True])
def test_zd_counts_weights(toy: Toy, two_sided: bool, pooled: bool) -> None:
    model = toy("gpt2")
    for layer, found in enumerate(lq.zd(model, two_sided=two_sided, pooled=pooled).values):
        parts = [m.weight.double().numpy().ravel() for m in matrices(model, layer)]
        sets = [np.concatenate(parts)] if pooled else parts
        shares = []
        for w in sets:
            z = (w - w.mean()) / w.std()
            shares.append(np.mean(np.abs(z) > 1 if two_sided else z > 1))
        assert found == pytest.approx(np.mean(shares), abs=1e-3)  # float32 ties at the edge


def test_zd_of_a_normal_layer_and_of_one_with_outliers() -> None:
    from lwlab.models import toys

    module, _ = toys.tiny("llama", hidden_size=64, intermediate_size=128)
    model = lw.wrap(module)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for m in matrices(model):
            m.module.weight.normal_(generator=g)
        before = lq.zd(model)
        for m in matrices(model, 2):
            m.module.weight[torch.rand(m.weight.shape, generator=g) < 0.002] = 60.0
        after = lq.zd(model)
        for m in matrices(model, 0):
            m.module.weight.mul_(-7.0).add_(3.0)  # standardised away, but for the side
    assert np.abs(before - 0.1587).max() < 0.005
    assert lq.least_first(after)[-1] == 2  # heavy tails: few weights above one deviation
    assert float(lq.zd(model).sel(layer=0)) == pytest.approx(float(before.sel(layer=0)), abs=0.01)


def test_importance_has_a_direction() -> None:
    scores = xr.DataArray([3.0, 1.0, 2.0, 1.0], dims="layer", coords={"layer": [0, 1, 2, 3]})
    assert lq.least_first(scores) == [1, 3, 2, 0]
    assert lq.least_first(scores.assign_attrs(larger_is="unimportant")) == [0, 2, 1, 3]
    assert lq.least_first(scores.expand_dims(prompt=3)) == [1, 3, 2, 0]
    with pytest.raises(BadInput, match="not finite"):
        lq.least_first(scores / 0 * 0)
    with pytest.raises(BadInput, match="dimension layer"):
        lq.least_first(scores.rename(layer="head"))


def by_hand(model: lw.Model, bits: dict[int, int], group: int, ids: torch.Tensor) -> np.ndarray:
    """Round by the library's context manager, score by a whole forward of each text."""
    out = []
    with fake_quantized(model, bits, group, symmetric=False), torch.no_grad():
        for row in ids:
            z = model.module(row[None]).logits[0, :-1].double()
            out.append(float(torch.nn.functional.cross_entropy(z, row[1:])))
    return np.array(out)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_losses_are_those_of_the_rounded_model(toy: Toy, name: str) -> None:
    model = toy(name)
    before = snapshot(model)
    orders = {"up": [0, 1, 2], "down": [2, 1, 0], "mixed": [1, 2, 0]}
    found = lq.losses(model, IDS, orders, [0, 1, 2, 3], low=2, group=8)
    mixed = lq.losses(model, IDS, orders, [1], low=2, high=4, group=8)
    assert same(model, before)
    for order, layers in orders.items():
        for k in (1, 2):
            want = by_hand(model, dict.fromkeys(layers[:k], 2), 8, IDS)
            np.testing.assert_allclose(found.nll.sel(order=order, k=k), want, rtol=1e-5)
        want = by_hand(model, {i: 2 if i == layers[0] else 4 for i in range(3)}, 8, IDS)
        np.testing.assert_allclose(mixed.nll.sel(order=order, k=1), want, rtol=1e-5)
    assert np.array_equal(found.nll.sel(k=0), found.base_nll.broadcast_like(found.nll.sel(k=0)))
    every = found.nll.sel(k=3)
    assert float(np.abs(every - every.isel(order=0)).max()) == 0
    np.testing.assert_allclose(found.mean_bits, [16, (2 + 32) / 3, (4 + 16) / 3, 2])
    assert mixed.attrs["high"] == 4


def test_a_scorer_is_read_once_and_serves_many(toy: Toy) -> None:
    model = toy("gpt2")
    scorer = lq.Scorer(model, IDS)
    given = {"orders": {"up": [0, 1, 2]}, "ks": [2], "group": 8}
    np.testing.assert_array_equal(
        lq.losses(model, scorer, **given).nll, lq.losses(model, IDS, **given).nll
    )
    np.testing.assert_array_equal(scorer.base, scorer.nll(0))
    with pytest.raises(BadInput, match="streams of gpt2"):
        lq.losses(toy("llama"), scorer, **given)


def test_losses_are_perplexitys(toy: Toy) -> None:
    model = toy("llama")
    texts = ["the cat sat on the mat", "a dog ran to the cat and sat", "the dog and a cat"]
    found = lq.losses(model, texts, {"up": [0, 1, 2]}, [0, 2], group=8)
    plain = lw.tasks.perplexity(model, texts)
    np.testing.assert_allclose(found.base_nll, plain.nll, rtol=1e-5)
    np.testing.assert_array_equal(found.tokens, plain.tokens)
    with fake_quantized(model, {0: 2, 1: 2}, 8, symmetric=False) as q:
        rounded = lw.tasks.perplexity(q.model, texts)
        packed = q.megabytes
    np.testing.assert_allclose(found.nll.sel(order="up", k=2), rounded.nll, rtol=1e-5)
    whole = 2e-6 * sum(m.weight.numel() for m in matrices(model, 2))
    assert float(found.megabytes.sel(k=2).squeeze()) == pytest.approx(packed + whole)


def test_gptq_beneath(toy: Toy) -> None:
    model = toy("llama")
    texts = ["the cat sat on the mat", "a dog ran to the cat and sat on the mat and ran"]
    moments = hessians(model, texts, layers=[0, 2])
    before = snapshot(model)
    with lq.Rounder(model, 8, base="gptq", moments=moments, damp=0.1) as rounder:
        assert rounder.set({2: 3}) == 2
        for m in matrices(model):
            old = before[f"model.layers.{m.layer}.{m.name}.weight"]
            want = old
            if m.layer == 2:
                want = gptq(old, moments[2, m.name], 3, 8, False, damp=0.1).weight
            assert torch.equal(m.weight, want), m.name
        with pytest.raises(BadInput, match="moments lack layer 1"):
            rounder.set({1: 3})
        assert rounder.set({}) == 3
        assert same(model, before)
        rounder.set({0: 2, 2: 8})
    assert same(model, before)
    with pytest.raises(BadInput, match="needs moments"):
        lq.Rounder(model, 8, base="gptq")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_originals_may_wait_on_disk(toy: Toy, name: str) -> None:
    model = toy(name)
    before = snapshot(model)
    with lq.Rounder(model, 8) as rounder, torch.no_grad():
        assert not rounder.spill
        rounder.set({0: 2, 2: 3})
        want = snapshot(model)
    for _ in range(2):
        with lq.Rounder(model, 8, spill=True) as rounder:
            rounder.set({1: 4, 2: 2})
            rounder.set({0: 2, 2: 3})
            assert same(model, want)
            rounder.set({2: 3})
            rounder.set({0: 2, 2: 3})
            assert same(model, want)
        assert same(model, before)


def test_weights_come_back_after_an_error(toy: Toy) -> None:
    model = toy("gpt2")
    before = snapshot(model)
    rounder = lq.Rounder(model, 8)

    def fail() -> None:
        with rounder:
            rounder.set({0: 1, 2: 2})
            assert not same(model, before)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert same(model, before)
    weights = {(1, "attn.c_attn"): torch.zeros_like(matrices(model, 1)[0].weight)}
    with lq.installed(model, weights) as first:
        assert first == 1
        assert not matrices(model, 1)[0].weight.any()
    assert same(model, before)
    for bad, said in (
        ({(9, "attn.c_attn"): torch.zeros(2)}, "no matrix"),
        ({(1, "attn.c_attn"): torch.zeros(2, 2)}, "the matrix is"),
    ):
        with pytest.raises(BadInput, match=said), lq.installed(model, bad):
            pass


def test_sensitivity_is_one_layer_at_a_time(toy: Toy) -> None:
    model = toy("llama")
    found = lq.sensitivity(model, IDS, 2, 8)
    singles = lq.losses(
        model, IDS, {str(i): [i, *({0, 1, 2} - {i})] for i in range(3)}, [1], group=8
    )
    want = singles.nll.sel(k=1) - singles.base_nll
    np.testing.assert_allclose(found, want, atol=1e-7)
    assert lq.least_first(found) == np.argsort(want.mean("prompt").values).tolist()


def test_layers_left_out_are_a_chain(toy: Toy) -> None:
    model = toy("llama")
    found = lq.Scorer(model, IDS).nll(3, without=[1])
    for row, nll in zip(IDS, found):
        z = lw.tracing.chain(model, row[None], [0, 2], streams=True).resid.isel(step=-1).values
        logits = model.unembed(torch.tensor(z[0, :-1])).detach()
        assert nll == pytest.approx(
            float(torch.nn.functional.cross_entropy(logits, row[1:])), rel=1e-5
        )


def test_a_budget_is_met_by_the_fewest_layers(toy: Toy) -> None:
    model = toy("llama")
    order = [1, 0, 2]
    for mean, k in ((4, 0), (3.4, 1), (10 / 3, 1), (3, 2), (8 / 3, 2), (2.1, 3), (2, 3)):
        found = lq.plan(model, order, mean_bits=mean, group=8)
        assert found.attrs["k"] == k
        assert found.attrs["mean_bits"] <= mean + 1e-9
        assert [int(found.sel(layer=i)) for i in order] == [2] * k + [4] * (3 - k)
        assert lq.lowered(3, mean) == k
    for k in range(4):
        whole = lq.plan(model, order, k=k, group=8)
        size = sum(
            pack(m.weight, int(whole.sel(layer=m.layer)), 8, False).nbytes for m in matrices(model)
        )
        assert whole.attrs["megabytes"] * 1e6 == pytest.approx(size)
        assert lq.plan(model, order, megabytes=size / 1e6, group=8).attrs["k"] == k
        with fake_quantized(model, whole, 8, symmetric=False) as q:
            assert q.megabytes == pytest.approx(whole.attrs["megabytes"])


def test_uniform_is_every_layer_at_once(toy: Toy) -> None:
    model = toy("gpt2")
    before = snapshot(model)
    found = lq.uniform(model, IDS, bits=(2, 8, 16), groups=(8, None))
    assert same(model, before)
    for g, group in ((8, 8), (0, None)):
        want = lq.losses(model, IDS, {"up": [0, 1, 2]}, [3], group=group)
        np.testing.assert_array_equal(found.nll.sel(bits=2, group=g), want.nll.squeeze())
        np.testing.assert_array_equal(found.nll.sel(bits=16, group=g), found.base_nll)


def test_a_lead_is_against_the_median(toy: Toy) -> None:
    rng = np.random.default_rng(0)
    nll = rng.normal(5, 0.1, (6, 1, 40))
    nll[0] -= 2
    names = ["best", *(f"random {i}" for i in range(5))]
    found = xr.Dataset(
        {"nll": (("order", "k", "prompt"), nll), "tokens": ("prompt", np.full(40, 10))},
        coords={"order": names, "k": [3]},
    )
    got = lq.lead(found, "best", names[1:], 3)
    assert got.mean == pytest.approx(np.median(nll[1:, 0].mean(1)) - nll[0, 0].mean())
    assert got.low < got.mean < got.high
    assert 1.9 < got.low < 2.0 < got.high < 2.1
    other = lq.lead(found, "random 0", names[2:], 3)
    assert other.low < 0.05
    assert other.high > -0.05
    with pytest.raises(BadInput, match="no order 'bets'"):
        lq.lead(found, "bets", names[1:], 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"low": 0}, "low=0: give 1..8, or 16"),
        ({"low": 17}, "low=17"),
        ({"low": 2.5}, "low=2.5"),
        ({"low": True}, "low=True"),
        ({"high": 12}, "high=12"),
        ({"low": 4, "high": 2}, "lower width comes first"),
        ({"group": 7}, "does not divide"),
        ({"orders": {"a": [0, 1]}}, "a names layers"),
        ({"orders": {"a": [0, 1, 1]}}, r"0\.\.2 once"),
        ({"orders": {}}, "at least one order"),
        ({"ks": [4]}, "from 0 to 3"),
        ({"ks": [-1]}, "from 0 to 3"),
        ({"ks": []}, "one k"),
        ({"base": "gptq"}, "needs moments"),
        ({"base": "gtpq"}, "did you mean 'gptq'"),
        ({"modules": "up"}, "no module"),
        ({"prompts": torch.tensor([[5]])}, "2 are needed"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_touched(
    toy: Toy, change: dict[str, object], said: str
) -> None:
    model = toy("llama")
    before = snapshot(model)
    given = {"prompts": IDS, "orders": {"up": [0, 1, 2]}, "ks": [1], "group": 8} | change
    with pytest.raises((BadInput, UnknownName), match=said):
        lq.losses(model, **given)  # type: ignore[arg-type]
    assert same(model, before)


def test_budgets_that_cannot_be_met(toy: Toy) -> None:
    model = toy("llama")
    for mean in (1.9, 4.1, math.nan):
        with pytest.raises(BadInput, match="cannot be met"):
            lq.plan(model, [0, 1, 2], mean_bits=mean, group=8)
    for size in (0.0, math.nan):
        with pytest.raises(BadInput, match="MB cannot be met: all layers at 2 bits take"):
            lq.plan(model, [0, 1, 2], megabytes=size, group=8)
    with pytest.raises(BadInput, match="give one of"):
        lq.plan(model, [0, 1, 2], group=8)
    with pytest.raises(BadInput, match="give one of"):
        lq.plan(model, [0, 1, 2], k=1, mean_bits=3, group=8)
    with pytest.raises(BadInput, match="decoders"):
        lq.losses(toy("bert"), IDS, {"up": [0, 1, 2]}, [1], group=8)
    with pytest.raises(BadInput, match="left out"):
        lq.lim(model, IDS, skip=20)
    with pytest.raises(BadInput, match="skip=-1"):
        lq.lim(model, IDS, skip=-1)


def test_the_real_model_has_better_and_worse_orders(smollm2: lw.Model) -> None:
    """At 2 bits, 8 of 30 layers: ZD beats its reverse (0.7 nats here), and yet it is ruin."""
    texts = lw.tasks.corpus(n=3, tokens=80, model=smollm2)
    ids = smollm2.tokens(texts).ids[:, :40]
    scores = {"LIM": lq.lim(smollm2, ids), "ZD": lq.zd(smollm2)}
    orders = {k: lq.least_first(v) for k, v in scores.items()}
    assert orders["ZD"][:4] == [25, 4, 6, 5]
    assert orders["ZD"][-3:] == [17, 19, 0]
    assert orders["LIM"][0] == 25
    assert orders["LIM"][-1] == 0
    backward = {f"{k} reversed": v[::-1] for k, v in orders.items()}
    found = lq.losses(smollm2, ids, orders | backward, [8]).nll.mean("prompt").squeeze("k")
    assert float(found.sel(order="ZD reversed") - found.sel(order="ZD")) > 0.3
    assert float(found.sel(order="ZD")) < float(found.sel(order="LIM"))
    assert float(found.sel(order="ZD")) > 1.5 * math.log(15)
