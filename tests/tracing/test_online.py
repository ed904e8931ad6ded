"""One pass over a corpus against keeping everything and computing at the end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import lwlab as lw
from lwlab.errors import BadInput, LwlabError
from lwlab.tracing import online
from lwlab.tracing.online import Online, corpus_stats, observe
from lwlab.tracing.online.moments import Moments
from lwlab.tracing.online.sketch import Quantiles
from lwlab.tracing.online.tops import Tops, ordered, unordered

TEXTS = [
    "the cat sat on the mat", "a dog ran to the cat and saw the mat", "the", "the cat sat",
    "a dog and a cat ran", "the mat saw the dog on the cat", "the cat sat on the mat",
]  # fmt: skip


def draws(n, units, seed=0, scale=1.0):
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(n, units, generator=gen) ** 3 * scale
    x[:, 0] = x[:, 0].abs() + 1e3  # a mean that is large beside its spread
    return x


def slow_moments(x):
    x = x.double().numpy()
    return {
        "mean": x.mean(0), "std": x.std(0), "skew": stats.skew(x), "kurtosis": stats.kurtosis(x),
        "min": x.min(0), "max": x.max(0),
    }  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 9))
def test_moments_in_pieces_are_those_of_the_whole(sizes, seed):
    x = draws(sum(sizes) + 3, 5, seed)
    parts = Moments(5)
    for piece in x.split([*sizes, 3]):
        parts.add(piece)
    want = slow_moments(x)
    for name, value in parts.results().items():
        assert np.allclose(value.numpy(), want[name], rtol=1e-7, atol=1e-9), name


def test_moments_merge_in_any_order():
    x = draws(90, 4)
    a, b, c = (Moments(4) for _ in range(3))
    for m, piece in zip((a, b, c), x.split([50, 10, 30])):
        m.add(piece)
    c.merge(a)
    c.merge(Moments(4))
    c.merge(b)
    for name, value in c.results().items():
        assert np.allclose(value.numpy(), slow_moments(x)[name], rtol=1e-7), name


def test_a_unit_that_never_changes_has_no_shape():
    m = Moments(1)
    m.add(torch.full((50, 1), 0.1))
    out = m.results()
    assert out["std"] == 0
    assert out["skew"].isnan().all()
    assert out["kurtosis"].isnan().all()


@pytest.mark.parametrize("error", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_quantiles_keep_their_promise(error, scale):
    x = draws(999, 6, scale=scale)
    x[:, 5] = 0.0
    shares = [0.0, 0.01, 0.25, 0.5, 0.9, 0.999, 1.0]
    sketch = Quantiles(6, error)
    for piece in x.split([500, 0, 499]):
        sketch.add(piece)
    low, high = x.double().amin(0), x.double().amax(0)
    want = torch.quantile(x.double(), torch.tensor(shares).double(), dim=0, interpolation="lower")
    got = sketch.at(shares, low, high)
    assert ((got - want).abs() <= want.abs() * error * 1.001 + 1e-4).all()
    assert torch.equal(got[:, 5], torch.zeros(7).double())


def test_quantile_counts_add_up_exactly():
    x = draws(300, 3)
    whole, a, b = (Quantiles(3) for _ in range(3))
    whole.add(x)
    a.add(x[:100])
    b.add(x[100:])
    a.merge(b)
    assert torch.equal(a.counts, whole.counts)
    assert a.n == 300


def test_ordered_keys_keep_the_order_of_floats():
    x = torch.tensor([-float("inf"), -3.5, -1e-30, -0.0, 0.0, 1e-30, 2.0, 3e38, float("inf")])
    assert bool((ordered(x).long().diff() >= 0).all())
    assert torch.equal(unordered(ordered(x)), x)
    assert ordered(x)[3] == ordered(x)[4]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 29), st.integers(0, 5))
def test_tops_are_a_sort_and_ties_go_to_the_earlier_place(n, k, cut, seed):
    gen = torch.Generator().manual_seed(seed)
    x = torch.randint(-3, 3, (n, 4), generator=gen).float()  # many ties
    prompt, position = torch.arange(n) // 5, torch.arange(n) % 5
    a, b = Tops(4, k), Tops(4, k)
    for tops, s in ((a, slice(0, cut)), (b, slice(cut, n))):
        if len(x[s]):
            tops.add(x[s], prompt[s], position[s])
    b.merge(a)  # the later part first
    values, prompts, positions = b.results()
    for u in range(4):
        order = sorted(range(n), key=lambda i: (-float(x[i, u]), i))[:k]
        assert values[u, : len(order)].tolist() == [float(x[i, u]) for i in order]
        assert prompts[u, : len(order)].tolist() == [i // 5 for i in order]
        assert positions[u, : len(order)].tolist() == [i % 5 for i in order]
        assert values[u, len(order) :].isnan().all()
        assert (prompts[u, len(order) :] == -1).all()


def test_places_beyond_the_key_are_refused():
    with pytest.raises(BadInput, match="give shorter prompts"):
        Tops(1, 1).add(torch.ones(1, 1), torch.tensor([0]), torch.tensor([8192]))


SITES = ("neurons", "resid_post", "head_out", "k", "embed", "final_norm")


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gpt_neox"])
def test_every_site_equals_keeping_everything(toy, arch):
    model = toy(arch)
    sites = [s for s in SITES if s in model.anatomy.taps]
    got = corpus_stats(model, TEXTS, sites, quantile_error=0.02, top=3, batch_tokens=20)
    kept = lw.cache(model, TEXTS, sites)
    for site in sites:
        v = kept[site].isel(position=slice(1, None))
        rows = v.stack(row=("prompt", "position")).transpose("row", ...)
        rows = rows.isel(row=np.isfinite(rows.values.reshape(rows.sizes["row"], -1)).all(1))
        data = rows.values.astype(np.float64)
        assert np.allclose(got[f"{site}_mean"], data.mean(0), atol=1e-6)
        assert np.allclose(got[f"{site}_std"], data.std(0), atol=1e-6)
        assert np.allclose(got[f"{site}_kurtosis"], stats.kurtosis(data), rtol=1e-3, atol=1e-3)
        assert np.allclose(got[f"{site}_min"], data.min(0), atol=1e-6)
        want = np.quantile(data, got["quantile"].values, axis=0, method="lower")
        off = np.abs(got[f"{site}_quantile"].values - want)
        assert (off <= 0.0201 * np.abs(want) + 1.1e-4).all()
        top = np.moveaxis(-np.sort(-data, axis=0)[:3], 0, -1)
        assert np.allclose(got[f"{site}_top"], top, atol=1e-5)
        assert got[f"{site}_mean"].dims == rows.isel(row=0).dims
    assert got.attrs["tokens"] == len(data)
    assert got.attrs["prompts"] == len(TEXTS)


def test_top_contexts_are_where_the_values_are(toy):
    model = toy("llama")
    got = corpus_stats(model, TEXTS, "neurons", top=2, context=2)
    kept = lw.cache(model, TEXTS, "neurons").neurons
    tokens = model.tokens(TEXTS)
    for layer, unit in ((0, 3), (1, 7)):
        here = got.sel(layer=layer).isel(neuron=unit)
        for rank in range(2):
            p, i = (int(here[f"neurons_top_{n}"][rank]) for n in ("prompt", "position"))
            value = kept.sel(layer=layer).isel(neuron=unit, prompt=p, position=i)
            assert float(value) == pytest.approx(float(here.neurons_top[rank]), abs=1e-6)
            words = tokens.strings[p]
            want = "".join(words[max(0, i - 2) : i]) + f"[{words[i]}]"
            assert str(here.neurons_top_context[rank].values) == want


def test_parts_merge_to_the_whole_and_survive_the_disk(toy, tmp_path):
    model = toy("llama")
    whole = observe(model, TEXTS, ["neurons", "k"])
    a = observe(model, TEXTS[:3], ["neurons", "k"])
    b = observe(model, TEXTS[3:], ["neurons", "k"], first=3)
    joined = Online.load(b.save(tmp_path / "b.npz")).merge(a)
    assert joined.prompts == whole.prompts
    one, two = (online.labelled(s, (0.1, 0.5)) for s in (whole, joined))
    for name in one:
        if one[name].dtype.kind == "f":
            assert np.allclose(one[name], two[name], atol=1e-6, equal_nan=True), name
    assert (one.k_top_prompt == two.k_top_prompt).mean() > 0.95  # equal but for rounding
    assert set(joined.strings) <= set(range(len(TEXTS)))
    with pytest.raises(BadInput, match="are in both parts"):
        joined.merge(a)
    with pytest.raises(BadInput, match="differ in front"):
        joined.merge(observe(model, TEXTS[:1] * 2, ["neurons", "k"], front=0, first=90))


def test_an_interrupted_pass_goes_on_where_it_was(toy, tmp_path):
    model, path = toy("llama"), tmp_path / "state.npz"

    class Stop(Exception):
        pass

    seen = []

    def stop(done, _):
        seen.append(done)
        if done >= 3:
            raise Stop

    with pytest.raises(Stop):
        corpus_stats(model, TEXTS, batch_tokens=10, resume=path, progress=stop)
    assert 0 < len(Online.load(path).prompts) < len(TEXTS)
    again = []
    got = corpus_stats(
        model, TEXTS, batch_tokens=10, resume=path, progress=lambda d, n: again.append(d)
    )
    assert again[0] > seen[-1]
    whole = corpus_stats(model, TEXTS, batch_tokens=10)
    assert np.allclose(got.neurons_mean, whole.neurons_mean, atol=1e-7)
    assert got.attrs["tokens"] == whole.attrs["tokens"]
    with pytest.raises(BadInput, match="differ in front"):
        corpus_stats(model, TEXTS, resume=path, front=0)


def test_nothing_of_the_corpus_is_kept(toy):
    small = observe(toy("llama"), TEXTS, top=1)
    large = observe(toy("llama"), TEXTS * 20, top=1)

    def held(state):
        return sum(
            t.numel()
            for u in state.units.values()
            for o in (u.moments, u.quantiles, u.tops)
            for t in vars(o).values()
            if isinstance(t, torch.Tensor)
        )

    assert held(small) == held(large)
    assert large.tokens == 20 * small.tokens


def test_bad_requests(toy, tmp_path):
    model = toy("llama")
    (tmp_path / "no.npz").write_bytes(b"nothing")
    for call, why in [
        (lambda: corpus_stats(model, TEXTS, "attn_pattern"), "no vector of units"),
        (lambda: corpus_stats(model, TEXTS, quantiles=[1.5]), "between 0 and 1"),
        (lambda: corpus_stats(model, TEXTS, quantile_error=0), "quantile_error=0"),
        (lambda: corpus_stats(model, TEXTS, top=-1), "none may be negative"),
        (lambda: corpus_stats(model, TEXTS, max_bytes=1e3), "max_bytes"),
        (lambda: corpus_stats(model, TEXTS, front=99), "leaves no position"),
        (lambda: corpus_stats(model, TEXTS, resume=tmp_path / "no.npz"), "no saved corpus"),
        (lambda: online.labelled(Online(observe(model, "the cat").settings)), "nothing was"),
    ]:
        with pytest.raises(BadInput, match=why):
            call()


def test_nan_is_an_error_and_counts_nothing(toy):
    model = toy("llama")
    state = observe(model, TEXTS[:2])
    bad = {("neurons", 0): torch.full((1, 2, *state.units["neurons", 0].shape), torch.nan)}
    keep = torch.ones(1, 2, dtype=torch.bool)
    before = state.tokens
    with pytest.raises(LwlabError, match=r"neurons\.0 holds NaN"):
        online.state.add(state, bad, keep, [9], [("a", "b")], torch.tensor([[0, 1]]))
    assert state.tokens == before
    assert 9 not in state.prompts


def test_on_smollm2_the_massive_activation_is_found(smollm2):
    texts = lw.tasks.corpus(tokens=48, model=smollm2, n=4)
    got = corpus_stats(smollm2, texts, "resid_post", [20], front=0, top=4)
    here = got.sel(layer=20)
    unit = int(np.abs(here.resid_post_max.values).argmax())
    top = here.isel(d_model=unit)
    assert (top.resid_post_top_position == 0).all()  # the attention sink
    later = corpus_stats(smollm2, texts, "resid_post", [20], front=1, top=0)
    assert float(np.abs(later.resid_post_max).max()) < 0.5 * float(top.resid_post_max)
