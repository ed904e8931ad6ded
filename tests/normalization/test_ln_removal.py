"""LayerNorm removal: linear norms, exact attribution, and a trained model that lives without."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lwlab as lw
from lwlab import normalization as nz
from lwlab.attribution import exact
from lwlab.errors import BadInput, UnknownName
from lwlab.models import toys
from lwlab.normalization.panel import TogglePanel

IDS = torch.randint(4, 90, (3, 9), generator=torch.Generator().manual_seed(1))
PRE_NORM = ["gpt2", "opt", "gpt_neox", "phi", "olmo", "llama", "gemma3", "qwen3"]


def logits(model: lw.Model, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        z: torch.Tensor = model.module(ids).logits
    return z


@pytest.fixture(scope="module")
def frozen(toy: Any) -> Any:
    return lambda arch: nz.freeze(toy(arch), nz.scales(toy(arch), IDS))


@pytest.mark.parametrize("arch", PRE_NORM)
def test_without_a_norm_attribution_is_what_leaving_out_does(
    arch: str, toy: Any, frozen: Any
) -> None:
    with_norm = nz.direct_effects(toy(arch), IDS)
    without = nz.direct_effects(frozen(arch), IDS)
    assert float(nz.additivity(with_norm).dla) < 1e-4
    assert float(nz.additivity(with_norm).ablation) > 0.1
    assert float(nz.additivity(without).dla) < 1e-4
    assert float(nz.additivity(without).ablation) < 1e-4
    assert float(nz.disagreement(with_norm).sel(component="all")) > 1e-2
    assert float(nz.disagreement(without).sel(component="all")) < 1e-5


@pytest.mark.parametrize("arch", PRE_NORM)
def test_folding_frozen_norms_leaves_the_function_and_no_norm(arch: str, frozen: Any) -> None:
    model = frozen(arch)
    assert {n.kind for n in nz.norms(model)} == {"frozen"}
    folded = nz.fold(model)
    assert float(nz.compare(model, {"folded": folded}, IDS).relative.item()) < 1e-5
    own = ("q_norm", "k_norm", "post_attention_layernorm", "post_feedforward_layernorm")
    left = [
        p for p, m in folded.module.named_modules()
        if type(m).__name__.endswith("Norm") and not p.endswith(own)
    ]  # fmt: skip
    assert left == []


def test_a_frozen_model_equals_torch_written_by_hand(toy: Any, frozen: Any) -> None:
    """GPT-2 with constants: a plain loop over blocks in torch, nothing of the library."""
    model = toy("gpt2")
    sd = {k: v.double() for k, v in model.module.state_dict().items()}
    s = nz.scales(model, IDS).scale.to_series()
    d, heads = 32, 4

    def norm(x: torch.Tensor, path: str, name: str) -> torch.Tensor:
        return (x - x.mean(-1, keepdim=True)) / s[name] * sd[path + ".weight"] + sd[path + ".bias"]

    def affine(x: torch.Tensor, at: str) -> torch.Tensor:
        return x @ sd[at + ".weight"] + sd[at + ".bias"]

    n = IDS.shape[1]
    x = sd["transformer.wte.weight"][IDS] + sd["transformer.wpe.weight"][:n]
    parts = {"embed": x}
    for i in range(3):
        b = f"transformer.h.{i}."
        qkv = affine(norm(x, b + "ln_1", f"{i}.ln_1"), b + "attn.c_attn").split(d, -1)
        q, k, v = (t.view(3, n, heads, d // heads).transpose(1, 2) for t in qkv)
        score = q @ k.transpose(-1, -2) / math.sqrt(d // heads)
        score = score.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
        z = (score.softmax(-1) @ v).transpose(1, 2).reshape(3, n, d)
        parts[f"attn.{i}"] = affine(z, b + "attn.c_proj")
        x = x + parts[f"attn.{i}"]
        hidden = affine(norm(x, b + "ln_2", f"{i}.ln_2"), b + "mlp.c_fc")
        hidden = torch.nn.functional.gelu(hidden, approximate="tanh")
        parts[f"mlp.{i}"] = affine(hidden, b + "mlp.c_proj")
        x = x + parts[f"mlp.{i}"]
    u = sd["lm_head.weight"]
    expected = norm(x, "transformer.ln_f", "ln_f") @ u.T
    np.testing.assert_allclose(logits(frozen("gpt2")), expected, atol=2e-5)

    effects = nz.direct_effects(frozen("gpt2"), IDS)
    for name, c in parts.items():
        for row in range(3):
            for p in range(n - 1):
                target = u[IDS[row, p + 1]] * sd["transformer.ln_f.weight"] / s["ln_f"]
                dla = sum((c[row, p, j] - c[row, p].mean()) * target[j] for j in range(d))
                got = effects.dla.sel(component=name)[row, p].item()
                assert got == pytest.approx(float(dla), abs=2e-5)


def test_attribution_with_layernorm_uses_the_scale_of_the_run(toy: Any) -> None:
    """What TransformerLens does with apply_ln_to_stack: each part centred, over the run's sd."""
    model = toy("gpt2")
    effects = nz.direct_effects(model, IDS)
    cached = lw.cache(model, IDS, ["resid_pre", "attn_out", "mlp_out", "resid_post"])
    ln, u = model.module.transformer.ln_f, model.module.lm_head.weight.detach()
    for row in range(3):
        for p in range(8):
            x = torch.tensor(cached.resid_post.values[row, -1, p])
            scale = (x.var(unbiased=False) + ln.eps).sqrt()
            for layer in range(3):
                c = torch.tensor(cached.mlp_out.values[row, layer, p])
                centred = (c - c.mean()) / scale * ln.weight.detach()
                expected = float(centred @ u[IDS[row, p + 1]])
                got = effects.dla.sel(component=f"mlp.{layer}")[row, p].item()
                assert got == pytest.approx(expected, abs=1e-5)


def test_scales_are_the_average_size_of_what_norms_read(toy: Any) -> None:
    for arch, centred in (("gpt2", True), ("llama", False)):
        found = nz.scales(toy(arch), IDS)
        x = lw.cache(toy(arch), IDS, "resid_pre", layers=1).resid_pre.values[:, 0]
        x = x - x.mean(-1, keepdims=True) if centred else x
        eps = 1e-5 if centred else 1e-6
        s = np.sqrt((x**2).mean(-1) + eps)
        at = found.sel(norm=next(n for n in found.norm.values if n.startswith("1.")))
        assert float(at.scale) == pytest.approx(s[:, 1:].mean(), rel=1e-5)
        assert float(at["first"]) == pytest.approx(s[:, 0].mean(), rel=1e-5)


def released(model: lw.Model, scale: dict[str, float], folder: Path) -> Path:
    """Save a GPT-2 as the released ones are: eps of 1e12, gains of g 1e6 / S."""
    module: Any = copy.deepcopy(model.module)
    for norm in nz.norms(model):
        part = module.get_submodule(norm.path)
        part.weight.data *= 1e6 / scale[norm.name]
        part.eps = 1e12
    module.config.layer_norm_epsilon = 1e12
    module.save_pretrained(folder)
    toys.tokenizer().save_pretrained(folder)
    return folder


def test_a_model_saved_as_the_released_ones_loads_by_name_and_is_linear(
    toy: Any, frozen: Any, tmp_path: Path
) -> None:
    scale = {str(k): float(v) for k, v in nz.scales(toy("gpt2"), IDS).scale.to_series().items()}
    loaded = lw.load(str(released(toy("gpt2"), scale, tmp_path / "free")))
    assert {n.kind for n in nz.norms(loaded)} == {"frozen"}
    torch.testing.assert_close(logits(loaded), logits(frozen("gpt2")), atol=1e-4, rtol=1e-5)
    assert float(nz.additivity(nz.direct_effects(loaded, IDS)).ablation) < 1e-3
    assert float(nz.compare(loaded, {"folded": nz.fold(loaded)}, IDS).relative.item()) < 1e-5
    with lw.rules(loaded) as ruled:
        assert "ln" in ruled.rules


def test_freezing_shares_the_weights_and_leaves_the_model_as_it_was(toy: Any) -> None:
    model = toy("gpt2")
    before = logits(model)
    view = nz.freeze(model, nz.scales(model, IDS), "ln_f")
    assert view.module.transformer.wte.weight is model.module.transformer.wte.weight
    assert [n.kind for n in nz.norms(view)].count("frozen") == 1
    assert torch.equal(logits(model), before)
    assert not torch.equal(logits(view), before)


def test_the_first_position_can_have_a_constant_of_its_own(toy: Any) -> None:
    model = toy("llama")
    found = nz.scales(model, IDS)
    found["first"] = found.scale * 100
    names = [str(x) for x in found.norm.values]
    one, two = (nz.freeze(model, found, names[-1], first=f) for f in (False, True))
    a, b = logits(one), logits(two)
    torch.testing.assert_close(b[:, 0] * 100, a[:, 0], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(b[:, 1:], a[:, 1:])
    with pytest.raises(BadInput, match="first position"):
        nz.fold(nz.freeze(model, found, first=True))
    with torch.no_grad():
        kept = two.module(IDS[:, :4], use_cache=True).past_key_values
        with pytest.raises(BadInput, match="kept keys"):
            two.module(IDS[:, 4:], past_key_values=kept)


def test_the_trained_model_lives_without_layernorm() -> None:
    from lwlab.models.toys.char_gpt2 import letters, stretches

    free, twin = lw.load("toys/char-gpt2-ln-free"), lw.load(nz.twin("toys/char-gpt2-ln-free"))
    assert twin.name == "toys/char-gpt2-tuned"
    assert {n.kind for n in nz.norms(free)} == {"frozen"}
    assert {n.kind for n in nz.norms(twin)} == {"LayerNorm"}
    _, held_out = letters(twin.tokenizer)
    ids = stretches(held_out, 16, 128, torch.Generator().manual_seed(0))
    loss = {m.name: float(nz.losses(m, ids).mean()) for m in (free, twin)}
    untuned = float(nz.losses(nz.freeze(twin, nz.scales(twin, ids)), ids).mean())
    gap = loss[free.name] - loss[twin.name]
    assert 0 < gap < 0.08
    assert gap < 0.5 * (untuned - loss[twin.name])
    far = {m: nz.disagreement(nz.direct_effects(m, ids[:4])) for m in (free, twin)}
    assert float(far[free].sel(component="all")) < 1e-4
    assert float(far[twin].sel(component="all")) > 1e-2


def test_the_history_tells_when_each_norm_was_removed() -> None:
    recipe = toys.find("char-gpt2-ln-free")
    steps = toys.history("char-gpt2-ln-free")["steps"]
    removed = {s["step"]: s["removed"] for s in steps}
    made: Any = recipe()
    schedule = made.schedule()
    assert list(schedule) == [*(f"{i}.ln_2" for i in range(4)), *(f"{i}.ln_1" for i in range(4)),
                              "ln_f"]  # fmt: skip
    for k, at in enumerate(schedule.values()):
        assert (removed[at - 1], removed[at]) == (k, k + 1)
    assert all(s["removed"] == 0 for s in toys.history("char-gpt2-tuned")["steps"])


def test_a_norm_that_leaves_keeps_its_average_and_can_be_resumed() -> None:
    made: Any = toys.find("char-gpt2-ln-free")()
    made.first, made.gap = 1, 0
    measured = made.step(0)
    made.step(1)  # all are frozen at what the only batch before has given
    assert all(n.frozen for n in made.norms.values())
    assert all(n.scale == pytest.approx(measured[f"sd {k}"]) for k, n in made.norms.items())
    again: Any = toys.find("char-gpt2-ln-free")()
    again.module.load_state_dict(made.module.state_dict())
    again.restore(made.state())
    x = made.held_out[None, :64]
    for m in (made, again):
        for norm in m.norms.values():
            norm.frozen = True
        m.module.eval()
    with torch.no_grad():
        a, b = made.module(x).logits, again.module(x).logits
        assert torch.equal(a, b)
        for norm in again.norms.values():
            norm.release()
        torch.testing.assert_close(again.module(x).logits, a, atol=1e-4, rtol=1e-4)


def test_smollm2_has_a_sink_that_needs_a_constant_of_its_own(smollm2: lw.Model) -> None:
    ids = smollm2.tokens("The lighthouse stood on a rock above the harbour, and the keeper").ids
    found = nz.scales(smollm2, ids)
    late = found.sel(norm="20.input_layernorm")
    assert float(late["first"]) > 20 * float(late.scale)
    base = float(nz.losses(smollm2, ids).mean())
    last = str(found.norm.values[-1])
    rise = [
        float(nz.losses(nz.freeze(smollm2, found, last, first=f, check=False), ids).mean()) - base
        for f in (False, True)
    ]
    assert rise[1] < rise[0]


def test_swapped_tokens_change_what_the_model_predicts(toy: Any) -> None:
    model = toy("gpt2")
    words = " ".join(toys.WORDS[5:60])
    task = nz.swaps(model, [words], n=4, length=10, back=2)
    clean, corrupt = task.tokens(model).ids, task.tokens(model, "corrupt").ids
    assert (clean != corrupt).sum(1).tolist() == [1] * 4
    assert (clean != corrupt)[:, 7].all()
    assert task.metric(logits(model, clean)[:, -1]).min() > 0
    assert task.metric(logits(model, corrupt)[:, -1]).max() < 0
    again = nz.swaps(model, [words], n=4, length=10, back=2)
    assert again.clean == task.clean
    whole = exact.scores(model, task, "resid_pre", 0, normalise=False).sel(position=7)
    moved = task.metric(logits(model, clean)[:, -1]) - task.metric(logits(model, corrupt)[:, -1])
    np.testing.assert_allclose(whole.values.ravel(), moved, atol=1e-4)


def test_what_cannot_be_frozen_or_folded_is_refused(toy: Any, frozen: Any) -> None:
    model = toy("gpt2")
    found = nz.scales(model, IDS)
    with pytest.raises(UnknownName, match=r"no norm 'ln_g'; did you mean 'ln_f'"):
        nz.freeze(model, found, "ln_g")
    for bad in (math.nan, math.inf, 0.0, -1.0):
        with pytest.raises(BadInput, match="a frozen scale is finite, above 0"):
            nz.freeze(model, {"ln_f": bad}, "ln_f")
    with pytest.raises(BadInput, match=r"no scale was given for the norm 0.ln_1"):
        nz.freeze(model, {"ln_f": 1.0})
    with pytest.raises(BadInput, match="needs the first position's scales"):
        nz.freeze(model, {"ln_f": 1.0}, "ln_f", first=True)
    with pytest.raises(BadInput, match=r"still normalises at 0.ln_1.*Freeze it first"):
        nz.fold(model)
    with pytest.raises(BadInput, match="no matrix reads the norm"):
        nz.fold(frozen("mixtral"))
    for arch in ("bert_mlm", "opt_post_norm"):
        with pytest.raises(BadInput, match="post-norm"):
            nz.freeze(toy(arch), {})
    with pytest.raises(BadInput, match="not capped"):
        nz.direct_effects(toy("gemma2"), IDS)
    with pytest.raises(BadInput, match="does not predict the next token"):
        nz.losses(toy("bert_mlm"), IDS)
    with pytest.raises(BadInput, match="two tokens or more"):
        nz.losses(model, IDS[:, :1])
    with pytest.raises(BadInput, match="two tokens or more"):
        nz.scales(model, IDS[:, :1])
    with pytest.raises(BadInput, match="targets has shape"):
        nz.direct_effects(model, IDS, IDS)
    with pytest.raises(BadInput, match="pre-rmsnorm needs LayerNorm"):
        nz.convert(frozen("gpt2"))
    with pytest.raises(UnknownName, match="no known twin"):
        nz.twin("gpt2")
    with pytest.raises(BadInput, match="0 < back"):
        nz.swaps(model, ["the man"], back=0)
    with pytest.raises(BadInput, match="no text has 48 tokens"):
        nz.swaps(model, ["the man"])
    assert nz.twin("schaeff/gpt2-xl_LNFree800") == "schaeff/gpt2-xl_vanilla800"


def test_switches_freeze_norms_and_the_losses_follow(toy: Any, frozen: Any) -> None:
    model = toy("gpt2")
    text = "Mary went to the store and gave John a book"
    found = nz.scales(model, IDS)
    panel = TogglePanel(model, text, found, reference=frozen("gpt2"))
    as_it_is = panel.losses().values
    panel.set(**{"0.ln_1": True, "ln_f": True})
    assert panel.frozen == ("0.ln_1", "ln_f")
    by_name = nz.freeze(model, found, ["0.ln_1", "ln_f"])
    np.testing.assert_allclose(panel.losses(), nz.losses(by_name, text)[0], atol=1e-6)
    assert not np.allclose(panel.losses(), as_it_is)
    assert panel.map.array().shape == (1, 3, 9)
    assert "frozen: 0.ln_1, ln_f" in panel.numbers.value
    for name in panel.switches:
        panel.set(**{name: True})
    np.testing.assert_allclose(panel.map.array()[0, 1], panel.map.array()[0, 2], atol=1e-5)
    data, _ = panel._repr_mimebundle_()
    assert data["image/png"]
    with pytest.raises(UnknownName, match="did you mean 'ln_f'"):
        panel.set(ln_g=True)
