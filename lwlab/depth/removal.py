"""Sublayers and blocks really taken out of a model: fewer weights, fewer products, less cache.

Zeroing what a sublayer writes leaves its arithmetic and its keys and values in place; a time or a
size measured there says nothing about removal. Here the module goes. The smaller model shares the
weights that stay with the model it came from, which is left as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from lwlab.depth.skips import require_writes
from lwlab.errors import BadInput
from lwlab.models.anatomy import Anatomy
from lwlab.models.loading import wrap
from lwlab.models.model import Model
from lwlab.models.sample import sample
from lwlab.tracing import engine
from lwlab.tracing._nnsight import lock
from lwlab.tracing.blocks import check_replayable
from lwlab.tracing.chain import chain, parse

_OWN = ("__nnsight__", "forward")  # what nnsight keeps on the instances it traces
_SITES = {
    "attn": ("attn_in", "q", "k", "v", "attn_pattern", "head_out", "attn_out"),
    "mlp": ("mlp_in", "mlp_gate", "mlp_up", "neurons", "mlp_out"),
}
# A norm before attention has no site of its own; one that is not listed stays, which costs little.
_PRE_NORMS = ("input_layernorm", "ln_1", "self_attn_layer_norm", "layernorm_before")
_TOLERANCE = 1e-3  # relative, of the smaller model's logits against the silenced model's


def remove(model: Model, drop: Sequence[int | str], *, check: bool = True) -> Model:
    """Return the model without some blocks and sublayers: x_{l+} = x_l where one was.

    `drop` names them as `lw.chain` does: 3 or "block.3" for a block, "attn.3", "mlp.3" for one
    sublayer with its norms. A block that loses both halves is deleted. Attention that goes takes
    its keys and values along: those that stay use the first places of the cache. The new model
    shares the tensors of the weights that stay; `model` itself does not change. Sites inside
    sublayers of a kind of which one is gone are no longer sites of the new model.

    With `check`, its last logits on a short prompt are compared with those of the whole model run
    without the dropped parts (`lw.chain`), and the identities of its anatomy are measured.

    Raises, before anything is built: BadInput for a layer out of range, a name that is not
    understood or given twice, all blocks or all attention dropped, sublayers of a model whose
    attention and MLP run in parallel or whose stream is normalised after them, a model whose
    weights are spread over devices or a server; and BadInput where the check fails.
    """
    gone = plan(model, drop)
    with lock(model):
        refuse_spread(model)
        tuples = _returns(model, gone)
        module = clone(model.module)
        _take_out(module, model.anatomy, gone, tuples)
    anatomy = _anatomy(model.anatomy, gone)
    name = f"{model.name} without {len(drop)} of its parts" if drop else model.name
    small = wrap(module, anatomy, model.tokenizer, name=name, example=model.example, check=check)
    small = replace(small, source=f"{model.name} without {[str(x) for x in drop]}")
    if check and drop:
        _same_as_silenced(model, small, gone)
    return small


@dataclass(frozen=True)
class Plan:
    """What goes: whole blocks, and the attention or MLP of blocks that stay."""

    blocks: tuple[int, ...]
    attn: tuple[int, ...]
    mlp: tuple[int, ...]
    rest: tuple[int | str, ...]
    """What stays, as `lw.chain` takes it."""


def plan(model: Model, drop: Sequence[int | str]) -> Plan:
    """Check what is to be dropped; raise as `remove` says."""
    check_replayable(model)
    steps = parse(model, drop) if len(drop) else []
    if any(kind != "block" for _, kind in steps):
        require_branches(model, "dropping a sublayer")
    gone = {"attn": set[int](), "mlp": set[int]()}
    whole = set[int]()
    for i, (layer, kind) in enumerate(steps):
        if (layer, kind) in steps[:i] or (kind != "block" and (layer, "block") in steps):
            raise BadInput(f"drop: {drop[i]!r} would be dropped twice in {list(drop)}")
        (whole if kind == "block" else gone[kind]).add(layer)
    whole |= gone["attn"] & gone["mlp"]
    every = range(model.n_layers)
    if len(whole) == model.n_layers:
        raise BadInput(f"drop names all {model.n_layers} blocks of {model.name}: leave one")
    if whole | gone["attn"] == set(every):
        raise BadInput(
            f"drop names the attention of all {model.n_layers} layers of {model.name}; leave one: "
            "without any, tokens do not meet and generation cannot count positions by its cache"
        )
    attn, mlp = (tuple(sorted(gone[k] - whole)) for k in ("attn", "mlp"))
    rest: list[int | str] = []
    for i in every:
        if i not in whole:
            rest.append(f"mlp.{i}" if i in attn else f"attn.{i}" if i in mlp else i)
    return Plan(tuple(sorted(whole)), attn, mlp, tuple(rest))


def require_branches(model: Model, what: str) -> None:
    """Raise BadInput or MissingSite unless attention and MLP are two residual steps in a row."""
    require_writes(model, what)
    if model.anatomy.parallel:
        raise BadInput(
            f"{what}: in {model.name} attention and MLP read one stream in parallel, so they are "
            "no two steps to take away one by one; whole blocks can still be dropped"
        )


class Silent(nn.Module):
    """What stands where a sublayer was: it writes zero, which leaves the stream to the last bit."""

    def __init__(self, extra: int | None) -> None:
        """`extra`: how many values followed the output in a tuple; None for a bare tensor."""
        super().__init__()
        self.extra = extra

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return zeros like the stream given."""
        x = args[0] if args else kwargs["hidden_states"]
        zero = torch.zeros_like(x)
        return zero if self.extra is None else (zero, *[None] * self.extra)


def _returns(model: Model, gone: Plan) -> dict[str, int | None]:
    """How many values follow the output of each kind of sublayer; None for a bare tensor."""
    found: dict[str, int | None] = {}
    if not gone.attn and not gone.mlp:
        return found
    hooks = []
    for kind in ("attn", "mlp"):
        layer = next(iter(gone.attn if kind == "attn" else gone.mlp), None)
        if layer is None:
            continue

        def note(_m: Any, _a: Any, out: Any, kind: str = kind) -> None:
            found[kind] = len(out) - 1 if isinstance(out, tuple) else None

        at = model.module.get_submodule(_place(model.anatomy, kind, layer))
        hooks.append(at.register_forward_hook(note))
    try:
        data = engine.batch(model, sample(model))  # type: ignore[arg-type]
        with torch.no_grad():
            model.module(*data.args, **data.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _place(a: Anatomy, kind: str, layer: int) -> str:
    """Path of the module whose output is the sublayer's (before a norm that follows it)."""
    if kind == "attn":
        return a.taps["attn_in"].at(layer)
    if a.attn_post is None:  # no sandwich: what writes is the sublayer itself, or its last product
        return a.taps["mlp_out"].at(layer)
    return a.taps["mlp_in"].at(layer)


def _take_out(module: nn.Module, a: Anatomy, gone: Plan, tuples: dict[str, int | None]) -> None:
    for kind, layers in (("attn", gone.attn), ("mlp", gone.mlp)):
        for layer in layers:
            for path in _norms(module, a, kind, layer):
                module.set_submodule(path, nn.Identity())
            place = _place(a, kind, layer)
            first = a.taps[f"{kind}_in"].at(layer)
            if first != place:  # OPT: two products in the block, without a module of their own
                module.set_submodule(first, nn.Identity())
            module.set_submodule(place, Silent(tuples[kind]))
    blocks = module.get_submodule(a.blocks)
    assert isinstance(blocks, nn.ModuleList)
    kept = [i for i in range(len(blocks)) if i not in gone.blocks]
    module.set_submodule(a.blocks, nn.ModuleList(blocks[i] for i in kept))
    config: Any = getattr(module, "config", None)
    if gone.blocks and config is not None:
        config = config.get_text_config()
        types = vars(config).get("layer_types")  # a property of some configs, made from the number
        config.num_hidden_layers = len(kept)
        if types:
            config.layer_types = [types[i] for i in kept]
    without = {kept.index(i) for i in gone.attn}
    if gone.blocks or without:
        _renumber(module.get_submodule(a.blocks), config, without)


def _norms(module: nn.Module, a: Anatomy, kind: str, layer: int) -> list[str]:
    """Norms of the block that serve this sublayer alone."""
    block = f"{a.blocks}.{layer}"
    if kind == "attn":
        children = dict(module.get_submodule(block).named_children())
        found = [f"{block}.{n}" for n in _PRE_NORMS if n in children]
        return found + ([a.attn_post.replace("{}", str(layer))] if a.attn_post else [])
    found = [a.taps[s].at(layer) for s in ("resid_mid", "mlp_out") if s in a.taps]
    taken = {_place(a, "mlp", layer), a.taps["mlp_in"].at(layer)}
    return [p for p in found if p not in taken]


def _renumber(blocks: nn.Module, config: Any, without: set[int]) -> None:
    """Give attention that stays the first places of the cache, each among those of its type.

    transformers counts the tokens seen by the first place, which must therefore be in use.
    """
    n = len(list(blocks.children()))
    types = list(getattr(config, "layer_types", None) or ["full"] * n)
    free = {t: [i for i in range(n) if types[i] == t] for t in types}
    used = set()
    for i, block in enumerate(blocks.children()):
        if i in without:
            continue
        place = free[types[i]].pop(0)
        used.add(place)
        for sub in block.modules():
            if hasattr(sub, "layer_idx"):
                vars(sub)["layer_idx"] = place
    for kind in set(types):
        if types.index(kind) not in used:
            raise BadInput(
                f"drop takes every attention of type {kind!r}, by which the cache counts its "
                f"tokens; leave one of the layers {[i for i in range(n) if types[i] == kind]}"
            )


def clone(module: nn.Module) -> nn.Module:
    """Copy the tree of modules and the config; share every tensor."""
    configs: dict[int, Any] = {}
    if hasattr(module, "config"):
        configs[id(module.config)] = copy.deepcopy(module.config)
    done: dict[int, nn.Module] = {}

    def of(old: nn.Module) -> nn.Module:
        if id(old) in done:
            return done[id(old)]
        new = old.__class__.__new__(old.__class__)
        done[id(old)] = new
        for key, value in vars(old).items():
            if key in _OWN:
                continue
            if isinstance(value, nn.Module):
                value = of(value)
            elif id(value) in configs:
                value = configs[id(value)]
            elif isinstance(value, dict | set | list):
                value = copy.copy(value)
            vars(new)[key] = value
        vars(new)["_modules"] = {k: m and of(m) for k, m in old._modules.items()}
        return new

    return of(module)


def refuse_spread(model: Model) -> None:
    """Raise BadInput where accelerate moves weights about: a copy would share its hooks."""
    if any("_hf_hook" in vars(m) for m in model.module.modules()):
        raise BadInput(
            f"{model.name} is spread over devices by accelerate; load it without device_map="
        )


def _anatomy(a: Anatomy, gone: Plan) -> Anatomy:
    a = replace(a, n_layers=a.n_layers - len(gone.blocks))
    for kind, layers in (("attn", gone.attn), ("mlp", gone.mlp)):
        if layers:
            for site in _SITES[kind]:
                a = a.without(site, f"{len(layers)} of its layers have no {kind} any more")
    if gone.attn or gone.mlp:
        a = replace(a, writes=())
    if gone.attn:
        a = replace(a, o_proj=None, attn_post=None)
    if gone.mlp:
        a = replace(a, act=None, down=None, gated=False)
    return a


def _same_as_silenced(model: Model, small: Model, gone: Plan) -> None:
    if "logits" not in small.anatomy.taps:
        return
    x = sample(model)
    assert x is not None
    want = torch.as_tensor(chain(model, x, gone.rest, compare=False).logits.values)
    got = engine.run(small, x).logits
    assert got is not None
    error = float((got.cpu() - want).abs().max() / want.abs().max())
    slack = 1.0 if small.dtype == torch.float32 else 100.0
    if not error < _TOLERANCE * slack:
        raise BadInput(
            f"{model.name} without {gone.blocks or (gone.attn, gone.mlp)} gives other logits than "
            f"the whole model with those parts silenced (relative difference {error:.2g}); its "
            "blocks depend on each other in a way that removal does not know"
        )
