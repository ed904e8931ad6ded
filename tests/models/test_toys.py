"""Toy models: small, repeatable, and random wherever a convention could hide."""

from __future__ import annotations

import pytest
import torch

from lwlab.errors import UnknownName
from lwlab.models import toys


def inputs(arch: str, length: int = 12) -> dict[str, torch.Tensor]:
    if arch == "vit":
        return {"pixel_values": torch.randn(1, 3, 16, 16, generator=torch.Generator())}
    ids = torch.arange(4, 4 + length)[None]
    return {"input_ids": ids, **({"decoder_input_ids": ids} if arch.startswith("t5") else {})}


@pytest.mark.parametrize("arch", toys.ARCHS)
def test_every_toy_runs_is_small_and_repeats(arch):
    model, config = toys.tiny(arch)
    again, _ = toys.tiny(arch)
    other, _ = toys.tiny(arch, seed=1)
    with torch.no_grad():
        out, same, differs = (m(**inputs(arch))[0] for m in (model, again, other))
    assert torch.equal(out, same)
    assert not torch.allclose(out, differs)
    assert 0.3 < out.std() < 10, "numbers large enough to compare, small enough not to saturate"
    assert sum(p.numel() for p in model.parameters()) < 70_000
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    model.train()
    with torch.no_grad():
        assert torch.equal(model(**inputs(arch))[0], out), "no dropout, in training mode either"
    assert config.hidden_size <= 32


@pytest.mark.parametrize("arch", toys.ARCHS)
def test_no_parameter_is_left_at_a_constant(arch):
    model, _ = toys.tiny(arch)
    for name, value in model.named_parameters():
        assert value.numel() == 1 or value.std() > 0.01, name


@pytest.mark.parametrize("arch", ["mistral", "qwen2", "gemma2", "gemma3"])
def test_sliding_windows_are_short_enough_to_matter(arch):
    near, far = (toys.tiny(arch, sliding_window=w)[0] for w in (4, 64))
    with torch.no_grad():
        a, b = (m(**inputs(arch))[0] for m in (near, far))
    assert torch.allclose(a[:, :4], b[:, :4], atol=1e-5)
    assert (a[:, 8:] - b[:, 8:]).abs().max() > 1e-2


def test_gemma2_caps_its_logits():
    capped, free = (
        toys.tiny("gemma2", final_logit_softcapping=cap)[0](**inputs("gemma2"))[0]
        for cap in (3.0, None)
    )
    assert torch.allclose(capped, 3 * torch.tanh(free / 3), atol=1e-5)
    assert free.abs().max() > 3


def test_parallel_and_sequential_blocks_differ():
    parallel, sequential = (toys.tiny(a)[0] for a in ("gpt_neox", "gpt_neox_sequential"))
    assert not torch.allclose(parallel(**inputs("x"))[0], sequential(**inputs("x"))[0])


def test_heads_need_not_fill_the_model_width():
    _, config = toys.tiny("qwen3")
    assert config.head_dim * config.num_attention_heads != config.hidden_size
    assert config.num_key_value_heads < config.num_attention_heads


def test_overrides_reach_the_config():
    model, config = toys.tiny("llama", num_hidden_layers=2, vocab_size=50)
    assert (config.num_hidden_layers, config.vocab_size) == (2, 50)
    assert len(model.model.layers) == 2


def test_the_global_generator_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    toys.tiny("gpt2", seed=3)
    assert torch.equal(torch.rand(3), expected)


def test_an_unknown_architecture_lists_the_known_ones():
    with pytest.raises(UnknownName, match="did you mean 'gpt_neox'"):
        toys.tiny("gptneox")


def test_the_tokenizer_is_a_word_level_one_of_a_hundred_tokens():
    tokenizer = toys.tokenizer()
    assert len(tokenizer) == toys.VOCAB
    assert len(set(toys.WORDS)) == toys.VOCAB - 4
    assert tokenizer.pad_token_id == 0
    ids = tokenizer("Mary went to the store.").input_ids
    assert len(ids) == 6
    assert tokenizer.unk_token_id not in ids
    assert tokenizer("Mary zzz").input_ids[1] == tokenizer.unk_token_id
    batch = tokenizer(["Mary", "Mary went to"], padding=True)
    assert batch["attention_mask"] == [[1, 0, 0], [1, 1, 1]]
    assert tokenizer(" Mary").input_ids == tokenizer("Mary").input_ids
    assert len(toys.tokenizer(["x", "y", "x"])) == 6
