"""Anatomy: where the vocabulary's sites are in one model, as data.

`Anatomy` is what techniques see. It is built from a `Layout` (the roles of an architecture's
submodules, `lwlab.models.layouts`), by structure (`lwlab.models.discover`), or by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, field, replace
from operator import index
from typing import Literal

from torch import nn

from lwlab.errors import BadInput, MissingSite
from lwlab.models.sites import SITES, Address, check_sites
from lwlab.models.views import View, Whole

Kind = Literal["decoder", "encoder", "encoder-decoder", "vision", "generic"]


@dataclass(frozen=True)
class Tap:
    """One site: which module (`{}` stands for the layer), which end of it, which columns.

    `shared` marks a tensor that the block also keeps as its residual: an edit must be made in
    place there, or it would reach the norm and miss the residual path.
    """

    path: str
    end: Literal["input", "output"]
    view: View = field(default_factory=Whole)
    shared: bool = False

    def at(self, layer: int | None) -> str:
        """Return the module path for `layer`."""
        return self.path if layer is None else self.path.replace("{}", str(layer))


@dataclass(frozen=True)
class Anatomy:
    """The facts of one model that techniques rely on.

    Stream equations (checked by `lwlab.models.identities` when a model is loaded), with
    w_1, w_2, ... the sites in `writes`:

    * serial:    resid_mid = resid_pre + w_1,  resid_post = resid_pre + w_1 + w_2 + ...
    * parallel:  resid_post = resid_pre + w_1 + w_2, every w_i reads resid_pre; no resid_mid
    * post-norm: resid_mid = N_1(resid_pre + w_1),  resid_post = N_2(resid_mid + w_2), with
      `stream_norms` = (N_1, N_2)

    Heads: attn_out = attn_post(W_O concat(head_out)), `attn_post` being the norm that sandwich
    architectures put between W_O and the stream. Output:
    logits = softcap(unembed(logit_scale * final_norm(h))), with softcap(z) = c tanh(z / c) and
    h the last stream. `guessed` marks an anatomy that was found by structure.
    """

    name: str
    kind: Kind
    blocks: str
    n_layers: int
    d_model: int | None
    taps: Mapping[str, Tap]
    missing: Mapping[str, str] = field(default_factory=dict)
    writes: tuple[str, ...] = ()
    parallel: bool = False
    stream_norms: tuple[str, ...] = ()
    attn_post: str | None = None
    o_proj: str | None = None
    final_norm: str | None = None
    unembed: str | None = None
    softcap: float | None = None
    logit_scale: float = 1.0
    act: str | None = None
    gated: bool = False
    down: str | None = None
    n_heads: int | None = None
    n_kv_heads: int | None = None
    d_head: int | None = None
    d_mlp: int | None = None
    d_vocab: int | None = None
    causal: bool = True
    refuses_rules: str | None = None
    guessed: bool = False

    def sites(self) -> list[str]:
        """Names of the sites this model has, in the vocabulary's order."""
        return [s for s in SITES if s in self.taps]

    def require(self, names: str | Iterable[str]) -> list[str]:
        """Return `names` as a list, or raise UnknownName / MissingSite saying which sites exist."""
        wanted = check_sites(names)
        for name in wanted:
            if name not in self.taps:
                why = self.missing.get(name, "this architecture does not compute it")
                have = ", ".join(self.sites())
                raise MissingSite(f"{self.name} has no site {name!r}: {why}. It has: {have}.")
        return wanted

    def without(self, site: str, why: str) -> Anatomy:
        """Return this anatomy less one site, with the reason."""
        taps = {k: v for k, v in self.taps.items() if k != site}
        return replace(self, taps=taps, missing={**self.missing, site: why})

    def heads(self, site: str) -> int | None:
        """How many heads `site` splits into (key/value sites have their own number), or None."""
        dims = SITES[site].dims
        if "kv_head" in dims:
            return self.n_kv_heads
        return self.n_heads if "head" in dims else None

    def address(self, text: str | Address) -> Address:
        """Parse and range-check an address. Negative layers and heads count from the end.

        Raises UnknownName, MissingSite or BadInput with the valid range.
        """
        a = Address.parse(text)
        self.require(a.site)
        layer, head = a.layer, a.head
        if layer is not None:
            layer = self._index(layer, self.n_layers, "layer", str(text))
        if head is not None:
            head = self._index(head, self.heads(a.site) or 0, "head", str(text))
        return replace(a, layer=layer, head=head)

    def layers(self, layers: Iterable[int] | int | None) -> list[int]:
        """Return layer numbers as a checked list without repeats; None means all."""
        if layers is None:
            return list(range(self.n_layers))
        try:
            wanted = [index(x) for x in (layers if isinstance(layers, Iterable) else [layers])]
        except TypeError:
            raise BadInput(f"layers={layers!r}: give whole numbers, as in [0, 5, -1]") from None
        if not wanted:
            raise BadInput("layers is empty; leave it out to take all")
        checked = (self._index(x, self.n_layers, "layer", f"layers={wanted}") for x in wanted)
        return list(dict.fromkeys(checked))

    def check_paths(self, module: nn.Module) -> None:
        """Raise BadInput when `module` lacks a path that this anatomy names."""
        try:
            blocks = module.get_submodule(self.blocks)
        except AttributeError:
            raise BadInput(f"{self.name}: the module has no {self.blocks!r} (blocks)") from None
        if isinstance(blocks, Sized) and len(blocks) != self.n_layers:
            raise BadInput(
                f"{self.name}: n_layers is {self.n_layers}, but {self.blocks!r} has {len(blocks)}"
            )
        check_sites(self.taps)
        roles = ("attn_post", "o_proj", "final_norm", "unembed", "act", "down")
        paths = {f"site {site}": tap.path for site, tap in self.taps.items()}
        paths |= {role: getattr(self, role) or "" for role in roles}
        paths |= {f"stream_norms[{i}]": p for i, p in enumerate(self.stream_norms)}
        for what, path in paths.items():
            for layer in range(self.n_layers if "{}" in path else 1):
                full = path.replace("{}", str(layer)).removesuffix(".lwlab_pattern")
                try:
                    module.get_submodule(full)
                except AttributeError:
                    raise BadInput(f"{self.name}: the module has no {full!r} ({what})") from None

    def _index(self, i: int, n: int, what: str, given: str) -> int:
        if not -n <= i < n:
            raise BadInput(f"{given}: {self.name} has {n} {what}s, so {what} is 0..{n - 1}")
        return i % n
