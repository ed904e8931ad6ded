"""Anatomy by structure, for architectures without a row in `lwlab.models.layouts`.

The longest outermost list of equal modules is taken for the blocks, and roles inside a block are
guessed by the names the field uses. The guess is worth nothing until the identities hold; a role
whose identity fails is dropped by `lwlab.models.accept`.
"""

from __future__ import annotations

import re
from inspect import signature
from typing import Any

from torch import nn

from lwlab.errors import BadInput
from lwlab.models.anatomy import Anatomy, Kind, Tap

_ATTENTION = r"(self_)?att(entio)?n|self_attention"
_MLP = r"mlp|ffn?|feed_forward|ffw|dense_relu_dense"
_EMBED = r"(embed|wte|word_embeddings|tok_embeddings|embed_tokens|embedding)"
_NORM = r"(ln_f|norm|final_norm|final_layer_?norm|norm_f|ln_final)"
_HEAD = r"(lm_head|unembed|embed_out|head|output|classifier|fc)"
_UNSEEN = ("q", "k", "v", "attn_pattern", "head_out", "mlp_gate", "mlp_up", "neurons")


def by_structure(module: nn.Module) -> Anatomy:
    """Guess the anatomy of `module`; raise BadInput saying what to declare if it has no blocks."""
    blocks = _block_list(module)
    prefix = blocks.rpartition(".")[0]
    base = module.get_submodule(prefix)
    first = module.get_submodule(_join(blocks, "0"))
    b = _join(blocks, "{}")
    taps = {"resid_pre": Tap(b, "input"), "resid_post": Tap(b, "output")}
    writes = []
    for site, regex in (("attn", _ATTENTION), ("mixer", "mixer"), ("mlp", _MLP)):
        if path := _child(first, regex):
            taps[f"{site}_in"] = Tap(f"{b}.{path}", "input")
            taps[f"{site}_out"] = Tap(f"{b}.{path}", "output")
            writes.append(f"{site}_out")
    embed, head = _ends(module, base, prefix)
    table: Any = module.get_submodule(embed) if embed else None
    if embed:
        taps["embed"] = Tap(embed, "output")
    norm = _child(base, _NORM)
    if norm:
        taps["final_norm"] = Tap(_join(prefix, norm), "output")
    config: Any = getattr(module, "config", None)
    if config is None or head or "For" in type(module).__name__:
        taps["logits"] = Tap("", "output")
    width = getattr(config, "hidden_size", None) or getattr(config, "n_embd", None)
    if width is None and table is not None:
        width = table.embedding_dim
    kind = _kind(module, embed, head)
    why = "only declared anatomies have it; see lw.Anatomy"
    return Anatomy(
        name=getattr(config, "model_type", None) or type(module).__name__,
        kind=kind, guessed=True, causal=kind == "decoder",
        blocks=blocks, n_layers=len(module.get_submodule(blocks)),  # type: ignore[arg-type]
        d_model=int(width) if width else None, taps=taps, writes=tuple(writes),
        d_vocab=int(table.num_embeddings) if table is not None else None,
        missing=dict.fromkeys(_UNSEEN, why) | {"logits": "this model has no output head"},
        final_norm=_join(prefix, norm) if norm else None, unembed=head,
        softcap=getattr(config, "final_logit_softcapping", None),
        refuses_rules="rules need a known architecture",
    )  # fmt: skip


def _kind(module: nn.Module, embed: str | None, head: str | None) -> Kind:
    if signature(type(module).forward).parameters.keys() & {"pixel_values", "images", "image"}:
        return "vision"
    if embed is None:
        return "generic"
    if not hasattr(module, "config"):
        return "decoder" if head else "generic"
    return "decoder" if "CausalLM" in type(module).__name__ else "encoder"


def _ends(module: nn.Module, base: nn.Module, prefix: str) -> tuple[str | None, str | None]:
    """Paths of the token embedding and the unembedding: as transformers says, else by name."""
    paths = {id(sub): path for path, sub in module.named_modules()}
    published: Any = module
    if hasattr(module, "get_input_embeddings") and hasattr(module, "get_output_embeddings"):
        try:
            embed, head = published.get_input_embeddings(), published.get_output_embeddings()
        except NotImplementedError:
            return None, None
        known = embed if isinstance(embed, nn.Embedding) else None
        return paths.get(id(known)), paths.get(id(head))
    name = _child(base, _EMBED, nn.Embedding)
    if name is None:
        return None, None
    return _join(prefix, name), _child(module, _HEAD, nn.Linear)


def _block_list(module: nn.Module) -> str:
    found: dict[str, int] = {}
    for path, sub in module.named_modules():
        # A list inside a list holds a block's parts (experts, heads), not blocks.
        if not isinstance(sub, nn.ModuleList | nn.Sequential) or any(
            path.startswith(_join(outer, "")) for outer in found
        ):
            continue
        if len(sub) > 1 and len({type(child) for child in sub}) == 1 and sub[0].state_dict():
            found[path] = len(sub)
    if not found:
        raise BadInput(
            f"{type(module).__name__} has no list of equal blocks to call layers. Declare them: "
            "lw.wrap(module, anatomy=lw.Anatomy(name=..., kind='generic', blocks='path.to.list', "
            "n_layers=..., d_model=..., taps={'resid_post': lw.models.Tap('path.to.list.{}', "
            "'output')}))"
        )
    return max(found, key=lambda path: found[path])


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _child(module: nn.Module, regex: str, kind: type[nn.Module] = nn.Module) -> str | None:
    for name, child in module.named_children():
        if re.fullmatch(regex, name) and isinstance(child, kind):
            return name
    return None
