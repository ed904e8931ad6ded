"""Concept depth: vectors, curves and depths against slow loops; what is refused, and when."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import lwlab as lw
from lwlab.errors import BadInput, MissingSite, UnknownName
from lwlab.features import concept_depth as cd
from lwlab.features.concept_depth_panel import ProbePanel
from lwlab.features.probes import folds_of
from lwlab.models import toys
from lwlab.tasks import Concept, concept

Toy = Callable[[str], lw.Model]


def reader(arch: str, *concepts: Concept) -> lw.Model:
    """A random model whose 96 words are those of the concepts."""
    words = sorted({w for k in concepts for t in k.texts for w in re.findall(r"\w+|[^\w\s]", t)})
    assert len(words) <= 96
    return lw.wrap(toys.tiny(arch)[0], tokenizer=toys.tokenizer(words), name=f"reading {arch}")


@pytest.mark.parametrize("arch", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("token", ["last", "mean"])
def test_vectors_are_those_of_each_text_run_alone(arch: str, token: str, toy: Toy) -> None:
    model, texts = toy(arch), concept("cities", 8).texts
    texts = (*texts, "The city of Rome.")  # of another length
    found = cd.states(model, texts, token=token, batch_size=4)  # type: ignore[arg-type]
    assert found.dims == ("layer", "prompt", "d_model")
    assert found.layer.values.tolist() == list(range(model.n_layers + 1))
    for i, text in enumerate(texts):
        one = lw.cache(model, text, ["resid_pre", "resid_post"]).isel(prompt=0)
        stream = [one.resid_pre.sel(layer=0), *one.resid_post]
        for layer, h in enumerate(stream):
            expected = h.values[-1] if token == "last" else h.values.mean(0)
            np.testing.assert_allclose(found.values[layer, i], expected, atol=1e-5)
    some = cd.states(model, texts, token=token, layers=[0, 2])  # type: ignore[arg-type]
    np.testing.assert_allclose(some.values, found.sel(layer=[0, 2]).values, atol=1e-5)


def test_scores_are_scikit_learns_with_whole_groups_held_out() -> None:
    facts = concept("cities", 40)
    model = reader("gpt2", facts)
    found = cd.probe_layers(model, facts, c=0.3, seed=4)
    y, fold = np.array(facts.labels), folds_of(facts.labels, facts.groups, seed=4)
    for layer in (1, 3):
        x = np.concatenate([
            lw.cache(model, t, "resid_post", layers=layer - 1, positions=-1).resid_post.values[0, 0]
            for t in facts.texts
        ]).astype(float)  # fmt: skip
        for k in range(5):
            peer = make_pipeline(
                StandardScaler(), LogisticRegression(C=0.3, tol=1e-9, max_iter=5000)
            ).fit(x[fold != k], y[fold != k])
            np.testing.assert_allclose(
                found.score.sel(layer=layer).values[fold == k],
                peer.decision_function(x[fold == k]), atol=1e-3,
            )  # fmt: skip
    right = (found.score.values > 0) == y
    assert np.array_equal(found.correct.sel(layer=[2, 3]), right[2:])
    assert 0.2 < right[2:].mean() < 0.8


def test_equal_vectors_at_layer_zero_are_right_one_half_of_the_time() -> None:
    feelings = concept("negated", 40)
    model = reader("llama", feelings)
    start = cd.states(model, feelings.texts, layers=[0]).values
    assert np.ptp(start, axis=1).max() == 0
    found = cd.probe_layers(model, feelings)
    assert (found.correct.sel(layer=0) == 0.5).all()
    assert float(found.auc.sel(layer=0)) == 0.5
    assert (found.correct.sel(layer=2) != 0.5).any()


@pytest.mark.parametrize("name", ["cities", "sentiment", "negated", "syllogism"])
def test_a_bag_of_words_gets_exactly_one_half(name: str) -> None:
    assert cd.bag_of_words(concept(name, 96, seed=5)) == 0.5
    loose = replace(concept(name, 96, seed=5), groups=tuple(range(96)))
    assert cd.bag_of_words(loose) != 0.5  # the split matters: it is not the baseline that is blind


def test_a_bag_of_words_finds_a_shortcut_where_there_is_one() -> None:
    texts = [f"{w} {i}." for i in range(20) for w in ("yes", "no")]
    assert cd.bag_of_words(Concept("easy", tuple(texts), (1, 0) * 20)) == 1.0


def slow_points(a: np.ndarray, layers: list[int]) -> tuple[float, ...]:
    jump, converge = np.nan, float(layers[0])
    for i in range(len(a) - 1, 0, -1):
        if a[i] / a[i - 1] >= 1.1:
            jump = layers[i]
    for i in range(1, len(a)):
        if abs(a[i] / a[i - 1] - 1) >= 0.03:
            converge = layers[i]
    ready = next(layers[i] for i in range(len(a)) if a[i] >= a.max() - 0.02 - 1e-9)
    half = next(layers[i] for i in range(len(a)) if a[i] >= (a.max() + 0.5) / 2 - 1e-9)
    return jump, converge, ready, half if a.max() >= 0.65 else np.nan


def test_depths_are_read_off_curves_as_written_and_resamples_draw_groups() -> None:
    rng = np.random.default_rng(0)
    curves = np.array([[0.5, 0.5, 0.56, 0.8, 0.79, 0.8], [0.5, 0.5, 0.51, 0.5, 0.5, 0.5]])
    correct = rng.permuted(np.tile(np.arange(100), (2, 6, 1)), axis=2) < 100 * curves[..., None]
    group = np.repeat(np.arange(25), 4)
    found = xr.Dataset(
        {"correct": (("variant", "layer", "prompt"), correct.astype(float))},
        {"layer": range(6), "group": ("prompt", group), "variant": ["a", "b"]},
    )
    got = cd.points(found, n=40, seed=1)
    assert (got.jump.sel(variant="a")[0], got.converge.sel(variant="a")[0]) == (2, 3)
    assert got.ready.sel(variant="a")[0] == 3
    assert got.half.sel(variant="a")[0] == 3
    assert np.isnan(got.half.sel(variant="b")[0])
    assert np.isnan(cd.estimate(got.half.sel(variant="b"))).all()
    assert np.isnan(got.jump.sel(variant="b")[0])
    assert got.converge.sel(variant="b")[0] == 0
    rng = np.random.default_rng(1)
    weights = rng.multinomial(25, np.full(25, 1 / 25), size=40)
    for draw in (1, 17, 40):
        rows = np.repeat(np.arange(100), weights[draw - 1][group])
        for i, v in enumerate("ab"):
            slow = slow_points(correct[i][:, rows].mean(1), list(range(6)))
            one = got.sel(variant=v).isel(draw=draw)
            names = ("jump", "converge", "ready", "half")
            np.testing.assert_equal(tuple(float(one[k]) for k in names), slow)
    value, low, high = cd.estimate(got.ready.sel(variant="a"))
    assert value == 3
    assert low <= 3 <= high


def test_a_study_holds_every_concept_under_every_variant(toy: Toy, tmp_path: Path) -> None:
    model = toy("llama")
    concepts = [concept("cities", 24), concept("coins", 20)]
    variants = ["plain", "noise", "4-bit", "noise+4-bit"]
    found = cd.study(model, concepts, variants, draws=3, control_layers=[1, 3])
    assert dict(found.correct.sizes) == {"variant": 4, "concept": 2, "layer": 4, "prompt": 24}
    assert np.isnan(found.correct.sel(concept="coins").values[..., 20:]).all()
    assert found.kind.values.tolist() == ["factual", "inferential"]
    alone = cd.probe_layers(model, concepts[0], draws=3, control_layers=[1, 3])
    assert np.array_equal(found.correct.sel(variant="plain", concept="cities"), alone.correct)
    assert np.array_equal(found.control.sel(concept="cities"), alone.control, equal_nan=True)
    assert np.isnan(alone.control.sel(layer=[0, 2])).all()
    noisy = cd.probe_layers(model, concepts[0].noisy())
    assert np.array_equal(found.correct.sel(variant="noise", concept="cities"), noisy.correct)
    with lw.quantization.fake_quantized(model, 4, group=None) as q:
        low = cd.probe_layers(q.model, concepts[0])
    assert np.array_equal(found.correct.sel(variant="4-bit", concept="cities"), low.correct)
    assert found.words.values[0] == 0.5
    path = lw.results.save(found, tmp_path / "study.nc")
    assert lw.results.open(path).identical(found)
    acc = cd.accuracy(found, n=20)
    expected = found.correct.sel(concept="coins").mean("prompt")
    np.testing.assert_allclose(acc.sel(concept="coins", estimate="mean"), expected)


def test_vectors_at_hand_save_the_run_and_change_nothing(toy: Toy) -> None:
    model, facts = toy("gpt2"), concept("cities", 24)
    vectors = {"cities": cd.states(model, facts.texts)}
    found = cd.study(model, [facts], ["plain", "noise"], vectors=vectors)
    assert np.array_equal(found.correct, cd.study(model, [facts], ["plain", "noise"]).correct)
    other = {"cities": vectors["cities"] * 0}
    blind = cd.study(model, [facts], ["plain", "noise"], vectors=other).correct
    assert (blind.sel(variant="plain") == 0.5).all()
    assert np.array_equal(blind.sel(variant="noise"), found.correct.sel(variant="noise"))
    with pytest.raises(BadInput, match="for 24 texts of cities"):
        cd.probe_layers(model, facts, vectors=vectors["cities"][:, :-1])


def test_weights_come_back_after_a_rounded_study(toy: Toy) -> None:
    model = toy("gpt2")
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    cd.study(model, [concept("cities", 24)], ["3-bit"])
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())


@pytest.mark.parametrize("arch", ["bert", "gemma2", "gpt_neox", "mamba"])
def test_other_architectures_can_be_probed(arch: str, toy: Toy) -> None:
    model = toy(arch)
    found = cd.probe_layers(model, concept("cities", 24), draws=1)
    assert found.sizes["layer"] == model.n_layers + 1
    assert np.isfinite(found.score).all()


def test_what_cannot_be_probed_is_refused_before_the_model_runs(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, facts = toy("llama"), concept("cities", 24)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr("lwlab.features.concept_depth_states.engine.run", never)
    three = Concept("x", tuple("abcdef"), (0, 1, 2) * 2, classes=("p", "q", "r"))
    with pytest.raises(BadInput, match=r"3 classes.*concept\.against\('p'\)"):
        cd.probe_layers(model, three)
    with pytest.raises(BadInput, match="folds=9 of 6 groups"):
        cd.probe_layers(model, facts, folds=9)
    lone = Concept("x", tuple("abcdef"), (0, 0, 0, 1, 1, 1), (0, 0, 0, 1, 1, 1))
    with pytest.raises(BadInput, match="one class only"):
        cd.probe_layers(model, lone, folds=2)
    with pytest.raises(UnknownName, match="no variant '9-bit'"):
        cd.study(model, [facts], ["9-bit"])
    with pytest.raises(BadInput, match="name each once"):
        cd.study(model, [facts, facts])
    with pytest.raises(BadInput, match="name each once"):
        cd.study(model, [facts], [])
    with pytest.raises(BadInput, match="layers"):
        cd.probe_layers(model, facts, draws=1, control_layers=[9])
    with pytest.raises(BadInput, match="draws=-1"):
        cd.probe_layers(model, facts, draws=-1)
    with pytest.raises(BadInput, match="no vector of d_model"):
        cd.states(model, facts.texts, site="head_out")
    with pytest.raises(UnknownName, match="residd"):
        cd.states(model, facts.texts, site="residd")
    with pytest.raises(MissingSite):
        cd.states(toy("mamba"), facts.texts, site="mlp_in")
    with pytest.raises(UnknownName, match="did you mean 'last'"):
        cd.states(model, facts.texts, token="lats")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="no texts"):
        cd.states(model, [])
    with pytest.raises(BadInput, match="no probes"):
        cd.verdicts(model, {}, ["The city"])
    with pytest.raises(BadInput, match="jump=1"):
        cd.points(xr.Dataset(), jump=1.0)


def test_the_panel_reads_what_is_typed_and_says_what_is_wrong() -> None:
    concepts = [concept("cities", 24), concept("negated", 24)]
    model = reader("llama", *concepts)
    lines = [concepts[0].texts[0], concepts[1].texts[5][:-1], "The city."]
    panel = ProbePanel(model, concepts, lines)
    probes = cd.train(model, concepts[0])
    x = torch.as_tensor(cd.states(model, lines).values)
    np.testing.assert_allclose(
        panel.shown.sel(concept="cities"), probes.probability(x), atol=1e-5
    )  # fmt: skip
    panel.map.pick(2, 0)
    before = panel.map.answer
    assert f"{lines[0]!r}, after 2 blocks, by the probe of cities" in before
    assert "trained on" not in before
    panel.map.pick(2, 1)
    assert "trained on texts that end in ." in panel.map.answer
    clean = panel.map.array().copy()
    panel.ask(weights="3-bit")
    assert "3-bit" in panel.map.subtitle
    assert np.abs(panel.map.array() - clean).max() > 1e-3
    panel.ask(weights="as trained")
    assert np.array_equal(panel.map.array(), clean)
    panel.ask(lines=" ", noise=True)
    assert "0 sentences" in panel.map.error
    panel.ask(lines="The city.\nThe.")
    assert not panel.map.error
    assert panel.shown.text.values.tolist() == ["aaa The city.", "aaa The."]
    with pytest.raises(BadInput, match="has 40 tokens; at most 16"):
        ProbePanel(model, concepts, ["The city " * 20], max_tokens=16)
    with pytest.raises(BadInput, match="9 sentences; type 1 to 8"):
        ProbePanel(model, concepts, ["The city."] * 9)
    with pytest.raises(BadInput, match="no concepts"):
        ProbePanel(model, [], lines)
    with pytest.raises(BadInput, match="weights='2-bit'"):
        panel.ask(weights="2-bit")
