"""An anatomy is accepted when its identities hold on the live model, and refused when not.

A tensor of the right shape from the wrong place passes every shape check; it does not pass these.
`measure` is what loading runs (`lwlab.models.accept`): a handful of short forwards. `audit` adds
self-patches and transplants, which the tests run on every architecture.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import torch

from lwlab.errors import BadInput
from lwlab.models.model import Model, Prompts
from lwlab.models.sample import sample
from lwlab.models.sites import Address
from lwlab.tracing import engine
from lwlab.tracing._nnsight import lock
from lwlab.tracing.edits import Edit

Values = dict[Address, torch.Tensor]


def measure(model: Model, x: Prompts) -> dict[str, float]:
    """Relative error of each identity that the anatomy states, at the worst layer.

    * logits: through the trace and from the plain model, which must not differ at all
    * chain: resid_post_l = resid_pre_(l+1)
    * writes, resid_mid: the stream equations of Anatomy
    * heads: attn_out = attn_post(W_O concat(head_out))
    * attn_in, mlp_in: q = W_q attn_in, mlp_up = W_up mlp_in
    * neurons: neurons = f(mlp_gate) * mlp_up, or f(mlp_up)
    * final_norm, unembed: of the last resid_post
    * pattern: head_out = attn_pattern v, head by head
    * queries: a query changed at one position changes head_out there and nowhere else
    * kernel: logits with explicit attention = logits with the model's own
    """
    a, last = model.anatomy, model.n_layers - 1
    apart = ("embed", "attn_pattern", "final_norm", "logits")
    wanted = [s for s in a.taps if s not in apart]
    reads = [Address(s, i) for s in wanted for i in range(a.n_layers)]
    reads += [Address("final_norm")] if "final_norm" in a.taps else []
    data = engine.batch(model, x)
    out = engine.run(model, data, reads, logits="all")
    v, z = out.values, out.logits
    errors: dict[str, float] = {}
    if z is not None:
        args, inputs = data.fresh()
        with lock(model), torch.no_grad():
            errors["logits"] = _error(z, engine.tensor_of(model.module(*args, **inputs)))

    def each(f: Callable[[int], tuple[torch.Tensor, str, int]], n: int = a.n_layers) -> float:
        pairs = ((got, v[Address(site, i)]) for got, site, i in map(f, range(n)))
        return max((_error(got, want) for got, want in pairs), default=0.0)

    with lock(model), torch.no_grad():
        errors["chain"] = each(lambda i: (v[Address("resid_post", i)], "resid_pre", i + 1), last)
        if a.writes:
            errors["writes"] = each(lambda i: (_stream(model, v, i), "resid_post", i))
        if a.writes and "resid_mid" in a.taps:
            errors["resid_mid"] = each(lambda i: (_mid(model, v, i), "resid_mid", i))
        if "head_out" in a.taps and a.o_proj and "attn_out" in a.taps:
            errors["heads"] = each(lambda i: (_project(model, v, i), "attn_out", i))
        for source, target in (("attn_in", "q"), ("mlp_in", "mlp_up")):
            if {source, target} <= a.taps.keys() and a.taps[target].end == "output":
                errors[source] = each(partial(_project_in, model, v, source, target))
        if {"mlp_up", "neurons"} <= a.taps.keys() and a.act:
            errors["neurons"] = each(lambda i: (_activate(model, v, i), "neurons", i))
        stream = v[Address("resid_post", last)]
        if "final_norm" in a.taps and a.final_norm:
            normed = model.module.get_submodule(a.final_norm)(stream)
            errors["final_norm"] = _error(normed, v[Address("final_norm")])
        if a.unembed and a.kind != "generic" and z is not None:
            # An image classifier reads the stream of its class token.
            errors["unembed"] = _error(
                model.unembed(stream[:, 0] if a.kind == "vision" else stream), z
            )
    if {"attn_pattern", "v", "head_out"} <= a.taps.keys():
        errors |= _attention(model, x, z)
    return errors


def _attention(model: Model, x: Prompts, z: torch.Tensor | None) -> dict[str, float]:
    a = model.anatomy
    at = {s: [Address(s, i) for i in range(a.n_layers)] for s in ("attn_pattern", "v", "head_out")}
    out = engine.run(model, x, [r for group in at.values() for r in group], logits="all")
    errors = {"pattern": 0.0}
    for pattern, v, z_heads in zip(*(map(out.values.__getitem__, group) for group in at.values())):
        found = (pattern.shape[1], v.shape[2], *z_heads.shape[2:])
        if found != (a.n_heads, a.n_kv_heads, a.n_heads, a.d_head):
            return {"pattern": float("inf")}
        v = v.repeat_interleave(pattern.shape[1] // v.shape[2], 2)
        mixed = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
        errors["pattern"] = max(errors["pattern"], _error(mixed, z_heads))
    if z is not None and out.logits is not None:
        errors["kernel"] = _error(out.logits, z)
    if "q" in a.taps:
        errors["queries"] = _queries(model, x)
    return errors


def _queries(model: Model, x: Prompts) -> float:
    """How far a change of one query reaches beyond its position; infinite if it does nothing."""
    layer = model.n_layers // 2
    q, z = Address("q", layer), Address("head_out", layer)
    base = engine.run(model, x, [z], logits=None).values[z]
    n = base.shape[1]
    if n < 2:
        return 0.0
    rows, columns = torch.tensor([0]), torch.tensor([[n - 2]])
    # Turned round, not scaled: a norm on queries would undo a scale.
    turn = Edit(q, lambda old: old.flip(-1) * 2 + 1, columns=columns, rows=rows)
    change = (engine.run(model, x, [z], [turn], logits=None).values[z] - base).abs()[0]
    here = float(change[n - 2].max())
    change[n - 2] = 0
    return float(change.max()) / here if here else float("inf")


def _module(model: Model, path: str, layer: int) -> Any:
    return model.module.get_submodule(path.replace("{}", str(layer)))


def _stream(model: Model, v: Values, i: int) -> torch.Tensor:
    a = model.anatomy
    if not a.stream_norms:
        writes = (v[Address(w, i)] for w in a.writes)
        return reduce(torch.add, writes, v[Address("resid_pre", i)])  # in the order of the model
    x: torch.Tensor = _module(model, a.stream_norms[-1], i)(
        v[Address("resid_mid", i)] + v[Address(a.writes[-1], i)]
    )
    return x


def _mid(model: Model, v: Values, i: int) -> torch.Tensor:
    a = model.anatomy
    x = v[Address("resid_pre", i)]
    for w in a.writes[:-1]:
        x = x + v[Address(w, i)]
    return _module(model, a.stream_norms[0], i)(x) if a.stream_norms else x


def _project(model: Model, v: Values, i: int) -> torch.Tensor:
    a = model.anatomy
    assert a.o_proj is not None
    x: torch.Tensor = _module(model, a.o_proj, i)(v[Address("head_out", i)].flatten(-2))
    return _module(model, a.attn_post, i)(x) if a.attn_post else x


def _project_in(
    model: Model, v: Values, source: str, target: str, i: int
) -> tuple[torch.Tensor, str, int]:
    """What the module that `target` is read from makes of `source`."""
    tap = model.anatomy.taps[target]
    made = tap.view.read(engine.tensor_of(_module(model, tap.path, i)(v[Address(source, i)])))
    return made, target, i


def _activate(model: Model, v: Values, i: int) -> torch.Tensor:
    a = model.anatomy
    assert a.act is not None
    if not a.gated:
        x: torch.Tensor = _module(model, a.act, i)(v[Address("mlp_up", i)])
        return x
    return _module(model, a.act, i)(v[Address("mlp_gate", i)]) * v[Address("mlp_up", i)]


def _error(a: torch.Tensor, b: torch.Tensor) -> float:
    """max |a - b| / max |b|; infinite for different shapes."""
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


# Patching the causes with another prompt's values must give the other prompt's effect.
TRANSPLANTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("embed",), "logits"),
    (("resid_pre",), "logits"),
    (("resid_mid",), "logits"),
    (("resid_post",), "logits"),
    (("final_norm",), "logits"),
    (("attn_in",), "attn_out"),
    (("q", "k", "v"), "head_out"),
    (("attn_pattern", "v"), "head_out"),
    (("head_out",), "attn_out"),
    (("mlp_in",), "mlp_out"),
    (("mlp_gate", "mlp_up"), "neurons"),
    (("neurons",), "mlp_out"),
    (("mixer_in",), "mixer_out"),
)


def audit(model: Model, layer: int | None = None) -> dict[str, float]:
    """All identities, patching each site with itself, and the transplants, at one layer.

    Returns relative errors by name; each should be rounding (0.0 for self-patches in float32).
    Raises BadInput for a model whose kind of input is unknown.
    """
    a = model.anatomy
    layer = a.n_layers // 2 if layer is None else layer
    x, y = sample(model, 0), sample(model, 1)
    if x is None or y is None:
        raise BadInput(f"{model.name}: no sample input is known for this kind of model")
    errors = measure(model, x)
    here = {
        s: Address(s, None if s in ("embed", "final_norm") else layer) for s in a.taps
        if s != "logits"
    }  # fmt: skip
    for s, at in here.items():
        base = engine.run(model, x, [at], logits="all")
        again = engine.run(model, x, [at], [Edit(at, base.values[at])], logits="all")
        same = [_error(again.values[at], base.values[at])]
        if base.logits is not None and again.logits is not None:
            same.append(_error(again.logits, base.logits))
        errors[f"self:{s}"] = max(same)
    theirs = engine.run(model, y, here.values(), logits="all")
    for causes, effect in TRANSPLANTS:
        if effect == "logits" and "cross_out" in here:
            continue  # a decoder's stream does not carry what it reads from the encoder
        present = [c for c in causes if c in here]
        needed = [c for c in causes if c in here or c != "mlp_gate"]
        if not present or present != needed or (effect != "logits" and effect not in here):
            continue
        edits = [Edit(here[c], theirs.values[here[c]]) for c in present]
        reads = [] if effect == "logits" else [here[effect]]
        moved = engine.run(model, x, reads, edits, logits="all")
        got = moved.logits if effect == "logits" else moved.values[here[effect]]
        want = theirs.logits if effect == "logits" else theirs.values[here[effect]]
        if got is not None and want is not None:
            errors[f"{'+'.join(present)}->{effect}"] = _error(got, want)
    return errors
