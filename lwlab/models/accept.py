"""Whether a model and its anatomy belong together: decided when it is loaded, by measuring."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from lwlab.errors import BadInput, LwlabError
from lwlab.models.anatomy import Anatomy
from lwlab.models.identities import measure
from lwlab.models.model import Model, Prompts
from lwlab.models.sample import sample
from lwlab.models.sites import Address
from lwlab.tracing import engine
from lwlab.tracing.edits import Edit
from lwlab.tracing.order import module_order

TOLERANCE = 1e-4
_ADVICE = "Pass anatomy=lw.Anatomy(...) with the right modules, or check=False to go on regardless."
_UNCHECKED = "found by structure, and unchecked: pass example= (a short input) to lw.wrap"


def accept(model: Model) -> Model:
    """Return the model with its measured `checks`, or raise BadInput naming what fails.

    What was found by structure and fails (sublayers, the unembedding) is dropped with the reason.
    """
    x = sample(model)
    if x is None:
        return _without(model, "writes", _UNCHECKED) if model.anatomy.guessed else model
    if model.anatomy.guessed:
        model = _running(model)
    try:
        errors = measure(model, x)
    except LwlabError:
        raise
    except Exception as error:
        if model.anatomy.guessed and model.anatomy.writes:
            return accept(_without(model, "writes", f"found by structure, but {_told(error)}"))
        raise BadInput(f"{_unfit(model)} {_told(error)}. {_ADVICE}") from error
    if math.isnan(errors.get("logits", 0.0)):
        raise BadInput(f"{model.name}: its logits are NaN on a short prompt in {model.dtype}")
    wrong = {k: e for k, e in errors.items() if not e <= TOLERANCE * _slack(model, k)}
    if model.anatomy.guessed:
        for part in ("writes", "final_norm", "unembed"):
            if part in wrong:
                why = f"found by structure, but its identity fails (error {wrong[part]:.2g})"
                return accept(_without(model, part, why))
    if wrong == {"kernel": wrong.get("kernel")}:
        why = f"explicit attention gives other logits here (relative error {wrong['kernel']:.2g})"
        return accept(replace(model, anatomy=model.anatomy.without("attn_pattern", why)))
    if wrong:
        what = ", ".join(f"{k} (relative error {e:.2g})" for k, e in wrong.items())
        raise BadInput(f"{_unfit(model)} {what}. {_ADVICE}")
    if model.anatomy.guessed and len(model.anatomy.writes) == 2:
        model = replace(model, anatomy=replace(model.anatomy, parallel=_parallel(model, x)))
    return replace(model, checks=errors)


def _unfit(model: Model) -> str:
    return f"{model.name}: the anatomy {model.anatomy.name!r} does not fit this model:"


def _told(error: Exception) -> str:
    """One line of an error that came out of the forward pass."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:200]


def _slack(model: Model, check: str) -> float:
    """Half-precision weights round each sum, and kernels round in their own ways; allow for it."""
    if check == "logits" and model.device.type == "cpu":
        return 0.0  # elsewhere some kernels do not repeat themselves bit for bit
    if model.dtype in (torch.float32, torch.float64):
        return 1.0
    return 2000.0 if check == "kernel" else 300.0


def _running(model: Model) -> Model:
    """Drop guessed sites whose modules do not take part in the forward pass."""
    order, a = module_order(model), model.anatomy
    for site, tap in model.anatomy.taps.items():
        if any((tap.at(i), tap.end) not in order for i in range(a.n_layers)):
            a = a.without(site, "found by structure, but its module does not run")
            a = replace(a, writes=tuple(w for w in a.writes if w != site))
    if not {"resid_pre", "resid_post"} <= a.taps.keys():
        raise BadInput(f"{model.name}: the blocks {a.blocks!r}, found by structure, do not run")
    writes = sorted(a.writes, key=lambda w: order[a.taps[w].at(0), a.taps[w].end])
    return replace(model, anatomy=replace(a, writes=tuple(writes)))


def _parallel(model: Model, x: Prompts) -> bool:
    """Whether the second sublayer reads nothing of what the first one writes."""
    first, second = model.anatomy.writes
    at, reads = Address(first, 0), Address(second.replace("_out", "_in"), 0)
    edits: list[list[Edit]] = [[], [Edit(at, 0.0)]]
    one, two = (engine.run(model, x, [reads], e, logits=None).values[reads] for e in edits)
    return torch.equal(one, two)


def _without(model: Model, part: str, why: str) -> Model:
    """Drop a guess from an anatomy found by structure."""
    a: Anatomy = model.anatomy
    if part == "unembed":
        return replace(model, anatomy=replace(a, unembed=None))
    if part == "final_norm":
        a = a.without("final_norm", why)
        return replace(model, anatomy=replace(a, unembed=None, final_norm=None))
    for site in ("attn_in", "attn_out", "mixer_in", "mixer_out", "mlp_in", "mlp_out"):
        if site in a.taps:
            a = a.without(site, why)
    return replace(model, anatomy=replace(a, writes=()))
