"""NIRVANA: scores by slow loops and torch.func; what is cut equals what is zeroed; real files."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import lwlab as lw
from lwlab.errors import BadInput, MissingSite, UnknownName
from lwlab.pruning import (
    allocate,
    calibrations,
    kernel,
    prune,
    pruned_losses,
    rates,
    scores,
    silence,
    write_model,
)
from lwlab.pruning.units import sizes, slabs

Toy = Callable[[str], lw.Model]
TEXTS = [
    "Mary and John went to the store and Mary gave a book to John",
    "the king of France was in",
]
IDS = torch.tensor([[5, 9, 12, 7, 30, 22, 8]])
BOTH = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "gpt_neox", "opt", "phi"]


def logits(module: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = module(ids).logits
    return out


def naive_f(module: Any, tokens: Any) -> torch.Tensor:
    """Mean over texts and vocabulary of the max over positions, text by text without padding."""
    total = torch.zeros(())
    for ids, length in zip(tokens.ids, tokens.lengths):
        z = module(ids[None, :length]).logits[0]
        total = total + torch.stack([z[:, v].max() for v in range(z.shape[1])]).mean()
    return total / len(tokens)


def llama_blocks(module: Any, layer: int, part: str, unit: int) -> list[tuple[Any, int, slice]]:
    """(matrix, axis, entries) of one unit, written down for Llama: 4 heads, 2 groups, d_head 8."""
    block = module.model.layers[layer]
    if part == "mlp":
        one = slice(unit, unit + 1)
        m = block.mlp
        return [(m.gate_proj, 0, one), (m.up_proj, 0, one), (m.down_proj, 1, one)]
    kv, q = slice(8 * unit, 8 * unit + 8), slice(16 * unit, 16 * unit + 16)
    a = block.self_attn
    return [(a.q_proj, 0, q), (a.k_proj, 0, kv), (a.v_proj, 0, kv), (a.o_proj, 1, q)]


def loop_scores(model: lw.Model, entries: Callable[[Any], torch.Tensor], part: str) -> np.ndarray:
    n = 2 if part == "attn" else 40
    out = np.zeros((3, n))
    for layer in range(3):
        for unit in range(n):
            for matrix, axis, where in llama_blocks(model.module, layer, part, unit):
                e = entries(matrix).detach()
                out[layer, unit] += float((e[where] if axis == 0 else e[:, where]).sum())
    return out


def some(model: lw.Model, share: float = 0.4, seed: int = 0) -> xr.Dataset:
    """Units kept at random, different numbers in each layer, at least one."""
    rng, out = np.random.default_rng(seed), xr.Dataset()
    for part, dim in (("attn", "kv_head"), ("mlp", "neuron")):
        try:
            n = sizes(model, part)[0]  # type: ignore[arg-type]
        except MissingSite:
            continue
        keep = rng.random((model.n_layers, n)) > share
        keep[:, 0] = True
        keep[0, -1] = False
        out[part] = (("layer", dim), keep)
    return out


@pytest.mark.parametrize("criterion", ["nirvana", "taylor"])
def test_gradient_scores_are_the_loop_with_a_functional_gradient(criterion: Any, toy: Toy) -> None:
    """The peer: torch.func.grad of a naive f over a functional copy of the model, then loops."""
    model = toy("llama")
    tokens = model.tokens(TEXTS)
    params = {k: v.detach() for k, v in model.module.named_parameters()}

    class F(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model.module

        def forward(self) -> torch.Tensor:
            if criterion == "nirvana":
                return naive_f(self.inner, tokens)
            total, n = torch.zeros(()), 0
            for ids, length in zip(tokens.ids, tokens.lengths):
                z = self.inner(ids[None, :length]).logits[0].log_softmax(-1)
                for t in range(length - 1):
                    total, n = total - z[t, ids[t + 1]], n + 1
            return total / n

    f = F()
    named = {f"inner.{k}": v for k, v in params.items()}
    g = torch.func.grad(lambda p: torch.func.functional_call(f, p, ()))(named)
    by_matrix = {id(m): g[f"inner.{k}.weight"] for k, m in model.module.named_modules()
                 if f"inner.{k}.weight" in g}  # fmt: skip
    got = scores(model, TEXTS, criterion)
    for part in ("attn", "mlp"):
        want = loop_scores(model, lambda m: (m.weight * by_matrix[id(m)]).abs().double(), part)
        np.testing.assert_allclose(got[part].values, want, rtol=2e-4)
    assert got.mlp.dims == ("layer", "neuron")
    assert got.attn.dims == ("layer", "kv_head")


def test_magnitude_and_wanda_are_the_loops(toy: Toy) -> None:
    model = toy("llama")
    got = scores(model, criterion="magnitude")
    inputs: dict[int, list[torch.Tensor]] = {}
    hooks = [
        m.register_forward_pre_hook(lambda m, a: inputs.setdefault(id(m), []).append(a[0][0]))
        for m in model.module.modules() if isinstance(m, torch.nn.Linear)
    ]  # fmt: skip
    for text in TEXTS:
        logits(model.module, model.tokens(text).ids)
    for hook in hooks:
        hook.remove()
    wanda = scores(model, TEXTS, "wanda")

    def entries(m: Any) -> torch.Tensor:
        return m.weight.detach().abs() * (torch.cat(inputs[id(m)]) ** 2).sum(0).sqrt()

    for part in ("attn", "mlp"):
        want = loop_scores(model, lambda m: m.weight.detach().abs(), part)
        np.testing.assert_allclose(got[part].values, want, rtol=1e-5)
        np.testing.assert_allclose(wanda[part].values, loop_scores(model, entries, part), rtol=1e-4)


def test_scores_leave_the_model_as_it_was(toy: Toy) -> None:
    module, _ = lw.models.toys.tiny("llama")
    model = lw.wrap(module, tokenizer=lw.models.toys.tokenizer(), name="mine")
    frozen = module.model.norm.weight.requires_grad_(False)
    grad = torch.ones_like(module.lm_head.weight)
    module.lm_head.weight.grad = grad
    before = {k: v.clone() for k, v in module.state_dict().items()}
    scores(model, TEXTS)
    assert not frozen.requires_grad
    assert module.lm_head.weight.grad is grad
    assert all(p.requires_grad for p in module.parameters() if p is not frozen)
    assert all(p.grad is None for p in module.parameters() if p is not module.lm_head.weight)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_padding_does_not_count(toy: Toy) -> None:
    """f is a mean over texts: the score of a padded pair is that of its summed gradients."""
    model = toy("llama")
    one = scores(model, TEXTS[1])
    again = scores(model, [TEXTS[1], TEXTS[1]])
    np.testing.assert_allclose(again.mlp, one.mlp, rtol=1e-4)
    assert float(abs(scores(model, TEXTS).mlp - one.mlp).max()) > 1e-6


def test_the_kernel_is_the_change_under_a_sign_step(toy: Toy) -> None:
    model = toy("llama")
    k = kernel(model, TEXTS)
    assert k.dims == ("prompt", "partner")
    units = {s.path for p in ("attn", "mlp") for own in slabs(model, p) for s in own}  # type: ignore[arg-type]
    module = copy.deepcopy(model.module).double()
    for j, partner in enumerate(TEXTS):
        tokens = model.tokens(partner)
        ws = [module.get_submodule(p).weight for p in sorted(units)]
        g = torch.autograd.grad(naive_f(module, tokens), ws)
        assert float(k[j, j]) == pytest.approx(sum(float(x.abs().sum()) for x in g), rel=1e-4)
        eta = 1e-5
        before = [float(naive_f(module, model.tokens(t)).detach()) for t in TEXTS]
        with torch.no_grad():
            for w, x in zip(ws, g):
                w -= eta * x.sign()
        after = [float(naive_f(module, model.tokens(t)).detach()) for t in TEXTS]
        with torch.no_grad():
            for w, x in zip(ws, g):
                w += eta * x.sign()
        moved = (np.array(before) - np.array(after)) / eta
        np.testing.assert_allclose(moved, k[:, j].values, atol=0.02 * float(abs(k).max()))


@pytest.mark.parametrize("arch", BOTH)
def test_cut_units_equal_zeroed_units(arch: str, toy: Toy) -> None:
    """Naive masks: every row and column of each unit set to zero by hand, in a deep copy."""
    model = toy(arch)
    keep = some(model)
    before = logits(model.module)
    small = prune(model, keep)
    zeroed = copy.deepcopy(model.module)
    for part in keep:
        for own, row in zip(slabs(model, part), keep[part].values):  # type: ignore[arg-type]
            for s in own:
                module = zeroed.get_submodule(s.path)
                gone = s.index[torch.from_numpy(~row)].flatten()
                with torch.no_grad():
                    module.weight.index_fill_(s.axis, gone, 0)
                    if s.out and getattr(module, "bias", None) is not None:
                        # a head whose values are zero writes nothing; so does a neuron f(0) = 0
                        module.bias.index_fill_(0, gone, 0)
    torch.testing.assert_close(logits(small.module), logits(zeroed), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        logits(small.module), logits(silence(model, keep).module), atol=1e-5, rtol=1e-5
    )
    assert (logits(small.module) - before).abs().max() > 1e-3
    assert torch.equal(logits(model.module), before)
    whole, less = (sum(p.numel() for p in m.module.parameters()) for m in (model, small))
    gone = sum(
        int((~keep[part].values).sum()) * sizes(model, part)[1]  # type: ignore[arg-type]
        for part in keep
    )
    biases = sum(p.numel() for p in model.module.parameters() if p.ndim == 1)
    assert gone <= whole - less <= gone + biases
    new = small.module.generate(IDS, max_new_tokens=5, min_new_tokens=5, do_sample=False,
                                pad_token_id=0, eos_token_id=None)  # fmt: skip
    ids = IDS
    for _ in range(5):
        ids = torch.cat([ids, logits(small.module, ids)[:, -1].argmax(-1)[:, None]], 1)
    assert torch.equal(new, ids)  # with its cache, as without one


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen3", "gemma2"])
def test_a_pruned_model_is_written_and_loaded(arch: str, toy: Toy, tmp_path: Path) -> None:
    model = toy(arch)
    small = prune(model, some(model))
    folder = write_model(small, tmp_path / "small")
    again = lw.load(folder)
    assert torch.equal(logits(again.module), logits(small.module))
    assert again.checks["logits"] == 0.0
    assert again.checks["writes"] < 1e-4
    assert again.sites() == small.sites()
    for old, new in zip(small.module.parameters(), again.module.parameters()):
        assert old.shape == new.shape
    text = lw.generate(again, "the king of France", 4).text.values[0]
    assert text == lw.generate(small, "the king of France", 4).text.values[0]
    with pytest.raises(BadInput, match="holds something"):
        write_model(small, folder)
    config = json.loads((folder / "config.json").read_text())
    config["lwlab_kept"]["mlp"][0] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="widths and weights disagree"):
        lw.load(folder)


def test_the_cut_model_is_a_model(toy: Toy) -> None:
    model = toy("llama")
    small = prune(model, some(model))
    assert small.checks["logits"] == 0.0
    lw.cache(small, TEXTS[0], ["resid_pre", "attn_out", "mlp_out", "logits"])
    with pytest.raises(MissingSite, match="neurons"):
        lw.cache(small, TEXTS[0], "neurons")
    with pytest.raises(MissingSite, match="key/value groups"):
        lw.cache(small, TEXTS[0], "attn_pattern")
    with pytest.raises(MissingSite):
        scores(small, TEXTS)
    even = allocate(scores(model, TEXTS, parts=["mlp"]), 0.2, across="uniform")
    equal = prune(model, even)
    assert equal.d_mlp == 32
    assert lw.cache(equal, TEXTS[0], "neurons").neurons.sizes["neuron"] == 32
    assert scores(equal, TEXTS).mlp.shape == (3, 32)  # and can be pruned again
    kept = xr.ones_like(some(model), dtype=bool)
    same = prune(model, kept)
    assert torch.equal(logits(same.module), logits(model.module))
    shared = {p.data_ptr() for p in model.module.parameters()}
    assert {p.data_ptr() for p in same.module.parameters()} == shared


def test_phi3_keeps_gate_and_up_in_one_matrix() -> None:
    from transformers import Phi3Config, Phi3ForCausalLM

    torch.manual_seed(0)
    config = Phi3Config(vocab_size=100, hidden_size=32, intermediate_size=40, num_hidden_layers=3,
                        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0)  # fmt: skip
    model = lw.wrap(Phi3ForCausalLM(config), name="phi3")
    keep = some(model)[["mlp"]]
    torch.testing.assert_close(
        logits(prune(model, keep).module), logits(silence(model, keep).module),
        atol=1e-5, rtol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize(("s", "gamma"), [(0.1, 3.0), (0.3, 1.0), (0.2, 0.5), (0.4, 3.36)])
def test_the_budget_is_spent(s: float, gamma: float) -> None:
    attention, mlp = 884_736.0, 2_654_208.0
    rate = rates(attention, mlp, s, gamma)
    assert rate["attn"] * attention + rate["mlp"] * mlp == pytest.approx(s * (attention + mlp))
    assert rate["mlp"] == pytest.approx(gamma * rate["attn"])


@pytest.mark.parametrize("across", ["global", "uniform"])
def test_allocation_cuts_the_lowest_within_a_unit_of_the_budget(across: Any) -> None:
    rng = np.random.default_rng(0)
    found = xr.Dataset(
        {"attn": (("layer", "kv_head"), rng.random((6, 5)), {"weights": 900}),
         "mlp": (("layer", "neuron"), rng.random((6, 70)) * np.arange(1, 7)[:, None],
                 {"weights": 30})}
    )  # fmt: skip
    total = found.attn.size * 900 + found.mlp.size * 30
    keep = allocate(found, 0.2, 2.0, across=across, multiple=1)
    gone = (~keep.attn).sum() * 900 + (~keep.mlp).sum() * 30
    assert abs(float(gone) - 0.2 * total) <= (900 + 30) / 2
    assert keep.attrs["cut"] == pytest.approx(float(gone) / total)
    for part in ("attn", "mlp"):
        s, k = found[part].values, keep[part].values
        if across == "uniform":
            counts = (~k).sum(1)
            assert counts.max() - counts.min() <= 1
            assert all(s[i][~k[i]].max(initial=0) < s[i][k[i]].min() for i in range(6))
        else:  # a naive loop: the lowest that are not a layer's last
            want = np.ones_like(k)
            for at in np.argsort(s, axis=None):
                i, j = np.unravel_index(at, s.shape)
                if (~want).sum() < (~k).sum() and s[i, j] != s[i].max():
                    want[i, j] = False
            assert np.array_equal(k, want)
    assert len(set(keep.mlp.sum("neuron").values.tolist())) > (3 if across == "global" else 0)
    rounded = allocate(found, 0.2, 2.0, across=across)
    widths = rounded.mlp.sum("neuron").values
    assert all(w % 8 == 0 or w == 70 for w in widths)
    assert bool((rounded.mlp | ~keep.mlp).all())
    assert (widths - keep.mlp.sum("neuron")).max() < 8


def test_each_layer_keeps_its_best_group() -> None:
    s = np.arange(12.0).reshape(4, 3)
    found = xr.Dataset({"attn": (("layer", "kv_head"), s, {"weights": 7})})
    keep = allocate(found, 8 / 12)
    assert keep.attn.values.tolist() == [[False, False, True]] * 4
    with pytest.raises(BadInput, match="keeps at least 1"):
        allocate(found, 0.8)


def test_first_order_scores_bound_the_linear_change(toy: Toy) -> None:
    """For every neuron the signed first-order change of f is at most its score."""
    model = toy("llama")
    tokens = model.tokens(TEXTS)
    got = scores(model, TEXTS, parts=["mlp"]).mlp.values
    ws = [m.weight for layer in range(3) for m, _, _ in llama_blocks(model.module, layer, "mlp", 0)]
    g = dict(zip(map(id, ws), torch.autograd.grad(naive_f(model.module, tokens), ws)))
    signed = loop_scores(model, lambda m: (m.weight * g[id(m.weight)]).detach().double(), "mlp")
    assert (np.abs(signed) <= got * (1 + 1e-4)).all()
    # cutting changes f through the neuron's output alone, and so does each of W_down, W_up
    down = np.stack([(w * g[id(w)]).sum(0).detach().numpy() for w in ws[2::3]])
    up = np.stack([(w * g[id(w)]).sum(1).detach().numpy() for w in ws[1::3]])
    np.testing.assert_allclose(down, up, atol=1e-5)


def test_losses_of_cut_models_are_those_of_silenced_ones(toy: Toy) -> None:
    model = toy("llama")
    keep = some(model)
    out = pruned_losses(model, {"some": keep}, TEXTS)
    masked = silence(model, keep)
    for name, m in (("whole", model), ("some", masked)):
        want = lw.tasks.perplexity(m, TEXTS).nll.values
        np.testing.assert_allclose(out.nll.sel(cut=name).values, want, atol=1e-5)
    for i, text in enumerate(TEXTS):
        ids = model.tokens(text).ids
        p, q = (logits(m.module, ids)[0, :-1].log_softmax(-1) for m in (model, masked))
        kl = float((p.exp() * (p - q)).sum(-1).mean())
        assert float(out.kl.sel(cut="some")[i]) == pytest.approx(kl, abs=1e-5)
    assert float(abs(out.kl.sel(cut="whole")).max()) == 0
    assert out.parameters[1] < out.parameters[0]


def test_calibrations_choose_the_lowest_divergence(toy: Toy) -> None:
    model = toy("llama")
    candidates = [[TEXTS[0]], [TEXTS[1]], ["a book was in the store of the king"]]
    out = calibrations(model, candidates, TEXTS, 0.2)
    mean = out.kl.sel(cut=["0", "1", "2"]).weighted(out.tokens).mean("prompt").values
    assert out.attrs["best"] == int(np.argmin(mean))
    assert len(set(mean)) > 1


def test_what_cannot_be_scored_or_cut_is_refused_with_the_reason(toy: Toy) -> None:
    model = toy("llama")
    s = scores(model, criterion="magnitude")
    for sparsity in (0, 1, -0.1, 1.5, float("nan")):
        with pytest.raises(BadInput, match="between 0 and 1"):
            allocate(s, sparsity)
    for gamma in (0, -1, float("inf")):
        with pytest.raises(BadInput, match="gamma"):
            allocate(s, 0.1, gamma)
    with pytest.raises(BadInput, match="of all mlp weights"):
        allocate(s, 0.9, 10.0)
    with pytest.raises(UnknownName, match="uniform"):
        allocate(s, 0.1, across="unifrom")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="neither"):
        allocate(xr.Dataset(), 0.1)
    for empty in ([], "", ()):
        with pytest.raises(BadInput, match="calibration set is empty"):
            scores(model, empty)
    with pytest.raises(BadInput, match="one token"):
        scores(model, "Mary", "taylor")
    with pytest.raises(UnknownName, match="nirvana"):
        scores(model, TEXTS, "nirvena")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="part"):
        scores(model, TEXTS, parts=["neurons"])  # type: ignore[list-item]
    with pytest.raises(BadInput, match="texts is empty"):
        kernel(model, [])
    with pytest.raises(BadInput, match="no next-token logits"):
        scores(toy("bert"), TEXTS)
    for arch, told in (("mamba", "mixer"), ("mixtral", "experts")):
        with pytest.raises(MissingSite, match=told):
            scores(toy(arch), TEXTS, parts=["mlp"])
    with pytest.raises(BadInput, match="single stacks"):
        scores(toy("t5"), criterion="magnitude")
    odd = replace(model, anatomy=replace(model.anatomy, n_kv_heads=3))
    with pytest.raises(BadInput, match="do not divide"):
        scores(odd, TEXTS)
    with pytest.raises(BadInput, match="two calibration sets"):
        calibrations(model, [TEXTS], TEXTS, 0.1)
    with pytest.raises(BadInput, match="keeps is empty"):
        pruned_losses(model, {}, TEXTS)


def test_a_bad_keep_is_refused_before_anything_is_built(toy: Toy) -> None:
    model = toy("llama")
    keep = some(model)
    with pytest.raises(BadInput, match="neither"):
        prune(model, xr.Dataset())
    with pytest.raises(BadInput, match="shape"):
        prune(model, keep.isel(neuron=slice(0, 8)))
    with pytest.raises(BadInput, match="booleans"):
        prune(model, keep.astype(int))
    none = keep.copy(deep=True)
    none.mlp[1] = False
    with pytest.raises(BadInput, match="layer 1 would keep no mlp"):
        prune(model, none)


def test_heads_bound_by_a_norm_over_all_of_them_are_refused(toy: Toy) -> None:
    model = toy("olmo2")  # its queries are normalised over all heads at once
    with pytest.raises(BadInput, match="silenced"):
        prune(model, some(model)[["attn"]])
    prune(model, some(model)[["mlp"]])


def test_the_board_cuts_what_the_sliders_say(toy: Toy) -> None:
    from lwlab.pruning.board import PruneBoard

    model = toy("llama")
    found = {c: scores(model, TEXTS, c) for c in ("nirvana", "magnitude")}  # type: ignore[arg-type]
    board = PruneBoard(model, found, "the king of", TEXTS[0], sparsity=0.2, gamma=1.0, new=3)
    assert np.array_equal(board.keep.mlp, allocate(found["nirvana"], 0.2, 1.0).mlp)
    board.show("magnitude", sparsity=0.4)
    keep = allocate(found["magnitude"], 0.4, 1.0)
    assert np.array_equal(board.keep.mlp, keep.mlp)
    want = lw.tasks.perplexity(prune(model, keep), TEXTS[0]).nll.values
    assert board.numbers["loss"] == pytest.approx(float(want[0]), abs=1e-5)
    assert "the king of" in board._repr_mimebundle_()[0]["text/plain"]
    assert board.static_png()[:4] == b"\x89PNG"
    with pytest.raises(UnknownName, match="magnitude"):
        board.show("magnitud")
    with pytest.raises(BadInput, match="out of range"):
        board.show(sparsity=0.9)
    with pytest.raises(BadInput, match="at least one set"):
        PruneBoard(model, {}, "a", TEXTS[0])
