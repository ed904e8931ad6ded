from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import PROMPTS, forward

import lwlab as lw
from lwlab.errors import BadInput, UnknownName
from lwlab.models import SITES, Address, toys
from lwlab.tracing import engine

Toy = Callable[[str], lw.Model]
IDS = torch.tensor([[5, 9, 7, 3]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A local folder with a toy model and its tokenizer."""
    made: dict[str, Path] = {}

    def save(arch: str) -> Path:
        if arch not in made:
            made[arch] = tmp_path_factory.mktemp(arch)
            toys.tiny(arch)[0].save_pretrained(made[arch])
            if arch != "vit":
                toys.tokenizer().save_pretrained(made[arch])
        return made[arch]

    return save


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma3", "bert", "bert_mlm", "vit", "mamba"])
def test_a_folder_loads_as_the_model_that_was_saved(arch: str, folder: Any, toy: Toy) -> None:
    model = lw.load(folder(arch))
    x = torch.randn(1, 3, 16, 16) if arch == "vit" else IDS
    assert model.sites() == toy(arch).sites()
    assert torch.allclose(forward(model, x)[0], forward(toy(arch), x)[0], atol=1e-6)
    assert model.checks
    assert max(model.checks.values()) < 1e-4
    assert (model.tokenizer is None) == (arch == "vit")


@pytest.mark.parametrize("stack", [None, "encoder", "decoder"])
def test_either_stack_of_an_encoder_decoder_loads(stack: str | None, folder: Any) -> None:
    model = lw.load(folder("t5"), stack=stack)
    assert model.anatomy.blocks == f"{stack or 'encoder'}.block"
    with pytest.raises(BadInput, match="use 'encoder' or 'decoder'"):
        lw.load(folder("t5"), stack="both")
    with pytest.raises(BadInput, match="has one stack of blocks"):
        lw.load(folder("gpt2"), stack="decoder")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2", "olmo2", "bert_mlm", "opt"])
def test_other_types_load_pass_their_checks_and_run(
    arch: str, dtype: torch.dtype, folder: Any
) -> None:
    model = lw.load(folder(arch), dtype=dtype)
    assert model.dtype == dtype
    assert model.checks["logits"] == 0.0
    cached = lw.cache(model, PROMPTS[:1], ["resid_post", "head_out", "attn_pattern"])
    assert cached.resid_post.dtype == ("float64" if dtype == torch.float64 else "float32")
    assert lw.patch(model, PROMPTS[:1], {"mlp_out.1": 0.0}).moved.item() > 0
    slopes = lw.grads(model, PROMPTS[:1], lambda z: z[:, 5], ["resid_pre", "head_out"])
    assert bool(slopes.resid_pre.notnull().all())
    if model.anatomy.refuses_rules is None:
        with lw.rules(model) as ruled:
            assert (
                lw.grads(ruled, PROMPTS[:1], lambda z: z[:, 5], "resid_pre").metric.notnull().all()
            )


def test_weights_offloaded_by_accelerate_are_used_where_they_are(tmp_path: Path) -> None:
    from accelerate import dispatch_model

    module, _ = toys.tiny("llama")
    z = module(IDS).logits
    places = dict.fromkeys(
        ["model.embed_tokens", "lm_head", "model.norm", "model.rotary_emb"], "cpu"
    )
    places |= {"model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    far = dispatch_model(module, places, main_device="cpu", offload_dir=tmp_path)
    assert next(far.model.layers[1].parameters()).is_meta
    model = lw.wrap(far)
    assert max(model.checks.values()) < 1e-4
    assert torch.equal(torch.tensor(lw.cache(model, IDS, "logits").logits.values), z.detach())


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_device_map_passes_to_accelerate(device_map: Any, folder: Any) -> None:
    model = lw.load(folder("llama"), device_map=device_map)
    assert model.device.type == "cpu" or torch.cuda.is_available()
    assert lw.cache(model, PROMPTS[0], "resid_post").resid_post.notnull().all()
    assert lw.chain(model, PROMPTS[0], [0, 1, 2]).moved.item() == 0.0
    assert lw.generate(model, PROMPTS[0], 2, {"resid_post.1": 0.0}).attrs["edits"] == [
        "resid_post.1: fired 2"
    ]


def test_a_device_is_checked_before_the_weights_are_read(folder: Any) -> None:
    assert lw.load(folder("llama"), device="cpu").device.type == "cpu"
    with pytest.raises(BadInput, match="unknown device 'gpu'"):
        lw.load("smollm2-135m", device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match="torch sees no GPU; use device='cpu'"):
            lw.load("smollm2-135m", device="cuda")
    with pytest.raises(BadInput, match="either device or device_map"):
        lw.load("smollm2-135m", device="cpu", device_map="auto")


@pytest.mark.parametrize("name", ["smolm2-135m", "smollm2 135m"])
def test_an_unknown_name_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(UnknownName, match="smollm2-135m"):
        lw.load(name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused_by_name(value: float, folder: Any) -> None:
    module, _ = toys.tiny("gpt2")
    with torch.no_grad():
        module.transformer.h[1].mlp.c_fc.weight[3, 4] = value
    with pytest.raises(BadInput, match=r"transformer\.h\.1\.mlp\.c_fc\.weight holds 1 NaN or inf"):
        lw.wrap(module)
    with torch.device("meta"):
        empty = toys.tiny("gpt2")[0].__class__(module.config)
    with pytest.raises(BadInput, match="has no data"):
        lw.wrap(empty)


def test_loading_leaves_weights_mode_and_outputs_alone() -> None:
    module, _ = toys.tiny("gemma2")
    before = {k: v.clone() for k, v in module.state_dict().items()}
    z = module(IDS).logits
    grads = {k: p.requires_grad for k, p in module.named_parameters()}
    model = lw.wrap(module)
    lw.cache(model, IDS, ["attn_pattern", "resid_mid"])
    lw.patch(model, IDS, {"resid_mid.1": 0.0, "attn_pattern.0": 0.0})
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert grads == {k: p.requires_grad for k, p in module.named_parameters()}
    assert all(p.grad is None for p in module.parameters())
    assert torch.equal(module(IDS).logits, z)
    assert model.nn._module is module  # the raw nnsight model, for traces of one's own


def test_a_model_says_what_to_send_to_another_process(toy: Toy) -> None:
    with pytest.raises(BadInput, match=r"Send its name and call lw.load there"):
        pickle.dumps(toy("gpt2"))
    assert isinstance(pickle.loads(pickle.dumps(toy("gpt2").module)), torch.nn.Module)


def test_roberta_counts_positions_in_its_own_way() -> None:
    import transformers

    config = transformers.RobertaConfig(
        vocab_size=100, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=14, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = lw.wrap(transformers.RobertaForMaskedLM(config).eval(), tokenizer=toys.tokenizer())
    assert model.max_tokens == 13
    alone = lw.cache(model, "the dog saw", "resid_post").resid_post
    prompts = ["Mary gave the old red book to John .", "the dog saw"]
    for side in ("left", "right"):
        batch = lw.cache(model, model.tokens(prompts, side), "resid_post").resid_post  # type: ignore[arg-type]
        assert float(abs(batch[1, :, :3] - alone[0]).max()) < 1e-5


def test_the_default_model_passes_its_checks(smollm2: lw.Model) -> None:
    a = smollm2.anatomy
    assert (a.n_layers, a.n_heads, a.n_kv_heads, a.d_model, a.d_head) == (30, 9, 3, 576, 64)
    assert smollm2.checks["logits"] == 0.0
    assert max(smollm2.checks.values()) < 1e-5
    assert smollm2.checksum
    missing = {"cross_out", "mixer_in", "mixer_out"}
    assert set(smollm2.sites()) == set(SITES) - missing


def test_the_sentence_encoder_gives_its_streams() -> None:
    model = lw.load("all-minilm-l6")
    assert (model.kind, model.n_layers, model.d_model) == ("encoder", 6, 384)
    prompts = ["A dog runs.", "Two dogs are running in a park."]
    got = lw.cache(model, prompts, ["resid_pre", "resid_mid", "resid_post"])
    assert got.resid_post.shape == (2, 6, 10, 384)
    assert [str(t) for t in got.token_str[0].values[:6]] == [
        "[CLS]",
        "a",
        "dog",
        "runs",
        ".",
        "[SEP]",
    ]
    last, _ = forward(model, prompts[1])
    assert float(abs(got.resid_post[1, -1] - last[0].detach().numpy()).max()) < 1e-5
    with pytest.raises(BadInput, match="has no site 'logits': this model was loaded without"):
        lw.cache(model, prompts, "logits")
    with pytest.raises(BadInput, match="name the sites to keep in read="):
        lw.patch(model, prompts, {"mlp_out.2": 0.0})
    after = lw.patch(model, prompts, {"mlp_out.2": 0.0}, read="resid_post")
    assert float(abs(after.resid_post - got.resid_post).sel(layer=1).max()) == 0
    assert float(abs(after.resid_post - got.resid_post).sel(layer=5).max()) > 0.1


def test_the_convolutional_network_gives_blocks_of_unequal_shape() -> None:
    model = lw.load("efficientnet-lite0")
    assert (model.kind, model.n_layers) == ("vision", 16)
    assert model.sites() == ["resid_pre", "resid_post", "logits"]
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    got = lw.cache(model, x, ["resid_post", "logits"], layers=[0, 3, 15])
    assert got["resid_post.0"].shape == (1, 16, 112, 112)
    assert got["resid_post.15"].shape == (1, 320, 7, 7)
    assert got.logits.shape == (1, 1000)
    z, sites = forward(model, x, [Address("resid_post", i) for i in (0, 3, 15)])
    assert torch.equal(torch.tensor(got.logits.values), z.detach())
    for address, value in sites.items():
        assert torch.equal(torch.tensor(got[str(address)].values), value.detach())
    again = engine.run(model, x, [], logits="last").logits
    assert again is not None
    assert torch.equal(again, z.detach())


def test_logits_that_are_no_numbers_are_refused() -> None:
    module, _ = toys.tiny("gpt2")
    with torch.no_grad():
        module.transformer.ln_f.weight.mul_(1e38)
        module.lm_head.weight.mul_(1e30)
    with pytest.raises(BadInput, match="its logits are NaN on a short prompt"):
        lw.wrap(module)
