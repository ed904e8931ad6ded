"""Anatomy by structure, for architectures without a row in `lwlab.models.layouts`.

The longest list of equal modules is taken for the blocks, and roles inside a block are guessed by
the names the field uses. The guess is worth nothing until the identities hold; a role whose
identity fails is dropped by `lwlab.models.identities.accept`.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from lwlab.errors import BadInput
from lwlab.models.anatomy import Anatomy, Tap

_ATTENTION = r"(self_)?att(entio)?n|self_attention|mixer"
_MLP = r"mlp|ffn?|feed_forward|ffw|dense_relu_dense"
_EMBED = r"(embed|wte|word_embeddings|tok_embeddings|embed_tokens|embedding)"
_NORM = r"(ln_f|norm|final_norm|final_layer_?norm|norm_f|ln_final)"
_HEAD = r"(lm_head|unembed|embed_out|head|output|classifier|fc)"


def by_structure(module: nn.Module) -> Anatomy:
    """Guess the anatomy of `module`. Raises BadInput saying what to declare when it has no blocks."""
    blocks = _block_list(module)
    prefix = blocks.rpartition(".")[0]
    prefix = f"{prefix}." if prefix else ""
    first = module.get_submodule(f"{blocks}.0")
    b = f"{blocks}.{{}}"
    taps = {"resid_pre": Tap(b, "input"), "resid_post": Tap(b, "output")}
    writes = []
    for site, regex in (("attn", _ATTENTION), ("mlp", _MLP)):
        if path := _child(first, regex):
            taps[f"{site}_in"] = Tap(f"{b}.{path}", "input")
            taps[f"{site}_out"] = Tap(f"{b}.{path}", "output")
            writes.append(f"{site}_out")
    base = module.get_submodule(prefix[:-1]) if prefix else module
    if embed := _child(base, _EMBED, nn.Embedding):
        taps["embed"] = Tap(prefix + embed, "output")
    norm, head = _child(base, _NORM), _child(module, _HEAD, nn.Linear)
    if norm:
        taps["final_norm"] = Tap(prefix + norm, "output")
    taps["logits"] = Tap("", "output")
    config: Any = getattr(module, "config", None)
    width = getattr(config, "hidden_size", None) or getattr(config, "n_embd", None)
    return Anatomy(
        name=getattr(config, "model_type", None) or type(module).__name__,
        kind="decoder" if head and embed else "generic",
        blocks=blocks, n_layers=len(module.get_submodule(blocks)),  # type: ignore[arg-type]
        d_model=int(width) if width else None, taps=taps, writes=tuple(writes),
        missing={"head_out": "its heads were not found; declare them with lw.Anatomy"},
        final_norm=prefix + norm if norm else None, unembed=head,
        softcap=getattr(config, "final_logit_softcapping", None),
        refuses_rules="rules need a known architecture",
    )  # fmt: skip


def _block_list(module: nn.Module) -> str:
    best, size = "", 1
    for path, sub in module.named_modules():
        if isinstance(sub, nn.ModuleList | nn.Sequential) and len(sub) > size:
            kinds = {type(child) for child in sub}
            if len(kinds) == 1 and next(iter(sub.children())).state_dict():
                best, size = path, len(sub)
    if not best:
        raise BadInput(
            f"{type(module).__name__} has no list of equal blocks to call layers. Declare them: "
            "lw.wrap(module, anatomy=lw.Anatomy(name=..., kind='generic', blocks='path.to.list', "
            "n_layers=..., d_model=..., taps={'resid_post': lw.models.Tap('path.to.list.{}', 'output')}))"
        )
    return best


def _child(module: nn.Module, regex: str, kind: type[nn.Module] = nn.Module) -> str | None:
    for name, child in module.named_children():
        if re.fullmatch(regex, name) and isinstance(child, kind):
            return name
    return None
