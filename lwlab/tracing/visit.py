"""What happens inside a trace: edits and reads at the ends of modules, in the pass's order."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch

from lwlab.errors import BadInput
from lwlab.models.sites import Address
from lwlab.models.tokens import Tokens
from lwlab.models.views import View, Whole
from lwlab.tracing._nnsight import envoy
from lwlab.tracing.edits import Edit


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
class Event:
    """One end of one module, and all that happens there: edits first, then reads.

    `shared`: its tensor is also the block's residual, and is edited in place.
    """

    path: str
    end: str
    shared: bool
    edits: list[tuple[View, Edit]] = field(default_factory=list)
    reads: list[tuple[View, Address]] = field(default_factory=list)


def visit(nn_: Any, events: list[Event], how: Reading) -> dict[Address, torch.Tensor]:
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


def _put(here: Any, event: Event, raw: Any, tensor: torch.Tensor, new: torch.Tensor) -> None:
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
