"""Traces that run elsewhere: what is sent, what comes back, what an error says.

A remote trace is shipped as source, with whatever it refers to. The server need not have lwlab: its
functions travel by value. So does everything an edit function refers to, and what it changes on the
way stays there; what must come back is put into the trace's result, under plain names.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lwlab.errors import BadInput, RunError
from lwlab.models.sites import Address
from lwlab.tracing._nnsight import nnsight
from lwlab.tracing.edits import Edit
from lwlab.tracing.visit import Event, Reading, last, tensor_of, visit

if TYPE_CHECKING:
    from lwlab.models.model import Model
    from lwlab.models.tokens import Tokens

_SENDING = threading.RLock()
Remote = bool | str
Metric = Callable[[torch.Tensor], torch.Tensor]


def check(remote: Any) -> None:
    """Raise BadInput unless `remote` is False, True, "local" or the address of a server."""
    if isinstance(remote, bool) or remote == "local":
        return
    if isinstance(remote, str) and remote.startswith(("http://", "https://")):
        return
    raise BadInput(
        f"remote={remote!r}: give True (the NDIF server that nnsight is set up for), the address "
        "of a server ('http://127.0.0.1:8001'), or 'local' (pack as for a server, run here)"
    )


@contextlib.contextmanager
def sending(model: Model) -> Iterator[dict[str, Any]]:
    """Yield the trace's arguments for where `model` runs; say clearly what went wrong there.

    Raises BadInput for something that cannot be packed, RunError for a server that cannot be
    reached or on which the run failed.
    """
    if not model.remote:
        yield {}
        return
    from cloudpickle import register_pickle_by_value, unregister_pickle_by_value

    import lwlab

    nnsight()
    # By value only while sending: Dask packs with cloudpickle too, and its workers have lwlab.
    with _SENDING:
        register_pickle_by_value(lwlab)
        try:
            yield {"remote": model.remote}
        except (BadInput, RunError):
            raise
        except Exception as error:
            raise _told(model, error) from error
        finally:
            unregister_pickle_by_value(lwlab)


def _told(model: Model, error: Exception) -> Exception:
    kind, text = type(error).__name__, str(error).strip().splitlines()
    why = text[-1][:300] if text else kind
    if kind in ("PicklingError", "ModuleNotFoundError") or "pickle" in str(error):
        return BadInput(
            f"{model.name}: this cannot be sent to a server ({kind}: {why}). An edit function may "
            "use torch, numpy, and functions and tensors of its own; not models, results or files"
        )
    if kind == "RemoteError":
        return RunError(f"{model.name}: the run failed on the server: {why}")
    if isinstance(error, OSError) or "onnect" in kind or "HTTP" in kind or "ocket" in kind:
        return RunError(
            f"{model.name}: no answer from remote={model.remote!r} ({kind}: {why}). Is the server "
            "up, and the address right? For NDIF an API key is needed: nnsight.CONFIG.set_default_"
            "api_key('...')"
        )
    return error


def trace_whole(
    nn_: Any,
    args: tuple[Any, ...],
    inputs: dict[str, Any],
    events: list[Event],
    want_logits: bool,
    how: Reading,
    metric: Callable[[torch.Tensor], torch.Tensor] | None,
    tokens: Tokens | None,
    keep: Any,
    edits: Sequence[Edit],
    where: dict[str, Any],
) -> dict[str, Any]:
    """One pass with all that must happen before it ends, under names that can travel.

    Reads `at SITE`, their gradients `d at SITE`, `metric`, `logits`, and `edits` (see `accounts`).
    """
    save = nnsight().save
    with nn_.trace(*args, **inputs, **where) as tracer:
        out: dict[str, Any] = save({})
        found = {name(a): value for a, value in visit(nn_, events, how).items()}
        if want_logits:
            z = tensor_of(nn_.output)
            out["logits"] = z.detach()
            if metric is not None:
                out.update(slopes(metric, last(z, tokens, keep) if z.ndim == 3 else z, found))
        out.update({key: value.detach() for key, value in found.items()})
        out["edits"] = accounts(edits)
        if not want_logits and events:
            tracer.stop()
    return out


def accounts(edits: Sequence[Edit]) -> list[Any]:
    """What the edits noted while they ran: how often, and how far they moved what they edited."""
    return [(e.fired, e.sizes) for e in edits]


def credit(edits: Sequence[Edit], noted: Sequence[Any]) -> None:
    """Put into `edits` what their copies noted on the server."""
    for edit, (fired, sizes) in zip(edits, noted, strict=True):
        edit.fired, edit.sizes = fired, sizes


def slopes(
    metric: Metric, logits: torch.Tensor, values: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor | None]:
    """d metric / d value for each value, and the metric itself as "metric": run in the trace."""
    scores = metric(logits)
    found: dict[str, torch.Tensor | None] = {"metric": scores.detach()}
    if scores.requires_grad:
        names = list(values)
        parts = torch.autograd.grad(scores.sum(), [values[n] for n in names], allow_unused=True)
        found |= {f"d {n}": g for n, g in zip(names, parts, strict=True)}
    return found


def name(address: Address) -> str:
    """The plain name under which an address's value comes back."""
    return f"at {address}"
