"""An anatomy is accepted when its identities hold on the live model, and refused when not.

A tensor of the right shape from the wrong place passes every shape check; it does not pass these.
`accept` runs the cheap ones at load (two short forwards); `audit` adds the causal ones (transplants),
which the tests run on every architecture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from lwlab.errors import BadInput
from lwlab.models.model import Model, Prompts
from lwlab.models.sites import Address
from lwlab.tracing import engine
from lwlab.tracing._nnsight import lock
from lwlab.tracing.edits import Edit

TOLERANCE = 1e-4
Values = dict[Address, torch.Tensor]


def sample(model: Model, seed: int = 0, tokens: int = 6) -> Prompts | None:
    """A small input for this model, or None when its kind of input is unknown."""
    g = torch.Generator().manual_seed(seed)
    config: Any = getattr(model.module, "config", None)
    if model.anatomy.d_vocab and model.kind in ("decoder", "encoder", "encoder-decoder"):
        high = min(model.anatomy.d_vocab, 40)
        low = min(10, high // 2)
        return torch.randint(low, high, (1, tokens), generator=g)
    size = getattr(config, "image_size", None) or getattr(model.module, "image_size", None)
    if model.kind == "vision" and size:
        channels = getattr(config, "num_channels", 3)
        return torch.randn(1, channels, size, size, generator=g)
    return None


def accept(model: Model) -> Model:
    """Return the model with its measured `checks`, or raise BadInput naming the identity that fails.

    For an anatomy found by structure, sublayer sites that fail are dropped with the reason.
    """
    x = sample(model)
    if x is None:
        return model
    exact = logits_equal(model, x)
    errors = {} if exact is None else {"logits": exact}
    if exact:
        raise BadInput(
            f"{model.name}: logits through the trace differ from the plain model's by {exact:.2g}; "
            "was its forward replaced after wrapping? Load a fresh model."
        )
    errors |= measure(model, x)
    wrong = {k: e for k, e in errors.items() if not e <= TOLERANCE * _slack(model)}
    if (
        wrong
        and "writes" in wrong
        and model.anatomy.refuses_rules == "rules need a known architecture"
    ):
        return accept(replace(model, anatomy=_drop_writes(model, wrong["writes"])))
    if wrong:
        what = ", ".join(f"{k} (relative error {e:.2g})" for k, e in wrong.items())
        raise BadInput(
            f"{model.name}: the anatomy {model.anatomy.name!r} does not fit this model: {what}. "
            "Pass anatomy=lw.Anatomy(...) with the right modules, or check=False to go on regardless."
        )
    return replace(model, checks=errors)


def _slack(model: Model) -> float:
    """Half-precision weights round each sum; allow for it."""
    return 1.0 if model.dtype in (torch.float32, torch.float64) else 300.0


def _drop_writes(model: Model, error: float) -> Any:
    why = f"found by structure, but the stream identity fails (relative error {error:.2g})"
    a = model.anatomy
    for site in ("attn_in", "attn_out", "mlp_in", "mlp_out"):
        if site in a.taps:
            a = a.without(site, why)
    return replace(a, writes=())


def logits_equal(model: Model, x: Prompts) -> float | None:
    """Largest difference between plain and traced logits; 0.0 is what it must be."""
    if "logits" not in model.anatomy.taps:
        return None
    data = engine.batch(model, x)
    with lock(model), torch.no_grad():
        plain = engine.tensor_of(model.module(*data.args, **data.inputs))
    traced = engine.run(model, data, logits="all").logits
    assert traced is not None
    return float((plain - traced).abs().max())


def measure(model: Model, x: Prompts) -> dict[str, float]:
    """Relative error of each identity that the anatomy states (see Anatomy)."""
    a = model.anatomy
    wanted = [
        s for s in ("resid_pre", "resid_mid", "resid_post", "head_out", *a.writes) if s in a.taps
    ]
    reads = [Address(s, i) for s in wanted for i in range(a.n_layers)]
    reads += [Address("final_norm")] if "final_norm" in a.taps else []
    out = engine.run(model, x, reads, logits="all")
    v, errors = out.values, {}

    def each(
        f: Callable[[int], tuple[torch.Tensor, torch.Tensor]], layers: int = a.n_layers
    ) -> float:
        return max(_error(*f(i)) for i in range(layers))

    with lock(model), torch.no_grad():
        if a.n_layers > 1:
            errors["chain"] = each(
                lambda i: (v[Address("resid_post", i)], v[Address("resid_pre", i + 1)]),
                a.n_layers - 1,
            )
        if a.writes:
            errors["writes"] = each(lambda i: (_stream(model, v, i), v[Address("resid_post", i)]))
        if "resid_mid" in a.taps:
            errors["resid_mid"] = each(lambda i: (_mid(model, v, i), v[Address("resid_mid", i)]))
        if "head_out" in a.taps and a.o_proj and "attn_out" in a.taps:
            errors["heads"] = each(lambda i: (_project(model, v, i), v[Address("attn_out", i)]))
        if a.unembed and a.kind != "generic" and out.logits is not None:
            last = v.get(Address("final_norm"), v[Address("resid_post", a.n_layers - 1)])
            if a.kind == "vision":
                last = last[:, 0]
            errors["unembed"] = _error(model.unembed(last, norm=False), out.logits)
    return errors


def _module(model: Model, path: str, layer: int) -> Any:
    return model.module.get_submodule(path.replace("{}", str(layer)))


def _stream(model: Model, v: Values, i: int) -> torch.Tensor:
    a = model.anatomy
    if not a.stream_norms:
        return v[Address("resid_pre", i)] + sum(v[Address(w, i)] for w in a.writes)
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


def _error(a: torch.Tensor, b: torch.Tensor) -> float:
    """max |a - b| / max |b|; infinite for different shapes."""
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


# Patching the causes with another prompt's values must give the other prompt's effect.
TRANSPLANTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("resid_pre",), "logits"),
    (("resid_mid",), "logits"),
    (("resid_post",), "logits"),
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
    """
    a = model.anatomy
    layer = a.n_layers // 2 if layer is None else layer
    x, y = sample(model, 0), sample(model, 1)
    if x is None or y is None:
        raise BadInput(f"{model.name}: no sample input is known for this kind of model")
    errors = {**measure(model, x), "logits": logits_equal(model, x) or 0.0}
    sites = [s for s in a.taps if s not in ("logits",)]
    here = {s: Address(s, None if s in ("embed", "final_norm") else layer) for s in sites}
    mine, theirs = (engine.run(model, p, here.values(), logits="all") for p in (x, y))
    for s, at in here.items():
        base = engine.run(model, x, [at], logits="all").logits
        again = engine.run(model, x, [], [Edit(at, mine.values[at])], logits="all").logits
        if base is not None and again is not None:
            errors[f"self:{s}"] = _error(again, base)
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
