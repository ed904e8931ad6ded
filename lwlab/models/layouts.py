"""Architectures as rows of data: the role of each submodule in a block.

To add an architecture, add a row; `lwlab.models.identities` decides whether it is right.
Paths are relative to the block; "" is the block itself. Facts checked on transformers 5.23.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lwlab.models.anatomy import Kind


@dataclass(frozen=True)
class Layout:
    """Roles of submodules; a role that is None does not exist in the architecture.

    `qkv` says how queries, keys and values are projected: by three modules ("split"), by one whose
    columns are [q | k | v] ("columns") or per head q, k, v ("interleaved").
    `mid` says where resid_mid can be reached: the input of a norm that shares its tensor with the
    residual path ("shared:PATH"), a module's input ("input:PATH") or output ("output:PATH").
    """

    model_types: tuple[str, ...]
    blocks: str
    kind: Kind = "decoder"
    embed: str | None = None
    norm: str | None = None
    attn: str | None = "self_attn"
    qkv: Literal["split", "columns", "interleaved"] = "split"
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    o: str | None = "self_attn.o_proj"
    attn_post: str | None = None
    cross: str | None = None
    mixer: str | None = None
    mid: str | None = "shared:post_attention_layernorm"
    mlp_in: str | None = "mlp"
    mlp_out: str | None = "mlp"
    gate: str | None = None
    up: str | None = None
    act: str | None = None
    down: str | None = None
    mlp_post: str | None = None
    stream_norms: tuple[str, ...] = ()
    parallel: bool = False
    head: str | None = "lm_head"
    causal: bool = True
    moe: bool = False


def _llama(*types: str, **changes: object) -> Layout:
    base: dict[str, Any] = {
        "blocks": "layers", "embed": "embed_tokens", "norm": "norm", "gate": "mlp.gate_proj",
        "up": "mlp.up_proj", "act": "mlp.act_fn", "down": "mlp.down_proj",
    }  # fmt: skip
    return Layout(model_types=types, **{**base, **changes})


LAYOUTS: tuple[Layout, ...] = (
    _llama("llama", "mistral", "qwen2", "qwen3", "olmo", "smollm3", "stablelm", "ministral"),
    _llama(
        "gemma2", "gemma3_text", "gemma3",
        mid="shared:pre_feedforward_layernorm",
        attn_post="post_attention_layernorm", mlp_post="post_feedforward_layernorm",
    ),
    _llama("gemma", mid="shared:post_attention_layernorm"),
    _llama(
        "olmo2", "olmo3",
        mid="shared:mlp",
        attn_post="post_attention_layernorm", mlp_post="post_feedforward_layernorm",
    ),
    _llama(
        "phi3", qkv="columns", q="self_attn.qkv_proj", gate="columns:mlp.gate_up_proj",
        up="columns:mlp.gate_up_proj", act="mlp.activation_fn",
    ),
    _llama(
        "mixtral", "qwen2_moe", "qwen3_moe", "olmoe",
        gate=None, up=None, act=None, down=None, moe=True,
    ),
    Layout(
        ("gpt2",), blocks="h", embed="wte", norm="ln_f",
        attn="attn", qkv="columns", q="attn.c_attn", o="attn.c_proj",
        mid="shared:ln_2", up="mlp.c_fc", act="mlp.act", down="mlp.c_proj",
    ),
    Layout(
        ("gpt_neox",), blocks="layers", embed="embed_in", norm="final_layer_norm",
        attn="attention", qkv="interleaved", q="attention.query_key_value", o="attention.dense",
        up="mlp.dense_h_to_4h", act="mlp.act", down="mlp.dense_4h_to_h", head="lm_head|embed_out",
    ),
    Layout(
        ("opt",), blocks="layers", embed="project_in|embed_tokens",
        norm="final_layer_norm|project_out",
        o="self_attn.out_proj", mid="shared:final_layer_norm",
        mlp_in="fc1", mlp_out="fc2", up="fc1", act="activation_fn", down="fc2",
    ),
    Layout(
        ("phi",), blocks="layers", embed="embed_tokens", norm="final_layernorm",
        o="self_attn.dense", mid=None, parallel=True,
        up="mlp.fc1", act="mlp.activation_fn", down="mlp.fc2",
    ),
    Layout(
        ("bert", "roberta"), kind="encoder", blocks="encoder.layer",
        embed="embeddings.word_embeddings", attn="attention.self",
        q="attention.self.query", k="attention.self.key", v="attention.self.value",
        o="attention.output.dense", mid="output:attention.output.LayerNorm",
        mlp_in="intermediate", mlp_out="output.dense", up="intermediate.dense",
        act="intermediate.intermediate_act_fn", down="output.dense",
        stream_norms=("attention.output.LayerNorm", "output.LayerNorm"),
        head="cls|lm_head", causal=False,
    ),
    Layout(
        ("vit",), kind="vision", blocks="layers", embed="embeddings.patch_embeddings",
        norm="layernorm", attn="attention",
        q="attention.q_proj", k="attention.k_proj", v="attention.v_proj", o="attention.o_proj",
        mid="shared:layernorm_after", up="mlp.fc1", act="mlp.activation_fn", down="mlp.fc2",
        head="classifier", causal=False,
    ),
    Layout(
        ("t5", "mt5"), kind="encoder-decoder", blocks="block", embed="embed_tokens",
        norm="final_layer_norm", attn="layer.0.SelfAttention", q="layer.0.SelfAttention.q",
        k="layer.0.SelfAttention.k", v="layer.0.SelfAttention.v", o="layer.0.SelfAttention.o",
        mid="input:layer.1", mlp_in="layer.1.DenseReluDense", mlp_out="layer.1.DenseReluDense",
        up="layer.1.DenseReluDense.wi", act="layer.1.DenseReluDense.act",
        down="layer.1.DenseReluDense.wo", causal=False,
    ),
    Layout(
        ("mamba", "falcon_mamba"), blocks="layers", embed="embeddings", norm="norm_f",
        attn=None, o=None, mid=None, mlp_in=None, mlp_out=None, mixer="mixer",
    ),
)  # fmt: skip


def find(model_type: str) -> Layout | None:
    """Return the row for a transformers `model_type`, or None."""
    return next((row for row in LAYOUTS if model_type in row.model_types), None)
