"""The one place where models are traced: reads and edits go in as data, tensors come out.

Users name sites; `run` sorts reads and edits into the order of the forward pass, makes one nnsight
trace under the module's lock, and hands back raw tensors. Labels are put on by the callers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from lwlab.errors import BadInput, NoFiring
from lwlab.models.model import Model, Prompts
from lwlab.models.sites import Address
from lwlab.models.tokens import Tokens
from lwlab.models.views import View, Whole
from lwlab.tracing._nnsight import envoy, lock, nnsight
from lwlab.tracing.batch import Batch, batch
from lwlab.tracing.edits import Edit
from lwlab.tracing.order import rank
from lwlab.tracing.pattern import exposed

__all__ = ["Batch", "Reading", "Trace", "batch", "keep_last", "last", "plan", "run", "tensor_of"]

# Modules that were seen to write into their activations: reads are copied there.
_RESTLESS: WeakSet[nn.Module] = WeakSet()
_EDITS = Edit.__call__.__code__.co_filename


@dataclass
class Trace:
    """What one run gave: `values[address]`, [prompts, columns, ...] of the batch, and logits."""

    values: dict[Address, torch.Tensor]
    logits: torch.Tensor | None
    batch: Batch
    edits: Sequence[Edit] = ()


@dataclass
class Reading:
    """How a trace reads: with gradients, [prompts, columns] of the batch, as copies, how much.

    `versions` notes how often each tensor had been written to when it was read.
    """

    grad: bool = False
    shape: tuple[int, int] = (0, 0)
    clone: bool = False
    max_bytes: float = float("inf")
    versions: dict[Address, int] = field(default_factory=dict)

    def overwritten(self, values: Mapping[Any, torch.Tensor]) -> bool:
        """Whether the model wrote into a tensor after it was read (OLMo clamps its queries so)."""
        return any(version(values[a]) != n for a, n in self.versions.items())


@dataclass
class _Event:
    """One end of one module, and all that happens there: edits first, then reads.

    `shared`: its tensor is also the block's residual, and is edited in place.
    """

    path: str
    end: str
    shared: bool
    edits: list[tuple[View, Edit]] = field(default_factory=list)
    reads: list[tuple[View, Address]] = field(default_factory=list)


def run(
    model: Model,
    prompts: Prompts | Batch,
    reads: Iterable[Address] = (),
    edits: Sequence[Edit] = (),
    *,
    grad: bool = False,
    logits: str | None = "last",
    max_bytes: float = float("inf"),
) -> Trace:
    """One forward pass with reads and edits.

    `logits`: "last" (each prompt's last own token, [prompts, tokens]), "all", or None, in which
    case the pass stops after the last site that is needed. Reads see the edited values. Gradients
    are off unless `grad`; with it, what was read lies on the path to the logits, so that
    `torch.autograd.grad` works on heads and columns too. Raises NoFiring when an edit never ran,
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

    def attempt(clone: bool) -> tuple[dict[Any, torch.Tensor], Reading]:
        how = Reading(grad, (rows, columns), clone, max_bytes)
        args, inputs = data.fresh()
        work = (model.nn, args, {**inputs, **keep}, events, logits is not None, how)
        return guarded(edits, _trace, *work), how

    with lock(model), exposed(model.module, wants_pattern), torch.set_grad_enabled(grad):
        out, how = attempt(model.module in _RESTLESS)
        if how.overwritten(out):
            _RESTLESS.add(model.module)
            out, _ = attempt(True)
        z = out.pop("logits", None)
        if logits == "last" and z is not None and z.ndim == 3:
            z = last(z, data.tokens, keep.get("logits_to_keep"))
    fired(edits)
    return Trace(out, z, data, edits)


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
    events: list[_Event],
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


def visit(nn_: Any, events: list[_Event], how: Reading) -> dict[Address, torch.Tensor]:
    """Make the edits and reads of `events` inside a running trace; return what was read."""
    out: dict[Address, torch.Tensor] = {}
    kept = 0
    for event in events:
        here = envoy(nn_, event.path)
        raw = here.input if event.end == "input" else here.output
        tensor = tensor_of(raw)
        # OPT hands its MLP [prompts * positions, features]: unfold, so that sites look alike.
        folded = tensor.ndim == 2 and len(tensor) == how.shape[0] * how.shape[1]
        site = tensor.view(*how.shape, -1) if folded else tensor
        if how.grad and event.shared and (event.edits or folded):
            site = site.clone()  # what is written back in place below must not be its own source
        changed = bool(event.edits)
        if how.grad and event.end == "input" and not event.shared:
            # Others may read the same tensor (Phi's MLP reads what its attention reads): an edit
            # here would not reach them, so the gradient must not come from them.
            site, changed = site.view_as(site), True
        for view, edit in event.edits:
            site = view.write(site, edit(view.read(site)))
        for view, address in event.reads:
            part = view.read(site)
            if how.grad and not part.requires_grad:
                part.requires_grad_(True)
            if how.grad and (folded or how.clone or not isinstance(view, Whole)):
                # A view is a dead end for autograd: put it back, so that the model goes through it.
                new = view.write(site, part)
                site, changed = (new.clone() if new is part else new), True
            elif how.clone:
                part = part.clone()
            out[address], how.versions[address] = part, version(part)
            kept += part.nbytes
            if kept > how.max_bytes:
                raise too_large(kept, how.max_bytes)
        if changed:
            _put(here, event, raw, tensor, site.flatten(0, 1) if folded else site)
    return out


def version(t: torch.Tensor) -> int:
    """How often `t` was written to; 0 where torch does not count."""
    return 0 if t.is_inference() else int(t._version)


def _put(here: Any, event: _Event, raw: Any, tensor: torch.Tensor, new: torch.Tensor) -> None:
    if event.shared:
        tensor.copy_(new)
    elif event.end == "input":
        here.input = new
    elif isinstance(raw, tuple | list):
        here.output = (new, *raw[1:]) if isinstance(raw, tuple) else [new, *raw[1:]]
    elif isinstance(raw, Mapping):
        out: Any = copy(raw)
        out[next(iter(raw))] = new
        here.output = out
    else:
        here.output = new


def too_large(size: float, limit: float) -> BadInput:
    """The error for activations that would not fit."""
    return BadInput(
        f"these sites take {size / 1e9:.3g} GB or more and max_bytes is {limit / 1e9:.3g} GB; name "
        "fewer sites, layers or prompts, or raise max_bytes"
    )


def plan(model: Model, reads: Sequence[Address], edits: Sequence[Edit]) -> list[_Event]:
    """Group reads and edits by module end, in the order in which the forward pass meets them."""
    events: dict[tuple[str, str, bool], _Event] = {}
    jobs = sorted(
        [(a, None) for a in reads if a.site != "logits"] + [(e.at, e) for e in edits],
        key=lambda job: rank(model, job[0]),
    )
    for address, edit in jobs:
        tap = model.anatomy.taps[address.site]
        path = tap.at(address.layer)
        here = (path, tap.end, tap.shared)
        event = events.setdefault(here, _Event(*here))
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


def last(z: torch.Tensor, tokens: Tokens | None, keep: Any = None) -> torch.Tensor:
    """[prompts, kept columns, tokens] -> [prompts, tokens] at each prompt's last own token."""
    if tokens is None or z.shape[1] == 1:
        return z[:, -1]
    columns = tokens.columns(-1)
    if isinstance(keep, torch.Tensor):
        columns = torch.searchsorted(keep, columns)
    return z[torch.arange(len(z), device=z.device), columns.to(z.device)]


def tensor_of(value: Any) -> torch.Tensor:
    """The activation in a module's input or output, whatever it is wrapped in."""
    while not isinstance(value, torch.Tensor):
        if hasattr(value, "logits"):
            value = value.logits
        elif isinstance(value, tuple | list):
            value = value[0]
        else:
            value = next(iter(value.values()))
    return value
