"""Every architecture satisfies its identities; every wrong layout we could think of does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from reference import EVERY

import lwlab as lw
from lwlab.errors import BadInput
from lwlab.models import identities, toys
from lwlab.models.anatomy import Anatomy, Tap
from lwlab.models.views import Heads

Toy = Callable[[str], lw.Model]
# An identity that an architecture states must have been measured, not skipped.
ALWAYS = {"chain", "writes"}
ATTENTION = {
    "heads",
    "attn_in",
    "pattern",
    "queries",
    "q+k+v->head_out",
    "attn_pattern+v->head_out",
}


@pytest.mark.parametrize("name", EVERY)
def test_the_identities_hold(name: str, toy: Toy) -> None:
    model = toy(name)
    errors = identities.audit(model)
    have = set(model.sites())
    assert errors.keys() >= ALWAYS
    assert "q" not in have or not ATTENTION - errors.keys()
    assert ("resid_mid" in have) == ("resid_mid" in errors)
    assert ("neurons" in have) == ("neurons" in errors)
    assert ("logits" in have) == ("unembed" in errors)
    assert {f"self:{s}" for s in have - {"logits"}} <= errors.keys()
    assert {k: e for k, e in errors.items() if not e < 1e-4} == {}
    assert {k: e for k, e in errors.items() if k.startswith("self:") and e != 0.0} == {}
    assert errors.get("logits") == (0.0 if "logits" in have else None)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "t5:decoder", "mamba"])
@pytest.mark.parametrize("layer", [0, -1])
def test_the_identities_hold_at_the_first_and_last_layer(name: str, layer: int, toy: Toy) -> None:
    model = toy(name)
    errors = identities.audit(model, layer % model.n_layers)
    assert {k: e for k, e in errors.items() if not e < 1e-4} == {}


def taps(a: Anatomy, **changes: Tap) -> Anatomy:
    return replace(a, taps={**a.taps, **changes})


def swap(a: Anatomy, one: str, two: str) -> Anatomy:
    return taps(a, **{one: a.taps[two], two: a.taps[one]})


def split(a: Anatomy, n: int, kv: int) -> Anatomy:
    """Claim `n` heads and `kv` key/value heads."""
    changes = {
        s: replace(a.taps[s], view=replace(a.taps[s].view, heads=n if s in "q head_out" else kv))
        for s in ("q", "k", "v", "head_out")
    }
    width = (a.n_heads or 0) * (a.d_head or 0)
    return replace(taps(a, **changes), n_heads=n, n_kv_heads=kv, d_head=width // n)


def moved(a: Anatomy, site: str, path: str, end: str | None = None) -> Anatomy:
    tap = a.taps[site]
    return taps(a, **{site: replace(tap, path=path, end=end or tap.end)})  # type: ignore[arg-type]


Wrong = Callable[[Anatomy], Anatomy]
LLAMA = "model.layers.{}."
WRONG: dict[str, tuple[str, Wrong]] = {
    "attn_out and mlp_out swapped, serial": ("gpt2", lambda a: swap(a, "attn_out", "mlp_out")),
    "attn_out and mlp_out swapped, parallel": (
        "gpt_neox",
        lambda a: swap(a, "attn_out", "mlp_out"),
    ),
    "half the heads": ("gpt2", lambda a: split(a, 2, 2)),
    "twice the heads": ("gpt2", lambda a: split(a, 8, 8)),
    "keys not grouped": ("llama", lambda a: split(a, 4, 4)),
    "queries and keys swapped": ("gpt2", lambda a: swap(a, "q", "k")),
    "queries and keys swapped, grouped": (
        "llama",
        lambda a: moved(moved(a, "q", LLAMA + "self_attn.k_proj"), "k", LLAMA + "self_attn.q_proj"),
    ),
    "queries and keys swapped, two-way": ("bert", lambda a: swap(a, "q", "k")),
    "keys and values swapped": ("qwen3", lambda a: swap(a, "k", "v")),
    "queries by columns where they interleave": (
        "gpt_neox",
        lambda a: taps(a, q=replace(a.taps["q"], view=Heads(4, 0, 32))),
    ),
    "values by columns where they interleave": (
        "gpt_neox",
        lambda a: taps(a, v=replace(a.taps["v"], view=Heads(4, 64, 96))),
    ),
    "gate and up swapped": ("llama", lambda a: swap(a, "mlp_gate", "mlp_up")),
    "attn_out before the sandwich norm": (
        "gemma2",
        lambda a: moved(a, "attn_out", LLAMA + "self_attn.o_proj"),
    ),
    "attn_out before the norm, and the norm forgotten": (
        "olmo2",
        lambda a: replace(moved(a, "attn_out", LLAMA + "self_attn.o_proj"), attn_post=None),
    ),
    "mlp_out before the sandwich norm": ("gemma3", lambda a: moved(a, "mlp_out", LLAMA + "mlp")),
    "resid_mid an edit of which misses the residual path": (
        "gpt2",
        lambda a: taps(a, resid_mid=replace(a.taps["resid_mid"], shared=False)),
    ),
    "resid_mid at the wrong norm": (
        "gemma2",
        lambda a: moved(a, "resid_mid", LLAMA + "post_attention_layernorm"),
    ),
    "resid_mid in a parallel block": (
        "gpt_neox",
        lambda a: taps(
            a, resid_mid=Tap("gpt_neox.layers.{}.post_attention_layernorm", "input", shared=True)
        ),
    ),
    "resid_pre after the norm": ("llama", lambda a: moved(a, "resid_pre", LLAMA + "self_attn")),
    "resid_post of the sublayer": (
        "llama",
        lambda a: moved(a, "resid_post", LLAMA + "mlp", "output"),
    ),
    "attn_in before the norm": ("gpt2", lambda a: moved(a, "attn_in", "transformer.h.{}")),
    "mlp_in before the norm": ("llama", lambda a: moved(a, "mlp_in", LLAMA[:-1])),
    "neurons after the down projection": (
        "vit",
        lambda a: moved(a, "neurons", "vit.layers.{}.mlp", "output"),
    ),
    "head_out after the output projection": (
        "gpt2",
        lambda a: moved(a, "head_out", "transformer.h.{}.attn.c_proj", "output"),
    ),
    "embed is the position table": ("gpt2", lambda a: moved(a, "embed", "transformer.wpe")),
    "a post-norm model taken for pre-norm": ("bert", lambda a: replace(a, stream_norms=())),
    "no soft cap": ("gemma2", lambda a: replace(a, softcap=None)),
    "logits not scaled": ("t5:decoder", lambda a: replace(a, logit_scale=1.0)),
    "no final norm": ("llama", lambda a: replace(a, final_norm=None)),
    "one layer too few": ("gpt2", lambda a: replace(a, n_layers=2)),
    "another activation": ("gpt2", lambda a: replace(a, act="transformer.h.{}.attn.attn_dropout")),
}


# Only an audit can tell these: what they read is right, what an edit does is not.
LATE = {"resid_mid an edit of which misses the residual path", "embed is the position table"}


@pytest.mark.parametrize("wrong", sorted(WRONG.keys() - LATE))
def test_a_wrong_layout_is_refused_when_it_is_loaded(wrong: str) -> None:
    name, spoil = WRONG[wrong]
    arch, _, stack = name.partition(":")
    module, _ = toys.tiny(arch)
    right = lw.wrap(module, stack=stack or None)
    with pytest.raises(BadInput, match=r"does not fit this model: .*error|n_layers is 2, but"):
        lw.wrap(module, spoil(right.anatomy), stack=stack or None)


@pytest.mark.parametrize("wrong", sorted(LATE))
def test_a_wrong_layout_is_refused_by_the_audit(wrong: str) -> None:
    name, spoil = WRONG[wrong]
    module, _ = toys.tiny(name)
    model = lw.wrap(module, spoil(lw.wrap(module).anatomy))
    assert max(identities.audit(model).values()) > 0.1


def test_going_on_regardless_is_possible_and_says_nothing_was_checked() -> None:
    module, _ = toys.tiny("gpt2")
    wrong = swap(lw.wrap(module).anatomy, "attn_out", "mlp_out")
    assert lw.wrap(module, wrong, check=False).checks == {}


def test_explicit_attention_that_gives_other_logits_loses_the_pattern_and_says_so() -> None:
    """A kernel of its own that is not softmax(QK^T) V: patterns would describe another model."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def twice(module, query, key, value, mask, **kwargs):  # type: ignore[no-untyped-def]
        z, pattern = sdpa_attention_forward(module, query, key, value, mask, **kwargs)
        return 2 * z, pattern

    AttentionInterface.register("twice", twice)
    module, _ = toys.tiny("llama")
    module.set_attn_implementation("twice")
    model = lw.wrap(module)
    assert "attn_pattern" not in model.sites()
    with pytest.raises(BadInput, match="explicit attention gives other logits"):
        lw.cache(model, torch.tensor([[5, 6]]), "attn_pattern")
