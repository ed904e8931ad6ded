"""LLM-Drop: removal that is real, equal to transformers' own smaller models; S by a slow loop."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import lwlab as lw
from lwlab.depth import (
    drop_curve,
    drop_order,
    footprint,
    importance,
    iterative_order,
    remove,
    single_losses,
    speed,
)
from lwlab.depth.llm_drop_board import DropBoard
from lwlab.errors import BadInput, MissingSite, UnknownName

TEXTS = [
    "Mary and John went to the store and Mary gave a book to John",
    "the king of France was in",
]
IDS = torch.tensor([[5, 9, 12, 7, 30, 22, 8]])
SERIAL = ["llama", "gpt2", "opt", "gemma2", "gemma3", "olmo2", "qwen3", "mixtral"]
DROPS: list[list[Any]] = [["attn.0"], ["mlp.1"], [1], ["attn.2", "mlp.0"], ["attn.1", "mlp.1"]]


def by_hooks(model: lw.Model, drop: list[Any]) -> torch.Tensor:
    """Logits with what the dropped parts write set to zero by plain hooks; the slow reference."""
    a, handles = model.anatomy, []
    sites = []
    for name in drop:
        kind, _, layer = str(name).rpartition(".")
        kinds = [kind] if kind in ("attn", "mlp") else ["attn", "mlp"]
        sites += [(f"{k}_out", int(layer)) for k in kinds]

    def zero(_m: Any, _a: Any, out: Any) -> Any:
        if isinstance(out, tuple):
            return (torch.zeros_like(out[0]), *out[1:])
        return torch.zeros_like(out)

    for site, layer in sites:
        module = model.module.get_submodule(a.taps[site].at(layer))
        handles.append(module.register_forward_hook(zero))
    try:
        with torch.no_grad():
            logits: torch.Tensor = model.module(IDS).logits
        return logits
    finally:
        for handle in handles:
            handle.remove()


def plain(module: Any, ids: torch.Tensor = IDS, **options: Any) -> Any:
    with torch.no_grad():
        return module(ids, **options)


@pytest.mark.parametrize("drop", DROPS, ids=str)
@pytest.mark.parametrize("arch", SERIAL)
def test_removed_is_silenced_and_smaller_and_continues_from_its_cache(
    arch: str, drop: list[Any], toy: Any
) -> None:
    model = toy(arch)
    before = plain(model.module).logits
    small = remove(model, drop)
    logits = plain(small.module).logits
    torch.testing.assert_close(logits, by_hooks(model, drop), atol=1e-5, rtol=1e-5)
    assert (logits - before).abs().max() > 1e-4
    assert torch.equal(plain(model.module).logits, before)  # the whole model is as it was
    whole, less = (sum(p.numel() for p in m.module.parameters()) for m in (model, small))
    assert less < 0.97 * whole
    start = plain(small.module, IDS[:, :4], use_cache=True)
    steps = [
        plain(small.module, IDS[:, i : i + 1], past_key_values=start.past_key_values).logits
        for i in range(4, IDS.shape[1])
    ]
    torch.testing.assert_close(torch.cat(steps, 1), logits[:, 4:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen3"])
def test_blocks_removed_are_transformers_own_smaller_model(arch: str, toy: Any) -> None:
    """The peer: the architecture built anew with fewer layers and given the weights that stay."""
    model = toy(arch)
    config = copy.deepcopy(model.module.config)
    config.num_hidden_layers = 2
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in (0, 2)]
    peer = type(model.module)(config).eval()
    inner = model.anatomy.blocks
    state = {}
    for key, value in model.module.state_dict().items():
        if key.startswith(f"{inner}.1."):
            continue
        state[key.replace(f"{inner}.2.", f"{inner}.1.")] = value
    peer.load_state_dict(state)
    small = remove(model, [1])
    assert torch.equal(plain(small.module).logits, plain(peer).logits)
    new = small.module.generate(IDS, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(new, peer.generate(IDS, max_new_tokens=6, do_sample=False, pad_token_id=0))


@pytest.mark.parametrize("first", ["attn.0", "attn.1"])
def test_generation_without_some_attention_equals_generation_without_a_cache(
    first: str, toy: Any
) -> None:
    small = remove(toy("gpt2"), [first, "mlp.2"])  # GPT-2 counts positions by the first cache place
    ids = IDS
    for _ in range(6):
        step = plain(small.module, ids, use_cache=False).logits[:, -1].argmax(-1)
        ids = torch.cat([ids, step[:, None]], 1)
    new = small.module.generate(
        IDS, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    assert torch.equal(new, ids)


def test_dropping_what_writes_nothing_changes_no_logit_and_nothing_is_bit_for_bit() -> None:
    module, _ = lw.models.toys.tiny("llama")
    with torch.no_grad():
        module.model.layers[1].self_attn.o_proj.weight.zero_()
    model = lw.wrap(module, name="idle attention")
    assert torch.equal(plain(remove(model, ["attn.1"]).module).logits, plain(module).logits)
    empty = remove(model, [])
    assert torch.equal(plain(empty.module).logits, plain(module).logits)
    assert empty.module is not module
    kept = {p.data_ptr() for p in module.parameters()}
    assert {p.data_ptr() for p in empty.module.parameters()} == kept  # shared, not copied


def test_two_halves_are_a_block(toy: Any) -> None:
    model = toy("llama")
    halves = plain(remove(model, ["mlp.1", "attn.1"]).module).logits
    assert torch.equal(halves, plain(remove(model, [1]).module).logits)


def test_the_smaller_model_is_a_model(toy: Any) -> None:
    small = remove(toy("llama"), ["attn.1"])
    assert small.checks["logits"] == 0.0
    lw.cache(small, TEXTS[0], ["resid_pre", "mlp_out"])
    with pytest.raises(MissingSite, match="1 of its layers have no attn any more"):
        lw.cache(small, TEXTS[0], "attn_out")
    lw.cache(remove(toy("llama"), [0]), TEXTS[0], ["attn_out", "attn_pattern"])


@pytest.mark.parametrize("arch", SERIAL)
@pytest.mark.parametrize("front", [0, 1])
def test_importance_is_the_formula(arch: str, front: int, toy: Any) -> None:
    model = toy(arch)
    got = importance(model, TEXTS, front=front)
    sums = np.zeros((3, model.n_layers))
    tokens = 0
    for text in TEXTS:
        c = lw.cache(model, text, ["resid_pre", "attn_out", "resid_post"])
        n = c.sizes["position"]
        tokens += n - front
        for layer in range(model.n_layers):
            for t in range(front, n):
                x, a, y = (
                    c[s].values[0, layer, t].astype(float)
                    for s in ("resid_pre", "attn_out", "resid_post")
                )
                for i, (u, v) in enumerate(((x, x + a), (x + a, y), (x, y))):
                    sums[i, layer] += 1 - u @ v / np.sqrt((u @ u) * (v @ v))
    np.testing.assert_allclose(got.importance.values, sums / tokens, atol=2e-6)
    assert got.attrs["tokens"] == tokens


def test_orders(toy: Any) -> None:
    s = importance(toy("llama"), TEXTS)
    for mode in ("attn", "mlp", "block"):
        values = dict(zip(s.sublayer.sel(part=mode).values, s.importance.sel(part=mode).values))
        order = drop_order(s, mode)
        assert [values[x] for x in order] == sorted(values.values())
        assert drop_order(s, mode, kind="reverse") == order[::-1]
        assert sorted(drop_order(s, mode, kind="random", seed=3)) == sorted(order)
    joint = drop_order(s, "joint")
    assert len(joint) == 6
    assert [x for x in joint if x.startswith("attn")] == drop_order(s, "attn")
    assert drop_order(s, kind="last") == ["attn.2", "attn.1", "attn.0"]
    assert drop_order(s, kind="random", seed=1) == drop_order(s, kind="random", seed=1)


@pytest.mark.parametrize("mode", ["attn", "mlp", "block", "joint"])
def test_iterative_order_scores_the_model_that_is_left(mode: Any, toy: Any) -> None:
    model = toy("llama")
    got = iterative_order(model, TEXTS, mode, k=2)
    first = drop_order(importance(model, TEXTS), mode)[0]
    left = importance(remove(model, [first]), TEXTS, parts=["block"]) if mode == "block" else None
    assert got[0] == first
    if left is not None:  # the smaller model counts its layers anew
        names = [f"block.{i}" for i in range(3) if f"block.{i}" != first]
        assert got[1] == names[int(left.importance.values[0].argmin())]
    else:
        again = importance(model, TEXTS, without=[first])
        assert got[1] == next(x for x in drop_order(again, mode) if x != first)
        assert abs(float(again.importance.where(again.sublayer == first).min())) < 1e-6
    assert (
        iterative_order(model, TEXTS, mode, k=2, step=2)
        == drop_order(importance(model, TEXTS), mode)[:2]
    )


@pytest.mark.parametrize("part", ["attn", "mlp", "block"])
@pytest.mark.parametrize("arch", ["llama", "gpt2", "opt"])
def test_single_losses_equal_removal_one_by_one(arch: str, part: Any, toy: Any) -> None:
    model = toy(arch)
    got = single_losses(model, TEXTS, part)
    base = lw.tasks.perplexity(model, TEXTS).nll.values
    for layer in range(model.n_layers):
        small = remove(model, [f"{part}.{layer}"], check=False)
        rise = lw.tasks.perplexity(small, TEXTS).nll.values - base
        np.testing.assert_allclose(got.sel(layer=layer).values, rise, atol=2e-5)
    two = single_losses(model, TEXTS, part, layers=[2, 0])
    np.testing.assert_allclose(two.values, got.sel(layer=[2, 0]).values, atol=2e-5)


def test_drop_curve_measures_the_smaller_models(toy: Any) -> None:
    model = toy("llama")
    task = lw.tasks.ioi(model, n=2, names=[("Mary", "John")])
    scores = importance(model, TEXTS)
    orders = {"attn": drop_order(scores), "joint": drop_order(scores, "joint")}
    out = drop_curve(model, orders, {"attn": [2], "joint": [1, 2]}, TEXTS, task)
    assert out.k.values.tolist() == [0, 1, 2]
    assert bool(out.nll.sel(order="attn", k=1).isnull().all())
    small = remove(model, orders["joint"][:2])
    np.testing.assert_allclose(
        out.nll.sel(order="joint", k=2), lw.tasks.perplexity(small, TEXTS).nll, atol=1e-6
    )
    want = lw.tasks.evaluate(small, task).correct.values
    np.testing.assert_array_equal(out.correct.sel(order="joint", k=2).values, want)
    assert np.array_equal(out.nll.sel(order="attn", k=0), out.nll.sel(order="joint", k=0))


def test_footprint_counts_weights_and_cache(toy: Any) -> None:
    model = toy("llama")
    out = footprint({"whole": model, "less": remove(model, ["attn.0"])}, tokens=32)
    c = model.module.config
    layer = 2 * c.num_key_value_heads * c.hidden_size // c.num_attention_heads * 32 * 4 / 1e6
    assert out.cache_mb.values == pytest.approx([3 * layer, 2 * layer])
    assert out.cache_layers.values.tolist() == [3, 2]
    whole = sum(p.numel() for p in model.module.parameters())
    attention = model.module.model.layers[0].self_attn.parameters()
    gone = sum(p.numel() for p in attention) + c.hidden_size  # and its norm
    assert out.parameters.values.tolist() == [whole, whole - gone]


def test_speed_is_labelled_and_relative_to_the_first(toy: Any) -> None:
    model = toy("llama")
    out = speed({"whole": model, "less": remove(model, [1])}, prompt=8, new=2, rounds=2)
    assert out.seconds.dims == ("phase", "model", "round")
    assert bool((out.seconds > 0).all())
    assert bool((out.speedup.sel(model="whole") == 1).all())


def test_what_cannot_be_dropped_is_refused_with_the_reason(toy: Any) -> None:
    model = toy("llama")
    for drop, told in (
        ([0, 1, 2], "all 3 blocks"),
        (["attn.0", "attn.1", "attn.2"], "attention of all 3 layers"),
        ([0, "attn.1", "attn.2"], "attention of all 3 layers"),
        ([3], "layer is 0..2"),
        (["attn.7"], "layer is 0..2"),
        (["heads.1"], "not understood"),
        ([1, 1], "twice"),
        ([1, "attn.1"], "twice"),
        ("attn.1", "give a list"),
    ):
        with pytest.raises(BadInput, match=told):
            remove(model, drop)
    for arch in ("phi", "gpt_neox"):
        for call in (
            lambda m: remove(m, ["attn.1"]),
            lambda m: importance(m, TEXTS),
            lambda m: single_losses(m, TEXTS, "mlp"),
        ):
            with pytest.raises(BadInput, match="in parallel"):
                call(toy(arch))
        remove(toy(arch), [1])
        importance(toy(arch), TEXTS, parts=["block"])
    with pytest.raises(BadInput, match="post-norm"):
        remove(toy("bert"), ["attn.1"])
    with pytest.raises((BadInput, MissingSite)):
        importance(toy("mamba"), TEXTS)
    remove(toy("mamba"), [1])
    remove(toy("bert"), [1])
    for arch in ("t5", "vit"):
        with pytest.raises(BadInput, match="needs a decoder or an encoder"):
            remove(toy(arch), [0])


def test_attention_by_which_the_cache_counts_is_kept(toy: Any) -> None:
    model = toy("gemma2")
    types = model.module.config.layer_types
    alone = [i for i, t in enumerate(types) if types.count(t) == 1]
    assert alone  # three layers of two types
    with pytest.raises(BadInput, match="every attention of type"):
        remove(model, [f"attn.{alone[0]}"])


def test_bad_numbers_and_names(toy: Any) -> None:
    model = toy("llama")
    scores = importance(model, TEXTS)
    with pytest.raises(UnknownName, match="part='atn'"):
        importance(model, TEXTS, parts=["atn"])  # type: ignore[list-item]
    with pytest.raises(BadInput, match="leaves no token"):
        importance(model, "Mary", front=1)
    with pytest.raises(UnknownName, match="mode='heads'"):
        drop_order(scores, "heads")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="needs scores of 'mlp'"):
        drop_order(scores.sel(part=["attn"]), "joint")
    with pytest.raises(BadInput, match="k=9"):
        drop_curve(model, {"attn": drop_order(scores)}, [9], TEXTS)
    with pytest.raises(BadInput, match="attention of all"):
        drop_curve(model, {"attn": drop_order(scores)}, [3], TEXTS)
    with pytest.raises(BadInput, match="orders is empty"):
        drop_curve(model, {}, [1], TEXTS)
    with pytest.raises(BadInput, match="k=0"):
        iterative_order(model, TEXTS, k=0)
    with pytest.raises(BadInput, match="attention of all"):
        iterative_order(model, TEXTS, "attn", k=3)
    with pytest.raises(BadInput, match="does not predict"):
        single_losses(toy("bert"), TEXTS, "block")
    with pytest.raises(BadInput, match="one token"):
        single_losses(model, "Mary")
    with pytest.raises(BadInput, match="more than the 64"):
        footprint({"m": model}, tokens=65)
    with pytest.raises(BadInput, match="keeps no cache"):
        footprint({"m": toy("mamba")}, tokens=4)
    with pytest.raises(BadInput, match="rounds=0"):
        speed({"m": model}, rounds=0)


def test_a_removal_that_gives_other_logits_is_refused(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lwlab.depth import removal

    monkeypatch.setattr(removal.Silent, "forward", lambda self, *a, **k: (k["hidden_states"], None))
    with pytest.raises(BadInput, match="gives other logits"):
        remove(toy("llama"), ["attn.1"])


def test_the_board_drops_what_the_slider_says(toy: Any) -> None:
    model = toy("llama")
    scores = importance(model, TEXTS)
    board = DropBoard(model, scores, "Mary went to the store", k=1)
    gone = drop_order(scores)[0]
    assert board.dropped == [gone]
    left = gone.replace("attn", "mlp")
    board.board.wait(20)
    assert left in board.board.layers
    board.show("block", 2)
    assert board.board.layers == [int(drop_order(scores, "block")[2].split(".")[1])]
    with pytest.raises(BadInput, match=r"0\.\.2"):
        board.show(k=3)
    assert "Dropped: block." in board._repr_mimebundle_()[0]["text/plain"]
    with pytest.raises(BadInput, match="scores are of 3 layers"):
        DropBoard(remove(model, [0]), scores)
    board.board.close()
