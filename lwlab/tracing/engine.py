"""The one place where models are traced: reads and edits go in as data, tensors come out.

Users name sites; `run` sorts reads and edits into the order of the forward pass, makes one nnsight
trace under the module's lock, and hands back raw tensors. Labels are put on by the callers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from lwlab.errors import BadInput, NoFiring
from lwlab.models.model import Model, Prompts
from lwlab.models.sites import Address
from lwlab.tracing._nnsight import lock, nnsight
from lwlab.tracing.batch import Batch, batch
from lwlab.tracing.edits import Edit
from lwlab.tracing.order import rank
from lwlab.tracing.pattern import exposed
from lwlab.tracing.remote import credit, name, sending, trace_whole
from lwlab.tracing.visit import Event, Reading, last, tensor_of, too_large, visit

__all__ = [
    "Batch", "Event", "Reading", "Trace", "batch", "keep_last", "last", "plan", "run", "tensor_of",
    "too_large", "visit",
]  # fmt: skip

# Modules that were seen to write into their activations: reads are copied there.
_RESTLESS: WeakSet[nn.Module] = WeakSet()
_EDITS = Edit.__call__.__code__.co_filename


@dataclass
class Trace:
    """What one run gave: `values[address]`, [prompts, columns, ...] of the batch, and logits.

    `slopes` and `scores` are filled where a metric was given to `run`.
    """

    values: dict[Address, torch.Tensor]
    logits: torch.Tensor | None
    batch: Batch
    edits: Sequence[Edit] = ()
    slopes: dict[Address, torch.Tensor | None] = field(default_factory=dict)
    scores: torch.Tensor | None = None


def run(
    model: Model,
    prompts: Prompts | Batch,
    reads: Iterable[Address] = (),
    edits: Sequence[Edit] = (),
    *,
    grad: bool = False,
    logits: str | None = "last",
    max_bytes: float = float("inf"),
    metric: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Trace:
    """One forward pass with reads and edits.

    `logits`: "last" (each prompt's last own token, [prompts, tokens]), "all", or None, in which
    case the pass stops after the last site that is needed. Reads see the edited values. Gradients
    are off unless `grad`; with it, what was read lies on the path to the logits, so that
    `torch.autograd.grad` works on heads and columns too. With a `metric` of the last logits, its
    gradient at each read is taken in the run itself (a remote run brings no graph back).
    Raises NoFiring when an edit never ran,
    BadInput as soon as the reads exceed `max_bytes`, and whatever a user's edit function raised.
    """
    if grad and torch.is_inference_mode_enabled():
        raise BadInput("gradients need autograd: leave torch.inference_mode() first")
    data = prompts if isinstance(prompts, Batch) else batch(model, prompts)
    reads = list(dict.fromkeys(reads))
    if logits is not None and "logits" not in model.anatomy.taps:
        logits = None
    events = plan(model, reads, edits)
    keep = keep_last(model, data, logits)
    wants_pattern = any(a.site == "attn_pattern" for a in [*reads, *(e.at for e in edits)])
    rows, columns = data.tokens.ids.shape if data.tokens is not None else (0, 0)

    def attempt(clone: bool, where: dict[str, Any]) -> tuple[dict[Any, Any], Reading]:
        how = Reading(grad, (rows, columns), clone, max_bytes)
        args, inputs = data.fresh()
        work = (model.nn, args, {**inputs, **keep}, events, logits is not None, how)
        if where or metric is not None:
            rest = (metric, data.tokens, keep.get("logits_to_keep"), edits, where)
            return guarded(edits, trace_whole, *work, *rest), how
        return guarded(edits, _trace, *work), how

    with (
        lock(model.module), exposed(model.module, wants_pattern), torch.set_grad_enabled(grad),
        sending(model) as where,
    ):  # fmt: skip
        out, how = attempt(bool(where) or model.module in _RESTLESS, where)
        if not where and how.overwritten(out):
            _RESTLESS.add(model.module)
            out, _ = attempt(True, where)
        slopes, measured = {}, None
        if "edits" in out:
            credit(edits, out["edits"])
            measured = out.get("metric")
            slopes = {a: out.get(f"d {name(a)}") for a in reads} if metric is not None else {}
            named = {a: out[name(a)] for a in reads}
            out = {**named, "logits": out["logits"]} if "logits" in out else dict(named)
        z = out.pop("logits", None)
        if logits == "last" and z is not None and z.ndim == 3:
            z = last(z, data.tokens, keep.get("logits_to_keep"))
    fired(edits)
    return Trace(out, z, data, edits, slopes, measured)


def guarded(edits: Sequence[Edit], function: Callable[..., Any], *args: Any) -> Any:
    """Call `function`; let an error of an edit come out as it was raised, without our frames."""
    for edit in edits:
        edit.fired, edit.error = 0, None
    try:
        return function(*args)
    except Exception as failure:
        error = next((e.error for e in edits if e.error is not None), None)
        if error is None and type(failure).__name__ == "OutOfOrderError":
            raise BadInput(
                f"a module that this needs did not run, or not where the anatomy says: {failure}"
            ) from None
        if error is None:
            raise
    inner = error.__traceback__
    while inner is not None and inner.tb_frame.f_code.co_filename != _EDITS:
        inner = inner.tb_next
    raise error.with_traceback(inner)


def fired(edits: Sequence[Edit]) -> None:
    """Close the accounts of edits that ran; raise NoFiring for one that did not."""
    for edit in edits:
        if edit.fired == 0:
            raise NoFiring(
                f"the edit of {edit.at} never ran, so the result would be the unedited model's"
            )
        edit.finish()


def _trace(
    nn_: Any,
    args: tuple[Any, ...],
    inputs: dict[str, Any],
    events: list[Event],
    want_logits: bool,
    how: Reading,
) -> dict[Any, Any]:
    save = nnsight().save
    with nn_.trace(*args, **inputs) as tracer:
        out: dict[Any, Any] = save({})
        out.update(visit(nn_, events, how))
        if want_logits:
            out["logits"] = tensor_of(nn_.output)
        elif events:
            tracer.stop()
    return out


def plan(model: Model, reads: Sequence[Address], edits: Sequence[Edit]) -> list[Event]:
    """Group reads and edits by module end, in the order in which the forward pass meets them."""
    events: dict[tuple[str, str, bool], Event] = {}
    jobs = sorted(
        [(a, None) for a in reads if a.site != "logits"] + [(e.at, e) for e in edits],
        key=lambda job: rank(model, job[0]),
    )
    for address, edit in jobs:
        tap = model.anatomy.taps[address.site]
        path = tap.at(address.layer)
        here = (path, tap.end, tap.shared)
        event = events.setdefault(here, Event(*here))
        if edit is None:
            event.reads.append((tap.view, address))
        else:
            event.edits.append((tap.view, edit))
    return list(events.values())


def keep_last(model: Model, data: Batch, logits: str | None = "last") -> dict[str, Any]:
    """Ask the model for the logits of last tokens alone, where it can do that."""
    if "logits_to_keep" not in model.forward_names or logits == "all" or data.tokens is None:
        return {}
    last = data.tokens.columns(-1).unique()  # type: ignore[no-untyped-call]
    width = data.tokens.ids.shape[1]
    return {"logits_to_keep": 1 if last.tolist() == [width - 1] else last}
