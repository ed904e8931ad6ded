"""Skips: exact identities, a slow second implementation by plain hooks, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from depth_by_hand import TEXT, hooked

import lwlab as lw
from lwlab import results
from lwlab.depth import skip_effects
from lwlab.errors import BadInput, MissingSite, UnknownName
from lwlab.tracing.blocks import capture

ARCHS = ("llama", "gpt2", "gemma2", "gpt_neox")


def slow_effects(
    model: Any, text: str, mode: str, part: str, t: int | None, front: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """D [skipped, layer, read] and O [skipped, read] from the formulas, one forward a skip."""
    with torch.no_grad():
        base = hooked(model, text, {})
        c = base["block"] - base["pre"]
        n_layers, n = c.shape[:2]
        where = torch.zeros(n, 1, dtype=torch.bool)
        where[front:t] = True
        start = front if t is None else t
        d = torch.zeros(n_layers, n_layers, n - start)
        o = torch.zeros(n_layers, n - start)
        for s in range(n_layers):
            if mode == "local":
                changed = c.clone()
                for i in range(s + 1, n_layers):
                    x = base["pre"][i] - where * c[s]
                    run = hooked(model, text, {("block", i - 1): lambda _, x=x: x[None]})
                    changed[i] = run["block"][i] - x
            else:
                if part == "layer":
                    put = {("block", s): lambda x, s=s: torch.where(where, base["pre"][s], x)}
                else:
                    site = "attn_out" if part == "attention" else "mlp_out"
                    put = {
                        (site, s): lambda x: x.reshape(n, -1).masked_fill(where, 0.0).view(x.shape)
                    }
                run = hooked(model, text, put)
                changed = run["block"] - run["pre"]
                p, q = run["logits"].softmax(-1), base["logits"].softmax(-1)
                o[s] = (p - q).norm(dim=-1)[start:]
            gap = (changed - c).norm(dim=-1) / c.norm(dim=-1).clamp(min=1e-6)
            d[s] = gap[:, start:]
    return d, o


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    ("mode", "part", "t"),
    [
        ("current", "layer", None), ("current", "attention", None), ("current", "mlp", None),
        ("future", "layer", 6), ("future", "mlp", 9), ("local", "layer", None),
        ("local", "layer", 6),
    ],
)  # fmt: skip
def test_effects_equal_one_hooked_forward_for_each_skip(
    toy: Any, arch: str, mode: Any, part: Any, t: int | None
) -> None:
    model = toy(arch)
    d, o = slow_effects(model, TEXT, mode, part, t)
    r = skip_effects(model, TEXT, mode, part=part, t=t)
    for statistic, reduce in (("max", torch.amax), ("mean", torch.mean)):
        got = r.effect.sel(statistic=statistic)[0].values
        np.testing.assert_allclose(got, reduce(d, -1).numpy(), atol=2e-4, rtol=2e-4)
        if mode != "local":
            got = r.output_effect.sel(statistic=statistic)[0].values
            np.testing.assert_allclose(got, reduce(o, -1).numpy(), atol=1e-5)
    assert ("output_effect" in r) == (mode != "local")
    assert float(r.effect.max()) > 0.05


@pytest.mark.parametrize("arch", [*ARCHS, "opt", "mixtral", "mamba"])
def test_a_skipped_layer_adds_nothing_now_and_changes_nothing_of_its_own_later(
    toy: Any, arch: str
) -> None:
    model = toy(arch)
    current = skip_effects(model, TEXT, "current").effect[0, 0].values
    future = skip_effects(model, TEXT, "future", t=7).effect[0, 0].values
    local = skip_effects(model, TEXT, "local").effect[0, 0].values
    assert np.diag(current).tolist() == [1.0] * model.n_layers
    assert np.diag(future).tolist() == [0.0] * model.n_layers
    assert np.diag(local).tolist() == [0.0] * model.n_layers
    for d in (current, future, local):
        assert (np.tril(d, -1) == 0).all()
        assert (d[np.triu_indices(model.n_layers, 1)] > 0).all()


def test_earlier_layers_do_not_change_in_a_traced_run_either(toy: Any) -> None:
    """D = 0 for l < s is by construction in the growing batch; here it is measured."""
    model = toy("llama")
    base = lw.cache(model, TEXT, ["resid_pre", "resid_post"])
    at = list(range(1, base.sizes["position"]))
    r = lw.patch(
        model, TEXT, {"resid_post.2": base.resid_pre.sel(layer=2).isel(position=at).values},
        positions=at, read=["resid_pre", "resid_post"],
    )  # fmt: skip
    change = abs((r.resid_post - r.resid_pre) - (base.resid_post - base.resid_pre))
    assert float(change.sel(layer=[0, 1]).max()) == 0.0
    assert float(change.sel(layer=2).max()) > 0.0


def test_position_0_is_never_skipped_and_front_0_skips_it(toy: Any) -> None:
    model = toy("gpt2")
    slow, _ = slow_effects(model, TEXT, "current", "layer", None, front=0)
    got = skip_effects(model, TEXT, front=0).effect.sel(statistic="max")[0]
    np.testing.assert_allclose(got, slow.amax(-1), atol=2e-4, rtol=2e-4)
    assert float(abs(got - skip_effects(model, TEXT).effect.sel(statistic="max")[0]).max()) > 1e-3


def test_several_t_are_reduced_over_and_prompts_do_not_mix(toy: Any) -> None:
    model = toy("llama")
    short = "the king gave the red book to the queen"
    other = "the king gave the old book to the queen"  # runs with the short one
    both = skip_effects(model, [TEXT, short, other], "future", t=[4, 6])
    each = [skip_effects(model, TEXT, "future", t=t) for t in (4, 6)]
    d = np.stack([x.effect[:, 0].values for x in each])
    np.testing.assert_allclose(both.effect[0, 0], d[:, 0].max(0), atol=1e-5)
    np.testing.assert_allclose(both.effect[1, 0], d[:, 1].mean(0), atol=1e-5)
    for i, text in ((1, short), (2, other)):
        alone = skip_effects(model, text, "future", t=[4, 6])
        np.testing.assert_allclose(both.effect[:, i], alone.effect[:, 0], atol=1e-5)
        np.testing.assert_allclose(both.output_effect[:, i], alone.output_effect[:, 0], atol=1e-6)
    assert float(abs(both.effect[:, 1] - both.effect[:, 2]).max()) > 1e-3


def test_t_is_drawn_from_the_papers_grid_by_seed(toy: Any) -> None:
    model = toy("gpt2")
    long = " ".join([TEXT] * 4)
    a, b, c = (skip_effects(model, long, "future", seed=s, layers=0) for s in (0, 0, 1))
    (ts,) = a.attrs["t"]
    n = int(model.tokens(long).lengths[0])
    assert len(ts) == 4
    assert set(ts) <= set(range(8, n - 4, 8))
    assert a.attrs["t"] == b.attrs["t"]
    assert a.attrs["t"] != c.attrs["t"]
    short = skip_effects(model, "the king saw the queen", "future", layers=0)
    assert short.attrs["t"] == [[2]]


def test_the_placebo_takes_as_much_away_in_a_random_direction(toy: Any) -> None:
    model = toy("llama")
    a, b = (skip_effects(model, TEXT, removed="random", seed=s) for s in (0, 1))
    d = a.effect.sel(statistic="mean")[0].values
    np.testing.assert_allclose(np.diag(d), 1.0, atol=1e-5)  # ||r|| / ||c||
    assert (np.tril(d, -1) == 0).all()
    assert float(abs(a.effect - b.effect).max()) > 1e-3
    again = skip_effects(model, TEXT, removed="random", seed=0)
    assert float(abs(a.effect - again.effect).max()) == 0.0


def test_a_subset_of_layers_gives_the_same_rows(toy: Any) -> None:
    model = toy("gemma2")
    whole, some = skip_effects(model, TEXT), skip_effects(model, TEXT, layers=[2, 0, -1])
    assert some.skipped.values.tolist() == [0, 2]
    np.testing.assert_allclose(some.effect, whole.effect.sel(skipped=[0, 2]), atol=1e-5)
    np.testing.assert_allclose(
        some.output_effect, whole.output_effect.sel(skipped=[0, 2]), atol=1e-6
    )


def test_the_result_says_what_it_is(toy: Any, tmp_path: Any) -> None:
    r = skip_effects(toy("llama"), [TEXT], "future", t=5)
    assert r.effect.dims == ("statistic", "prompt", "skipped", "layer")
    assert r.attrs["paper"] == "2505.13898"
    assert [r.attrs[k] for k in ("mode", "t", "front", "n")] == ["future", [[5]], 1, 1]
    assert r.text.values.tolist() == [TEXT]
    results.save(r, tmp_path / "r.nc")
    assert results.open(tmp_path / "r.nc").identical(r)


def test_blocks_replayed_from_the_start_give_the_same_streams(toy: Any) -> None:
    for arch in (*ARCHS, "opt", "phi", "olmo2", "qwen3", "mistral", "mamba"):
        model = toy(arch)
        blocks = capture(model, TEXT)
        base = hooked(model, TEXT, {})
        with torch.no_grad():
            for layer, before, after in blocks.run({0: torch.cat([blocks.streams[0]] * 3)}):
                if layer < model.n_layers:
                    torch.testing.assert_close(before[1], base["pre"][layer], atol=1e-4, rtol=1e-4)
                    torch.testing.assert_close(after[2], base["block"][layer], atol=1e-4, rtol=1e-4)
            p = blocks.probabilities(after)[0]
        torch.testing.assert_close(p, base["logits"].softmax(-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("arch", "arguments", "error", "words"),
    [
        ("llama", {"mode": "past"}, UnknownName, "current"),
        ("llama", {"part": "attn"}, UnknownName, "did you mean"),
        ("llama", {"removed": "noise"}, UnknownName, "random"),
        ("llama", {"mode": "future", "t": 14}, BadInput, r"possible t: 2..13"),
        ("llama", {"mode": "future", "t": 1}, BadInput, "possible t"),
        ("llama", {"mode": "future", "t": [5, 99]}, BadInput, "possible t"),
        ("llama", {"mode": "future", "t": []}, BadInput, "t is empty"),
        ("llama", {"mode": "current", "t": 5}, BadInput, "takes no t"),
        ("llama", {"mode": "local", "part": "mlp"}, BadInput, "local"),
        ("llama", {"part": "mlp", "removed": "random"}, BadInput, "random"),
        ("llama", {"layers": 3}, BadInput, r"0..2"),
        ("llama", {"front": -1}, BadInput, "front"),
        ("llama", {"front": 20}, BadInput, "too short"),
        ("llama", {"prompts": []}, BadInput, "non-empty"),
        ("llama", {"prompts": "king"}, BadInput, "too short"),
        ("mamba", {"part": "attention"}, MissingSite, "mixer"),
    ],
)
def test_what_cannot_work_is_refused_before_any_skip(
    toy: Any, monkeypatch: Any, arch: str, arguments: Any, error: Any, words: str
) -> None:
    import lwlab.depth.skips as skips

    model = toy(arch)
    monkeypatch.setattr(skips, "capture", lambda *_: pytest.fail("the model ran"))
    with pytest.raises(error, match=words):
        skip_effects(model, **{"prompts": [TEXT], **arguments})


def test_token_ids_do_where_there_is_no_tokenizer(toy: Any) -> None:
    from lwlab.models import toys

    module, _ = toys.tiny("llama")
    ids = toy("llama").tokens(TEXT).ids
    got = skip_effects(lw.wrap(module), ids, "future", t=6)
    np.testing.assert_allclose(got.effect, skip_effects(toy("llama"), TEXT, "future", t=6).effect)


def test_models_that_cannot_be_replayed_are_refused() -> None:
    from lwlab.models import toys

    module, _ = toys.tiny("t5")
    with pytest.raises(BadInput, match="encoder-decoder"):
        skip_effects(lw.wrap(module), torch.tensor([[5, 6, 7]]))
