"""Void layers: the rule by a slow loop, both readings by hand, and what is refused."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

import lwlab as lw
from lwlab.depth import (
    activity,
    control_losses,
    phase_test,
    readout,
    usage,
    void_generate,
    void_losses,
    voided,
)
from lwlab.depth.lac_void_board import VoidExplorer
from lwlab.depth.voids import decide
from lwlab.errors import BadInput, UnknownName

TEXTS = ["Mary and John went to the store and Mary gave a book to John", "the king of France was"]
ARCHS = ["llama", "gpt2", "gemma2", "opt", "gpt_neox", "mixtral", "mamba"]


def deep(arch: str = "llama", layers: int = 6) -> lw.Model:
    """A toy of enough layers that some are void."""
    names = {"gpt2": "n_layer"}
    module, _ = lw.models.toys.tiny(arch, **{names.get(arch, "num_hidden_layers"): layers})
    return lw.wrap(module, tokenizer=lw.models.toys.tokenizer(), name=arch)


@pytest.fixture(scope="module")
def model() -> lw.Model:
    return deep()


def by_loop(norms: list[float], alpha: float, magnitude: bool = False) -> list[bool]:
    """The rule for one token, from the norms before and after every layer."""
    out: list[bool] = []
    seen: list[float] = []
    for before, after in pairwise(norms):
        delta = abs(after - before) if magnitude else after - before
        out.append(delta >= (alpha * (max(seen) - min(seen)) if seen else 0.0))
        seen.append(delta)
    return out


@pytest.mark.parametrize("magnitude", [False, True])
def test_the_rule_is_the_papers(magnitude: bool) -> None:
    norms = torch.rand(9, 2, 5, generator=torch.Generator().manual_seed(0)) * 3
    for alpha in (0.0, 0.3, 0.8, 1.5):
        active, lam = decide(norms, alpha, "magnitude" if magnitude else "norm")
        assert not bool(lam[0].any())
        for b in range(2):
            for t in range(5):
                want = by_loop(norms[:, b, t].tolist(), alpha, magnitude)
                assert active[:, b, t].tolist() == want
    assert bool(decide(norms, None)[0].all())


def test_a_layer_that_shrinks_the_norm_is_void_and_the_second_compares_with_nothing() -> None:
    norms = torch.tensor([1.0, 3.0, 3.5, 3.4, 6.0])
    # deltas 2, 0.5, -0.1, 2.6; thresholds at alpha 1: 0, 0, 1.5, 2.1
    active, lam = decide(norms, 1.0)
    assert active.tolist() == [True, True, False, True]
    torch.testing.assert_close(lam, torch.tensor([0.0, 0.0, 1.5, 2.1]))


@pytest.mark.parametrize(("arch", "alpha", "layers"), [
    *((a, 0.8, 0) for a in ARCHS), ("llama", 2.0, 6), ("gpt2", 2.0, 6),
])  # fmt: skip
def test_the_readout_is_an_early_exit_and_leaves_the_model_alone(
    arch: str, alpha: float, layers: int, toy: Any
) -> None:
    model = deep(arch, layers) if layers else toy(arch)
    ids = model.tokens(TEXTS[0]).ids
    c = lw.cache(model, TEXTS[0], ["resid_pre", "resid_post"])
    h = np.concatenate([c.resid_pre.values[0, :1], c.resid_post.values[0]])
    exits = []
    for t in range(h.shape[1]):
        cells = by_loop(np.linalg.norm(h[:, t].astype(np.float32), axis=-1).tolist(), alpha)
        exits.append(max((i + 1 for i, a in enumerate(cells) if a), default=0))
    if layers:
        assert min(exits) < layers - 1
    picked = torch.from_numpy(h[exits, np.arange(h.shape[1])])
    with torch.no_grad():
        want = model.unembed(picked)
        plain = model.module(ids)
    with voided(model, alpha) as passes:
        out = model.module(ids)
    torch.testing.assert_close(out.logits[0], want, atol=1e-5, rtol=1e-5)
    assert (passes[0].exit[0] + 1).tolist() == exits
    if arch in ("llama", "gpt2", "opt"):
        for a, b in zip(out.past_key_values.layers, plain.past_key_values.layers):
            assert torch.equal(a.keys, b.keys)
            assert torch.equal(a.values, b.values)
    again = void_losses(model, TEXTS[0], [alpha], variants=["readout"])
    nll = torch.nn.functional.cross_entropy(want[:-1], ids[0, 1:])
    assert float(again.nll.squeeze()) == pytest.approx(float(nll), abs=1e-5)


@pytest.mark.parametrize("variant", ["readout", "skip"])
@pytest.mark.parametrize("arch", ARCHS)
def test_without_a_threshold_both_are_the_model_and_hooks_are_gone_after(
    arch: str, variant: Any, toy: Any
) -> None:
    model = toy(arch)
    ids = model.tokens(TEXTS[0]).ids
    with torch.no_grad():
        plain = model.module(ids).logits
    with voided(model, None, variant):
        assert torch.equal(model.module(ids).logits, plain)
    with torch.no_grad():
        assert torch.equal(model.module(ids).logits, plain)
    with pytest.raises(RuntimeError, match="mine"), voided(model, 0.8, variant):
        raise RuntimeError("mine")
    with torch.no_grad():
        assert torch.equal(model.module(ids).logits, plain)


def skip_by_hand(model: lw.Model, ids: torch.Tensor, alpha: float) -> tuple[Any, Any]:
    """A llama run layer by layer; every token keeps its stream where the layer is void."""
    m = model.module.model
    h = m.embed_tokens(ids)
    position = torch.arange(ids.shape[1])[None]
    tables = m.rotary_emb(h, position)
    n = h.norm(dim=-1)
    deltas: list[torch.Tensor] = []
    cells = []
    for block in m.layers:
        y = block(h, position_embeddings=tables, position_ids=position, attention_mask=None)
        delta = y.norm(dim=-1) - n
        lam = torch.zeros_like(delta)
        if deltas:
            past = torch.stack(deltas)
            lam = alpha * (past.amax(0) - past.amin(0))
        deltas.append(delta)
        active = delta >= lam
        h = torch.where(active[..., None], y, h)
        n = torch.where(active, y.norm(dim=-1), n)
        cells.append(active)
    return model.module.lm_head(m.norm(h)), torch.stack(cells)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8, 2.0])
def test_skipping_is_a_model_run_layer_by_layer(alpha: float, model: lw.Model) -> None:
    ids = model.tokens(TEXTS[0]).ids
    with torch.no_grad():
        want, cells = skip_by_hand(model, ids, alpha)
    with voided(model, alpha, "skip") as passes:
        got = model.module(ids).logits
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert torch.equal(passes[0].stacked("active"), cells)
    if alpha == 2.0:
        assert not bool(cells.all())
        with voided(model, alpha, "readout"):
            assert (model.module(ids).logits - want).abs().max() > 1e-3


def test_usage_of_the_readout_never_rises_with_alpha(model: lw.Model) -> None:
    found = void_losses(model, TEXTS, [None, 0.0, 0.2, 0.5, 1.0, 2.0, 5.0])
    used = found.usage.sel(variant="readout").values
    assert (np.diff(used, axis=0) <= 0).all()
    assert (used[0] == 1).all()
    assert used[-1].max() < 1
    np.testing.assert_allclose(found.nll.values[:, 0], np.stack([found.full] * 2), atol=1e-5)
    base = lw.tasks.perplexity(model, TEXTS).nll
    np.testing.assert_allclose(found.full, base, atol=1e-5)
    assert np.isnan(found.alpha.values[0])


def test_any_measure_can_be_taken_under_the_rule(model: lw.Model) -> None:
    with voided(model, 2.0, "skip"):
        got = lw.tasks.perplexity(model, TEXTS, batch=1).nll.values
    want = void_losses(model, TEXTS, [2.0], variants=["skip"]).nll.values[0, 0]
    np.testing.assert_allclose(got, want, atol=1e-5)
    with voided(model, 2.0, "skip"):  # padding does not matter, nor other texts of the batch
        np.testing.assert_allclose(lw.tasks.perplexity(model, TEXTS).nll, want, atol=1e-5)


def test_activity_is_labelled(model: lw.Model) -> None:
    out = activity(model, TEXTS, 2.0)
    assert out.active.dims == ("prompt", "layer", "position")
    assert out.token_str.values[1, 4] == "was"
    assert bool(out.active.isel(prompt=1, position=slice(5, None)).isnull().all())
    c = lw.cache(model, TEXTS[1], ["resid_pre", "resid_post"])
    x, y = c.resid_pre.values[0].astype(float), c.resid_post.values[0].astype(float)
    size = np.linalg.norm(y, axis=-1)
    grown = size - np.linalg.norm(x, axis=-1)
    one = out.isel(prompt=1, position=slice(0, 5))
    np.testing.assert_allclose(one.delta, grown, atol=1e-5)
    np.testing.assert_allclose(one.norm, size, atol=1e-5)
    turn = 1 - (x * y).sum(-1) / size / np.linalg.norm(x, axis=-1)
    np.testing.assert_allclose(one.turn, turn, atol=1e-5)
    share = usage(out.active, front=1)
    assert share.dims == ("layer",)
    assert float(share[0]) == 1.0


def test_controls_keep_what_they_say(model: lw.Model) -> None:
    out = control_losses(model, TEXTS, 2.0)
    used = out.usage.to_pandas()
    np.testing.assert_allclose(used.loc["rule"], used.loc["shuffled"])
    assert (used.loc["last block"] == 1).all()
    want = void_losses(model, TEXTS, [2.0], variants=["readout"])
    np.testing.assert_allclose(out.nll.sel(control="rule"), want.nll.squeeze(), atol=1e-6)
    np.testing.assert_allclose(out.nll.sel(control="last block"), want.full, atol=1e-6)


def test_generation_tells_the_phases_apart(model: lw.Model) -> None:
    out = void_generate(model, TEXTS, 2.0, "skip", max_new_tokens=5)
    read = activity(model, TEXTS, 2.0, "skip")
    np.testing.assert_array_equal(out.prompt_active.values, read.active.values)
    ids = model.tokens(TEXTS[1]).ids  # by hand: the cache holds the skipped streams' keys
    with voided(model, 2.0, "skip") as passes:
        step = model.module(ids, use_cache=True)
        words = []
        for _ in range(4):
            new = step.logits[:, -1:].argmax(-1)
            words.append(int(new))
            step = model.module(new, past_key_values=step.past_key_values, use_cache=True)
    cells = np.stack([p.stacked("active")[:, 0, 0].numpy() for p in passes[1:]], 1)
    np.testing.assert_array_equal(out.answer_active.values[1], cells)
    assert model.tokenizer.decode(words) in str(out.text.values[1])
    np.testing.assert_allclose(out.usage.sel(phase="RG")[1], cells.mean())
    whole = void_generate(model, TEXTS[1], None, max_new_tokens=5)
    assert str(whole.text.values[0]) == str(lw.generate(model, TEXTS[1], 5).text.values[0])
    options = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 5}
    one, two, other = (
        str(void_generate(model, TEXTS[1], 0.8, seed=s, **options).text.values[0])
        for s in (1, 1, 2)
    )
    assert one == two != other


def test_phases_are_tested_by_exchanging_them() -> None:
    import xarray as xr

    rng = np.random.default_rng(0)
    read = (rng.random((8, 6, 9)) < 0.5).astype(float)
    wrote = (rng.random((8, 6, 9)) < 0.5).astype(float)
    dims = ("prompt", "layer", "position"), ("prompt", "layer", "step")
    same = xr.Dataset({"prompt_active": (dims[0], read), "answer_active": (dims[1], wrote)})
    assert phase_test(same)[1] > 0.05
    wrote[:, 2] = 1.0
    apart = xr.Dataset({"prompt_active": (dims[0], read), "answer_active": (dims[1], wrote)})
    distance, p = phase_test(apart)
    assert p < 0.05
    want = np.abs((read[:, :, 1:].mean(2) - wrote.mean(2)).mean(0)).mean()
    assert distance == pytest.approx(want)
    with pytest.raises(BadInput, match="one prompt"):
        phase_test(apart.isel(prompt=[0]))


def test_forced_cells(model: lw.Model) -> None:
    ids = model.tokens(TEXTS[1]).ids
    mask = torch.ones(6, 1, ids.shape[1], dtype=torch.bool)
    mask[2] = False
    with voided(model, 0.8, "skip", force=mask):
        got = model.module(ids).logits[0, -1]
    chain = lw.chain(model, TEXTS[1], [0, 1, 3, 4, 5], compare=False).logits.values[0]
    np.testing.assert_allclose(got.numpy(), chain, atol=1e-5)
    with pytest.raises(BadInput, match="force has 2 layers"), voided(model, force=mask[:2]):
        pass
    with pytest.raises(BadInput, match="texts and positions"), voided(model, force=mask):
        model.module(ids[:, :2])
    streams = torch.zeros(7, 1, model.d_model)
    assert torch.equal(readout(model, streams, torch.zeros(6, 1, dtype=torch.bool)), readout(
        model, streams, torch.ones(6, 1, dtype=torch.bool)
    ))  # fmt: skip


def test_bad_input_is_refused_before_anything_runs(model: lw.Model, toy: Any) -> None:
    for alpha in (-0.1, math.inf, math.nan):
        for call in (
            lambda a: activity(model, TEXTS, a),
            lambda a: void_losses(model, TEXTS, [0.8, a]),
            lambda a: control_losses(model, TEXTS, a),
            lambda a: void_generate(model, TEXTS, a),
        ):
            with pytest.raises(BadInput, match="from 0 up"):
                call(alpha)
    with pytest.raises(UnknownName, match="variant='read'"):
        activity(model, TEXTS, 0.8, "read")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="rule='cos'"):
        activity(model, TEXTS, 0.8, rule="cos")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="at least one alpha"):
        void_losses(model, TEXTS, [])
    with pytest.raises(BadInput, match="one token"):
        void_losses(model, "Mary")
    with pytest.raises(BadInput, match="two at least"):
        void_generate(model, TEXTS, max_new_tokens=1)
    with pytest.raises(BadInput, match="needs a decoder"):
        activity(toy("bert"), TEXTS)
    with pytest.raises(BadInput, match="decoder or an encoder"):
        activity(toy("t5"), TEXTS)


def test_the_explorer_shows_both_phases_and_both_readings(model: lw.Model) -> None:
    explorer = VoidExplorer(model, TEXTS[0], alpha=0.8, new=4)
    explorer.map.pick(2, 3)
    assert "the norm changes by" in explorer.map.answer
    n = len(model.tokens(TEXTS[0]).strings[0])
    assert len(explorer.map.column_labels) == n + 1 + 3
    before = explorer.told.value
    explorer.show("skip", 1.0)
    assert explorer.told.value != before
    assert explorer.found()["loss"] == pytest.approx(
        float(void_losses(model, TEXTS[0], [1.0], variants=["skip"]).nll.squeeze()), abs=1e-6
    )
    with pytest.raises(BadInput, match="out of range"):
        explorer.show(alpha=1.2)
    with pytest.raises(BadInput, match="the slider"):
        VoidExplorer(model, TEXTS[0], alpha=2.0)
