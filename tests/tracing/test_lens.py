"""`lw.lens` against hooked streams and the model's own modules, and against its logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import lwlab as lw
from lwlab.errors import BadInput, MissingSite
from lwlab.models import toys

LONG = "the king saw the queen in Paris and the man"
SHORT = "Mary went to the store"
ARCHS = ("gpt2", "llama", "gemma2", "gpt_neox", "opt_post_norm", "phi", "bert_mlm", "mamba")


def by_hand(model: lw.Model, text: str) -> torch.Tensor:
    """Logits of every layer and position, [n_layers + 1, positions, tokens], by plain hooks."""
    a, ids = model.anatomy, model.tokens(text).ids
    seen: list[torch.Tensor] = []
    hooks = []
    for layer in range(a.n_layers):
        block = model.module.get_submodule(f"{a.blocks}.{layer}")
        hooks.append(
            block.register_forward_pre_hook(
                lambda _m, args, kw: seen.append(
                    (args[0] if args else kw["hidden_states"]).clone()
                ),
                with_kwargs=True,
            )
        )
    block = model.module.get_submodule(f"{a.blocks}.{a.n_layers - 1}")
    hooks.append(
        block.register_forward_hook(
            lambda _m, _i, out: seen.append((out[0] if isinstance(out, tuple) else out).clone())
        )
    )
    with torch.no_grad():
        model.module(ids)
        for hook in hooks:
            hook.remove()
        return torch.cat([model.unembed(h.view(1, ids.shape[1], -1)) for h in seen]).double()


@pytest.mark.parametrize("arch", ARCHS)
def test_it_equals_the_formulas_on_hooked_streams(toy: Any, arch: str) -> None:
    model, k = toy(arch), 4
    r = lw.lens(model, [LONG, SHORT], "next", k=k)
    for i, text in enumerate((LONG, SHORT)):
        z = by_hand(model, text)
        n = z.shape[1]
        p, logp = z.softmax(-1), z.log_softmax(-1)
        one = r.isel(prompt=i, position=slice(0, n))
        np.testing.assert_allclose(one.entropy, -(p * logp).sum(-1), atol=2e-5)
        np.testing.assert_allclose(one.kl, (p * (logp - logp[-1])).sum(-1), atol=2e-5)
        np.testing.assert_allclose(one.log_prob, logp.topk(k).values, atol=2e-5)
        assert (one.token_id.values == z.topk(k).indices.numpy()).mean() > 0.99
        goal = model.tokens(text).ids[0, 1:].expand(len(z), -1)[..., None]
        want = logp[:, :-1].gather(-1, goal)[..., 0]
        np.testing.assert_allclose(one.target_log_prob[:, :-1], want, atol=2e-5)
        rank = (z[:, :-1] > z[:, :-1].gather(-1, goal)).sum(-1)
        assert float(abs(one["rank"][:, :-1] - rank.numpy()).max()) <= 1
        assert bool(one["rank"][:, -1].isnull().all())  # nothing follows the last token
        assert bool(one.target_log_prob[:, -1].isnull().all())


def test_the_last_layer_is_the_models_own_prediction(toy: Any) -> None:
    model = toy("gemma2")
    r = lw.lens(model, LONG, k=1).sel(layer=model.n_layers)
    logits = lw.cache(model, LONG, "logits").logits
    assert r.token_id[0, :, 0].values.tolist() == logits[0].argmax("token").values.tolist()
    assert float(abs(r.kl).max()) == 0
    names = [toys.tokenizer().decode([int(i)]) for i in r.token_id[0, :, 0]]
    assert r.token[0, :, 0].values.tolist() == names


def test_prompts_do_not_see_each_other_and_end_in_nan(toy: Any) -> None:
    model = toy("llama")
    both, alone = lw.lens(model, [LONG, SHORT], "king"), lw.lens(model, SHORT, "king")
    assert both["rank"].dims == ("prompt", "layer", "position")
    assert both.log_prob.dims == ("prompt", "layer", "position", "top")
    for name in ("log_prob", "entropy", "kl", "rank", "target_log_prob"):
        np.testing.assert_allclose(both[name][1, :, :5], alone[name][0], atol=1e-5)
        assert bool(both[name][1, :, 5:].isnull().all())
    assert (both.token_id[1, :, 5:] == -1).all()
    assert (both.token[1, :, 5:] == "").all()
    assert both.token_str[1, 5:].values.tolist() == [""] * 5
    assert both.attrs["technique"] == "logit lens"
    assert both.attrs["backend"] in ("numba", "torch")


def test_layers_positions_and_ref_choose(toy: Any) -> None:
    model = toy("llama")
    whole = lw.lens(model, LONG)
    some = lw.lens(model, LONG, layers=[2, 0], positions=[-1, 3], ref=None)
    assert some.layer.values.tolist() == [2, 0]
    assert "kl" not in some
    np.testing.assert_allclose(
        some.entropy, whole.entropy.sel(layer=[2, 0]).isel(position=[9, 3]), atol=1e-6
    )
    first = lw.lens(model, LONG, ref=1, layers=-1)
    assert first.layer.values.tolist() == [3]
    z = by_hand(model, LONG)
    p, q = z[3].log_softmax(-1), z[1].log_softmax(-1)
    np.testing.assert_allclose(first.kl[0, 0], (p.exp() * (p - q)).sum(-1), atol=2e-5)


def test_targets_in_every_form_agree(toy: Any) -> None:
    model = toy("llama")
    word = lw.lens(model, [LONG, SHORT], ["king", "store"])
    king, store = model.token_id("king"), model.token_id("store")
    ids = torch.tensor([[king] * 10, [store] * 10])
    for other in ([king, store], ids):
        assert lw.lens(model, [LONG, SHORT], other)["rank"].equals(word["rank"])
    single = lw.lens(model, [LONG, SHORT], king)["rank"]
    assert single[0].equals(word["rank"][0])
    assert not single[1].equals(word["rank"][1])


def test_what_cannot_work_is_refused_before_the_run(toy: Any) -> None:
    model = toy("llama")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"k": 0}, r"1\.\.100"),
        ({"k": 101}, r"1\.\.100"),
        ({"layers": [4]}, r"0\.\.3"),
        ({"layers": []}, r"0\.\.3"),
        ({"ref": 4}, r"0\.\.3"),
        ({"positions": 99}, "out of range"),
        ({"targets": "king queen"}, "2 tokens"),
        ({"targets": 100}, "outside the vocabulary"),
        ({"targets": ["king", "man"]}, "2 targets for 1 prompts"),
        ({"targets": torch.zeros(1, 3, dtype=torch.long)}, "whole numbers"),
    ]
    for arguments, match in refused:
        with pytest.raises(BadInput, match=match):
            lw.lens(model, LONG, **arguments)
    module, _ = toys.tiny("bert")
    with pytest.raises(MissingSite, match="no unembedding"):
        lw.lens(lw.wrap(module), torch.tensor([[5, 6, 7]]))
    with pytest.raises(BadInput, match="needs the weights here"):
        lw.lens(replace(model, remote=True), LONG)
    with pytest.raises(BadInput, match="decoder by itself"):
        lw.lens(toy("t5:decoder"), SHORT)


def test_half_precision_is_multiplied_as_stored(toy: Any) -> None:
    module, _ = toys.tiny("llama")
    model = lw.wrap(module.bfloat16(), tokenizer=toys.tokenizer(), name="half")
    r = lw.lens(model, LONG, "next")
    own = lw.cache(model, LONG, "logits").logits[0].values
    z = torch.tensor(own).double().log_softmax(-1)
    last = r.sel(layer=3)
    assert (last.token_id[0, :, 0].values == own.argmax(-1)).mean() > 0.7  # bf16 logits have ties
    want = -(z.exp() * z).sum(-1)
    np.testing.assert_allclose(last.entropy[0], want, atol=0.03)


def test_smollm2_comes_to_its_prediction_late(smollm2: lw.Model) -> None:
    r = lw.lens(smollm2, "The capital of France is Paris. The capital of Italy is", " Rome")
    final = r.isel(position=-1, prompt=0)
    assert float(final["rank"].sel(layer=30)) == 0
    assert str(final.token.sel(layer=30)[0].item()) == " Rome"
    assert float(final["rank"].sel(layer=5)) > 100
    assert float(final.kl.sel(layer=5)) > 1 > float(final.kl.sel(layer=30)) == 0
    logits = lw.cache(smollm2, "The capital of France is Paris. The capital of Italy is", "logits")
    z = torch.tensor(logits.logits[0, -1].values).double().log_softmax(-1)
    assert float(final.log_prob.sel(layer=30)[0]) == pytest.approx(float(z.max()), abs=1e-4)
