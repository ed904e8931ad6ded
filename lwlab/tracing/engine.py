"""The one place where models are traced: reads and edits go in as data, tensors come out.

Users name sites; `run` sorts reads and edits into the order of the forward pass, makes one nnsight
trace under the module's lock, and hands back raw tensors. Labels are put on by the callers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lwlab.errors import NoFiring
from lwlab.models.anatomy import Anatomy
from lwlab.models.model import Model, Prompts
from lwlab.models.sites import SITES, Address
from lwlab.models.tokens import Tokens
from lwlab.models.views import View
from lwlab.tracing._nnsight import envoy, lock, nnsight
from lwlab.tracing.edits import Edit
from lwlab.tracing.pattern import exposed

_ORDER = {site: i for i, site in enumerate(SITES)}


@dataclass
class Batch:
    """Keyword inputs of one forward, and the tokens behind them where there are any."""

    inputs: dict[str, Any]
    tokens: Tokens | None
    args: tuple[Any, ...] = ()


@dataclass
class Trace:
    """What one run gave: `values[address]`, [prompts, positions, ...] by batch column, and logits."""

    values: dict[Address, torch.Tensor]
    logits: torch.Tensor | None
    batch: Batch
    edits: Sequence[Edit] = ()


@dataclass
class _Event:
    """One end of one module, and all that happens there: edits first, then reads."""

    path: str
    end: str
    shared: bool
    edits: list[tuple[View, Edit]] = field(default_factory=list)
    reads: list[tuple[View, Address]] = field(default_factory=list)


def batch(model: Model, prompts: Prompts) -> Batch:
    """Turn prompts (text, ids, Tokens, or a mapping of tensors) into forward inputs."""
    if isinstance(prompts, Mapping):
        return Batch({k: v.to(model.device) for k, v in prompts.items()}, None)
    if model.kind == "vision" and isinstance(prompts, torch.Tensor):
        name = "pixel_values" if "pixel_values" in model.forward_names else None
        x = prompts.to(model.device, model.dtype)
        return Batch({name: x}, None) if name else Batch({}, None, (x,))
    if model.kind == "generic" and isinstance(prompts, torch.Tensor) and model.tokenizer is None:
        return Batch({}, None, (prompts.to(model.device),))
    tokens = model.tokens(prompts)
    takes = model.forward_names
    inputs: dict[str, Any] = {"input_ids": tokens.ids}
    if "attention_mask" in takes:
        inputs["attention_mask"] = tokens.mask
    if "position_ids" in takes and not bool((tokens.offsets == 0).all()):
        inputs["position_ids"] = tokens.position_ids
    if "decoder_input_ids" in takes:
        config: Any = model.module.config
        start = getattr(config, "decoder_start_token_id", None) or config.pad_token_id or 0
        inputs["decoder_input_ids"] = torch.full_like(tokens.ids[:, :1], start)
    if "use_cache" in takes:
        inputs["use_cache"] = False
    return Batch(inputs, tokens)


def run(
    model: Model,
    prompts: Prompts | Batch,
    reads: Iterable[Address] = (),
    edits: Sequence[Edit] = (),
    *,
    grad: bool = False,
    logits: str | None = "last",
) -> Trace:
    """One forward pass with reads and edits.

    `logits`: "last" (each prompt's last own token, [prompts, tokens]), "all", or None, in which
    case the pass stops after the last site that is needed. Reads see the edited values. Gradients
    are off unless `grad`. Raises NoFiring when an edit never ran.
    """
    data = prompts if isinstance(prompts, Batch) else batch(model, prompts)
    reads = list(dict.fromkeys(reads))
    if logits is not None and "logits" not in model.anatomy.taps:
        logits = None
    events = plan(model, reads, edits)
    keep = keep_last(model, data, logits)
    inputs = {**data.inputs, **keep}
    wants_pattern = any(a.site == "attn_pattern" for a in [*reads, *(e.at for e in edits)])
    shape = tuple(data.tokens.ids.shape) if data.tokens is not None else None
    with lock(model), exposed(model.module, wants_pattern), torch.set_grad_enabled(grad):
        out = _trace(model.nn, data.args, inputs, events, logits is not None, grad, shape)  # type: ignore[arg-type]
    for edit in edits:
        if edit.fired == 0:
            raise NoFiring(
                f"the edit of {edit.at} never ran, so the result would be the unedited model's"
            )
        edit.finish()
    z = out.pop("logits", None)
    if logits == "last" and z is not None and z.ndim == 3:
        z = last(z, data.tokens, keep.get("logits_to_keep"))
    return Trace(out, z, data, edits)


def _trace(
    nn_: Any,
    args: tuple[Any, ...],
    inputs: dict[str, Any],
    events: list[_Event],
    want_logits: bool,
    grad: bool,
    shape: tuple[int, int] | None,
) -> dict[Any, Any]:
    save = nnsight().save
    with nn_.trace(*args, **inputs) as tracer:
        out: dict[Any, Any] = save({})
        out.update(visit(nn_, events, grad, shape))
        if want_logits:
            out["logits"] = tensor_of(nn_.output)
        elif events:
            tracer.stop()
    return out


def visit(
    nn_: Any, events: list[_Event], grad: bool = False, shape: tuple[int, int] | None = None
) -> dict[Address, torch.Tensor]:
    """Make the edits and reads of `events` inside a running trace; return what was read."""
    out: dict[Address, torch.Tensor] = {}
    for event in events:
        here = envoy(nn_, event.path)
        raw = here.input if event.end == "input" else here.output
        tensor = tensor_of(raw)
        # OPT hands its MLP [prompts * positions, features]: unfold, so that sites look alike.
        folded = tensor.ndim == 2 and shape is not None and len(tensor) == shape[0] * shape[1]
        site = tensor.unflatten(0, shape) if folded and shape else tensor
        if event.edits:
            for view, edit in event.edits:
                site = view.write(site, edit(view.read(site)))
            new = site.flatten(0, 1) if folded else site
            if event.shared:
                tensor.copy_(new)
                site = tensor.unflatten(0, shape) if folded and shape else tensor
            elif event.end == "input":
                here.input = new
            else:
                here.output = (new, *raw[1:]) if isinstance(raw, tuple) else new
        if grad and not site.requires_grad:
            site.requires_grad_(True)
        for view, address in event.reads:
            out[address] = view.read(site)
    return out


def plan(model: Model, reads: Sequence[Address], edits: Sequence[Edit]) -> list[_Event]:
    """Group reads and edits by module end, in the order in which the forward pass meets them."""
    anatomy = model.anatomy
    events: dict[tuple[str, str], _Event] = {}
    jobs = sorted(
        [(a, None) for a in reads if a.site != "logits"] + [(e.at, e) for e in edits],
        key=lambda job: order_key(anatomy, job[0]),
    )
    for address, edit in jobs:
        tap = anatomy.taps[address.site]
        path = tap.at(address.layer)
        event = events.setdefault((path, tap.end), _Event(path, tap.end, tap.shared))
        event.shared |= tap.shared
        if edit is None:
            event.reads.append((tap.view, address))
        else:
            event.edits.append((tap.view, edit))
    return list(events.values())


def order_key(anatomy: Anatomy, address: Address) -> tuple[int, int, int]:
    """Sort key that puts addresses in the order of the forward pass."""
    site = address.site
    phase = 0 if site == "embed" else 2 if site in ("final_norm", "logits") else 1
    return phase, address.layer or 0, _ORDER[site]


def keep_last(model: Model, data: Batch, logits: str | None = "last") -> dict[str, Any]:
    """Ask the model for the logits of last tokens alone, where it can do that."""
    if "logits_to_keep" not in model.forward_names or logits == "all" or data.tokens is None:
        return {}
    last = data.tokens.columns(-1).unique()
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
