"""The vocabulary: what every site is called, what shape it has and what it means.

A *site* is a place in a network where an activation lives. The names follow TransformerLens where
it has one, because the field knows them. Which sites a given architecture has, and where, is the
business of `lwlab.models.anatomy`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lwlab.errors import BadInput, UnknownName, suggest


@dataclass(frozen=True)
class SiteSpec:
    """One row of the vocabulary.

    `dims` are the named dimensions after (prompt, [layer]); `scope` says whether there is one
    such site in the model or one in each layer.
    """

    name: str
    scope: Literal["model", "layer"]
    dims: tuple[str, ...]
    meaning: str

    @property
    def has_heads(self) -> bool:
        """Whether the site splits into heads."""
        return "head" in self.dims or "kv_head" in self.dims


_D = ("position", "d_model")
SITES: dict[str, SiteSpec] = {
    s.name: s
    for s in (
        SiteSpec("embed", "model", _D, "token embedding, before positions are added"),
        SiteSpec("resid_pre", "layer", _D, "residual stream entering block l"),
        SiteSpec("attn_in", "layer", _D, "what the attention's projections read (normalised)"),
        SiteSpec("q", "layer", ("position", "head", "d_head"), "queries before rotary/QK norm"),
        SiteSpec("k", "layer", ("position", "kv_head", "d_head"), "keys before rotary/QK norm"),
        SiteSpec("v", "layer", ("position", "kv_head", "d_head"), "values"),
        SiteSpec("attn_pattern", "layer", ("head", "query", "position"), "softmax(QK^T)"),
        SiteSpec("head_out", "layer", ("position", "head", "d_head"), "z = pattern V, before W_O"),
        SiteSpec("attn_out", "layer", _D, "what attention adds to the stream"),
        SiteSpec("cross_out", "layer", _D, "what cross-attention adds to the stream"),
        SiteSpec("mixer_in", "layer", _D, "what a state-space mixer reads (normalised)"),
        SiteSpec("mixer_out", "layer", _D, "what a state-space mixer adds to the stream"),
        SiteSpec("resid_mid", "layer", _D, "residual stream between attention and MLP"),
        SiteSpec("mlp_in", "layer", _D, "what the MLP's projections read (normalised)"),
        SiteSpec("mlp_gate", "layer", ("position", "neuron"), "gate pre-activation of a gated MLP"),
        SiteSpec("mlp_up", "layer", ("position", "neuron"), "up projection; input of f if ungated"),
        SiteSpec("neurons", "layer", ("position", "neuron"), "activations, what W_down reads"),
        SiteSpec("mlp_out", "layer", _D, "what the MLP adds to the stream"),
        SiteSpec("resid_post", "layer", _D, "residual stream leaving block l"),
        SiteSpec("final_norm", "model", _D, "normalised last stream, what the unembedding reads"),
        SiteSpec("logits", "model", ("position", "token"), "the model's output scores"),
    )
}  # fmt: skip


@dataclass(frozen=True, order=True)
class Address:
    """A site, its layer and optionally one head: `resid_pre.7`, `head_out.3.5`, `embed`."""

    site: str
    layer: int | None = None
    head: int | None = None

    def __str__(self) -> str:
        return ".".join(str(x) for x in (self.site, self.layer, self.head) if x is not None)

    @classmethod
    def parse(cls, text: str | Address) -> Address:
        """Parse `site[.layer[.head]]`. Raises UnknownName or BadInput, naming what would work."""
        if isinstance(text, Address):
            return text
        site, *rest = str(text).split(".")
        if site not in SITES:
            raise UnknownName(f"unknown site {site!r} in {text!r}{suggest(site, SITES)}")
        spec = SITES[site]
        limit = 0 if spec.scope == "model" else (2 if spec.has_heads else 1)
        try:
            numbers = [int(r) for r in rest]
        except ValueError:
            raise BadInput(
                f"{text!r}: after the site come whole numbers, as in 'resid_pre.7'"
            ) from None
        if len(numbers) > limit:
            what = {
                0: "no layer (one in the model)",
                1: "one layer and no head",
                2: "a layer and a head",
            }
            raise BadInput(f"{text!r}: site {site!r} takes {what[limit]}")
        if limit and not numbers:
            raise BadInput(f"{text!r}: which layer? Write '{site}.0'")
        layer = numbers[0] if numbers else None
        return cls(site, layer, numbers[1] if len(numbers) > 1 else None)


def check_sites(names: str | Iterable[str]) -> list[str]:
    """Return site names as a list without repeats; raise UnknownName for one not in SITES."""
    out = list(dict.fromkeys([names] if isinstance(names, str) else names))
    for name in out:
        if name not in SITES:
            raise UnknownName(f"unknown site {name!r}{suggest(str(name), SITES)}")
    if not out:
        raise BadInput("no site was named; for example sites=['resid_pre']")
    return out
