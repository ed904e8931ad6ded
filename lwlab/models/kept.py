"""Models whose layers keep different numbers of heads and neurons: what is left of their sites.

`lwlab.pruning` makes them. Their configuration is the whole model's with one entry more, `KEY`: how
many key/value groups ("attn") and neurons ("mlp") each layer keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lwlab.models.anatomy import Anatomy, Tap
from lwlab.models.views import Columns

KEY = "lwlab_kept"
HEADS = ("q", "k", "v", "attn_pattern", "head_out")
NEURONS = ("mlp_gate", "mlp_up", "neurons")


def kept(config: Any) -> dict[str, list[int]]:
    """What a configuration says its layers keep; empty for an ordinary model."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return dict(getattr(config, KEY, None) or {})


def adapt(anatomy: Anatomy, widths: Mapping[str, Sequence[int]]) -> Anatomy:
    """Return the anatomy of a model whose layers were cut to these `widths`.

    Neurons stay a site while every layer has the same number of them. Sites by head go: a view
    that splits a tensor into heads does so alike in all layers.
    """
    a = anatomy
    if numbers := widths.get("attn"):
        for site in HEADS:
            a = a.without(site, f"its layers keep {_told(numbers)} key/value groups")
        a = replace(a, n_heads=None, n_kv_heads=None, o_proj=None)
    if numbers := widths.get("mlp"):
        if len(set(numbers)) > 1:
            for site in NEURONS:
                a = a.without(site, f"its layers keep {_told(numbers)} neurons")
            a = replace(a, d_mlp=None, act=None, down=None)
        else:
            a = replace(a, d_mlp=numbers[0], taps={k: _narrow(t, numbers[0], k)
                                                   for k, t in a.taps.items()})  # fmt: skip
    if widths:
        a = replace(a, refuses_rules="its layers were cut to different widths")
    return a


def _narrow(tap: Tap, width: int, site: str) -> Tap:
    """A fused gate and up projection has its second half elsewhere once it is narrower."""
    if site not in NEURONS or not isinstance(tap.view, Columns):
        return tap
    start = width if site == "mlp_up" else 0
    return replace(tap, view=Columns(start, start + width))


def _told(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"
