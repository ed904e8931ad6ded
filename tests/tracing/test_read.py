"""`cache` and `grads` against plain torch: hooks, and autograd by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from reference import EVERY, PROMPTS, forward

import lwlab as lw
from lwlab.errors import BadInput, LwlabError, MissingSite, UnknownName
from lwlab.models import toys
from lwlab.models.sites import SITES, Address
from lwlab.tracing import engine
from lwlab.tracing.pattern import exposed

Toy = Callable[[str], lw.Model]


def inputs(model: lw.Model) -> Any:
    """Two prompts of equal length, or two pictures."""
    if model.kind == "vision":
        return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    ids = torch.randint(4, 90, (2, 7), generator=torch.Generator().manual_seed(3))
    if model.kind == "encoder-decoder":
        return {"input_ids": ids, "decoder_input_ids": ids[:, 2:6]}
    return ids


def everywhere(model: lw.Model, sites: list[str]) -> list[Address]:
    layers: Any = range(model.n_layers)
    return [Address(s, i) for s in sites for i in (layers if SITES[s].scope == "layer" else [None])]


def unfold(value: torch.Tensor, x: Any) -> torch.Tensor:
    """OPT's MLP works on [prompts * positions, features]."""
    return value.unflatten(0, (2, -1)) if value.shape[0] == 14 else value


@pytest.mark.parametrize("name", EVERY)
def test_cache_is_bit_for_bit_what_hooks_see(name: str, toy: Toy) -> None:
    model, x = toy(name), inputs(toy(name))
    sites = [s for s in model.sites() if s not in ("attn_pattern", "logits")]
    got = lw.cache(model, x, model.sites())
    plain = lw.cache(model, x, [s for s in model.sites() if s != "attn_pattern"])
    with torch.no_grad():
        z, want = forward(model, x, everywhere(model, sites))
        with exposed(model.module, "attn_pattern" in model.sites()):
            _, explicit = forward(
                model, x, everywhere(model, [s for s in model.sites() if s != "logits"])
            )
    if "logits" in model.sites():
        assert torch.equal(torch.tensor(plain.logits.values), z)
    for result, hooks in ((plain, want), (got, explicit)):
        for address, value in hooks.items():
            array = result[address.site]
            array = array if address.layer is None else array.sel(layer=address.layer)
            assert torch.equal(torch.tensor(array.values), unfold(value, x)), address


def test_cached_dimensions_and_coordinates_are_named(toy: Toy) -> None:
    model = toy("llama")
    got = lw.cache(model, PROMPTS, model.sites(), layers=[2, 0])
    for site in model.sites():
        spec = SITES[site]
        scope = ("layer",) if spec.scope == "layer" else ()
        assert got[site].dims == ("prompt", *scope, *spec.dims)
    assert got.layer.values.tolist() == [2, 0]
    assert got.q.sizes["head"] == 4
    assert got.k.sizes["kv_head"] == 2
    assert got.token_str.values[1].tolist()[:4] == ["the", "dog", "saw", ""]
    assert got.text.values.tolist() == PROMPTS
    assert got.attrs["model"] == "llama"
    rows = got.attn_pattern.sum("position").isel(prompt=1, query=slice(3))
    np.testing.assert_allclose(rows, 1.0, atol=1e-5)


@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_cache_does_not_care_about_the_mode_around_it(grad_mode: Any, toy: Toy) -> None:
    want = lw.cache(toy("olmo"), PROMPTS[0], ["q", "resid_post"])
    with grad_mode():
        assert lw.cache(toy("olmo"), PROMPTS[0], ["q", "resid_post"]).equals(want)
        assert lw.patch(toy("olmo"), PROMPTS[0], {"q.1": 0.0}).moved.item() > 0
        lw.chain(toy("olmo"), PROMPTS[0], [0, 2])
        lw.generate(toy("olmo"), PROMPTS[0], 2, {"q.1": 0.0})
    assert (
        not engine.run(toy("olmo"), PROMPTS[0], [Address("embed")])
        .values[Address("embed")]
        .requires_grad
    )


@pytest.mark.parametrize("name", EVERY)
def test_grads_are_those_of_autograd(name: str, toy: Toy) -> None:
    """By hooks that read each site's tensor, columns taken afterwards."""
    model, x = toy(name), inputs(toy(name))
    if "logits" not in model.sites():
        with pytest.raises(BadInput, match="no logits"):
            lw.grads(model, x, lambda z: z[:, 3], "resid_pre")
        return
    sites = [s for s in model.sites() if s not in ("attn_pattern", "logits")]
    weights = torch.linspace(-1, 1, 10 if name == "vit" else 100)
    got = lw.grads(model, x, lambda z: z @ weights, sites)
    tensors: dict[Address, torch.Tensor] = {}
    taps = model.anatomy.taps

    def after(address: Address) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            tensors[address] = engine.tensor_of(output)
            tensors[address].retain_grad()

        return hook

    def before(address: Address) -> Any:
        """What flows through this module alone; the residual path reads the same tensor."""

        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            tensor = args[0] if args else next(iter(kwargs.values()))
            alias = tensor if taps[address.site].shared else tensor.view_as(tensor)
            alias.retain_grad()
            tensors[address] = alias
            if args:
                return (alias, *args[1:]), kwargs
            return args, {**kwargs, next(iter(kwargs)): alias}

        return hook

    with torch.enable_grad():
        handles = []
        for address in everywhere(model, sites):
            tap = taps[address.site]
            module = model.module.get_submodule(tap.at(address.layer))
            if tap.end == "output":
                handles.append(module.register_forward_hook(after(address)))
            else:
                hook = before(address)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        z = forward(model, x)[0]
        for handle in handles:
            handle.remove()
        values = (z if z.ndim == 2 else z[:, -1]) @ weights
        values.sum().backward()
    for p in model.module.parameters():
        p.grad = None
    np.testing.assert_allclose(got.metric.values, values.detach().numpy(), atol=1e-5)
    for address, tensor in tensors.items():
        want = taps[address.site].view.read(unfold(tensor.grad, x))  # type: ignore[arg-type]
        array = got[address.site]
        array = array if address.layer is None else array.sel(layer=address.layer)
        scale = float(want.abs().max())
        assert scale > 0 or address.site in ("q", "k"), address
        if getattr(taps[address.site].view, "clip", None) is None:  # inside the clip it is the same
            np.testing.assert_allclose(
                array, want, atol=1e-5 * max(scale, 1e-3), err_msg=str(address)
            )


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt_neox", "phi"])
@pytest.mark.parametrize("site", ["q", "k", "v", "head_out", "attn_pattern", "neurons"])
def test_grads_at_heads_and_columns_are_finite_differences(name: str, site: str) -> None:
    """In double precision, of architectures that do not round to single inside."""
    module, _ = toys.tiny(name)
    model = lw.wrap(module.double(), tokenizer=toys.tokenizer())
    weights = torch.linspace(-1, 1, 100, dtype=torch.float64)
    got = lw.grads(model, PROMPTS[2], lambda z: z @ weights, site, layers=1)
    value = torch.tensor(got[f"{site}_value"].values[:, 0])
    slope = torch.tensor(got[site].values[:, 0])
    g = torch.Generator().manual_seed(0)
    direction = torch.randn(value.shape, generator=g, dtype=torch.float64)
    ends = [
        engine.run(
            model, PROMPTS[2], [],
            [lw.tracing.Edit(Address(site, 1), value + step * direction)],
        ).logits[0] @ weights
        for step in (1e-5, -1e-5)
    ]  # fmt: skip
    want = float(ends[0] - ends[1]) / 2e-5
    assert float((slope * direction).sum()) == pytest.approx(want, rel=1e-6)


def test_grads_work_on_a_frozen_model_and_leave_no_trace() -> None:
    module, _ = toys.tiny("gemma2")
    model = lw.wrap(module, tokenizer=toys.tokenizer())
    sites = [s for s in model.sites() if s != "logits"]
    free = lw.grads(model, PROMPTS[0], lambda z: z[:, 5], sites)
    module.requires_grad_(False)
    frozen = lw.grads(model, PROMPTS[0], lambda z: z[:, 5], sites)
    for site in sites:
        np.testing.assert_allclose(free[site], frozen[site], rtol=1e-5, atol=1e-7)
    assert all(p.grad is None for p in module.parameters())
    with torch.no_grad():  # the mode around a call does not matter here either
        assert lw.grads(model, PROMPTS[0], lambda z: z[:, 5], sites).equals(frozen)


def test_gradients_of_prompts_do_not_mix(toy: Toy) -> None:
    model, weights = toy("gpt2"), torch.tensor([1.0, 100.0])
    one = lw.grads(model, PROMPTS[:2], lambda z: z[:, 5], "resid_pre")
    two = lw.grads(model, PROMPTS[:2], lambda z: weights * z[:, 5], "resid_pre")
    np.testing.assert_allclose(two.resid_pre[0], one.resid_pre[0], rtol=1e-5)
    np.testing.assert_allclose(two.resid_pre[1], 100 * one.resid_pre[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        (lambda z: z, r"returned \(2, 100\); it must return one number for each of the 2 prompts"),
        (lambda z: z[:, 5].sum(), r"returned \(\)"),
        (lambda z: 3.0, "returned float"),
        (lambda z: z[:, 5] * float("nan"), "NaN or infinity"),
        (lambda z: torch.ones(2), "does not depend on the logits"),
        (5, "must be a function of logits"),
    ],
)
def test_a_metric_must_give_one_number_a_prompt(metric: Any, says: str, toy: Toy) -> None:
    with pytest.raises(BadInput, match=says):
        lw.grads(toy("gpt2"), PROMPTS[:2], metric, "resid_pre")


def test_a_metric_of_the_wrong_shape_is_refused_before_the_run(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpt2, bert = toy("gpt2"), toy("bert")
    monkeypatch.setattr(engine, "_trace", None)  # running would fail
    with pytest.raises(BadInput, match=r"returned \(2, 100\)"):
        lw.grads(gpt2, PROMPTS[:2], lambda z: z, "resid_pre")
    with pytest.raises(BadInput, match="bert has no logits"):
        lw.grads(bert, PROMPTS[:2], lambda z: z[:, 0], "resid_pre")


def test_what_cannot_be_read_is_refused_before_the_run(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy("gpt2")
    monkeypatch.setattr(engine, "_trace", None)  # running would fail
    calls: list[tuple[type[LwlabError], str, Callable[[], Any]]] = [
        (UnknownName, "did you mean 'resid_pre'", lambda: lw.cache(model, "a", "resid_prr")),
        (MissingSite, "no site 'mlp_gate'", lambda: lw.cache(model, "a", ["q", "mlp_gate"])),
        (BadInput, "layer is 0..2", lambda: lw.cache(model, "a", "q", layers=3)),
        (BadInput, r"position 2 is out of range: prompt 1 has 2", lambda: lw.cache(
            model, ["the dog saw", "the dog"], "q", positions=[0, 2])),
        (BadInput, "positions is empty", lambda: lw.cache(model, "a", "q", positions=[])),
        (BadInput, r"5.12e-07 GB or more and max_bytes is 1e-07 GB", lambda: lw.cache(
            model, "a", ["neurons"], layers=0, max_bytes=100)),
        (BadInput, "logits are what the metric reads", lambda: lw.grads(
            model, "a", lambda z: z[:, 0], "logits")),
    ]  # fmt: skip
    for kind, says, call in calls:
        with pytest.raises(kind, match=says):
            call()
    with pytest.raises(BadInput, match=r"leave torch.inference_mode"), torch.inference_mode():
        lw.grads(model, "a", lambda z: z[:, 0], "q")


def test_the_size_said_beforehand_is_the_size_kept(toy: Toy) -> None:
    for name in ("llama", "mixtral", "mamba", "bert"):
        model = toy(name)
        sites = [s for s in model.sites() if s != "logits"]
        got = lw.cache(model, PROMPTS, sites, layers=[0, 2])
        assert got.attrs["bytes"] == sum(got[s].nbytes for s in sites)


def test_a_model_in_training_mode_stays_there_and_drops_out() -> None:
    module, _ = toys.tiny("gpt2", resid_pdrop=0.5)
    model = lw.wrap(module, tokenizer=toys.tokenizer())
    quiet = lw.cache(model, PROMPTS[0], "resid_post")
    module.train()
    torch.manual_seed(1)
    noisy = lw.cache(model, PROMPTS[0], "resid_post")
    torch.manual_seed(1)
    with torch.no_grad():
        _, want = forward(model, PROMPTS[0], [Address("resid_post", 2)])
    assert module.training
    assert not noisy.equals(quiet)
    np.testing.assert_array_equal(noisy.resid_post.sel(layer=2), want[Address("resid_post", 2)])
    lw.patch(model, PROMPTS[0], {"resid_mid.1": 0.0})
    lw.grads(model, PROMPTS[0], lambda z: z[:, 5], "resid_mid")
    assert module.training


def test_a_picture_s_patches_have_positions_of_their_own(toy: Toy) -> None:
    model = toy("vit")
    got = lw.cache(model, inputs(model), ["embed", "resid_pre", "final_norm"])
    assert got.embed.dims == ("prompt", "position.embed", "d_model")
    assert (got.sizes["position.embed"], got.sizes["position"]) == (16, 17)
    assert lw.cache(model, inputs(model), "embed").embed.dims == ("prompt", "position", "d_model")


def test_the_pattern_switches_the_kernel_and_switches_back_also_on_error(toy: Toy) -> None:
    model = toy("llama")
    before = model.module.config._attn_implementation
    assert before == "sdpa"
    plain = lw.cache(model, PROMPTS[0], "logits")
    lw.cache(model, PROMPTS[0], "attn_pattern")
    assert model.module.config._attn_implementation == before

    def fail(pattern: torch.Tensor) -> torch.Tensor:
        assert model.module.config._attn_implementation == "lwlab_eager"
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        lw.patch(model, PROMPTS[0], {"attn_pattern.1": fail})
    assert model.module.config._attn_implementation == before
    assert lw.cache(model, PROMPTS[0], "logits").equals(plain)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "bert", "vit", "t5:encoder"])
def test_the_pattern_is_the_eager_kernel_s(name: str) -> None:
    # A model of its own: asked for attentions, transformers leaves hooks behind.
    model = lw.wrap(toys.tiny(name.partition(":")[0])[0])
    x = inputs(model)
    got = lw.cache(model, x, "attn_pattern").attn_pattern
    args, kwargs = engine.batch(model, x).fresh()
    before = model.module.config._attn_implementation
    model.module.set_attn_implementation("eager")
    with torch.no_grad():
        out = model.module(*args, **kwargs, output_attentions=True)
    model.module.set_attn_implementation(before)
    patterns = out.encoder_attentions if name.startswith("t5") else out.attentions
    for layer, want in enumerate(patterns):
        np.testing.assert_allclose(got.sel(layer=layer), want, atol=1e-5)
