"""DynamicLRP of models: RelP's numbers, captum's numbers, gradients, curves by a loop, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from reference import RULED
from torch import nn

import lwlab as lw
from lwlab.attribution import dynamiclrp as dl
from lwlab.attribution import relp
from lwlab.errors import BadInput, MissingSite, UnknownName
from lwlab.models.toys import ARCHS
from lwlab.tracing import engine

# Where module and operation part: GPT-2's GELU is a module of several operations; OLMo's clipping
# and the cap on Gemma 2's attention scores are curves to one and gradients to the other.
PART = {("gpt2", "phi", "olmo"): ("relp", "relp+attention"), ("gemma2",): ("relp",)}
APART = [(a, r) for archs, sets in PART.items() for a in archs for r in sets]
BOTH = [(a, r) for a in RULED for r in ("relp", "relp+attention") if (a, r) not in APART]


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3),
    ).eval()  # fmt: skip


class Plain(nn.Module):
    """A module whose one block is any module: what an anatomy needs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([net])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.blocks[0](x)
        return y


def pictured(net: nn.Module, x: torch.Tensor) -> lw.Model:
    taps = {
        "resid_post": lw.models.Tap("blocks.{}", "output"),
        "logits": lw.models.Tap("", "output"),
    }
    anatomy = lw.Anatomy("plain", "vision", "blocks", 1, None, taps)
    return lw.wrap(Plain(net), anatomy, example=x)


# -- peers ----------------------------------------------------------------------------------------


def test_the_epsilon_rule_is_captums_on_a_convolutional_network() -> None:
    captum = pytest.importorskip("captum.attr", reason="captum is a test dependency")
    from captum.attr._utils.lrp_rules import EpsilonRule

    torch.manual_seed(0)
    net = nn.Sequential(  # no Flatten: captum's hooks on it fail
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(),
        nn.Conv2d(6, 8, 5), nn.ReLU(), nn.Conv2d(8, 3, 1),
    ).eval()  # fmt: skip
    x = torch.randn(4, 1, 14, 14, generator=torch.Generator().manual_seed(1))
    rows, target = torch.arange(4), torch.tensor([0, 1, 2, 0])
    mine = dl.scores(
        pictured(net, x), x, lambda z: z[rows, target, 0, 0], start="value",
        rules=dl.Rules(add="ratio"),
    )  # fmt: skip
    for module in net:
        if isinstance(module, nn.Conv2d | nn.MaxPool2d):
            module.rule = EpsilonRule(epsilon=1e-9)  # type: ignore[assignment]
    asked = [(int(t), 0, 0) for t in target]
    theirs = captum.LRP(net).attribute(x.clone().requires_grad_(), target=asked).detach()
    np.testing.assert_allclose(mine, theirs.sum(1), rtol=1e-3, atol=1e-5)
    assert float(np.abs(mine).max()) > 1e-2


def test_the_epsilon_rule_is_zennits_on_a_convolutional_network() -> None:
    zennit = pytest.importorskip(
        "zennit.composites", reason="zennit needs torchvision, which is no dependency of lwlab"
    )
    from zennit.attribution import Gradient
    from zennit.rules import Epsilon, Pass
    from zennit.types import Activation, AvgPool, Linear

    net, x = cnn(), torch.randn(4, 1, 14, 14, generator=torch.Generator().manual_seed(1))
    start = torch.eye(3)[[0, 1, 2, 0]]
    composite = zennit.LayerMapComposite([((Linear, AvgPool), Epsilon(1e-9)), (Activation, Pass())])
    with Gradient(net, composite) as attributor:
        _, theirs = attributor(x.clone().requires_grad_(), start)
    mine = dl.scores(pictured(cnn(), x), x, [0, 1, 2, 0], rules=dl.Rules(add="ratio"))
    np.testing.assert_allclose(mine, theirs.detach().sum(1), rtol=1e-3, atol=1e-5)


def test_integrated_gradients_are_captums() -> None:
    captum = pytest.importorskip("captum.attr", reason="captum is a test dependency")
    net, x = cnn(), torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    net[7] = nn.Linear(6 * 15 * 15, 8)
    model = pictured(net, x)
    from lwlab.attribution.dynamiclrp_curves import removed

    theirs = captum.IntegratedGradients(net).attribute(
        x, removed(model, x, False), target=[0, 2], n_steps=8, method="riemann_middle"
    )
    mine = dl.baseline(model, x, "ig", [0, 2], steps=8)
    np.testing.assert_allclose(mine, theirs.detach().sum(1), rtol=1e-3, atol=1e-6)


# -- modules and operations agree where both apply ------------------------------------------------


@pytest.mark.parametrize(("arch", "rules"), BOTH)
def test_with_relps_rules_relevance_is_relps(arch: str, rules: str, toy_ioi: Any) -> None:
    model, task = toy_ioi(arch)
    on = relp.switches(relp.RULES if rules == "relp" else relp.EVERY)
    with lw.rules(model, **on) as view:
        back = lw.grads(view, list(task.clean), task, "resid_pre")
    expected = (back.resid_pre * back.resid_pre_value).sum("d_model")
    mine = dl.scores(
        model, task, rules=rules, start="value", contrast=True, site="resid_pre",
        layers=range(model.n_layers),
    )  # fmt: skip
    size = float(np.abs(expected).max())
    np.testing.assert_allclose(mine, expected.transpose(*mine.dims), atol=1e-3 * size)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma2", "mixtral", "mamba", "vit"])
def test_with_gradients_for_rules_relevance_is_input_times_gradient(arch: str) -> None:
    module, _ = lw.models.toys.tiny(arch)
    model = (
        lw.wrap(module) if arch == "vit" else lw.wrap(module, tokenizer=lw.models.toys.tokenizer())
    )
    from lwlab.models.sample import sample

    given = sample(model)
    mine = dl.scores(model, given, [3], rules="gradient", start="value")
    slope = dl.baseline(model, given, "input x gradient", [3])
    np.testing.assert_allclose(mine, slope, atol=2e-3 * float(np.abs(slope).max()))


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("rules", ["paper", "attnlrp"])
def test_fused_and_written_out_attention_give_one_relevance(
    arch: str, rules: str, toy_ioi: Any
) -> None:
    found = []
    for kind in ("sdpa", "eager"):
        module, _ = lw.models.toys.tiny(arch)
        module.set_attn_implementation(kind)
        model = lw.wrap(module, tokenizer=lw.models.toys.tokenizer())
        found.append(dl.scores(model, "the cat sat on the mat", rules=rules))
    assert found[0].attrs["nodes"] != found[1].attrs["nodes"]
    np.testing.assert_allclose(*found, atol=1e-3 * float(np.abs(found[0]).max()))


# -- every architecture ---------------------------------------------------------------------------


@pytest.mark.parametrize("arch", sorted(ARCHS))
def test_every_operation_of_every_architecture_has_a_rule(arch: str) -> None:
    module, _ = lw.models.toys.tiny(arch)
    model = (
        lw.wrap(module) if arch == "vit" else lw.wrap(module, tokenizer=lw.models.toys.tokenizer())
    )
    found = dl.coverage(model)
    assert found.attrs["share"] == 1
    assert found.attrs["total"] == int(found.nodes.sum()) > 100
    assert "" not in found.kind.values


def test_coverage_counts_what_it_lacks() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.rfft(x.flatten(1)).abs()

    x = torch.randn(1, 1, 4, 4)
    found = dl.coverage(pictured(Odd(), x), x)
    assert 0 < found.attrs["share"] < 1
    assert found.nodes.sel(operation="FftR2CBackward0").kind == ""
    with pytest.raises(BadInput, match="no rule for FftR2CBackward0"):
        dl.scores(pictured(Odd(), x), x, 0)


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt2", "opt", "mixtral"])
def test_relevance_adds_up_at_every_layer_what_biases_took_counted(arch: str, toy_ioi: Any) -> None:
    model, task = toy_ioi(arch)
    kept = dl.conservation(model, task)
    assert kept.attrs["gap"] < 1e-4
    assert float(kept.error.max()) < 1e-5
    assert abs(kept.attrs["parallel"]) > 0.1
    if arch in ("llama", "gemma2", "mixtral"):
        np.testing.assert_allclose(kept.relevance, 1, atol=1e-4)
    else:
        assert abs(kept.attrs["constants"]) > 0.1
    lost = dl.conservation(model, task, rules="attnlrp")
    assert lost.attrs["gap"] > 1e-2


# -- batches, targets, labels ---------------------------------------------------------------------


def test_batches_padding_and_chunks_change_nothing(toy_ioi: Any) -> None:
    model, task = toy_ioi("llama")
    whole = dl.scores(model, task)
    np.testing.assert_allclose(dl.scores(model, task, batch_size=3), whole, rtol=1e-3, atol=1e-4)
    texts = [task.clean[0], "the cat sat"]
    both = dl.scores(model, texts, [5, 6])
    alone = dl.scores(model, texts[1], 6)
    length = alone.sizes["position"]
    np.testing.assert_allclose(both[1, :length], alone[0], atol=1e-5)
    assert bool(both[1, length:].isnull().all())
    assert both.token_str.values[1, 0] == alone.token_str.values[0, 0]


def test_targets_by_id_by_default_by_contrast_and_by_function_agree(toy_ioi: Any) -> None:
    model, task = toy_ioi("llama")
    by_task = dl.scores(model, task)
    by_id = dl.scores(model, list(task.clean), task.answer_ids)
    np.testing.assert_array_equal(by_task, by_id)
    rows = torch.arange(len(task))
    by_function = dl.scores(model, task, lambda z: z[rows, task.answer_ids])
    np.testing.assert_allclose(by_function, by_task, atol=1e-6)
    foils = dl.scores(model, list(task.clean), task.foil_ids)
    contrast = dl.scores(model, task, contrast=True)
    np.testing.assert_allclose(contrast, by_task - foils, rtol=1e-3, atol=1e-4)
    logits = lw.cache(model, list(task.clean), "logits").logits[:, -1]
    top = dl.scores(model, list(task.clean), logits.argmax("token").values)
    np.testing.assert_array_equal(dl.scores(model, list(task.clean)), top)
    value = dl.scores(model, task, start="value")
    z = np.take_along_axis(logits.values, task.answer_ids.numpy()[:, None], 1)
    np.testing.assert_allclose(value, by_task * z, rtol=1e-3, atol=1e-5)


def test_results_are_labelled_survive_the_disk_and_leave_weights_as_they_were(
    toy_ioi: Any, tmp_path: Any
) -> None:
    model, task = toy_ioi("gpt2")
    for p in model.module.parameters():
        p.requires_grad_(False)
    try:
        frozen = dl.scores(model, task, site="resid_pre", layers=[0, 2])
        assert not any(p.requires_grad for p in model.module.parameters())
    finally:
        for p in model.module.parameters():
            p.requires_grad_(True)
    free = dl.scores(model, task, site="resid_pre", layers=[0, 2])
    np.testing.assert_allclose(frozen, free, atol=1e-5)  # frozen biases take their share too
    assert all(p.grad is None for p in model.module.parameters())
    assert free.dims == ("prompt", "layer", "position")
    assert free.attrs["technique"] == "DynamicLRP"
    assert free.attrs["promises"] > 0
    path = lw.results.save(free, tmp_path / "r.nc")
    assert lw.results.open(path).identical(free)


def test_an_encoder_is_asked_by_a_function(toy: Any) -> None:
    model = toy("bert")
    texts, others = ["the cat sat on the mat", "Mary"], ["the dog sat", "John went to the store"]
    same = dl.similarity(model, texts, texts)
    hidden = engine.run(model, texts, [lw.models.Address("resid_post", model.n_layers - 1)])
    np.testing.assert_allclose(same(next(iter(hidden.values.values()))).detach(), 1, rtol=1e-5)
    found = dl.scores(model, texts, dl.similarity(model, texts, others))
    assert found.attrs["gap"] < 1e-4
    with pytest.raises(BadInput, match="2 prompts and 1 others"):
        dl.similarity(model, texts, others[:1])
    with pytest.raises(BadInput, match=r"has no logits: give target=.*similarity"):
        dl.scores(model, texts)


# -- curves ---------------------------------------------------------------------------------------


def test_curves_equal_a_loop_that_removes_one_prompts_tokens_at_a_time(toy_ioi: Any) -> None:
    model, task = toy_ioi("llama")
    given = dl.scores(model, task).drop_attrs()
    every = xr.concat([given, -given], "technique").assign_coords(technique=["r", "minus r"])
    found = dl.curves(model, task, every, points=4)
    embed = lw.cache(model, list(task.clean), "embed").embed.values
    mean = embed.mean((0, 1))
    for i in range(len(task)):
        for order, sign in (("morf", -1), ("lerf", 1)):
            ranked = np.argsort(sign * given.values[i], kind="stable")
            for j, share in enumerate((0, 1 / 3, 2 / 3, 1)):
                x = embed[i : i + 1].copy()
                x[0, ranked[: round(share * x.shape[1])]] = mean
                z = lw.patch(
                    model, [task.clean[i]], {"embed": x}, compare=False
                ).logits.values.ravel()
                expected = z[task.answer_ids[i]]
                got = found.curve.sel(technique="r", order=order).isel(prompt=i, removed=j)
                np.testing.assert_allclose(got.sel(measure="asked"), expected, atol=1e-4)
                expected -= z[task.foil_ids[i]]
                np.testing.assert_allclose(got.sel(measure="contrast"), expected, atol=1e-4)
    np.testing.assert_allclose(
        found.abpc.sel(technique="r"), -found.abpc.sel(technique="minus r"), atol=1e-4
    )
    area = found.curve.isel(removed=slice(1, 3)).sum("removed") / 3
    by_hand = area.sel(order="lerf") - area.sel(order="morf")  # the ends are shared
    np.testing.assert_allclose(found.abpc, by_hand, atol=1e-4)


def test_curves_of_prompts_of_several_lengths_never_remove_padding(toy: Any) -> None:
    model = toy("llama")
    texts = ["the cat sat on the mat", "Mary went"]
    given = dl.scores(model, texts, 5).expand_dims(technique=["r"])
    found = dl.curves(model, texts, given, 5, points=3)
    assert found.measure.values.tolist() == ["asked"]
    assert bool(np.isfinite(found.curve).all())


def test_pictures_lose_the_patches_that_matter_first() -> None:
    class Corner(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x[:, :, :16, :16].sum((1, 2, 3)), -x.sum((1, 2, 3))], 1)

    x = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    x[:, :, :16, :16] += 5
    model = pictured(Corner(), x)
    found = dl.scores(model, x, 0)
    assert float(found[0, 16:, 16:].sum()) == 0
    assert float(found.sum()) == pytest.approx(1, rel=1e-4)
    every = found.expand_dims(technique=["r"])
    curve = dl.curves(model, x, every, 0, points=5, patches=4).curve
    curve = curve.isel(measure=0, technique=0, prompt=0)
    whole = float(curve[0, 0])
    assert float(curve.sel(order="morf").isel(removed=1)) < whole / 1.4
    assert float(curve.sel(order="lerf").isel(removed=3)) == pytest.approx(whole, rel=0.3)


@pytest.mark.parametrize("technique", ["gradient", "input x gradient", "ig", "random"])
def test_baselines_are_what_they_say(technique: str, toy_ioi: Any) -> None:
    model, task = toy_ioi("llama")
    found = dl.baseline(model, task, technique, steps=3)
    assert found.dims == ("prompt", "position")
    back = lw.grads(model, list(task.clean), task.with_metric("logit"), "embed")
    g, x = back.embed, back.embed_value
    if technique == "gradient":
        np.testing.assert_allclose(found, (g**2).sum("d_model") ** 0.5, rtol=1e-3)
    if technique == "input x gradient":
        np.testing.assert_allclose(found, (g * x).sum("d_model"), atol=1e-5)
    if technique == "ig":
        many = dl.baseline(model, task, technique, steps=40).sum("position")
        mean = np.broadcast_to(x.mean(("prompt", "position")).values, x.shape)
        ends = [
            task.with_metric("logit").metric(
                lw.patch(model, list(task.clean), {"embed": e}, compare=False).logits
            )
            for e in (x.values, mean)
        ]
        np.testing.assert_allclose(many, ends[0] - ends[1], atol=0.02 * float(np.abs(many).max()))
    if technique == "random":
        again = dl.baseline(model, task, technique, seed=0)
        np.testing.assert_array_equal(found, again)
        assert float(np.abs(dl.baseline(model, task, technique, seed=1) - found).max()) > 0


# -- bad input ------------------------------------------------------------------------------------


def test_bad_input_is_refused_with_the_reason(toy_ioi: Any, toy: Any) -> None:
    model, task = toy_ioi("llama")
    given = dl.scores(model, task).expand_dims(technique=["r"])
    for call, match in (
        (lambda: dl.scores(model, task, lambda z: z), r"the target gave \(\d+, \d+\)"),
        (lambda: dl.scores(model, task, lambda z: 1.0), "the target gave float"),
        (lambda: dl.scores(model, task, [1, 2, 3]), "3 targets for"),
        (lambda: dl.scores(model, task, 10**6), "ids go from 0 to"),
        (lambda: dl.scores(model, task, 1.5), "whole numbers, or a function"),
        (lambda: dl.scores(model, "the cat", contrast=True), "contrast=True needs a task"),
        (lambda: dl.scores(model, task, batch_size=0), "batch_size=0"),
        (lambda: dl.curves(model, task, given[0]), "put a `technique` first"),
        (lambda: dl.curves(model, task, given, points=2), "at least 3"),
        (lambda: dl.curves(model, task, given[:, :2]), "scores are of 2 prompts"),
        (lambda: dl.curves(model, task, given.rename(position="where")), "must be"),
        (lambda: dl.curves(model, task, given.where(given.position > 0)), "every token"),
        (lambda: dl.baseline(model, task, "ig", steps=0), "1 or more"),
    ):
        with pytest.raises(BadInput, match=match):
            call()
    for call, match in (
        (lambda: dl.scores(model, task, rules="papr"), "did you mean 'paper'"),
        (lambda: dl.scores(model, task, start="1"), "Available: one, value"),
        (lambda: dl.scores(model, task, site="resid_pree"), "did you mean 'resid_pre'"),
        (lambda: dl.baseline(model, task, "gradients"), "did you mean 'gradient'"),
    ):
        with pytest.raises(UnknownName, match=match):
            call()
    with pytest.raises(MissingSite):
        dl.scores(toy("mamba"), "the cat", site="attn_out")
    with pytest.raises(BadInput, match="inference_mode"), torch.inference_mode():
        dl.scores(model, task)
