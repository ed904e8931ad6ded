"""A key/value cache whose layers have different lengths: read a text, cut it, go on from there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import xarray as xr
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from lwlab.attention.tap import Heard, listening
from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.results import label, provenance
from lwlab.tracing import lock
from lwlab.tracing.pattern import explicit_attention, exposed

NAME = "lwlab_kept"
LATE = 16  # queries whose attention the "late" ranking looks at


class KeptLayer(DynamicLayer):
    """One layer's keys and values, of which some are gone.

    `seen` is the number of tokens read; that is the length it reports, so that a new token gets
    its true position. `positions` are those of the keys held, which keep their rotation.
    """

    is_croppable = False

    def __init__(self, layer: Any, positions: torch.Tensor, seen: int) -> None:
        """Copy the keys and values at `positions` (rising) out of a full layer."""
        super().__init__()
        at = positions.to(layer.keys.device)
        # index_select copies: nothing of the full cache stays alive behind a view
        self.keys = layer.keys.index_select(-2, at)
        self.values = layer.values.index_select(-2, at)
        self.dtype, self.device = self.keys.dtype, self.keys.device
        self.is_initialized = True
        self.positions = positions
        self.seen = seen

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new keys and values; return all that are held."""
        new = key_states.shape[-2]
        added = torch.arange(self.seen, self.seen + new)
        self.positions = torch.cat([self.positions, added])
        self.seen += new
        self.keys = torch.cat([self.keys, key_states], dim=-2)
        self.values = torch.cat([self.values, value_states], dim=-2)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens read, not keys held."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys with the new ones, offset): counted so that the new ones have their true index."""
        held = int(self.keys.shape[-2])
        return held + query_length, self.seen - held

    def drop(self, index: int) -> None:
        """Forget the key and value at `index` of those held."""
        stay = [i for i in range(self.keys.shape[-2]) if i != index]
        at = torch.tensor(stay, device=self.keys.device)
        self.keys, self.values = self.keys.index_select(-2, at), self.values.index_select(-2, at)
        self.positions = self.positions[stay]

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: what a shorter text would have kept is gone."""
        raise BadInput("a cut cache cannot be rolled back: cut the full one anew")


@dataclass(frozen=True, eq=False)
class Reading:
    """A text that a model has read: its ids [1, T], full cache, and what its keys were worth.

    `scores` over (layer, position): `mass`, the attention each key received (mean over heads of
    the column sums), `late`, the same from the last queries only. `logits` [tokens] predict what
    comes next.
    """

    model: Model
    ids: torch.Tensor
    cache: DynamicCache
    scores: xr.Dataset
    logits: torch.Tensor


def check(model: Model) -> None:
    """Raise BadInput for a model whose cache cannot be cut: it says why."""
    lock(model)  # refuses a remote model
    if model.kind != "decoder":
        raise BadInput(f"{model.name} is of kind {model.kind!r} and keeps no keys and values")
    config: Any = getattr(model.module, "config", None)
    if "attn_pattern" not in model.sites() or not hasattr(model.module, "set_attn_implementation"):
        raise BadInput(
            f"{model.name} has no attention whose keys and values grow with the text (or none that "
            "transformers runs), so there is nothing to evict"
        )
    layers = DynamicCache(config=config).layers
    others = {type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer}
    if others:
        raise BadInput(
            f"{model.name} keeps its keys in {', '.join(sorted(others))}: only a cache that grows "
            "with the text in every layer is cut here (no sliding windows, no recurrent states)"
        )


def read(model: Model, ids: torch.Tensor | str, *, late: int = LATE) -> Reading:
    """Read a text once; keep its cache, and add up what every key receives on the way.

    ids [1, T] or a text. I_j^l = mean_h sum_i A^{lh}_ij comes from `lwlab_kernels.attn_stats`:
    no pattern of T x T is held. Raises BadInput for a model without a growing cache of keys and
    values, a remote model, or more than one text.
    """
    check(model)
    tokens = model.tokens(ids)
    if len(tokens) != 1 or tokens.ids.shape[1] < 2:
        raise BadInput(f"read takes one text of two tokens or more, not {tuple(tokens.ids.shape)}")
    if late < 1:
        raise BadInput(f"late={late}: the number of last queries, at least 1")
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def listen(layer: int, heard: Heard) -> None:
        found[layer] = _received(heard, late)

    options = {"logits_to_keep": 1} if "logits_to_keep" in model.forward_names else {}
    with lock(model), torch.no_grad():
        layers = range(model.n_layers)
        with listening(model, {i: partial(listen, i) for i in layers}):
            out: Any = model.module(tokens.ids, use_cache=True, **options)
    held = out.past_key_values
    if held is None or len(found) < model.n_layers:
        raise BadInput(f"{model.name} did not keep keys and values in all of its layers")
    coords = {
        "layer": list(layers),
        "position": list(range(tokens.ids.shape[1])),
        "position_str": ("position", list(tokens.strings[0])),
    }
    about = provenance(model, technique="prefixkv", late=late)
    arrays = {}
    for k, (name, said) in enumerate((("mass", "all"), ("late", f"the last {late}"))):
        values = torch.stack([found[i][k] for i in layers]).cpu()
        array = label(values, ("layer", "position"), coords).drop_attrs()
        arrays[name] = array.assign_attrs(
            long_name=f"attention received from {said} queries", units="queries", **about
        )
    scores = xr.Dataset(arrays, attrs=about)
    return Reading(model, tokens.ids, held, scores, out.logits[0, -1].float())


def _received(heard: Heard, late: int) -> tuple[torch.Tensor, torch.Tensor]:
    from lwlab.kernels import attn_stats

    if heard.bias is not None:
        raise BadInput("attention with a bias by position: positions of kept keys are not at hand")
    everything = attn_stats(
        heard.query, heard.key, scale=heard.scale, softcap=heard.softcap,
        mask=heard.mask if heard.mask is not None else "causal" if heard.causal else "full",
    )  # fmt: skip
    query, key = heard.query[:, :, -late:], heard.key
    allowed = _causal(query.shape[2], key.shape[2], query)
    _, pattern = explicit_attention(
        nn.Module(), query, key, key, allowed, heard.scale, heard.softcap
    )
    return everything.column[0].double().mean(0), pattern[0].double().mean(0).sum(0)


def cut(reading: Reading, kept: xr.DataArray | None = None) -> DynamicCache:
    """Return a cache that holds the keys and values of `kept` (layer, position) alone, copied.

    It goes wherever transformers takes `past_key_values`: one new token at a time with
    `model.module(ids, past_key_values=cache)`, several at once with `go_on`. Without `kept`, a copy
    of all. Raises BadInput for a choice of another shape or a layer that would keep nothing.
    """
    L, T = len(reading.cache.layers), reading.ids.shape[1]
    chosen = torch.ones(L, T, dtype=torch.bool) if kept is None else torch.tensor(kept.values)
    if chosen.shape != (L, T) or chosen.dtype != torch.bool:
        raise BadInput(f"kept is bool (layer {L}, position {T}); given {tuple(chosen.shape)}")
    if not chosen.any(1).all():
        raise BadInput(f"layer {int((~chosen.any(1)).nonzero()[0])} would keep no key at all")
    out = DynamicCache()
    out.layers = [
        KeptLayer(layer, row.nonzero()[:, 0], T) for layer, row in zip(reading.cache.layers, chosen)
    ]
    return out


def go_on(model: Model, ids: torch.Tensor, held: DynamicCache) -> torch.Tensor:
    """Logits [1, n, tokens] of n further tokens `ids` [1, n], read at once after a (cut) cache.

    Each sees every key that is held and the new ones up to itself. transformers makes one mask for
    all layers, and here they differ in length: so attention runs by a function that makes its own.
    """
    _register()
    if len(held.layers) != model.n_layers:
        raise BadInput(f"the cache has {len(held.layers)} layers, {model.name} {model.n_layers}")
    with lock(model), exposed(model.module, True, NAME), torch.no_grad():
        out: torch.Tensor = model.module(ids, past_key_values=held, use_cache=True).logits
    return out


def nbytes(held: DynamicCache) -> int:
    """Bytes of memory behind the keys and values: of the storages, not of views into them."""
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
             for layer in held.layers for t in (layer.keys, layer.values)}  # fmt: skip
    return sum(found.values())


def _causal(q: int, k: int, like: torch.Tensor) -> torch.Tensor:
    """What is added to the scores of the last q of k tokens."""
    late = torch.ones(q, k, dtype=torch.bool, device=like.device).triu(k - q + 1)
    blank = torch.zeros(1, 1, q, k, dtype=like.dtype, device=like.device)
    return blank.masked_fill_(late, torch.finfo(like.dtype).min)


def _kept_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise BadInput("attention with learned sinks or a bias by position cannot be cut")
    allowed = _causal(query.shape[2], key.shape[2], query)
    out, _ = explicit_attention(nn.Module(), query, key, value, allowed, scaling, softcap)
    return out, None


@cache
def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _kept_attention)  # and no mask: the model then makes none


@contextlib.contextmanager
def hidden(model: Model, kept: xr.DataArray) -> Iterator[None]:
    """While inside, hide evicted keys from later queries by a mask; nothing is cut.

    The whole text is to be read in one pass without a cache: queries below T see what is causal,
    those from T on only kept keys and later ones. The other road to what `cut` does.
    """
    from lwlab.attention.tap import attention_module

    check(model)
    table = torch.tensor(kept.values)
    T = table.shape[1]

    def mask(layer: int, _: nn.Module, args: Any, inputs: dict[str, Any]) -> Any:
        states = inputs["hidden_states"] if "hidden_states" in inputs else args[0]
        n = states.shape[1]
        allowed = torch.ones(n, n, dtype=torch.bool).tril()
        allowed[T:, :T] &= table[layer]
        lowest = torch.finfo(states.dtype).min
        added = torch.zeros(n, n, dtype=states.dtype).masked_fill_(~allowed, lowest)
        return args, {**inputs, "attention_mask": added[None, None].to(states.device)}

    with lock(model), contextlib.ExitStack() as stack:
        for layer in range(model.n_layers):
            module = attention_module(model, layer)
            hook = module.register_forward_pre_hook(partial(mask, layer), with_kwargs=True)
            stack.callback(hook.remove)
        yield
