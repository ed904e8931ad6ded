"""Observables carried back: equal to autograd and to plain loops, an exact account of real runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from reference import forward

import lwlab as lw
from lwlab.attribution import obsprop
from lwlab.attribution.obsprop import Observable
from lwlab.attribution.obsprop_weights import final_norm, input_norms, norm_of, probes
from lwlab.errors import BadInput, MissingSite, UnknownName
from lwlab.models.sites import Address

ARCHS = [
    "gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma3", "gpt_neox", "gpt_neox_sequential",
    "opt", "phi", "olmo2", "mixtral",
]  # fmt: skip
PROMPTS = ["Mary gave the old red book to John in", "the dog saw"]


def she(model: lw.Model) -> Observable:
    return Observable.of(model, "she", "he")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def streams(model: lw.Model, k: int, seed: int = 0) -> torch.Tensor:
    return 3 * normal(k, int(model.d_model or 0), seed=seed)


@pytest.mark.parametrize("arch", [*ARCHS, "gemma2"])
def test_head_vectors_are_the_gradient_through_one_head(arch: str, toy: Any) -> None:
    """Autograd through the real block, all but one source token and one head cut off.

    With one token the pattern is 1, so attention is exactly the OV circuit of its heads; the slope
    of a norm is what is left of y across the input, over the norm's scale.
    """
    model = toy(arch)
    a, layer = model.anatomy, 1
    y = obsprop.vector(model, she(model))
    got = obsprop.head_vectors(model, she(model), layer).isel(layer=0)
    norm = input_norms(model, [layer])[layer]
    x = streams(model, 1)
    pre, read, z = (
        Address("resid_pre", layer),
        Address("attn_in", layer),
        Address("head_out", layer),
    )
    for head in range(model.n_heads):
        x_ = x[:, None].clone().requires_grad_(True)
        ids = torch.full((1, 1), 5)
        _, seen = forward(model, ids, [read, z], {pre: lambda t, x_=x_: x_}, copy=False)
        o = model.module.get_submodule(a.o_proj.replace("{}", str(layer)))
        only = torch.zeros_like(seen[z])
        only[:, :, head] = seen[z][:, :, head]
        out = (o(only.flatten(-2)) - o(torch.zeros_like(only.flatten(-2))))[0, 0]
        direction = torch.as_tensor(y.values)
        if a.attn_post:  # the sandwich norm's direction, as the vectors are defined
            post = model.module.get_submodule(a.attn_post.replace("{}", str(layer)))
            big = probes(len(direction))
            direction = norm_of(big, post(big).detach(), "post").back(direction)
        (slope,) = torch.autograd.grad(out @ direction, x_)
        c = norm.centre(x[0])
        s = c.pow(2).mean().sqrt() if norm.scaled else torch.tensor(1.0)
        v = torch.as_tensor(got.sel(head=head).values)
        expected = (v - c * (c @ v) / (c @ c) if norm.scaled else v) / s
        torch.testing.assert_close(slope[0, 0], expected, atol=2e-4, rtol=1e-3)


def test_head_vectors_equal_a_loop_over_plain_weights(toy: Any) -> None:
    """Grouped queries and RMSNorm, from the weights' own names and nothing of lwlab."""
    model = toy("llama")
    m, c = model.module, model.module.config
    i, j = (model.token_id(w) for w in ("she", "he"))
    d, group = (
        c.hidden_size // c.num_attention_heads,
        c.num_attention_heads // c.num_key_value_heads,
    )
    y = m.model.norm.weight * (m.lm_head.weight[i] - m.lm_head.weight[j])
    np.testing.assert_allclose(obsprop.vector(model, she(model)), y.detach(), atol=1e-6)
    got = obsprop.head_vectors(model, she(model))
    for layer, block in enumerate(m.model.layers):
        for h in range(c.num_attention_heads):
            W_O = block.self_attn.o_proj.weight[:, h * d : (h + 1) * d]
            kv = h // group
            W_V = block.self_attn.v_proj.weight[kv * d : (kv + 1) * d]
            expected = block.input_layernorm.weight * (W_V.T @ (W_O.T @ y))
            np.testing.assert_allclose(
                got.sel(layer=layer, head=h), expected.detach(), atol=1e-5, rtol=1e-4
            )
    assert float(np.abs(got).max()) > 1e-2


def test_gpt2_vectors_equal_a_loop_with_centring_norms(toy: Any) -> None:
    model = toy("gpt2")
    m, c = model.module, model.module.config
    i, j = (model.token_id(w) for w in ("she", "he"))
    d = c.n_embd // c.n_head

    def centred(v: torch.Tensor) -> torch.Tensor:
        return v - v.mean()

    y = centred(m.transformer.ln_f.weight * (m.lm_head.weight[i] - m.lm_head.weight[j]))
    got = obsprop.head_vectors(model, she(model))
    for layer, block in enumerate(m.transformer.h):
        W_V = block.attn.c_attn.weight[:, 2 * c.n_embd :]  # Conv1D: [in, out]
        for h in range(c.n_head):
            at = slice(h * d, (h + 1) * d)
            v = W_V[:, at] @ (block.attn.c_proj.weight[at] @ y)
            expected = centred(block.ln_1.weight * v).detach()
            np.testing.assert_allclose(got.sel(layer=layer, head=h), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("arch", [*ARCHS, "gemma2"])
def test_parts_add_up_to_the_observable_and_sources_to_heads(arch: str, toy: Any) -> None:
    model = toy(arch)
    observable = Observable.of(model, ["she", "queen"], "king")
    found = obsprop.contributions(model, observable, PROMPTS)
    np.testing.assert_allclose(found.sources.sum("position"), found.heads, atol=1e-5)
    parts = found.heads.sum(["layer", "head"]) + found.bias.sum("layer")
    parts = parts + found.writes.sum(["layer", "part"]) + found.embed + found.constant
    np.testing.assert_allclose(parts, found.observable, atol=1e-5)
    assert float(np.abs(found.heads).max()) > 1e-3
    for i, prompt in enumerate(PROMPTS):
        if arch == "gemma2":  # its logits are capped afterwards
            continue
        z = forward(model, prompt)[0][0, -1].detach()
        np.testing.assert_allclose(float(found.observable[i]), float(observable(z)), atol=1e-5)


def test_attention_output_is_the_sum_over_sources_and_heads(toy: Any) -> None:
    """The card's identity at one layer: y . attn_out = sum_h sum_j A_ij y_h . attn_in_j."""
    model, layer = toy("llama"), 1
    y = torch.as_tensor(obsprop.vector(model, she(model)).values)
    v = obsprop.head_vectors(model, she(model), layer).isel(layer=0)
    weight = model.module.model.layers[layer].input_layernorm.weight.detach()
    seen = lw.cache(model, PROMPTS[0], ["attn_in", "attn_pattern", "attn_out"], layers=layer)
    attn_in = torch.as_tensor(seen.attn_in.values[0, 0]) / weight  # x / s(x)
    total = np.zeros(len(attn_in))
    for h in range(model.n_heads):
        scores = (attn_in @ torch.as_tensor(v.sel(head=h).values)).numpy()
        pattern = seen.attn_pattern.values[0, 0, h]
        for i in range(len(attn_in)):
            for j in range(i + 1):
                total[i] += pattern[i, j] * scores[j]
    expected = seen.attn_out.values[0, 0] @ y.numpy()
    np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma3", "gpt_neox", "olmo2"])
def test_direct_effects_equal_patching_the_last_stream_by_hand(arch: str, toy_ioi: Any) -> None:
    model, task = toy_ioi(arch)
    a = model.anatomy
    observable = she(model)
    got = obsprop.direct_effects(model, observable, task)
    last = Address("resid_post", model.n_layers - 1)
    for layer, head in [(0, 0), (1, 3), (model.n_layers - 1, 2)]:
        z, o = Address("head_out", layer), Address("attn_out", layer)
        for p in range(len(task)):
            clean = forward(model, task.clean[p], [z, o, last])
            other = forward(model, task.corrupt[p], [z])[1][z][:, -1]
            mixed = clean[1][z][:, -1].clone()
            mixed[:, head] = other[:, head]
            module = model.module
            out = module.get_submodule(a.o_proj.replace("{}", str(layer)))(mixed.flatten(1))
            if a.attn_post:
                out = module.get_submodule(a.attn_post.replace("{}", str(layer)))(out)
            x = clean[1][last][:, -1] - clean[1][o][:, -1] + out
            patched = observable(model.unembed(x)[0])
            expected = (observable(clean[0][0, -1]) - patched).item()
            assert float(got[p].sel(layer=layer, head=head)) == pytest.approx(expected, abs=2e-5)
    assert set(got.toward.values.tolist()) <= {1, -1}
    assert float(np.abs(got).max()) > 1e-4


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma3", "gpt_neox", "opt", "olmo2"])
def test_a_norms_slope_keeps_what_is_across_the_input(arch: str, toy: Any) -> None:
    model = toy(arch)
    found = obsprop.tangents(model, she(model), PROMPTS)
    kept = obsprop.cosine(found, obsprop.vector(model, she(model)))
    formula = np.sqrt(1 - found.along**2)
    np.testing.assert_allclose(kept, formula, atol=1e-4)
    assert float(kept.min()) < 0.9999  # at some input the formula says something
    ids = model.tokens(PROMPTS[1]).ids
    at = Address("resid_post", model.n_layers - 1)
    _, seen = forward(model, ids, [at])
    x, eps = seen[at][0, -1].detach().double(), 1e-3
    observable, g = she(model), normal(int(model.d_model or 0), seed=3).double()

    def value(v: torch.Tensor) -> float:
        return observable(model.unembed(v.float()[None])[0]).item()

    slope = float(torch.as_tensor(found.values[1]).double() @ g)
    assert slope == pytest.approx((value(x + eps * g) - value(x - eps * g)) / (2 * eps), abs=5e-3)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gpt_neox", "gemma3", "mixtral"])
def test_mlp_vectors_are_gradients_of_the_mlp_alone(arch: str, toy: Any) -> None:
    model, layer = toy(arch), 1
    y, x = obsprop.vector(model, she(model)), streams(model, 3)
    got = obsprop.mlp_vector(model, y, layer, x)
    assert got.dims == ("example", "d_model")
    read = Address("resid_pre" if model.anatomy.parallel else "resid_mid", layer)
    out = Address("mlp_out", layer)

    def value(v: torch.Tensor) -> float:
        _, seen = forward(model, torch.full((1, 1), 5), [out], {read: lambda t: v[None, None]})
        return (seen[out][0, 0] @ torch.as_tensor(y.values)).item()

    for i in range(2):
        g = normal(int(model.d_model or 0), seed=7)
        slope = (value(x[i] + 1e-2 * g) - value(x[i] - 1e-2 * g)) / 2e-2
        assert float(torch.as_tensor(got.values[i]) @ g) == pytest.approx(slope, abs=5e-3, rel=2e-2)
    one = obsprop.mlp_vector(model, y, layer, x[1])
    np.testing.assert_allclose(one, got[1], atol=1e-6)


def test_the_crossing_is_where_the_mlp_says_nothing(toy: Any) -> None:
    model, layer = toy("llama"), 1
    y, many = obsprop.vector(model, she(model)), streams(model, 40, seed=4)
    seen = lw.patch(
        model, torch.full((40, 1), 5), {f"resid_mid.{layer}": many[:, None]}, read="mlp_out",
        layers=layer, compare=False,
    )  # fmt: skip
    values = seen.mlp_out.values[:, 0, 0] @ y.values
    high, low = many[int(values.argmax())], many[int(values.argmin())]
    assert values.max() > 0 > values.min()
    for positive, negative in ((high, low), (low, high)):
        found = obsprop.crossing(model, y, layer, positive, negative)
        t = found.attrs["t"]
        assert 0 < t < 1
        assert abs(found.attrs["value"]) < 1e-4 * np.abs(values).max()
        np.testing.assert_allclose(found, negative + t * (positive - negative), atol=1e-6)
    with pytest.raises(BadInput, match="one side of zero"):
        obsprop.crossing(model, y, layer, high, high)


def test_a_path_is_its_steps_in_turn(toy: Any) -> None:
    model = toy("llama")
    x0 = streams(model, 1)[0]
    first = obsprop.head_vectors(model, she(model), 2).sel(layer=2, head=3, drop=True)
    middle = obsprop.mlp_vector(model, first, 1, x0)
    last = obsprop.head_vectors(model, middle, 1).sel(layer=1, head=0, drop=True)
    found = obsprop.path_vector(
        model, she(model), ["head_out.2.3", "mlp_out.1", "head_out.1.0"], {1: x0}
    )
    np.testing.assert_allclose(found, last, atol=1e-6)
    assert found.attrs["path"] == "logits <- head_out.2.3 <- mlp_out.1 <- head_out.1.0"
    np.testing.assert_array_equal(
        obsprop.path_vector(model, she(model), []), obsprop.vector(model, she(model))
    )


@pytest.mark.parametrize(
    ("path", "match"),
    [
        (["head_out.0.1", "head_out.2.1"], "latest first"),
        (["head_out.1.0", "head_out.1.1"], "latest first"),
        (["head_out.1.0", "mlp_out.1"], "not linear"),
        (["head_out.1"], "which head"),
        (["head_out.9.0"], "layer is 0..2"),
        (["head_out.1.9"], "head is 0..3"),
        (["resid_pre.1"], "head_out and mlp_out"),
    ],
)
def test_paths_that_do_not_exist_are_refused(path: list[str], match: str, toy: Any) -> None:
    with pytest.raises(BadInput, match=match):
        obsprop.path_vector(toy("llama"), she(toy("llama")), path)


def test_in_parallel_blocks_a_head_does_not_read_its_layers_mlp(toy: Any) -> None:
    model = toy("gpt_neox")
    x0 = streams(model, 1)[0]
    with pytest.raises(BadInput, match="latest first"):
        obsprop.path_vector(model, she(model), ["mlp_out.1", "head_out.1.0"], {1: x0})


def test_coupling_is_the_expectation_of_the_paper() -> None:
    """E[y2.x | y1.x = k] over x uniform on the sphere's slice, drawn; and cos^2 = C C."""
    g = torch.Generator().manual_seed(0)
    y1, y2 = (xr.DataArray(torch.randn(16, generator=g).numpy(), dims="d_model") for _ in range(2))
    a, b = y1.values.astype(float), y2.values.astype(float)
    k, n = 1.3, 40_000
    across = torch.randn(n, 16, generator=g).double().numpy()
    across -= np.outer(across @ a, a) / (a @ a)
    across *= 2.0 / np.linalg.norm(across, axis=1, keepdims=True)
    got = (k * a / (a @ a) + across) @ b
    expected = k * float(obsprop.coupling(y1, y2))
    assert abs(got.mean() - expected) < 4 * got.std() / np.sqrt(n)
    product = float(obsprop.coupling(y1, y2) * obsprop.coupling(y2, y1))
    assert product == pytest.approx(float(obsprop.cosine(y1, y2)) ** 2, rel=1e-5)
    assert float(obsprop.coupling(y1, 2 * y2)) == pytest.approx(2 * expected / k, rel=1e-5)
    with pytest.raises(BadInput, match="zero"):
        obsprop.coupling(0 * y1, y2)


def test_norms_are_recognised_and_strangers_refused(toy: Any) -> None:
    assert final_norm(toy("gpt2")).centred
    assert not final_norm(toy("llama")).centred
    assert not input_norms(toy("olmo2"), [0])[0].scaled  # it norms what heads write instead
    for d in (8, 9):
        x = probes(d)
        assert float(x[0].mean().abs()) < 1e-4
        layer_norm = torch.nn.LayerNorm(d, bias=False)
        found = norm_of(x, layer_norm(x).detach(), "here")
        assert (found.centred, found.scaled) == (True, True)
        np.testing.assert_allclose(found.gain, np.ones(d), atol=1e-4)
        with pytest.raises(BadInput, match="no kind that"):
            norm_of(x, torch.tanh(x / 100), "here")
    gemma = toy("gemma3").module.model.norm  # its gain is 1 + weight
    np.testing.assert_allclose(final_norm(toy("gemma3")).gain, 1 + gemma.weight.detach(), atol=1e-4)


def test_scale_of_the_observable_scales_all(toy: Any) -> None:
    model = toy("llama")
    both = Observable.weighted(model, {"she": 2.0, "he": -2.0})
    double, single = (obsprop.head_map(model, o) for o in (both, she(model)))
    np.testing.assert_allclose(double, 2 * single, rtol=1e-4)
    assert (-she(model)).weights == (-1.0, 1.0)
    np.testing.assert_allclose(obsprop.head_map(model, -she(model)), single, rtol=1e-5)


def test_an_observable_is_its_functional(toy: Any) -> None:
    model = toy("llama")
    o = Observable.of(model, ["she", "queen"], ["he", "king", "boy"])
    assert o.name == "she + queen - he - king - boy"
    z = normal(2, 100)
    ids = {w: model.token_id(w) for w in ("she", "queen", "he", "king", "boy")}
    expected = (z[:, ids["she"]] + z[:, ids["queen"]]) / 2
    expected -= (z[:, ids["he"]] + z[:, ids["king"]] + z[:, ids["boy"]]) / 3
    torch.testing.assert_close(o(z), expected)
    table = xr.DataArray(z.numpy(), dims=("prompt", "token"))
    np.testing.assert_allclose(o(table), expected, rtol=1e-5)
    metric = lw.grads(model, PROMPTS[0], o.metric(), "resid_pre", layers=0)
    z = forward(model, PROMPTS[0])[0][:, -1]
    assert float(metric.metric[0]) == pytest.approx(float(o(z)[0]), abs=1e-5)
    with pytest.raises(BadInput, match="lack token"):
        o(torch.zeros(3))
    with pytest.raises(BadInput, match="dimension token"):
        o(xr.DataArray(np.zeros(3), dims="prompt"))


@pytest.mark.parametrize(
    ("plus", "minus", "match"),
    [
        ([], [], "empty"),
        ("", "he", "empty word"),
        ("Mary gave", "he", r"2 tokens.*\['Mary', 'gave'\]"),
        ("zebra", "he", "does not know the word 'zebra'"),
        ("she", "she", "zero everywhere"),
        (["she", "he"], ["he", "she"], "zero everywhere"),
        (100, "he", r"outside the vocabulary, 0\.\.99"),
        (-1, "he", "outside the vocabulary"),
        (True, "he", "neither a word nor a token id"),
    ],
)
def test_observables_that_cannot_be_are_refused(
    plus: Any, minus: Any, match: str, toy: Any
) -> None:
    with pytest.raises(BadInput, match=match):
        Observable.of(toy("llama"), plus, minus)


def test_typed_words(toy: Any) -> None:
    model = toy("llama")
    o = Observable.parse(model, "she, queen", "'he' \"king\"")
    assert o == Observable.of(model, [" she", " queen"], ["he", "king"])
    assert Observable.parse(model, "she").weights == (1.0,)
    with pytest.raises(BadInput, match="empty"):
        Observable.parse(model, " , ", "")
    with pytest.raises(BadInput, match="does not know"):
        Observable.parse(model, "she zebra", "he")
    with pytest.raises(BadInput, match="finite"):
        Observable.weighted(model, {"she": float("nan")})


def test_models_and_places_that_do_not_fit_are_refused_before_any_run(toy: Any) -> None:
    llama = toy("llama")
    o = she(llama)
    runs: list[int] = []
    with pytest.raises(BadInput, match=r"layer is 0\.\.2"):
        obsprop.head_vectors(llama, o, [0, 9])
    for layer in (3, -4):
        with pytest.raises(BadInput, match=r"layer is 0\.\.2"):
            obsprop.mlp_vector(llama, obsprop.vector(llama, o), layer, torch.zeros(32))
    handle = llama.module.register_forward_hook(lambda *_: runs.append(1))
    try:
        with pytest.raises(BadInput, match="a vector \\[32\\]"):
            obsprop.mlp_vector(llama, torch.zeros(3), 0, torch.zeros(32))
        with pytest.raises(BadInput, match="32 numbers"):
            obsprop.head_vectors(llama, xr.DataArray(np.zeros(3), dims="d_model"))
        with pytest.raises(BadInput, match="dimension d_model"):
            obsprop.head_vectors(llama, np.zeros(32))  # type: ignore[arg-type]
        with pytest.raises(UnknownName, match="unknown site"):
            obsprop.path_vector(llama, o, ["heads.1.0"])
        with pytest.raises(BadInput, match=r"k in 1\.\.50"):
            obsprop.nearest_tokens(llama, obsprop.vector(llama, o), k=99)
        assert not runs
    finally:
        handle.remove()
    with pytest.raises(BadInput, match="norms its stream"):
        obsprop.vector(toy("opt_post_norm"), o)
    with pytest.raises(BadInput, match="clips its values"):
        obsprop.head_map(toy("olmo"), o)
    with pytest.raises(MissingSite, match="state-space"):
        obsprop.head_map(toy("mamba"), o)
    with pytest.raises(BadInput, match="encoder"):
        obsprop.vector(toy("bert_mlm"), o)
    with pytest.raises(MissingSite, match="no unembedding"):
        Observable.of(toy("bert"), "she")


def test_twins_that_score_the_same_have_no_direct_effect(unchanged: Any) -> None:
    model, task = unchanged
    with pytest.raises(BadInput, match="score the same"):
        obsprop.direct_effects(model, she(model), task)


def test_nearest_tokens_are_those_of_the_embedding(toy: Any) -> None:
    model = toy("llama")
    table = model.module.get_input_embeddings().weight.detach()
    y = xr.DataArray(table[7].numpy(), dims="d_model")
    found = obsprop.nearest_tokens(model, y, k=5)
    scores = (table @ table[7]).numpy()
    order = np.argsort(-scores)
    assert found.value.sel(side="top").values == pytest.approx(scores[order[:5]], abs=1e-5)
    assert found.token.sel(side="top").values.tolist() == [
        model.tokenizer.decode([i]) for i in order[:5]
    ]
    assert found.value.sel(side="bottom").values == pytest.approx(scores[order[::-1][:5]], abs=1e-5)


def test_results_are_labelled_and_survive_the_disk(toy: Any, tmp_path: Any) -> None:
    model = toy("llama")
    found = obsprop.head_vectors(model, she(model), [2, 0])
    assert found.dims == ("layer", "head", "d_model")
    assert found.layer.values.tolist() == [2, 0]
    assert found.attrs["observable"] == "she - he"
    assert (found.attrs["model"], found.attrs["paper"]) == ("llama", "2312.16291")
    path = lw.results.save(obsprop.contributions(model, she(model), PROMPTS), tmp_path / "c.nc")
    assert lw.results.open(path).sources.sizes["position"] == 9


def test_half_precision_gives_the_same_vectors_to_its_own_accuracy() -> None:
    module, _ = lw.models.toys.tiny("llama")
    full = lw.wrap(module, tokenizer=lw.models.toys.tokenizer())
    expected = obsprop.head_vectors(full, she(full)).values
    half = lw.wrap(module.to(torch.bfloat16), tokenizer=lw.models.toys.tokenizer())
    got = obsprop.head_vectors(half, she(half))
    assert got.dtype == np.float32
    assert float(np.abs(got - expected).max()) < 0.05 * np.abs(expected).max()
