"""Pre-RMSNorm and Pre-CRMSNorm: the same function as Pre-LN, and refusals where it cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import lwlab as lw
from lwlab import normalization as nz
from lwlab.errors import BadInput
from lwlab.models import toys
from lwlab.normalization import pre_rmsnorm
from lwlab.normalization.panel import ShiftPanel

PRE_LN = ["gpt2", "opt", "gpt_neox", "gpt_neox_sequential", "phi", "olmo"]
F64 = torch.float64
IDS = torch.randint(4, 90, (3, 9), generator=torch.Generator().manual_seed(1))


def logits(model: lw.Model, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        z: torch.Tensor = model.module(ids).logits
    return z


@pytest.mark.parametrize("arch", PRE_LN)
def test_three_networks_are_one_function(arch: str, toy: Any) -> None:
    model = toy(arch)
    # OLMo's norm computes in single precision whatever it is given.
    exact = 1e-5 if arch == "olmo" else 1e-12
    forms = {to: nz.convert(model, to, dtype=F64) for to in ("ln", "rms", "crms")}
    found = nz.compare(nz.untied(model, F64), forms, IDS)
    assert float(found.relative.max()) < exact
    assert float(found.kl.max()) < exact
    single = nz.compare(model, {to: nz.convert(model, to) for to in ("ln", "rms", "crms")}, IDS)
    assert float(single.relative.max()) < 1e-5
    wrong = {
        "naive": nz.convert(model, recentre=False, dtype=F64),
        "elsewhere": nz.convert(model, "ln", along=torch.arange(32.0), dtype=F64),
    }
    assert float(nz.compare(nz.untied(model, F64), wrong, IDS).relative.min()) > 1e-2


@pytest.mark.parametrize("arch", PRE_LN)
def test_the_mean_of_the_converted_stream_is_zero_everywhere(arch: str, toy: Any) -> None:
    before = nz.stream_mean(toy(arch), IDS, draws=2)
    after = nz.stream_mean(nz.convert(toy(arch), "rms", dtype=F64), IDS, draws=2)
    assert float(after.share.max()) < 1e-12
    assert float(before.share.max()) > 1e-2
    assert after.share.sizes == {"prompt": 3, "layer": 4, "position": 9}


@pytest.mark.parametrize("arch", PRE_LN)
def test_every_norm_that_reads_the_stream_is_found_with_its_readers(arch: str, toy: Any) -> None:
    model = toy(arch)
    found = nz.norms(model)
    expected = {"phi": 4}.get(arch, 7)  # Phi's attention and MLP share one norm
    assert len(found) == expected
    assert {n.kind for n in found} == {"LayerNorm"}
    assert all(n.readers for n in found)
    assert found[-1].layer is None
    assert str(found[-1].reads) == "resid_post.2"
    in_place = {m for m in model.module.modules() if isinstance(m, torch.nn.LayerNorm)}
    if arch != "olmo":
        assert {model.module.get_submodule(n.path) for n in found} == in_place


def by_hand(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Recentred GPT-2 with RMSNorms, number by number: loops over rows, no projection matrix."""
    sd = {k: v.double() for k, v in model.state_dict().items()}
    d, heads = 32, 4
    for key in list(sd):
        if key.endswith(("wte.weight", "wpe.weight")) and "transformer" in key:
            sd[key] = torch.stack([row - sum(row) / d for row in sd[key]])
        if "c_proj" in key:  # [in, out] and [out]
            rows = sd[key] if sd[key].ndim == 2 else sd[key][None]
            rows = torch.stack([row - sum(row) / d for row in rows])
            sd[key] = rows if sd[key].ndim == 2 else rows[0]

    def rms(x: torch.Tensor, at: str) -> torch.Tensor:
        size = torch.stack([torch.sqrt(sum(v * v for v in row) / d + 1e-5) for row in x])
        return x / size[:, None] * sd[at + ".weight"] + sd[at + ".bias"]

    def affine(x: torch.Tensor, at: str) -> torch.Tensor:
        return x @ sd[at + ".weight"] + sd[at + ".bias"]

    out = []
    for row in ids:
        n = len(row)
        x = sd["transformer.wte.weight"][row] + sd["transformer.wpe.weight"][:n]
        for i in range(3):
            b = f"transformer.h.{i}."
            q, k, v = affine(rms(x, b + "ln_1"), b + "attn.c_attn").split(d, -1)
            parts = []
            for h in range(heads):
                s = slice(h * d // heads, (h + 1) * d // heads)
                score = q[:, s] @ k[:, s].T / (d // heads) ** 0.5
                score = score.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
                parts.append(score.softmax(-1) @ v[:, s])
            x = x + affine(torch.cat(parts, -1), b + "attn.c_proj")
            hidden = F.gelu(affine(rms(x, b + "ln_2"), b + "mlp.c_fc"), approximate="tanh")
            x = x + affine(hidden, b + "mlp.c_proj")
        head = model.lm_head.weight.double()
        out.append(rms(x, "transformer.ln_f") @ head.T)
    return torch.stack(out).detach()


def test_conversion_equals_a_network_written_by_hand(toy: Any) -> None:
    model = toy("gpt2")
    expected = by_hand(model.module, IDS)
    np.testing.assert_allclose(logits(nz.convert(model, dtype=F64)), expected, atol=1e-12)
    np.testing.assert_allclose(logits(nz.untied(model, F64)), expected, atol=1e-12)


def test_rmsnorm_is_transformers_llama_norm_and_crmsnorm_its_compressed_form() -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=g) for s in ((5, 16), (16,), (16,)))
    peer = LlamaRMSNorm(16, eps=1e-4)
    peer.weight.data = weight
    ours = nz.RMSNorm(weight, bias, 1e-4)
    torch.testing.assert_close(ours(x), peer(x) + bias)
    x = x.double() - x.double().mean(-1, keepdim=True)
    torch.testing.assert_close(
        nz.RMSNorm(weight, bias, 1e-4).double()(x),
        F.layer_norm(x, (16,), weight.double(), bias.double(), 1e-4),
    )
    peer.weight.data = torch.ones(16, dtype=F64)
    full = nz.RMSNorm(None, None, 1e-4)(x)
    torch.testing.assert_close(nz.CRMSNorm(1e-4)(x[:, :-1]), full[:, :-1], atol=1e-14, rtol=0)


@pytest.mark.parametrize("arch", ["gpt2", "gpt_neox"])
def test_projected_steps_of_descent_keep_the_function_and_plain_ones_do_not(
    arch: str, toy: Any
) -> None:
    model = nz.untied(toy(arch), F64)
    rms = nz.convert(model)
    stepped = nz.sgd_step(model, IDS)
    same = nz.sgd_step(rms, IDS, project=True)
    loose = nz.sgd_step(rms, IDS)
    found = nz.compare(stepped, {"projected": same, "plain": loose}, IDS)
    assert float(found.max_abs.sel(variant="projected")) < 1e-12
    assert float(found.max_abs.sel(variant="plain")) > 1e-3
    assert float(nz.compare(model, {"stepped": stepped}, IDS).max_abs.item()) > 1e-3


def test_a_compressed_model_has_one_number_less_in_its_stream(toy: Any) -> None:
    crms = nz.convert(toy("gpt2"), "crms")
    assert crms.d_model == 31
    assert lw.cache(crms, IDS, "resid_pre").resid_pre.sizes["d_model"] == 31
    assert all(n.kind == "RMSNorm" for n in nz.norms(nz.convert(toy("gpt2"))))


def test_the_model_itself_is_left_as_it_was(toy: Any) -> None:
    model = toy("gpt2")
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    for to in ("ln", "rms", "crms"):
        nz.convert(model, to)
    nz.sgd_step(model, IDS)
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())
    assert model.module.lm_head.weight is model.module.transformer.wte.weight
    assert all(p.grad is None for p in model.module.parameters())


def test_shifts_are_invisible_to_layernorm_only(toy: Any) -> None:
    model = nz.untied(toy("gpt2"), F64)
    for m, blind in ((model, True), (nz.convert(model), False)):
        z = [nz.shifted(m, IDS, c, layer=1) for c in (0.0, 1.0)]
        assert (float((z[1] - z[0]).abs().max()) < 1e-10) == blind


def test_a_random_direction_holds_what_chance_gives(toy: Any) -> None:
    found = nz.stream_mean(toy("llama"), IDS, draws=200)
    # |cos| of random directions in d dimensions: median 0.6745 / sqrt(d).
    assert float(found.random.mean()) == pytest.approx(0.6745 / 32**0.5, rel=0.15)
    x = lw.cache(toy("llama"), IDS, "resid_pre").resid_pre
    plain = np.abs(x.mean("d_model")) / np.sqrt((x**2).mean("d_model"))
    np.testing.assert_allclose(found.share[:, :3], plain, rtol=1e-5)


def test_backward_rules_know_the_converted_norms(toy: Any) -> None:
    with lw.rules(nz.convert(toy("gpt2"))) as ruled:
        assert "ln" in ruled.rules


def test_smollm2_keeps_its_mean_small_without_being_told(smollm2: lw.Model) -> None:
    found = nz.stream_mean(smollm2, "The capital of France is the city of Paris.")
    share = found.share.isel(position=slice(1, None)).median(("prompt", "position"))
    assert float(share.max()) < 0.1
    with pytest.raises(BadInput, match=r"normalises by RMSNorm.*stream_mean"):
        nz.convert(smollm2)


@pytest.mark.parametrize(
    ("arch", "match"),
    [
        ("llama", "normalises by RMSNorm, and pre-rmsnorm starts from LayerNorm"),
        ("mamba", "normalises by RMSNorm"),
        ("bert_mlm", "post-norm: the output of a norm is the stream itself"),
        ("opt_post_norm", "post-norm"),
        ("vit", "matrix by matrix"),
    ],
)
def test_models_it_cannot_convert_are_refused_with_the_reason(
    arch: str, match: str, toy: Any
) -> None:
    with pytest.raises(BadInput, match=match):
        nz.convert(toy(arch))


def test_a_model_without_norms_and_one_read_without_a_norm_are_refused() -> None:
    module, _ = toys.tiny("gpt2")
    for path in [p for p, m in module.named_modules() if isinstance(m, torch.nn.LayerNorm)]:
        module.set_submodule(path, torch.nn.Identity())
    with pytest.raises(BadInput, match="no norm that reads its stream"):
        nz.norms(lw.wrap(module, tokenizer=toys.tokenizer()))
    module, _ = toys.tiny("gpt2")
    module.transformer.ln_f = torch.nn.Identity()  # the unembedding reads the bare stream
    with pytest.raises(BadInput, match="reads its stream without a norm"):
        nz.convert(lw.wrap(module, tokenizer=toys.tokenizer()))


def test_arguments_that_cannot_work_are_refused(toy: Any) -> None:
    model = toy("gpt2")
    with pytest.raises(BadInput, match="'ln', 'rms' or 'crms'"):
        nz.convert(model, "cmrs")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="needs recentring"):
        nz.convert(model, "crms", recentre=False)
    with pytest.raises(BadInput, match="32 finite numbers"):
        nz.convert(model, "ln", along=torch.ones(31))
    with pytest.raises(BadInput, match="positive learning rate"):
        nz.sgd_step(model, IDS, lr=0)
    with pytest.raises(BadInput, match="two tokens or more"):
        nz.sgd_step(model, IDS[:, :1])
    with pytest.raises(BadInput, match="equal length"):
        nz.sgd_step(model, ["the man", "the man went"])
    with pytest.raises(BadInput, match="others is empty"):
        nz.compare(model, {}, IDS)
    with pytest.raises(BadInput, match="draws=0"):
        nz.stream_mean(model, IDS, draws=0)
    with pytest.raises(BadInput, match="at least one model"):
        ShiftPanel({}, "the man")


def test_the_panel_moves_what_can_be_moved(toy: Any) -> None:
    model = nz.untied(toy("gpt2"), F64)
    panel = ShiftPanel({"ln": model, "rms": nz.convert(model)}, "Mary went to the")
    assert panel.moved() == {"ln": 0.0, "rms": 0.0}
    before = panel.map.array().copy()
    moved = panel.set(c=1.0, layer=1).moved()
    assert moved["ln"] < 1e-10 < 1e-3 < moved["rms"]
    after = panel.map.array()
    np.testing.assert_allclose(after[0, 0], before[0, 0], atol=1e-6)
    assert float(np.abs(after[0, 1] - before[0, 1]).max()) > 1e-3
    assert "rms" in panel.numbers.value
    data, _ = panel._repr_mimebundle_()
    assert data["image/png"]
    assert pre_rmsnorm.PAPER == "2305.14858"
