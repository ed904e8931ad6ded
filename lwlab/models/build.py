"""From a layout and a live module to an Anatomy: finds the paths, reads the sizes."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lwlab.errors import BadInput
from lwlab.models.anatomy import Anatomy, Tap
from lwlab.models.layouts import Layout
from lwlab.models.views import Columns, Heads, Interleaved, View, Whole

_FUSED = "it is fused inside the experts"


def from_layout(module: nn.Module, layout: Layout, stack: str | None = None) -> Anatomy:
    """Build the anatomy of `module` by `layout`.

    `stack` picks "encoder" (default) or "decoder" of an encoder-decoder model.
    Raises BadInput when the layout's blocks are not in the module.
    """
    config: Any = module.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    layout = _variant(layout, config, stack)
    base, blocks = _find_blocks(module, layout, stack)
    first = module.get_submodule(f"{blocks}.0")
    n_layers = len(module.get_submodule(blocks))  # type: ignore[arg-type]
    sizes = _sizes(config, first, layout, n_layers)
    taps = _taps(layout, base, blocks, sizes, module)
    block = f"{blocks}.{{}}."
    head = _first(module, [h for h in (layout.head or "").split("|") if h])
    if layout.kind == "encoder-decoder" and stack != "decoder":
        head = None
    norm = _first(module, [base + n for n in (layout.norm or "").split("|") if n])
    missing = _missing(layout, head)
    if head:
        taps["logits"] = Tap("", "output")
    if norm and not norm.endswith("project_out"):
        taps["final_norm"] = Tap(norm, "output")
    else:
        missing["final_norm"] = "no norm follows its last block"
    writes = ("mixer_out",) if layout.mixer else tuple(
        s for s in ("attn_out", "cross_out", "mlp_out") if s in taps
    )  # fmt: skip
    return Anatomy(
        name=str(config.model_type), kind=layout.kind, blocks=blocks,
        taps=taps, missing=missing, writes=writes, parallel=layout.parallel,
        stream_norms=tuple(block + p for p in layout.stream_norms),
        attn_post=block + layout.attn_post if layout.attn_post else None,
        o_proj=block + layout.o if layout.o else None,
        final_norm=norm, unembed=head,
        softcap=getattr(config, "final_logit_softcapping", None),
        logit_scale=_logit_scale(config, layout),
        act=block + layout.act if layout.act else None,
        gated=layout.gate is not None,
        down=block + layout.down if layout.down else None,
        causal=layout.causal or stack == "decoder",
        refuses_rules=_no_rules(layout),
        **sizes,
    )  # fmt: skip


def _no_rules(layout: Layout) -> str | None:
    """Why the backward rules do not cover this architecture, or None where they do."""
    if layout.moe:
        return "mixture-of-experts layers need a rule of their own"
    if layout.mixer:
        return "a state-space mixer needs a rule of its own"
    if layout.kind == "encoder-decoder":
        return "cross-attention needs a rule of its own"
    return None


def _variant(layout: Layout, config: Any, stack: str | None) -> Layout:
    """Apply what the config decides: parallel NeoX, post-norm OPT, gated T5, the decoder of T5."""
    kind = config.model_type
    if getattr(config, "use_parallel_residual", False):  # GPT-NeoX and StableLM
        return replace(layout, parallel=True, mid=None)
    if kind == "opt" and not config.do_layer_norm_before:
        norms = ("self_attn_layer_norm", "final_layer_norm")
        return replace(layout, stream_norms=norms, mid=f"output:{norms[0]}", norm="project_out")
    if layout.kind == "encoder-decoder":
        if getattr(config, "is_gated_act", False):
            ff = "layer.1.DenseReluDense."
            layout = replace(layout, gate=ff + "wi_0", up=ff + "wi_1")
        if stack == "decoder":
            moved: dict[str, Any] = {
                f: v.replace("layer.1", "layer.2")
                for f, v in vars(layout).items()
                if isinstance(v, str) and "layer.1" in v
            }
            layout = replace(layout, **moved, cross="layer.1.EncDecAttention.o", causal=True)
    return layout


def _find_blocks(module: nn.Module, layout: Layout, stack: str | None) -> tuple[str, str]:
    """Return (prefix of the base model with its dot, path of the block list)."""
    want = layout.blocks
    if layout.kind == "encoder-decoder":
        want = f"{stack or 'encoder'}.{layout.blocks}"
    found = [
        path
        for path, sub in module.named_modules()
        if isinstance(sub, nn.ModuleList) and re.search(rf"(^|\.){re.escape(want)}$", path)
    ]
    if not found:
        raise BadInput(
            f"{type(module).__name__} has no module list {want!r}; pass anatomy=lw.Anatomy(...) to "
            "lw.wrap, naming its blocks"
        )
    # A model that also sees has the blocks of its eyes; the vocabulary is about its language.
    path = next((p for p in found if "language_model" in p), found[0])
    return path[: len(path) - len(layout.blocks)], path


def _logit_scale(config: Any, layout: Layout) -> float:
    # T5 divides the stream by sqrt(d_model) where input and output embeddings are tied.
    tied = layout.kind == "encoder-decoder" and getattr(
        config, "scale_decoder_outputs", config.tie_word_embeddings
    )
    return float(config.d_model**-0.5) if tied else 1.0


def _sizes(config: Any, block: nn.Module, layout: Layout, n_layers: int) -> dict[str, Any]:
    def get(*names: str) -> int | None:
        return next((int(v) for n in names if (v := getattr(config, n, None))), None)

    d_model = get("hidden_size", "n_embd", "d_model")
    sizes: dict[str, Any] = {
        "n_layers": n_layers,
        "d_model": d_model,
        "d_vocab": get("vocab_size"),
        "d_mlp": _features(block.get_submodule(layout.down)) if layout.down else None,
    }
    if layout.o:
        n_heads = get("num_attention_heads", "n_head", "num_heads")
        assert n_heads is not None
        width = _features(block.get_submodule(layout.o))
        sizes |= {
            "n_heads": n_heads,
            "n_kv_heads": get("num_key_value_heads") or n_heads,
            "d_head": width // n_heads,
        }
    return sizes


def _features(linear: nn.Module) -> int:
    """Input features of a Linear or of GPT-2's Conv1D (whose weight is transposed)."""
    if isinstance(linear, nn.Linear):
        return linear.in_features
    weight = linear.weight
    assert isinstance(weight, torch.Tensor)
    return int(weight.shape[0])


def _qkv_views(layout: Layout, sizes: dict[str, Any], config: Any) -> dict[str, tuple[str, View]]:
    n, kv, d = sizes["n_heads"], sizes["n_kv_heads"], sizes["d_head"]
    if layout.qkv == "split":
        clip = getattr(config, "clip_qkv", None)
        paths = {"q": (layout.q, n), "k": (layout.k, kv), "v": (layout.v, kv)}
        return {s: (path, Heads(heads, clip=clip)) for s, (path, heads) in paths.items()}
    if layout.qkv == "interleaved":
        return {s: (layout.q, Interleaved(n, i)) for i, s in enumerate("qkv")}
    a, b, c = n * d, n * d + kv * d, n * d + 2 * kv * d
    return {
        "q": (layout.q, Heads(n, 0, a)),
        "k": (layout.q, Heads(kv, a, b)),
        "v": (layout.q, Heads(kv, b, c)),
    }


def _taps(
    layout: Layout, base: str, blocks: str, sizes: dict[str, Any], module: Any
) -> dict[str, Tap]:
    b = f"{blocks}.{{}}."
    taps = {"resid_pre": Tap(b[:-1], "input"), "resid_post": Tap(b[:-1], "output")}
    embeds = [base + e for e in (layout.embed or "").split("|") if e]
    if path := _first(module, embeds):
        taps["embed"] = Tap(path, "output")
    if layout.attn and layout.o:
        taps["attn_in"] = Tap(b + layout.attn, "input")
        taps["attn_pattern"] = Tap(b + layout.attn + ".lwlab_pattern", "output")
        for site, (proj, view) in _qkv_views(layout, sizes, module.config).items():
            taps[site] = Tap(b + proj, "output", view)
        taps["head_out"] = Tap(b + layout.o, "input", Heads(sizes["n_heads"] or 1))
        taps["attn_out"] = Tap(b + (layout.attn_post or layout.o), "output")
    if layout.cross:
        taps["cross_out"] = Tap(b + layout.cross, "output")
    if layout.mixer:
        taps["mixer_in"] = Tap(b + layout.mixer, "input")
        taps["mixer_out"] = Tap(b + layout.mixer, "output")
    if layout.mid:
        how, path = layout.mid.split(":")
        end = "output" if how == "output" else "input"
        taps["resid_mid"] = Tap(b + path, end, shared=how == "shared")  # type: ignore[arg-type]
    if layout.mlp_in and layout.mlp_out:
        taps["mlp_in"] = Tap(b + layout.mlp_in, "input")
        taps["mlp_out"] = Tap(b + (layout.mlp_post or layout.mlp_out), "output")
    d_mlp = sizes["d_mlp"] or 0
    for site, role, start in (("mlp_gate", layout.gate, 0), ("mlp_up", layout.up, d_mlp)):
        if role:
            fused = role.startswith("columns:")
            part = Columns(start, start + d_mlp) if fused else Whole()
            taps[site] = Tap(b + role.removeprefix("columns:"), "output", part)
    if layout.down:
        taps["neurons"] = Tap(b + layout.down, "input")
    return taps


def _missing(layout: Layout, head: str | None) -> dict[str, str]:
    why: dict[str, str] = {}
    if layout.parallel:
        why["resid_mid"] = "attention and MLP run in parallel, so no stream lies between them"
    if layout.mixer:
        for s in ("attn_in", "q", "k", "v", "attn_pattern", "head_out", "attn_out"):
            why[s] = "it has a state-space mixer in place of attention (see mixer_out)"
        for s in ("mlp_in", "mlp_gate", "mlp_up", "neurons", "mlp_out", "resid_mid"):
            why[s] = "its blocks have no MLP"
    else:
        why["mixer_in"] = why["mixer_out"] = "only state-space models have a mixer"
    if layout.moe:
        why |= dict.fromkeys(("mlp_gate", "mlp_up", "neurons"), _FUSED)
    elif layout.gate is None:
        why["mlp_gate"] = "its MLP has no gate (see mlp_up)"
    if layout.cross is None:
        why["cross_out"] = "no cross-attention here"
    if head is None:
        encoder = layout.kind == "encoder-decoder"
        why["logits"] = "the encoder has no output head (see stack='decoder')" if encoder else (
            "this model was loaded without an output head"
        )  # fmt: skip
    return why


def _first(module: nn.Module, paths: list[str]) -> str | None:
    for path in paths:
        try:
            module.get_submodule(path)
        except AttributeError:
            continue
        return path
    return None
