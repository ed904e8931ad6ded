"""RelP: equal to a backward pass written by hand; its rules keep what they must keep."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import relp_by_hand as by_hand
import torch
from reference import RULED

import lwlab as lw
from lwlab.attribution import COMPONENTS, Pair, atp, relp
from lwlab.errors import BadInput, UnknownName

SUBSETS = [c for k in range(5) for c in combinations(relp.EVERY, k)]


def hand_scores(net: by_hand.Net, model: lw.Model, task: Any, rules: tuple[str, ...]) -> np.ndarray:
    clean, corrupt = task.tokens(model).ids.numpy(), task.tokens(model, "corrupt").ids.numpy()
    out = np.zeros((3, len(task), model.n_layers, clean.shape[1]))
    for i in range(len(task)):
        weights = np.zeros(model.d_vocab)
        weights[task.answer_ids[i]], weights[task.foil_ids[i]] = 1, -1
        a, b = net.run(clean[i])[0], net.run(corrupt[i])[0]
        slopes = net.slopes(corrupt[i], weights, rules)
        for j, site in enumerate(COMPONENTS):
            for layer in range(model.n_layers):
                key = site, layer
                out[j, i, layer] = ((a[key] - b[key]) * slopes[key]).sum(-1)
    return out


@pytest.mark.parametrize("rules", SUBSETS, ids=lambda r: "+".join(r) or "none")
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_scores_equal_a_backward_pass_written_by_hand(
    arch: str, rules: tuple[str, ...], toy_ioi: Any
) -> None:
    model, task = toy_ioi(arch)
    net = getattr(by_hand, arch)(model.module)
    logits = net.run(task.tokens(model).ids[0].numpy())[1]
    traced = lw.cache(model, task.clean[0], "logits").logits.values[0, -1]
    np.testing.assert_allclose(logits, traced, atol=1e-5)
    expected = hand_scores(net, model, task, rules)
    got = relp.scores(model, task, rules=rules, normalise=False)
    np.testing.assert_allclose(got.values, expected, atol=1e-5)
    assert np.abs(expected).max() > 1e-2


@pytest.mark.parametrize("arch", RULED)
def test_logits_are_the_same_to_the_last_bit_under_any_rules(arch: str, toy_ioi: Any) -> None:
    model, task = toy_ioi(arch)
    plain = lw.grads(model, list(task.corrupt), task, "resid_pre")
    for rules in [("ln",), ("identity",), ("half",), ("attention",), relp.RULES, relp.EVERY]:
        with lw.rules(model, **{k: k in rules for k in relp.EVERY}) as view:
            ruled = lw.grads(view, list(task.corrupt), task, "resid_pre")
        assert np.array_equal(ruled.metric.values, plain.metric.values)
        assert np.array_equal(ruled.resid_pre_value.values, plain.resid_pre_value.values)


@pytest.mark.parametrize("arch", RULED)
def test_no_rules_is_attribution_patching_and_each_acting_rule_changes_it(
    arch: str, toy_ioi: Any
) -> None:
    model, task = toy_ioi(arch)
    plain = atp.scores(model, task, normalise=False)
    none = relp.scores(model, task, rules=(), normalise=False)
    assert np.array_equal(none.values, plain.values)
    acting = relp.acting_rules(model)
    assert {"ln", "attention"} <= set(acting)
    for rule in relp.EVERY:
        change = np.abs(relp.scores(model, task, rules=rule, normalise=False) - plain).max()
        assert (change > 1e-6) == (rule in acting), rule


def test_gpt2_has_no_gate_for_the_half_rule_and_opt_no_curve_for_the_identity_rule(
    toy: Any,
) -> None:
    assert relp.acting_rules(toy("gpt2")) == ("ln", "identity", "attention")
    assert relp.acting_rules(toy("opt")) == ("ln", "attention")
    assert relp.acting_rules(toy("llama")) == relp.EVERY
    assert relp.acting_rules(toy("mixtral")) == ()


@pytest.mark.parametrize("arch", RULED)
def test_four_rules_conserve_relevance_at_every_layer_biases_counted(
    arch: str, toy_ioi: Any
) -> None:
    model, task = toy_ioi(arch)
    kept = relp.conservation(model, task)
    lost = relp.conservation(model, task, rules=relp.RULES)
    if kept.attrs["obstacle"]:
        assert arch == "olmo"
        assert float(kept.error.max()) > 1e-3
        return
    assert float(kept.error.max()) < 1e-4
    assert float(lost.error.max()) > 1e-2
    biased = any(k.endswith(".bias") for k, _ in model.module.named_parameters())
    assert (float(np.abs(kept.biases).max()) > 1e-3) == biased


def test_conservation_leaves_frozen_and_trained_models_as_they_were(toy_ioi: Any) -> None:
    model, task = toy_ioi("gpt2")
    for p in model.module.parameters():
        p.requires_grad_(False)
    try:
        frozen = relp.conservation(model, task)
        assert not any(p.requires_grad for p in model.module.parameters())
    finally:
        for p in model.module.parameters():
            p.requires_grad_(True)
    assert float(frozen.error.max()) < 1e-4
    assert all(p.grad is None for p in model.module.parameters())


def test_equal_prompts_score_exactly_zero(
    unchanged: tuple[lw.Model, Any],
) -> None:
    model, task = unchanged
    pair = Pair.of(model, task).from_the_start()
    for technique in ("exact", "atp", "relp", "ig"):
        score = relp.study(model, pair, [technique], normalise=False).score
        assert float(np.abs(score).max()) == 0
    with pytest.raises(BadInput, match="score the same"):
        relp.scores(model, task)


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt_neox", "opt"])
def test_leaving_out_the_shared_prefix_changes_nothing(arch: str, toy_ioi: Any) -> None:
    model, task = toy_ioi(arch)
    every = Pair.of(model, task).from_the_start()
    for technique in ("exact", "atp", "relp+attention", "ig"):
        short = relp.study(model, task, [technique], normalise=False).score
        long = relp.study(model, every, [technique], normalise=False).score
        np.testing.assert_allclose(short.values, long.values, atol=1e-5)


def test_slopes_are_those_of_the_corrupt_run(toy_ioi: Any) -> None:
    model, task = toy_ioi("llama")
    back = replace(task, clean=task.corrupt, corrupt=task.clean)
    forth = relp.scores(model, task, normalise=False).values
    other = relp.scores(model, back, normalise=False).values
    assert (
        np.abs(forth + other).max() > 1e-3
    )  # were the slopes the same, only the sign would differ


@pytest.mark.parametrize("size", [1, 3, 4])
def test_batches_do_not_mix_prompts(size: int, toy_ioi: Any) -> None:
    model, task = toy_ioi("llama")
    whole = relp.study(model, task, ["relp", "ig"])
    parts = relp.study(model, task, ["relp", "ig"], batch_size=size)
    np.testing.assert_allclose(parts.score.values, whole.score.values, atol=1e-5)
    alone = relp.scores(model, task.subset([2]), normalise=False)
    both = relp.scores(model, task, normalise=False)
    np.testing.assert_allclose(alone.values[:, 0], both.values[:, 2], atol=1e-5)


def test_a_study_is_labelled_and_survives_the_disk(toy_ioi: Any, tmp_path: Any) -> None:
    model, task = toy_ioi("llama")
    maps = relp.study(model, task, ["exact", "atp", "relp", "ln+identity", "relp+attention", "ig"])
    assert maps.score.dims == ("technique", "component", "prompt", "layer", "position")
    assert maps.attrs["technique"] == "RelP"
    assert maps.attrs["model"] == "llama"
    assert maps.attrs["first_position"] == 9
    one = maps.score.sel(technique="ln+identity").values
    assert np.array_equal(one, relp.scores(model, task, rules=("identity", "ln")).values)
    path = lw.results.save(maps, tmp_path / "maps.nc")
    assert lw.results.open(path).identical(maps)


def test_rules_and_techniques_that_do_not_exist_are_named(toy_ioi: Any) -> None:
    model, task = toy_ioi("llama")
    with pytest.raises(UnknownName, match="'lnn'; did you mean 'ln'"):
        relp.scores(model, task, rules=("lnn",))
    with pytest.raises(UnknownName, match="'atpp'; did you mean 'atp'"):
        relp.study(model, task, ["exact", "atpp"])
    with pytest.raises(BadInput, match="once"):
        relp.study(model, task, ["atp", "atp"])
    with pytest.raises(BadInput, match="at least one"):
        relp.study(model, task, [])


@pytest.mark.parametrize("arch", ["mixtral", "qwen3_moe", "mamba"])
def test_architectures_without_rules_are_refused_with_the_reason(arch: str, toy_ioi: Any) -> None:
    model, task = toy_ioi(arch)
    sites = ("resid_pre", *model.anatomy.writes)
    with pytest.raises(BadInput, match="no backward rules for this architecture"):
        relp.scores(model, task, sites)
    assert float(np.abs(atp.scores(model, task, sites)).max()) > 0


def test_half_precision_runs(toy: Any) -> None:
    module, _ = lw.models.toys.tiny("llama")
    model = lw.wrap(module.to(torch.bfloat16), tokenizer=lw.models.toys.tokenizer())
    task = lw.tasks.ioi(model, n=2, names=[("Mary", "John")])
    score = relp.study(model, task, normalise=False).score
    assert score.dtype == np.float32
    assert bool(np.isfinite(score).all())
