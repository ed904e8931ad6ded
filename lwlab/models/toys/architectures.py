"""Small random models of every architecture, and a tokenizer for them: made here, in milliseconds.

Their weights are random everywhere, norm weights and biases too, so that a wrong norm convention, a
forgotten bias or a swapped head shows in the numbers instead of hiding behind ones and zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from lwlab.errors import UnknownName, suggest

VOCAB = 100
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BASE: dict[str, Any] = {
    **{"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "max_position_embeddings": 64, **_IDS},
}
_GROUPED = {**_BASE, "num_key_value_heads": 2}
# Heads whose widths do not add up to the model's, as in the real Qwen3 and Gemma.
_WIDE = {**_GROUPED, "head_dim": 12}
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_experts": 4}
_NEOX = {**_BASE, "rotary_pct": 0.5, "attention_dropout": 0.0, "hidden_dropout": 0.0}
_OPT: dict[str, Any] = {
    **{"vocab_size": VOCAB, "hidden_size": 32, "ffn_dim": 40, "num_hidden_layers": 3, **_IDS},
    **{"num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 32},
    **{"dropout": 0.0, "attention_dropout": 0.0},
}
_BERT = {**_BASE, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_T5: dict[str, Any] = {
    **{"vocab_size": VOCAB, "d_model": 32, "d_kv": 12, "d_ff": 40, "num_layers": 3, "num_heads": 4},
    **{"num_decoder_layers": 2, "relative_attention_num_buckets": 8, "dropout_rate": 0.0},
    **{"relative_attention_max_distance": 16, "decoder_start_token_id": 0, **_IDS},
}

ARCHS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            **{"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
            **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, **_IDS},
        },
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", _GROUPED),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**_GROUPED, "sliding_window": 4}),
    "qwen2": (
        "Qwen2Config",
        "Qwen2ForCausalLM",
        {**_GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _WIDE),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {
            **{**_WIDE, "sliding_window": 4, "query_pre_attn_scalar": 10},
            **{"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            **{**_WIDE, "sliding_window": 4, "query_pre_attn_scalar": 10},
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gpt_neox": (
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {**_NEOX, "use_parallel_residual": True},
    ),
    "gpt_neox_sequential": (
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {**_NEOX, "use_parallel_residual": False},
    ),
    "opt": ("OPTConfig", "OPTForCausalLM", {**_OPT, "do_layer_norm_before": True}),
    "opt_post_norm": (
        "OPTConfig",
        "OPTForCausalLM",
        {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 24},
    ),
    "phi": (
        "PhiConfig",
        "PhiForCausalLM",
        {**_BASE, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "partial_rotary_factor": 0.5},
    ),
    "olmo": ("OlmoConfig", "OlmoForCausalLM", {**_GROUPED, "clip_qkv": 1.5}),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", _GROUPED),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {**_GROUPED, **_MOE, "shared_expert_intermediate_size": 24},
    ),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {**_WIDE, **_MOE}),
    "bert": ("BertConfig", "BertModel", _BERT),
    "bert_mlm": ("BertConfig", "BertForMaskedLM", _BERT),
    "vit": (
        "ViTConfig",
        "ViTForImageClassification",
        {
            **{"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3},
            **{"num_attention_heads": 4, "image_size": 16, "patch_size": 4, "num_labels": 10},
            **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        },
    ),
    "t5": ("T5Config", "T5ForConditionalGeneration", _T5),
    "t5_gated": (
        "T5Config",
        "T5ForConditionalGeneration",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "mamba": (
        "MambaConfig",
        "MambaForCausalLM",
        {
            **{"vocab_size": VOCAB, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 3},
            **{"time_step_rank": 4, "conv_kernel": 4, **_IDS},
        },
    ),
}
"""Name to (config class, model class, config arguments), the classes from transformers."""


def tiny(arch: str, *, seed: int = 0, **overrides: Any) -> tuple[torch.nn.Module, Any]:
    """Return a small model of the architecture `arch` (one of `ARCHS`) and its config.

    Two or three layers, at most 32 wide, 100 tokens, float32, in eval mode, no dropout; sliding
    windows of 4 tokens where the architecture has them. `overrides` go to the config. The same
    `seed` gives the same weights; torch's global generator is left as it was.

    Matrices are drawn from N(0, 1/fan_in), embeddings from N(0, 1/4); vectors (norm weights,
    biases) and state-space matrices are their usual starting values plus N(0, 0.09).

    Raises UnknownName for an architecture that is not in `ARCHS`.
    """
    import transformers

    if arch not in ARCHS:
        raise UnknownName(f"no toy of the architecture {arch!r}{suggest(arch, ARCHS, limit=40)}")
    config_class, model_class, arguments = ARCHS[arch]
    config = getattr(transformers, config_class)(**{**arguments, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: torch.nn.Module = getattr(transformers, model_class)(config)
        _randomise(model)
    return model.float().eval(), config


@torch.no_grad()
def _randomise(model: torch.nn.Module) -> None:
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)
    }
    for name, value in model.named_parameters():
        noise = torch.randn_like(value)
        if value.dim() < 2 or name.endswith("A_log"):
            value.add_(0.3 * noise)
        elif id(value) in embeddings or name.endswith(("cls_token", "position_embeddings")):
            value.copy_(0.5 * noise)
        else:
            value.copy_(noise / math.sqrt(value[0].numel()))


_TEXT = (
    "the a an of to in on at and or but is was are were be it he she they we you I "
    "Mary John Tom Anna gave went said saw took had has have will would can could "
    "store park school house bottle drink book ball dog cat man woman boy girl king queen "
    "France Paris Italy Rome Spain Madrid capital city country war year old new big small red "
    "blue green one two three four five six seven eight nine ten plus minus equals . , ? ! : ' "
    "not that who where"
)
WORDS = tuple(_TEXT.split())


def tokenizer(words: Iterable[str] = ()) -> Any:
    """Return a word-level tokenizer of 100 tokens, made without files or network.

    Ids 0 to 3 are `<pad>`, `<bos>`, `<eos>` and `<unk>`; then come `words` (default: 96 common
    English words and signs). Text is split at spaces and signs; nothing is added around it, so
    `tokenizer()("Mary went to the store")` has five ids. Padding is on the right unless the
    caller sets `padding_side`.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    listed = list(dict.fromkeys(words)) or WORDS
    vocabulary = {word: i for i, word in enumerate([*special, *listed])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=64,
    )
