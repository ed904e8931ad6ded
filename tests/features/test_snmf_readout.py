"""Concepts, activations, readouts, the small autoencoder and steering, on toy models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

import lwlab as lw
from lwlab.errors import BadInput, MissingSite
from lwlab.features import (
    auc,
    collect,
    collect_layers,
    concepts,
    cosine,
    decode,
    dictionaries,
    purity,
    reaches_stream,
    snmf,
    steer,
    top_contexts,
    top_neurons,
    train,
    vocabulary,
    written,
)
from lwlab.models import toys
from lwlab.results import label

WORDS = {"verbs": toys.WORDS[27:33], "things": toys.WORDS[42:48]}
PLACES = ["the {word}", "and the {word}"]


@pytest.fixture(scope="module")
def told():
    return lambda net: concepts(net, WORDS, PLACES)


def test_concepts_are_every_word_in_every_place(toy, told):
    c = told(toy("gpt2"))
    assert len(c) == 24
    assert c.held_out.sum() == 8  # two words of each concept, in two places
    assert set(c.lists["verbs"]) == set(WORDS["verbs"])
    inside, outside = c.ids(False), c.ids(True)
    assert len(inside["verbs"]) == 4
    assert not set(inside["verbs"]) & set(outside["verbs"])
    assert all(t.endswith(w) for t, w in zip(c.texts, c.words))


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gpt_neox", "opt", "bert"])
def test_activations_are_the_cached_ones(toy, told, arch):
    net = toy(arch)
    c = told(net)
    for at, a in collect_layers(net, c, [0, 2], batch_size=5).items():
        for i in (0, 13, 23):
            kept = lw.cache(net, c.texts[i], "neurons", at).neurons.values[0, 0]
            assert np.allclose(a.values[i], kept[c.positions[i]], atol=1e-5)
            assert a.token_str.values[i].strip() == c.words[i]
        assert a.attrs["layer"] == at
    texts = ["the king said", "a man and a woman"]
    a = collect(net, texts, 1)
    kept = lw.cache(net, texts, "neurons", 1).neurons.values[:, 0]
    assert a.position.values.tolist() == [1, 2, 1, 2, 3, 4]
    assert np.allclose(a.values[2:], kept[1, 1:5], atol=1e-5)


def test_auc_is_the_other_libraries():
    rng = np.random.default_rng(0)
    s = label(
        rng.integers(0, 5, (60, 3)).astype(float), ("sample", "feature"), {"feature": [0, 1, 2]}
    )
    who = np.array(["a", "b", "c"])[rng.integers(0, 3, 60)]
    found = auc(s, who)
    for name in "abc":
        for j in range(3):
            one = float(found.sel(concept=name, feature=j))
            assert one == pytest.approx(roc_auc_score(who == name, s.values[:, j]))
            u = mannwhitneyu(s.values[who == name, j], s.values[who != name, j]).statistic
            assert one == pytest.approx(u / ((who == name).sum() * (who != name).sum()))


def test_purity_and_top_contexts_count():
    y = label(
        np.array([[3.0, 0], [2, 0], [1, 5], [0, 4]]), ("sample", "feature"), {"feature": [0, 1]}
    )
    found = purity(y, ["a", "a", "b", "b"], top=2)
    assert found.values.tolist() == [1, 1]
    assert found.concept.values.tolist() == ["a", "b"]
    assert purity(y, ["a", "b", "a", "b"], top=3).values.tolist() == pytest.approx([2 / 3, 2 / 3])
    assert top_contexts(y, 1, 2).value.values.tolist() == [5, 4]
    z = label(np.array([[0.0, -4, 3]]), ("feature", "neuron"), {"feature": [0]})
    assert top_neurons(z, 0, 2).values.tolist() == pytest.approx([-0.8, 0.6])
    assert top_neurons(z, 0, 2).neuron.values.tolist() == [1, 2]
    with pytest.raises(BadInput, match="no feature 9"):
        top_neurons(z, 9)


def test_difference_in_means_is_a_loop(toy, told):
    a = collect(toy("llama"), told(toy("llama")), 1)
    found = dictionaries.difference_in_means(a)
    for j, name in enumerate(found["of"].values):
        inside = [row for row, c in zip(a.values, a.concept.values) if c == name]
        outside = [row for row, c in zip(a.values, a.concept.values) if c != name]
        want = np.mean(inside, 0) - np.mean(outside, 0)
        assert np.allclose(found.direction.values[j], want, atol=1e-6)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "opt", "gpt_neox", "gemma2"])
def test_what_is_written_is_what_reaches_the_stream(toy, arch):
    net = toy(arch)
    z = np.random.default_rng(0).normal(size=(1, net.d_mlp))
    f = torch.as_tensor(written(net, label(z, ("feature", "neuron")), 1).values[0])
    push = torch.as_tensor(z[0])
    text = ["the king said", "a man and a"]
    runs = [
        lw.patch(net, text, {at: lambda h, v=v: h + v.to(h)}, compare=False).logits.values
        for at, v in (("neurons.1", push), ("resid_post.1", f))
    ]
    assert reaches_stream(net) == (arch != "gemma2")
    assert np.allclose(*runs, atol=1e-4) == reaches_stream(net)


def test_the_vocabulary_view_is_the_lens_of_the_direction(toy):
    net = toy("llama")
    z = label(np.eye(net.d_mlp)[:2], ("feature", "neuron"), {"feature": [0, 1]})
    f = torch.tensor(written(net, z, 0).values)
    with torch.no_grad():
        want = net.unembed(f / f.norm(dim=1, keepdim=True)).topk(3).values
    assert np.allclose(vocabulary(net, z, 0, 3).score.values, want, atol=1e-5)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gpt_neox", "opt", "gemma2"])
def test_steering_is_a_patch_with_the_divergence_asked_for(toy, told, arch):
    net = toy(arch)
    z = dictionaries.random(collect(net, told(net), 1), 3, 10)
    lists = told(net).ids()
    prompts = ["the king said", "a man and a"]
    out = steer(net, prompts, z.direction, 1, lists, target=0.02, tolerance=0.01)
    assert out.reached.all()
    assert np.allclose(out.kl, 0.02, rtol=0.011)
    for j in range(3):
        unit = z.direction.values[j] / np.linalg.norm(z.direction.values[j])
        push = torch.as_tensor(float(out.alpha[j]) * unit)
        run = lw.patch(net, prompts, {"neurons.1": lambda h, push=push: h + push.to(h)})
        assert float(run.moved.mean()) == pytest.approx(float(out.kl[j]), rel=1e-3)
        p, p0 = (torch.tensor(x.values).double().softmax(-1).numpy() for x in
                 (run.logits, run.base_logits))  # fmt: skip
        for name, ids in lists.items():
            want = np.log(p[:, ids].sum(1)) - np.log(p0[:, ids].sum(1))
            assert np.allclose(out.gain.sel(list=name).values[j], want, atol=1e-4)
    again = steer(net, prompts, z.direction * 7, 1, lists, target=0.02, tolerance=0.01)
    assert np.allclose(again.alpha, out.alpha, rtol=1e-3)  # only the direction counts


def test_a_target_out_of_reach_is_told(toy, told):
    net = toy("gpt2")
    z = dictionaries.random(collect(net, told(net), 1), 2, 10)
    out = steer(net, ["the king"], z.direction, 1, told(net).ids(), target=40.0, rounds=4)
    assert not out.reached.any()
    assert (out.kl < 40).all()


def test_the_small_autoencoder_finds_planted_directions():
    gen = torch.Generator().manual_seed(0)
    true = torch.randn(10, 40, generator=gen)
    true /= true.norm(dim=1, keepdim=True)
    codes = torch.rand(600, 10, generator=gen) * (torch.rand(600, 10, generator=gen) < 0.25)
    x = codes @ true + 3.0  # a mean that b_dec must take
    made = train(x, 12, 3, steps=500, seed=0)
    cosines = (made.w_dec @ true.T).max(0).values
    assert (cosines > 0.9).float().mean() >= 0.8
    assert float(made.losses[-20:].mean()) < 0.15 < float(made.losses[0])
    assert torch.allclose(made.w_dec.norm(dim=1), torch.ones(12), atol=1e-5)
    assert (made.codes(x) > 0).sum(1).max() <= 3
    assert torch.allclose(made(x), decode(made.encode(x), made.w_dec, made.b_dec))
    assert torch.equal(made.w_dec, train(x, 12, 3, steps=500, seed=0).w_dec)
    assert not torch.equal(made.w_dec, train(x, 12, 3, steps=500, seed=1).w_dec)


def test_the_autoencoders_scale_is_the_datas():
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    one, ten = (train(s * x, 8, 2, steps=30) for s in (1.0, 10.0))
    assert torch.allclose(10 * one(x), ten(10 * x), atol=1e-3)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"days": ["Monday"] * 4}, "1 concept given"),
        ({"a": ["x", "y", "z"], "b": ["u", "v"]}, "'b' has 2 words"),
        ({"a": ["x", "y", "z"], "b": ["u", "v", "x"]}, "'x' is in two concepts, 'a' and 'b'"),
    ],
)
def test_bad_concepts_are_refused(toy, words, match):
    with pytest.raises(BadInput, match=match):
        concepts(toy("gpt2"), words)


def test_other_bad_input_is_refused(toy, told):
    net = toy("gpt2")
    a = collect(net, told(net), 1)
    z = dictionaries.random(a, 2, 10).direction
    one = np.array(["days"] * len(a))
    for function in (dictionaries.difference_in_means, auc, purity):
        given = a if function is dictionaries.difference_in_means else cosine(a, z)
        with pytest.raises(BadInput, match="of one class, 'days'"):
            function(given, one)
    with pytest.raises(BadInput, match="end in \\{word\\}"):
        concepts(net, WORDS, ["{word} is"])
    with pytest.raises(BadInput, match="no tokenizer"):
        concepts(toy("vit"), WORDS)
    with pytest.raises(MissingSite, match="no site 'neurons'"):
        collect(toy("mamba"), told(net), 0)
    with pytest.raises(MissingSite, match="fused inside the experts"):
        collect(toy("mixtral"), told(net), 0)
    with pytest.raises(BadInput, match="layer"):
        collect(net, told(net), 9)
    with pytest.raises(BadInput, match="no vector at each position"):
        collect(net, told(net), 0, "head_out")
    ids, prompts = told(net).ids(), ["the king"]
    with pytest.raises(BadInput, match="has no token"):
        steer(net, prompts, z, 1, {"none": []})
    with pytest.raises(BadInput, match="all zero"):
        steer(net, prompts, label(np.eye(2, net.d_mlp) * [[1], [0]], ("feature", "neuron")), 1, ids)
    with pytest.raises(BadInput, match="has 128"):
        steer(net, prompts, z[:, :7], 1, ids)
    with pytest.raises(BadInput, match="outside the vocabulary"):
        steer(net, prompts, z, 1, {"a": [10**6]})
    with pytest.raises(BadInput, match="target=0"):
        steer(net, prompts, z, 1, ids, target=0)
    with pytest.raises(MissingSite):
        steer(toy("bert"), prompts, z, 1, ids)
    nan = a.copy()
    nan[0, 0] = np.nan
    refused = (
        lambda: cosine(nan, z),
        lambda: snmf.encode(nan, z),
        lambda: dictionaries.sae(nan, 4, 2),
        lambda: dictionaries.pca(nan, 2),
    )
    for function in refused:
        with pytest.raises(BadInput, match="NaN"):
            function()
    with pytest.raises(BadInput, match="k=5 active features of width=4"):
        train(torch.randn(9, 3), 4, 5)
    with pytest.raises(BadInput, match="rank is at most 24"):
        dictionaries.pca(a, 99)


def test_the_browser_opens_what_is_clicked(toy, told):
    from lwlab.features.snmf_browser import FeatureBrowser

    net = toy("gpt2")
    a = collect(net, told(net), 1)
    fit = snmf.factorise(a, 4, sparsity=0.1, iterations=20)
    browser = FeatureBrowser(net, fit, a, "the king said it")
    said = browser.show(2)
    best = int(top_neurons(fit.direction, 2, 1).neuron[0])
    assert said == browser.describe(2)
    assert said.startswith("Feature 2: most at ")
    assert f"Neurons {best} (" in said
    assert "It writes" in said
    want = cosine(collect(net, "the king said it", 1, front=0), fit.direction).sel(feature=2)
    assert np.allclose(browser.strip.array()[0], want, atol=1e-6)
    browser.read("a man")
    assert browser.strip.tokens == ["a", "man"]
    assert browser._repr_mimebundle_()[0]["image/png"]
    with pytest.raises(BadInput, match="no feature 4"):
        browser.show(4)
    with pytest.raises(BadInput, match="layer 0"):
        FeatureBrowser(net, fit, collect(net, told(net), 0))
