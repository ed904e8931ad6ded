"""The backward rules against decoders written out by hand, and against conservation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from decoders_by_hand import ByHand
from reference import PROMPTS, RULED, forward

import lwlab as lw
from lwlab.errors import BadInput
from lwlab.models import toys
from lwlab.models.sites import Address
from lwlab.tracing import engine
from lwlab.tracing.rules import norm_surrogate

Toy = Callable[[str], lw.Model]
NAMES = ("ln", "identity", "half", "attention")
WRITTEN = ["gpt2", "llama", "qwen3", "gemma2", "olmo2"]
SETS = [(), *((n,) for n in NAMES), *combinations(NAMES, 3), NAMES]
WEIGHTS = torch.linspace(-1, 1, 100)


def metric(z: torch.Tensor) -> torch.Tensor:
    return z @ WEIGHTS


def switches(names: tuple[str, ...]) -> dict[str, Any]:
    return {n: n in names for n in NAMES}


def slopes(model: lw.Model, names: tuple[str, ...], sites: str = "resid_pre") -> np.ndarray:
    with lw.rules(model, **switches(names)) as ruled:
        return lw.grads(ruled, PROMPTS[0], metric, sites)[sites].values


@pytest.mark.parametrize("names", SETS, ids="+".join)
@pytest.mark.parametrize("name", WRITTEN)
def test_gradients_are_those_of_the_model_written_by_hand(
    name: str, names: tuple[str, ...], toy: Toy
) -> None:
    model = toy(name)
    ids = model.tokens(PROMPTS[0]).ids
    with torch.enable_grad():
        z, streams = ByHand(model.module, frozenset(names)).run(ids)
        want = torch.autograd.grad(metric(z[:, -1]).sum(), streams)
    with torch.no_grad():
        np.testing.assert_allclose(z, forward(model, ids)[0], atol=2e-5)  # it is that model
    got = slopes(model, names)
    for layer, slope in enumerate(want):
        np.testing.assert_allclose(
            got[:, layer], slope, atol=2e-5 * float(slope.abs().max()), err_msg=str(layer)
        )


@pytest.mark.parametrize("name", [*RULED, "bert_mlm", "vit"])
def test_logits_under_rules_are_bit_identical(name: str, toy: Toy) -> None:
    model = toy(name)
    x: Any = model.tokens(PROMPTS) if name != "vit" else torch.randn(2, 3, 16, 16)
    sites = [s for s in model.sites() if s not in ("logits", "attn_pattern")]
    reads = [Address(s, 1 if s not in ("embed", "final_norm") else None) for s in sites]
    base = engine.run(model, x, reads, logits="all")
    with lw.rules(model, attention=True) as ruled:
        for grad in (False, True):
            got = engine.run(ruled, x, [], logits="all", grad=grad)
            assert got.logits is not None
            assert base.logits is not None
            assert torch.equal(got.logits, base.logits)
        again = engine.run(ruled, x, reads, logits="all", grad=True)
        for read in reads:
            assert torch.equal(again.values[read], base.values[read]), read


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "gemma2", "gemma3", "olmo2"])
def test_relevance_is_conserved_at_every_layer_without_biases(name: str, toy: Toy) -> None:
    """sum <resid_l, c_l> is the logit, at every layer; with one rule less it is not."""
    model = toy(name)
    assert not any(k.endswith("bias") for k, _ in model.module.named_parameters())

    def gap(names: tuple[str, ...]) -> float:
        with lw.rules(model, **switches(names)) as ruled:
            g = lw.grads(ruled, PROMPTS, metric, "resid_pre")
        total = (g.resid_pre * g.resid_pre_value).sum(["position", "d_model"])
        return float((abs(total - g.metric) / abs(g.metric)).max())

    assert gap(NAMES) < 1e-4
    for left_out in NAMES:
        assert gap(tuple(n for n in NAMES if n != left_out)) > 1e-2, left_out


def test_relevance_is_conserved_on_the_default_model(smollm2: lw.Model) -> None:
    mary, john = smollm2.token_id(" Mary"), smollm2.token_id(" John")
    prompt = "When Mary and John went to the store, John gave a drink to"
    with lw.rules(smollm2, attention=True) as ruled:
        g = lw.grads(ruled, prompt, lambda z: z[:, mary] - z[:, john], "resid_pre")
    total = (g.resid_pre * g.resid_pre_value).sum(["position", "d_model"])
    assert float(abs(total - g.metric).max()) < 1e-4 * abs(g.metric.item())
    plain = lw.grads(smollm2, prompt, lambda z: z[:, mary] - z[:, john], "resid_pre")
    total = (plain.resid_pre * plain.resid_pre_value).sum(["position", "d_model"])
    assert float(abs(total - plain.metric).max()) > 0.1 * abs(plain.metric.item())


@pytest.mark.parametrize("name", RULED)
def test_each_switch_changes_the_gradient(name: str, toy: Toy) -> None:
    model = toy(name)
    plain = slopes(model, ())
    np.testing.assert_allclose(
        plain, lw.grads(model, PROMPTS[0], metric, "resid_pre").resid_pre, rtol=1e-6
    )
    for rule in NAMES:
        moved = abs(slopes(model, (rule,)) - plain).max() / abs(plain).max()
        # ReLU follows the identity rule by itself, and a plain MLP has no product to halve.
        exempt = (rule == "half" and not model.anatomy.gated) or (
            rule == "identity" and name.startswith("opt")
        )
        assert moved == 0.0 if exempt else moved > 1e-3, rule


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "opt", "bert_mlm"])
def test_under_the_attention_rule_the_pattern_is_a_constant(name: str, toy: Toy) -> None:
    """Nothing flows into queries and keys: their input's gradient comes through values alone."""
    model = toy(name)
    with lw.rules(model, ln=False, identity=False, half=False, attention=True) as ruled:
        got = lw.grads(ruled, PROMPTS[0], metric, ["attn_in", "v"], layers=1)
        with pytest.raises(BadInput, match=r"nothing flows to \['k', 'q'\]"):
            lw.grads(ruled, PROMPTS[0], metric, ["q", "k"])
    tap = model.anatomy.taps["v"]
    x = torch.tensor(got.attn_in_value.values[:, 0], requires_grad=True)
    with torch.enable_grad():
        module = model.module.get_submodule(tap.at(1))
        v = tap.view.read(type(module).forward(module, x))
        want = torch.autograd.grad(v, x, torch.tensor(got.v.values[:, 0]))[0]
    np.testing.assert_allclose(got.attn_in[:, 0], want, atol=1e-5)


def test_a_plain_model_beside_a_ruled_one_keeps_its_gradients(toy: Toy) -> None:
    model = toy("llama")
    plain, ruled_alone = slopes(model, ()), slopes(model, NAMES)
    with (
        lw.rules(model, attention=True) as ruled,
        lw.rules(model, ln=False, identity=False) as half,
    ):
        assert ruled.rules == NAMES
        assert half.rules == ("half",)
        for _ in range(2):
            for view, want in (
                (ruled, ruled_alone),
                (model, plain),
                (half, slopes(model, ("half",))),
            ):
                got = lw.grads(view, PROMPTS[0], metric, "resid_pre").resid_pre
                np.testing.assert_array_equal(got, want)
        with (
            pytest.raises(BadInput, match=r"already follows.*name all rules in one call"),
            lw.rules(ruled),
        ):
            pass
    after = lw.grads(ruled, PROMPTS[0], metric, "resid_pre")  # a view that is kept keeps its rules
    np.testing.assert_array_equal(after.resid_pre, ruled_alone)
    assert after.attrs["rules"] == "ln+identity+half+attention"
    assert "rules ln+identity+half+attention" in repr(ruled)


def test_ruled_and_plain_gradients_from_threads_do_not_mix(toy: Toy) -> None:
    model = toy("qwen3")
    want = {names: slopes(model, names) for names in ((), NAMES, ("ln",), ("attention",))}
    wrong: list[Any] = []

    def work(names: tuple[str, ...]) -> None:
        try:
            for _ in range(8):
                if not np.array_equal(slopes(model, names), want[names]):
                    wrong.append(names)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(names,)) for names in want]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_rules_also_hold_in_a_raw_trace(toy: Toy) -> None:
    model = toy("llama")
    ids = model.tokens(PROMPTS[0]).ids
    with lw.rules(model, attention=True) as ruled, ruled.nn.trace(ids, use_cache=False):
        h = ruled.nn.model.layers[1].input.save()
        z = ruled.nn.output.logits.save()
    got = torch.autograd.grad(metric(z[:, -1]).sum(), h)[0]
    np.testing.assert_allclose(got, slopes(model, NAMES)[:, 1], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mixtral", "mixture-of-experts"),
        ("qwen3_moe", "mixture-of-experts"),
        ("mamba", "state-space mixer"),
        ("t5:decoder", "cross-attention"),
    ],
)
def test_what_needs_a_rule_of_its_own_is_refused(name: str, why: str, toy: Toy) -> None:
    with pytest.raises(BadInput, match=why), lw.rules(toy(name)):
        pass


def test_an_unknown_norm_is_refused_rather_than_passed_over() -> None:
    class OddRMSNorm(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / x.abs().amax(-1, keepdim=True)

    with pytest.raises(BadInput, match=r"the norm at a\.b \(OddRMSNorm\) is of no kind"):
        norm_surrogate(OddRMSNorm(), "a.b")
    module, _ = toys.tiny("llama")
    module.model.norm = OddRMSNorm()
    model = lw.wrap(module)
    with pytest.raises(BadInput, match=r"the norm at model\.norm"), lw.rules(model):
        pass


def test_other_calls_take_a_ruled_model_for_what_it_is(toy: Toy) -> None:
    model = toy("gemma2")
    with lw.rules(model, attention=True) as ruled:
        for call in (
            lambda m: lw.cache(m, PROMPTS, ["resid_post", "attn_pattern", "logits"]),
            lambda m: lw.patch(m, PROMPTS, {"mlp_out.1": 0.0}),
            lambda m: lw.chain(m, PROMPTS, [0, 2]),
            lambda m: lw.generate(m, PROMPTS, 3, {"mlp_out.1": 0.0}),
        ):
            assert call(ruled).equals(call(model))
