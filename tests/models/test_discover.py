"""Architectures without a row: found by structure and checked, or refused with what to declare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lwlab as lw
from lwlab.errors import BadInput, MissingSite
from lwlab.models import Anatomy, Tap, identities, toys

IDS = torch.tensor([[5, 9, 7, 3]])


class Sub(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.lin = nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.lin(x)) + x.mean(1, keepdim=True)


class Block(nn.Module):
    """MLP before attention: not the order in which the vocabulary lists them."""

    def __init__(self, d: int, scale: float) -> None:
        super().__init__()
        self.attn, self.mlp, self.scale = Sub(d), Sub(d), scale

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale * self.mlp(x)
        return x + self.scale * self.attn(x)


class Toy(nn.Module):
    def __init__(self, scale: float = 1.0, d: int = 8, vocabulary: int = 20) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, d)
        self.layers = nn.ModuleList(Block(d, scale) for _ in range(3))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class Conv(nn.Module):
    """A block that first overwrites what it was given."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.act(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Conv(3, 4), Conv(4, 6), Conv(6, 8)])
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        for block in self.blocks:
            images = block(images)
        return self.head(images.mean((2, 3)))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_a_plain_transformer_is_found_and_its_identities_hold() -> None:
    model = lw.wrap(Toy())
    assert model.kind == "decoder"
    assert (model.d_model, model.d_vocab, model.n_layers) == (8, 20, 3)
    found = ["embed", "resid_pre", "attn_in", "attn_out", "mlp_in", "mlp_out", "resid_post"]
    assert model.sites() == [*found, "final_norm", "logits"]
    assert (model.anatomy.writes, model.anatomy.parallel) == (("mlp_out", "attn_out"), False)
    errors = identities.audit(model)
    assert {"writes", "unembed", "final_norm", "embed->logits"} <= errors.keys()
    assert max(errors.values()) < 1e-5
    cached = lw.cache(model, IDS, ["mlp_out", "attn_out", "logits"])
    assert cached.mlp_out.dims == ("prompt", "layer", "position", "d_model")
    assert lw.patch(model, IDS, {"mlp_out.1": 0.0}).moved.item() > 0
    assert lw.chain(model, IDS, [0, 1, 2]).moved.item() == 0.0


def test_sublayers_that_do_not_add_up_are_dropped_with_the_reason() -> None:
    model = lw.wrap(Toy(scale=0.5))
    assert model.sites() == ["embed", "resid_pre", "resid_post", "final_norm", "logits"]
    with pytest.raises(MissingSite, match="found by structure, but its identity fails"):
        lw.cache(model, IDS, "attn_out")


def test_blocks_of_unequal_shape_come_one_variable_a_layer_with_their_own_dims() -> None:
    x = torch.randn(2, 3, 16, 16)
    net = Net().eval()
    model = lw.wrap(net, example=x[:1])
    assert model.kind == "vision"
    got = lw.cache(model, x, ["resid_pre", "resid_post", "logits"])
    assert got["resid_post.1"].dims == (
        "prompt",
        *(f"{d}.resid_post.1" for d in ("channel", "height", "width")),
    )
    assert got["resid_post.1"].shape == (2, 6, 4, 4)
    assert got.logits.dims == ("prompt", "token")
    h = x
    for i, block in enumerate(net.blocks):
        assert torch.equal(torch.tensor(got[f"resid_pre.{i}"].values), h)  # not the clamped one
        h = block(h.clone()).detach()
        assert torch.equal(torch.tensor(got[f"resid_post.{i}"].values), h)
    one = lw.cache(model, x, "resid_post", layers=1).resid_post
    assert one.dims == ("prompt", "layer", "channel", "height", "width")
    with pytest.raises(BadInput, match=r"pictures \[n, channels, height, width\]"):
        lw.cache(model, x[0], "resid_post")
    with pytest.raises(BadInput, match="max_bytes is"):
        lw.cache(model, x, "resid_post", max_bytes=1000)
    with pytest.raises(BadInput, match=r"do not fit each other in the order \[0, 2\]"):
        lw.chain(model, x, [0, 2])
    slopes = lw.grads(model, x, lambda z: z[:, 0], "resid_post", layers=[0, 1])
    assert slopes["resid_post.0"].shape == (2, 4, 8, 8)


def test_without_an_example_sublayers_stay_unclaimed() -> None:
    class Reader(Toy):
        def forward(self, features: Tensor) -> Tensor:
            x = features
            for layer in self.layers:
                x = layer(x)
            return self.head(self.norm(x))

    features = torch.randn(1, 4, 8)
    module = Reader()
    del module.embed
    model = lw.wrap(module)
    assert "attn_out" not in model.sites()
    with pytest.raises(MissingSite, match="unchecked: pass example="):
        lw.cache(model, features, "attn_out")
    checked = lw.wrap(module, example=features)
    assert lw.cache(checked, features, "attn_out").attn_out.shape == (1, 3, 4, 8)


def test_unequal_prompts_need_a_model_that_takes_a_mask() -> None:
    model = lw.wrap(Toy(vocabulary=100), tokenizer=toys.tokenizer())
    assert lw.cache(model, ["the dog", "a cat"], "resid_post").sizes["position"] == 2
    with pytest.raises(BadInput, match="takes no attention mask: give prompts of equal length"):
        lw.cache(model, ["the dog", "the dog saw"], "resid_post")


def test_a_bare_sequence_of_blocks_is_enough() -> None:
    module = nn.Sequential(Block(8, 1.0), Block(8, 1.0))
    x = torch.randn(1, 4, 8)
    model = lw.wrap(module, example=x)
    got = lw.cache(model, x, ["resid_post", "attn_out"])
    assert torch.equal(torch.tensor(got.resid_post.values[:, -1]), module(x).detach())
    back = lw.chain(model, x, [1, 0], streams=True)
    assert torch.allclose(torch.tensor(back.logits.values), module[0](module[1](x))[:, -1])


def test_what_has_no_list_of_blocks_is_told_what_to_declare() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleDict({"0": nn.Linear(4, 4), "1": nn.Linear(4, 4)})

        def forward(self, x: Tensor) -> Tensor:
            return self.stages["1"](torch.relu(self.stages["0"](x)))

    module, x = Plain(), torch.randn(3, 4)
    with pytest.raises(BadInput, match=r"no list of equal blocks.*anatomy=lw.Anatomy"):
        lw.wrap(module)
    taps = {"resid_pre": Tap("stages.{}", "input"), "resid_post": Tap("stages.{}", "output")}
    declared = Anatomy("plain", "generic", "stages", 2, 4, {**taps, "logits": Tap("", "output")})
    model = lw.wrap(module, declared)
    got = lw.cache(model, x, ["resid_post", "logits"])
    assert got.resid_post.dims == ("prompt", "layer", "d_model")
    assert torch.equal(torch.tensor(got.logits.values), module(x).detach())
    assert lw.patch(model, x, {"resid_post.0": 0.0}).logits.std("prompt").max() < 1e-6


@pytest.mark.parametrize("thing", [3, "gpt2", None, Toy])
def test_wrap_takes_modules(thing: Any) -> None:
    with pytest.raises(BadInput, match=r"torch.nn.Module"):
        lw.wrap(thing)


SMALL = {
    **{"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
UNKNOWN: dict[str, tuple[str, str, dict[str, Any], bool]] = {
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", SMALL, True),
    "falcon, which adds in place": ("FalconConfig", "FalconForCausalLM", SMALL, True),
    "cohere, parallel, scaled logits": ("CohereConfig", "CohereForCausalLM", SMALL, True),
    "granite, scaled residuals": (
        "GraniteConfig",
        "GraniteForCausalLM",
        {**SMALL, "residual_multiplier": 0.3, "logits_scaling": 2.0},
        False,
    ),
    "bloom, residual inside the sublayer": ("BloomConfig", "BloomForCausalLM", SMALL, False),
    "distilbert, post-norm": (
        "DistilBertConfig",
        "DistilBertForMaskedLM",
        {"vocab_size": 50, "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 4},
        False,
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_transformers_keep_the_sublayers_that_add_up(name: str) -> None:
    import transformers

    config, cls, arguments, adds = UNKNOWN[name]
    module = getattr(transformers, cls)(getattr(transformers, config)(**arguments)).eval()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    model = lw.wrap(module)
    assert model.anatomy.guessed
    assert ("attn_out" in model.sites()) == adds
    assert model.anatomy.parallel == (name.startswith(("falcon", "cohere")))
    errors = identities.audit(model)
    assert {"chain", "self:resid_post", "resid_pre->logits"} <= errors.keys()
    assert {k: e for k, e in errors.items() if not e < 1e-4} == {}
    with pytest.raises(BadInput, match="no backward rules for this architecture"), lw.rules(model):
        pass


def test_the_language_blocks_of_a_model_that_sees_are_found(toy: Callable[[str], Any]) -> None:
    import transformers

    text = {**SMALL, "num_key_value_heads": 2, "head_dim": 4}
    eyes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
    eyes |= {"num_attention_heads": 4, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(text_config=text, vision_config=eyes, mm_tokens_per_image=4)
    model = lw.wrap(transformers.Gemma3ForConditionalGeneration(config).eval())
    assert model.anatomy.blocks == "model.language_model.layers"
    assert model.n_layers == 2


def test_a_module_can_be_wrapped_twice() -> None:
    module, _ = toys.tiny("gpt2")
    one, two = lw.wrap(module), lw.wrap(module)
    a, b = (lw.cache(m, IDS, ["resid_post", "attn_pattern"]) for m in (one, two))
    assert a.equals(b)
