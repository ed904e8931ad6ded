from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from reference import EVERY, PROMPTS

import lwlab as lw
from lwlab.errors import BadInput, MissingSite, UnknownName
from lwlab.models import toys

Toy = Callable[[str], lw.Model]
STREAM = {"embed", "resid_pre", "resid_post"}
HEADS = {"attn_in", "q", "k", "v", "attn_pattern", "head_out", "attn_out"}
MLP = {"mlp_in", "mlp_up", "neurons", "mlp_out"}
END = {"final_norm", "logits"}
LM = STREAM | HEADS | MLP | END
GATED = LM | {"resid_mid", "mlp_gate"}
EXPERTS = STREAM | HEADS | END | {"resid_mid", "mlp_in", "mlp_out"}
SITES_OF = {
    "gpt2": LM | {"resid_mid"},
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"), GATED),
    **dict.fromkeys(("olmo", "olmo2"), GATED),
    "gpt_neox": LM,
    "gpt_neox_sequential": LM | {"resid_mid"},
    "opt": LM | {"resid_mid"},
    "opt_post_norm": (LM | {"resid_mid"}) - {"final_norm"},
    "phi": LM,
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe"), EXPERTS),
    "mamba": STREAM | END | {"mixer_in", "mixer_out"},
    "bert": (LM | {"resid_mid"}) - END,
    "bert_mlm": (LM | {"resid_mid"}) - {"final_norm"},
    "vit": LM | {"resid_mid"},
    "t5:encoder": (LM | {"resid_mid"}) - {"logits"},
    "t5:decoder": LM | {"resid_mid", "cross_out"},
    "t5_gated:encoder": GATED - {"logits"},
    "t5_gated:decoder": GATED | {"cross_out"},
}


@pytest.mark.parametrize("name", EVERY)
def test_each_architecture_has_the_sites_it_computes_and_no_others(name: str, toy: Toy) -> None:
    assert set(toy(name).sites()) == SITES_OF[name]


@pytest.mark.parametrize(
    ("name", "site", "why"),
    [
        ("gpt_neox", "resid_mid", "run in parallel"),
        ("phi", "resid_mid", "run in parallel"),
        ("gpt2", "mlp_gate", "its MLP has no gate"),
        ("gpt2", "mixer_out", "only state-space models"),
        ("llama", "cross_out", "no cross-attention"),
        ("mixtral", "neurons", "fused inside the experts"),
        ("mamba", "attn_out", "state-space mixer in place of attention"),
        ("mamba", "neurons", "its blocks have no MLP"),
        ("bert", "logits", "without an output head"),
        ("bert_mlm", "final_norm", "no norm follows"),
        ("t5:encoder", "logits", "see stack='decoder'"),
    ],
)
def test_a_missing_site_says_why_and_what_there_is(
    name: str, site: str, why: str, toy: Toy
) -> None:
    model = toy(name)
    with pytest.raises(MissingSite, match=why) as caught:
        lw.cache(model, "the dog", site)
    assert all(have in str(caught.value) for have in model.sites())


def test_addresses_count_from_the_end_and_stay_in_range(toy: Toy) -> None:
    a = toy("llama").anatomy
    assert str(a.address("resid_pre.-1")) == "resid_pre.2"
    assert str(a.address("head_out.0.-1")) == "head_out.0.3"
    for text, says in {
        "resid_pre.3": "has 3 layers, so layer is 0..2",
        "resid_pre.-4": "layer is 0..2",
        "head_out.0.4": "has 4 heads, so head is 0..3",
        "k.0.2": "has 2 heads, so head is 0..1",  # key/value heads are fewer
    }.items():
        with pytest.raises(BadInput, match=says) as caught:
            a.address(text)
        assert text in str(caught.value)
    with pytest.raises(UnknownName, match="did you mean 'resid_pre'"):
        a.address("resid_prr.0")


@pytest.mark.parametrize(
    ("layers", "says"),
    [([3], "layer is 0..2"), ([], "empty"), ("all", "whole numbers"), ([1.5], "whole numbers")],
)
def test_layers_are_checked(layers: object, says: str, toy: Toy) -> None:
    with pytest.raises(BadInput, match=says):
        lw.cache(toy("gpt2"), "the dog", "resid_pre", layers=layers)  # type: ignore[arg-type]
    assert toy("gpt2").anatomy.layers([-1, 0, 2]) == [2, 0]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "opt", "bert", "mamba"])
def test_embed_is_the_row_of_the_token(name: str, toy: Toy) -> None:
    model = toy(name)
    tokens = model.tokens(PROMPTS[0])
    table = model.module.get_input_embeddings().weight[tokens.ids[0]]
    got = torch.tensor(lw.cache(model, PROMPTS[0], "embed").embed.values[0])
    scale = model.d_model**0.5 if name == "gemma2" else 1.0
    assert torch.allclose(got, table.detach() * scale, atol=1e-6)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_each_stack_of_t5_embeds_its_own_tokens(stack: str, toy: Toy) -> None:
    """Both stacks use one embedding module, so the wrong call would have the right shape."""
    model = toy(f"t5:{stack}")
    pair = {"input_ids": torch.tensor([[5, 6, 7]]), "decoder_input_ids": torch.tensor([[0, 9]])}
    own = pair["input_ids" if stack == "encoder" else "decoder_input_ids"][0]
    got = lw.cache(model, pair, "embed").embed[0]
    assert got.sizes["position"] == len(own)
    assert torch.allclose(torch.tensor(got.values), model.module.shared.weight[own].detach())


def test_an_anatomy_that_names_no_module_is_refused_with_the_path() -> None:
    module, _ = toys.tiny("gpt2")
    right = lw.wrap(module).anatomy
    tap = right.taps["mlp_out"]
    for wrong, says in [
        (replace(right, blocks="transformer.layers"), "no 'transformer.layers'"),
        (replace(right, n_layers=4), "n_layers is 4, but 'transformer.h' has 3"),
        (
            replace(right, taps={**right.taps, "mlp_out": replace(tap, path="transformer.h.{}.x")}),
            r"no 'transformer.h.0.x' \(site mlp_out\)",
        ),
        (replace(right, o_proj="transformer.h.{}.attn.o"), r"\(o_proj\)"),
        (replace(right, taps={**right.taps, "resid_past": tap}), "unknown site 'resid_past'"),
    ]:
        with pytest.raises(BadInput, match=says):
            lw.wrap(module, wrong)


def test_sizes_are_those_of_the_config(toy: Toy) -> None:
    qwen = toy("qwen3")
    sizes = (qwen.n_layers, qwen.n_heads, qwen.n_kv_heads, qwen.d_model, qwen.d_head, qwen.d_mlp)
    assert sizes == (3, 4, 2, 32, 12, 40)
    assert qwen.d_vocab == 100
    assert "3 layers, 4 heads (2 key/value), d_model 32" in repr(qwen)
    assert toy("t5:decoder").n_layers == 2
    assert toy("mamba").n_heads is None
