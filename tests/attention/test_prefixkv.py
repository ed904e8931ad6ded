"""PrefixKV: the search is optimal, and what it evicts is really gone."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr

import lwlab as lw
from lwlab.attention import prefixkv as p
from lwlab.attention import prefixkv_cache as c
from lwlab.attention import prefixkv_measure as e
from lwlab.errors import BadInput, UnknownName
from lwlab.models import toys
from lwlab.models.model import Model

ARCHS = ["gpt2", "llama", "qwen3", "gpt_neox", "opt", "phi", "olmo2", "mixtral"]
T, N = 30, 10


def toy(arch: str) -> Model:
    return lw.wrap(toys.tiny(arch)[0], name=arch, tokenizer=toys.tokenizer())


def ids(n: int = T + N, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 100, (1, n), generator=torch.Generator().manual_seed(seed))


def masses(layers: int = 4, tokens: int = 20, seed: int = 0) -> xr.DataArray:
    drawn = np.random.default_rng(seed).gamma(0.3, size=(layers, tokens)) + 1e-6
    return xr.DataArray(drawn, dims=("layer", "position"), coords={"layer": range(layers)})


def scores(layers: int = 4, tokens: int = 20) -> xr.Dataset:
    return xr.Dataset(
        {"mass": masses(layers, tokens), "late": masses(layers, tokens, 1)},
    )


# --- the search


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("protected", [(0, 0), (1, 1)])
def test_no_other_sizes_retain_more_in_the_worst_layer(
    seed: int, protected: tuple[int, int]
) -> None:
    start, recent = protected
    mass = masses(3, 8, seed)
    curve = p.curves(mass, start=start, recent=recent).values
    for budget in (0.3, 0.5, 0.8):
        found = p.allocate(mass, budget, start=start, recent=recent)
        total = int(found.attrs["total"])
        best = max(
            min(curve[layer, n] for layer, n in enumerate(sizes))
            for sizes in itertools.product(range(start + recent, 9), repeat=3)
            if sum(sizes) <= total
        )
        assert found.kept.sum() == total
        assert found.retained.min() == pytest.approx(best, abs=1e-12)


def test_the_curve_is_the_sorted_cumulated_mass() -> None:
    mass = masses()
    by_hand = np.cumsum(np.sort(mass.values, 1)[:, ::-1], 1) / mass.values.sum(1, keepdims=True)
    plain = p.curves(mass, start=0, recent=0)
    assert np.allclose(plain.values[:, 1:], by_hand)
    assert (plain.values[:, 0] == 0).all()
    assert (plain.values[:, -1] == 1).all()
    held = p.curves(mass, start=2, recent=1).values
    assert np.allclose(held[:, 3] * mass.values.sum(1), mass.values[:, [0, 1, -1]].sum(1))


def test_the_level_fits_the_budget_and_the_next_does_not() -> None:
    mass = masses(5, 40)
    curve = p.curves(mass, start=0, recent=0).values

    def at(level: float) -> int:
        return sum(int((row < level).sum()) for row in curve)

    for budget in (0.1, 0.25, 0.6):
        found = p.allocate(mass, budget, start=0, recent=0)
        level, total = found.attrs["level"], found.attrs["total"]
        assert at(level) <= total < at(level + 1e-6)
    sizes = [p.allocate(mass, b).kept.values for b in (0.15, 0.3, 0.5, 0.9, 1.0)]
    assert all((a <= b).all() for a, b in itertools.pairwise(sizes))
    assert (sizes[-1] == 40).all()


def test_layers_that_are_alike_get_the_same() -> None:
    mass = masses(1, 20)
    alike = xr.concat([mass] * 3, "layer")
    for budget in (0.3, 0.45, 0.99):
        uniform = p.allocate(alike, budget, "uniform")
        assert (p.allocate(alike, budget).kept.values == uniform.kept.values).all()


@pytest.mark.parametrize(
    "technique", ["prefixkv", "uniform", "pyramid", "late", "recency", "random"]
)
def test_every_technique_keeps_the_same_number_and_what_is_protected(
    technique: p.Technique,
) -> None:
    given = scores()
    for budget in (0.3, 0.5, 1.0):
        kept = p.keep(given, budget, technique)
        assert int(kept.sum()) == int(budget * 80)
        assert kept.values[:, :4].all()
        assert kept.values[:, -1].all()
        assert (kept.sum("position").values == p.allocate(given.mass, budget, technique).kept).all()


def test_which_keys_stay() -> None:
    given = scores()
    recency = p.keep(given, 0.5, "recency").values
    assert (recency == np.isin(np.arange(20), [0, 1, 2, 3, *range(14, 20)])).all()
    for technique, by in (("uniform", "mass"), ("late", "late")):
        kept = p.keep(given, 0.5, technique)  # type: ignore[arg-type]
        for row, values in zip(kept.values, given[by].values):
            inner, inside = row[4:-1], values[4:-1]
            assert inside[inner].min() > inside[~inner].max()
    first, second = (p.keep(given, 0.5, "random", seed=s).values for s in (0, 1))
    assert (first != second).any()
    assert (first == p.keep(given, 0.5, "random", seed=0).values).all()
    falling = p.allocate(given.mass, 0.6, "pyramid").kept.values
    assert (np.diff(falling) < 0).all()


def test_shares_from_other_texts() -> None:
    given = scores()
    shares = p.calibrate([masses(seed=s) for s in range(5)], 0.5)
    assert sum(shares) == pytest.approx(1)
    fixed = p.allocate(given.mass, 0.5, shares=shares)
    assert fixed.kept.sum() == 40
    assert np.abs(fixed.kept.values - 40 * np.array(shares)).max() < 2
    own = p.calibrate([given.mass], 0.5)
    assert (p.allocate(given.mass, 0.5, shares=own).kept == p.allocate(given.mass, 0.5).kept).all()


# --- the cache


@pytest.mark.parametrize("arch", ARCHS)
def test_cut_is_the_model_with_those_keys_hidden(arch: str) -> None:
    net, text = toy(arch), ids()
    reading = c.read(net, text[:, :T])
    kept = p.keep(reading.scores, 0.4)
    if len(set(kept.sum("position").values.tolist())) == 1:  # layers must differ in length here
        kept[1, 10:15] = False
    with torch.no_grad():
        full = net.module(text).logits[:, T:]
        with c.hidden(net, kept):
            masked = net.module(text, use_cache=False).logits[:, T:]
        one_by_one = []
        held = c.cut(reading, kept)
        for i in range(T, T + N):
            one_by_one.append(net.module(text[:, i : i + 1], past_key_values=held).logits)
    together = c.go_on(net, text[:, T:], c.cut(reading, kept))
    assert (c.go_on(net, text[:, T:], c.cut(reading)) - full).abs().max() < 1e-5
    assert (together - masked).abs().max() < 2e-5
    assert (torch.cat(one_by_one, 1) - masked).abs().max() < 2e-5
    assert (masked - full).abs().max() > 0.1  # and it did something
    assert (net.module(text).logits[:, T:] - full).abs().max() == 0  # nothing is left behind


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_positions_counted_anew_would_be_wrong(arch: str) -> None:
    net, text = toy(arch), ids()
    reading = c.read(net, text[:, :T])
    kept = p.keep(reading.scores, 0.4, "uniform")
    right = c.go_on(net, text[:, T:], c.cut(reading, kept))
    held = c.cut(reading, kept)
    for layer in held.layers:
        layer.seen = layer.keys.shape[-2]
    assert (c.go_on(net, text[:, T:], held) - right).abs().max() > 0.01


def test_evicted_keys_take_no_memory() -> None:
    net, text = toy("llama"), ids()
    reading = c.read(net, text[:, :T])
    kept = p.keep(reading.scores, 0.4)
    held = c.cut(reading, kept)
    per_key = 2 * net.n_kv_heads * net.d_head * 4  # type: ignore[operator]
    assert c.nbytes(held) == per_key * int(kept.sum())
    assert c.nbytes(reading.cache) == per_key * T * net.n_layers
    for layer, row, whole in zip(held.layers, kept.values, reading.cache.layers):
        assert layer.positions.tolist() == np.flatnonzero(row).tolist()
        assert torch.equal(layer.keys, whole.keys[:, :, torch.tensor(row)])
    c.go_on(net, text[:, T:], held)
    assert c.nbytes(held) == per_key * (int(kept.sum()) + N * net.n_layers)
    assert c.nbytes(reading.cache) == per_key * T * net.n_layers  # the full one is untouched
    with pytest.raises(BadInput, match="rolled back"):
        held.crop(1)


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_masses_are_sums_of_the_patterns(arch: str) -> None:
    net, text = toy(arch), ids(T)
    found = c.read(net, text, late=5).scores
    pattern = lw.cache(net, text, "attn_pattern").attn_pattern.isel(prompt=0)
    by_head = pattern.values.mean(pattern.dims.index("head") - len(pattern.dims))
    queries = [d for d in pattern.dims if d not in ("layer", "head")]
    assert len(queries) == 2
    assert np.allclose(found.mass, by_head.sum(1), atol=1e-5)
    assert np.allclose(found.late, by_head[:, -5:].sum(1), atol=1e-5)
    assert np.allclose(found.mass.sum("position"), T, atol=1e-4)


# --- what it costs


def test_losses_are_those_of_a_plain_loop() -> None:
    net, text = toy("llama"), ids()
    reading = c.read(net, text[:, :T])
    kept = p.keep(reading.scores, 0.4)
    found = e.losses(reading, kept, text[:, T:])
    with c.hidden(net, kept), torch.no_grad():
        logits = net.module(text, use_cache=False).logits[0]
    assert torch.allclose(found, F.cross_entropy(logits[T:-1], text[0, T + 1 :], reduction="none"),
                          atol=1e-4)  # fmt: skip
    assert len(found) == N - 1


def test_needles_stand_where_they_should_and_are_judged_one_by_one() -> None:
    net = toy("llama")
    words = [" ".join(np.random.default_rng(i).permutation(toys.WORDS)[:30]) for i in range(6)]
    stack = e.haystacks(net, words, 2, tokens=48, following=4, needles=1)[1]
    assert stack.context.shape == (1, 48)
    assert stack.following.shape == (1, 4)
    lead = [*stack.questions[0], *stack.answers[0]]
    assert stack.context[0, stack.places[0] :][: len(lead)].tolist() == lead
    reading = c.read(net, stack.context)
    kept = p.keep(reading.scores, 0.5)
    held = c.cut(reading, kept)
    row = torch.tensor([lead])
    guess = c.go_on(net, row, held).argmax(-1)[0].tolist()
    q = len(stack.questions[0])
    # what the model says counts as found, whatever it says: then the judge must agree
    said = (*guess[q - 1 : q],)
    sure = e.Haystack(stack.context, stack.following, stack.questions, (said,), stack.places)
    wrong = e.Haystack(stack.context, stack.following, stack.questions, ((said[0] ^ 1,),), (0,))
    assert e.recall(reading, kept, sure) == [True]
    assert e.recall(reading, kept, wrong) == [False]


def test_the_study_lists_every_technique_and_budget() -> None:
    net = toy("llama")
    words = [" ".join(np.random.default_rng(i).permutation(toys.WORDS)[:30]) for i in range(6)]
    stacks = e.haystacks(net, words, 2, tokens=40, following=6, needles=0)
    readings = [c.read(net, s.context) for s in stacks]
    shares = {0.5: [p.calibrate([r.scores.mass], 0.5) for r in readings[::-1]]}
    found = e.study(readings, stacks, {"prefixkv": [0.3, 0.5], "random": [0.3]}, shares=shares)
    assert found.technique.values.tolist() == ["prefixkv", "random", "offline"]
    assert found.budget.values.tolist() == [0.3, 0.5, 1.0]
    assert found.nll.sel(budget=1).std("technique").max() == 0
    assert np.isnan(found.nll.sel(technique="random", budget=0.5)).all()
    kept = p.keep(readings[1].scores, 0.3, "random", seed=1)
    one = found.isel(text=1).sel(technique="random", budget=0.3)
    assert one.nll == pytest.approx(float(e.losses(readings[1], kept, stacks[1].following).mean()))
    assert one.bytes == c.nbytes(c.cut(readings[1], kept))
    assert found.worst.sel(budget=1).min() == 1
    own = e.study(readings, stacks, {"prefixkv": [0.5]}, shares={0.5: shares[0.5][::-1]}).nll
    assert (own.sel(technique="offline") == own.sel(technique="prefixkv")).all()
    with pytest.raises(BadInput, match="1 lists, 2 readings"):
        e.study(readings, stacks, {}, shares={0.5: shares[0.5][:1]})


def test_transformers_own_generate_takes_the_cut_cache() -> None:
    net, text = toy("llama"), ids(T)
    reading = c.read(net, text)
    kept = p.keep(reading.scores, 0.4)
    said, held = e.write(reading, kept, 8, grow=True)
    first = reading.logits.argmax()[None, None]
    with torch.no_grad():
        out = net.module.generate(  # type: ignore[operator]
            torch.cat([text, first], 1), past_key_values=c.cut(reading, kept), max_new_tokens=7,
            do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    assert net.tokenizer.decode(out[0, T:].tolist()) == said
    assert [x.keys.shape[-2] for x in held.layers] == (kept.sum("position") + 7).values.tolist()


def test_writing_on_keeps_the_share_and_drops_near_the_end() -> None:
    net, text = toy("llama"), ids(T)
    reading = c.read(net, text)
    kept = p.keep(reading.scores, 0.5)
    sizes = kept.sum("position").values
    _, held = e.write(reading, kept, 21, distance=3)
    for layer, n in zip(held.layers, sizes):
        assert layer.seen == T + 20
        assert layer.keys.shape[-2] <= np.ceil(n / T * (T + 20))
        assert layer.keys.shape[-2] == len(layer.positions)
        assert {0, 1, 2, T + 19} <= set(layer.positions.tolist())
    whole, all_held = e.write(reading, None, 21)
    assert [x.keys.shape[-2] for x in all_held.layers] == [T + 20] * net.n_layers
    plain = net.module.generate(text, max_new_tokens=21, do_sample=False, eos_token_id=None,
                                pad_token_id=0)  # type: ignore[operator]  # fmt: skip
    assert net.tokenizer.decode(plain[0, T:].tolist()) == whole


def test_speed_reports_each_round_and_the_bytes() -> None:
    net, text = toy("llama"), ids(T)
    reading = c.read(net, text)
    kept = p.keep(reading.scores, 0.5)
    found = e.speed(reading, {"full": None, "half": kept}, new=2, rounds=2, batch=3)
    assert found.seconds.shape == (2, 2)
    assert (found.seconds > 0).all()
    assert found.ratio.sel(choice="full").values.tolist() == [1, 1]
    assert found.bytes.values.tolist()[1] * 2 == found.bytes.values.tolist()[0]
    assert found.bytes[0] == 3 * c.nbytes(reading.cache)


# --- what is refused


@pytest.mark.parametrize(
    ("budget", "says"),
    [(0, "share of the context"), (1.5, "share of the context"), (-0.1, "share of the context"),
     (64, "share of the context"), (True, "share of the context"), (float("nan"), "share"),
     (0.04, "less than one token"), (0.2, "fewer than the 5 always kept")],
)  # fmt: skip
def test_budgets_that_cannot_be_kept(budget: float, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        p.keep(scores(), budget)


def test_other_bad_arguments() -> None:
    given = scores()
    with pytest.raises(UnknownName, match="did you mean 'prefixkv'"):
        p.keep(given, 0.5, "prefix-kv")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="context of 5 tokens has nothing to evict"):
        p.allocate(masses(2, 5), 0.5)
    with pytest.raises(BadInput, match="not negative"):
        p.curves(-masses())
    with pytest.raises(BadInput, match="take one prompt"):
        p.curves(masses().expand_dims("prompt"))
    with pytest.raises(BadInput, match="4 positive numbers"):
        p.allocate(given.mass, 0.5, shares=[1.0])
    with pytest.raises(BadInput, match="at least one text"):
        p.calibrate([], 0.5)


@pytest.mark.parametrize(
    ("arch", "says"),
    [("mamba", "nothing to evict"), ("bert", "kind 'encoder'"), ("t5", "encoder-decoder"),
     ("gemma2", "sliding windows"), ("vit", "vision")],
)  # fmt: skip
def test_models_without_a_growing_cache(arch: str, says: str) -> None:
    net = lw.wrap(toys.tiny(arch)[0], name=arch)
    with pytest.raises(BadInput, match=says):
        c.read(net, ids(T))


def test_a_remote_model_is_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(BadInput, match="remote"):
        c.read(replace(toy("gpt2"), remote=True), ids(T))


def test_bad_texts_choices_and_lengths() -> None:
    net = toy("llama")
    with pytest.raises(BadInput, match="one text of two tokens"):
        c.read(net, ids(20).reshape(2, 10))
    with pytest.raises(BadInput, match="late=0"):
        c.read(net, ids(T), late=0)
    reading = c.read(net, ids(T))
    kept = p.keep(reading.scores, 0.5)
    with pytest.raises(BadInput, match="kept is bool"):
        c.cut(reading, kept[:, :10])
    with pytest.raises(BadInput, match="layer 1 would keep no key"):
        c.cut(reading, kept.where(kept.layer != 1, False))
    with pytest.raises(BadInput, match="more than llama reads, 64"):
        e.write(reading, kept, 60)
    with pytest.raises(BadInput, match="N at least 2"):
        e.losses(reading, kept, ids(1))
    with pytest.raises(BadInput, match="too little text"):
        e.haystacks(net, ["a few words"], 2, tokens=40, following=4, needles=0)
    with pytest.raises(BadInput, match="fill over half"):
        e.haystacks(net, ["a few words"], 1, tokens=20, following=4, needles=8)
    with pytest.raises(BadInput, match="one each"):
        e.study([reading], [], {"prefixkv": [0.5]})
    with pytest.raises(BadInput, match="batch=0"):
        e.speed(reading, {"full": None}, batch=0)


def test_the_board_runs_the_model_on_the_cache_it_shows() -> None:
    from lwlab.attention.prefixkv_board import CacheBoard

    net = toy("llama")
    words = [" ".join(np.random.default_rng(i).permutation(toys.WORDS)[:30]) for i in range(6)]
    [stack] = e.haystacks(net, words, 1, tokens=40, following=6, needles=0)
    reading = c.read(net, stack.context)
    board = CacheBoard(reading, stack, 0.5)
    loss = float(e.losses(reading, p.keep(reading.scores, 0.5), stack.following).mean())
    assert f"loss {loss:.2f}" in board.text
    before = board.picture.value
    board.show(technique="recency", budget=0.3)
    assert "recency at 30%" in board.answer.value
    assert board.picture.value != before
    data, _ = board._repr_mimebundle_()
    assert data["text/plain"] == board.text
    assert data["image/png"].startswith("iVBOR")
    with pytest.raises(BadInput, match="share of the context"):
        board.show(budget=2)
    board._budget.min, board._budget.value = 0.01, 0.01  # as a slider might: said, not raised
    assert 'role="alert"' in board.answer.value
