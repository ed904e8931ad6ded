"""CHESS: thresholds against loops and the decoder's own, losses against hooks, times that are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch.nn import functional

import lwlab as lw
from lwlab.activations import (
    calibrate,
    decode_times,
    gated_mlps,
    losses,
    mlp_times,
    sparse_decode,
    thresholds,
)
from lwlab.activations.chess import RULES
from lwlab.errors import BadInput, MissingSite, UnknownName

TEXTS = ["the cat sat on the mat", "a dog went to the park and saw a man"]


@pytest.fixture
def model(toy):
    return toy("llama")


def nll(model: lw.Model, text: str) -> float:
    ids = model.tokens([text]).ids
    with torch.no_grad():
        z = model.module(ids).logits[0]
    return float(functional.cross_entropy(z[:-1], ids[0, 1:]))


@contextlib.contextmanager
def zeroed(
    model: lw.Model, out: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """What W_down reads is put to nought where `out(layer, |a|, |u|)`: by hooks on plain torch."""
    kept: dict[tuple[int, str], torch.Tensor] = {}
    handles = []
    for m in gated_mlps(model):
        act = m.module.act_fn
        handles.append(
            act.register_forward_hook(lambda _m, _x, y, i=m.layer: kept.update({(i, "a"): y}))
        )
        handles.append(
            m.up.register_forward_hook(lambda _m, _x, y, i=m.layer: kept.update({(i, "u"): y}))
        )

        def cut(_m: object, args: tuple[torch.Tensor], i: int = m.layer) -> tuple[torch.Tensor]:
            gone = out(i, kept[i, "a"].abs(), kept[i, "u"].abs())
            return (torch.where(gone, 0, args[0]),)

        handles.append(m.down.register_forward_pre_hook(cut))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def test_thresholds_equal_a_loop_and_the_decoders(model):
    found = calibrate(model, TEXTS, [0.0, 0.3, 0.7], RULES, skip=1)
    sites = [lw.cache(model, t, ["mlp_gate", "mlp_up"]) for t in TEXTS]
    for k, m in enumerate(gated_mlps(model)):
        a = np.concatenate(
            [
                functional.silu(torch.tensor(s.mlp_gate.values[0, k, 1:])).abs().numpy()
                for s in sites
            ]
        )
        u = np.concatenate([np.abs(s.mlp_up.values[0, k, 1:]) for s in sites])
        norms = np.array([float(m.down.weight[:, i].detach().norm()) for i in range(model.d_mlp)])
        assert found.up[k].values == pytest.approx(u.mean(0), rel=1e-5)
        assert float(found.spread[k]) == pytest.approx(u.mean(0).std() / u.mean(0).mean(), rel=1e-4)
        weights = {"cats": 1.0, "chess": u.mean(0), "chess-down": u.mean(0) * norms, "oracle": u}
        for rule, w in weights.items():
            scores = np.sort((a * w).ravel())
            for q in (0.3, 0.7):
                cut = scores[int(q * scores.size)]
                want = np.broadcast_to(cut / (1.0 if rule == "oracle" else w), (model.d_mlp,))
                got = found.limit.sel(rule=rule, sparsity=q)[k].values
                assert got == pytest.approx(want, rel=1e-4)
    assert not found.limit.sel(sparsity=0.0).any()
    for rule in ("chess", "cats"):
        own = thresholds(model, TEXTS, 0.7, rule=rule)
        assert np.allclose(own, found.limit.sel(rule=rule, sparsity=0.7), rtol=1e-4)


def test_constant_up_makes_it_cats(model):
    """U_i the same for all neurons: the very same thresholds, to the bit."""
    for m in gated_mlps(model):
        assert m.up.bias is None
    found = calibrate(model, TEXTS, [0.5], ["cats", "chess"])
    flat = found.up.copy(data=np.ones_like(found.up))
    cut = found.limit.sel(rule="cats", sparsity=0.5)
    assert not (cut == found.limit.sel(rule="chess", sparsity=0.5)).all()
    assert np.array_equal(cut.values / flat.values, cut.values)
    assert (cut.std("neuron") == 0).all(), "one threshold a layer"


@pytest.mark.parametrize("rule", ["cats", "chess", "chess-down", "oracle"])
def test_losses_are_those_of_the_masked_model(model, rule):
    limit = calibrate(model, TEXTS, [0.0, 0.6], RULES).limit
    found = losses(model, TEXTS, limit.sel(rule=[rule]))
    t = torch.tensor(limit.sel(rule=rule, sparsity=0.6).values)
    gone = 0

    def out(i: int, a: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        nonlocal gone
        mask = (a * u if rule == "oracle" else a) < t[i]
        gone += int(mask.sum())
        return mask

    with zeroed(model, out):
        want = [nll(model, text) for text in TEXTS]
    assert found.nll.sel(sparsity=0.6).values[0] == pytest.approx(want, abs=1e-4)
    tokens = sum(len(model.tokens([text]).ids[0]) for text in TEXTS)
    share = float(found.left_out.sel(sparsity=0.6).mean())
    assert share == pytest.approx(gone / (tokens * model.n_layers * model.d_mlp), abs=1e-6)
    assert found.dense.values == pytest.approx([nll(model, text) for text in TEXTS], abs=1e-5)
    assert np.array_equal(found.nll.sel(sparsity=0.0).values[0], found.dense.values)
    assert found.tokens.values.tolist() == [len(model.tokens([t]).ids[0]) - 1 for t in TEXTS]


def test_losses_are_the_sparse_decoders(model):
    limit = calibrate(model, TEXTS, [0.5]).limit.sel(rule="chess", sparsity=0.5, drop=True)
    found = losses(model, TEXTS, limit.assign_coords(rule="chess", sparsity=0.5))
    with sparse_decode(model, limit, prompt="sparse") as sparse:
        want = lw.tasks.perplexity(sparse.model, TEXTS, batch=1).nll
        active = sparse.active()
    assert found.nll.values.ravel() == pytest.approx(want.values, abs=1e-4)
    assert 1 - found.left_out.values.ravel() == pytest.approx(active.values, abs=1e-3)


def test_the_random_rule_draws_as_many_and_by_seed(model):
    limit = calibrate(model, TEXTS, [0.4], ["random"]).limit
    one, same, other = (losses(model, TEXTS, limit, seed=s) for s in (0, 0, 1))
    assert float(one.left_out.mean()) == pytest.approx(0.4, abs=0.05)
    assert np.array_equal(one.nll, same.nll)
    assert not np.array_equal(one.nll, other.nll)


def test_times_are_of_the_same_output(model):
    limit = calibrate(model, TEXTS, [0.0, 0.6], ["chess"]).limit.sel(rule="chess")
    found = mlp_times(model, TEXTS[1], limit, tokens=3, rounds=2)
    assert float(found.error.sel(way="dense", sparsity=0.0)) < 1e-5
    assert float(found.error.sel(way=["kernel", "indexing"]).max()) < 1e-5
    assert float(found.error.sel(way="dense", sparsity=0.6)) > 1e-3, "dense computes all neurons"
    assert float(found.active.sel(sparsity=0.0)) == 1.0
    assert float(found.active.sel(sparsity=0.6)) == pytest.approx(0.4, abs=0.15)
    assert (found.seconds > 0).all()
    assert np.array_equal(found.seconds, found.rounds.median("round"))
    assert found.rounds.sizes == {"sparsity": 2, "way": 3, "round": 2}


def test_decoding_is_timed_both_ways_and_the_model_comes_back(model):
    limit = calibrate(model, TEXTS, [0.6], ["chess"]).limit.sel(rule="chess", sparsity=0.6)
    before = [m.module for m in gated_mlps(model)]
    want = nll(model, TEXTS[1])
    found = decode_times(model, TEXTS[1], limit.drop_vars(["rule", "sparsity"]), steps=2, rounds=3)
    assert found.sizes == {"way": 2, "round": 3}
    assert (found > 0).all()
    assert all(a is b.module for a, b in zip(before, gated_mlps(model), strict=True))
    assert nll(model, TEXTS[1]) == want
    with pytest.raises(BadInput, match="one or more"):
        decode_times(model, TEXTS[1], limit, rounds=0)


@pytest.mark.parametrize(
    ("call", "words", "kind"),
    [
        (lambda m: calibrate(m, TEXTS, 1.0), "not including, 1", BadInput),
        (lambda m: calibrate(m, TEXTS, [-0.1]), "fractions from 0", BadInput),
        (lambda m: calibrate(m, TEXTS, []), "fractions from 0", BadInput),
        (lambda m: calibrate(m, TEXTS, 0.5, ["ches"]), "chess", UnknownName),
        (lambda m: calibrate(m, TEXTS, 0.5, "chess"), "as a list", BadInput),
        (lambda m: calibrate(m, [], 0.5), "longer than 1", BadInput),
        (lambda m: calibrate(m, ["cat"], 0.5), "text 0 is not", BadInput),
        (lambda m: calibrate(m, TEXTS, 0.5, max_bytes=10), "fewer texts or layers", BadInput),
        (lambda m: losses(m, TEXTS, lim(m)[..., :3]), "has 3 neurons", BadInput),
        (lambda m: losses(m, TEXTS, lim(m) * np.nan), "holds NaN", BadInput),
        (lambda m: losses(m, TEXTS, lim(m).isel(layer=0, drop=True)), "dimensions", BadInput),
        (lambda m: losses(m, ["cat"], lim(m)), "longer than 1", BadInput),
        (lambda m: mlp_times(m, TEXTS, lim(m)), "select one rule", BadInput),
        (lambda m: mlp_times(m, TEXTS, lim(m).sel(rule="cats"), tokens=99), "first", BadInput),
        (lambda m: mlp_times(m, TEXTS, lim(m).sel(rule="cats"), rounds=0), "or more", BadInput),
    ],
)
def test_what_cannot_work_is_refused(model, call, words, kind):
    with pytest.raises(kind, match=words):
        call(model)


def lim(model: lw.Model):
    return calibrate(model, TEXTS, [0.5]).limit


@pytest.mark.parametrize("arch", ["gpt2", "bert", "mixtral", "mamba"])
def test_a_model_without_gated_mlps_is_refused_before_any_run(toy, arch):
    with pytest.raises(MissingSite):
        calibrate(toy(arch), TEXTS, 0.5)


@pytest.mark.slow
def test_on_smollm2_each_channel_its_threshold_loses_less(smollm2):
    texts = lw.tasks.corpus("pydoc", tokens=64, model=smollm2, n=8, seed=0)
    found = calibrate(smollm2, texts[:5], [0.7], ["cats", "chess", "oracle", "random"])
    scored = losses(smollm2, texts[5:], found.limit, max_tokens=48)
    out = scored.nll.mean("prompt").sel(sparsity=0.7)
    order = [float(out.sel(rule=r)) for r in ("oracle", "chess", "cats", "random")]
    assert order == sorted(order)
    assert order[2] - order[1] > 0.03
    assert order[3] - order[1] > 3
