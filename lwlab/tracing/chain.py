"""`chain`: run the blocks of a model in any sequence: skip, repeat, reorder, or only a sublayer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import xarray as xr

from lwlab.errors import BadInput
from lwlab.models.anatomy import Anatomy
from lwlab.models.model import Model, Prompts
from lwlab.results import label, provenance
from lwlab.tracing import engine, labels
from lwlab.tracing._nnsight import envoy, lock, nnsight
from lwlab.tracing.remote import sending
from lwlab.tracing.visit import tensor_of
from lwlab.tracing.write import kl

Step = tuple[int, str]


def chain(
    model: Model,
    prompts: Prompts,
    layers: Sequence[int | str],
    *,
    streams: bool = False,
    compare: bool = True,
) -> xr.Dataset:
    """Run embed -> the named blocks in the order given -> final norm -> unembedding.

    `layers` holds block numbers, in any order and number ([0, 1, 1, 3]), or "attn.3" / "mlp.3" for
    one sublayer of a block. Every block keeps its own masks and positions. The cost is that of the
    blocks named.

    Returns a Dataset with `logits` (prompt, token); with `compare`, `base_logits` of the whole
    model and `moved` (prompt) = KL(base || chain) in nats; with `streams`, `resid` (step, prompt,
    position, d_model), the stream before the first and after each step. Raises BadInput for an
    empty sequence, a layer out of range, blocks that do not fit each other, or an
    encoder-decoder model (its blocks pass position biases on).
    """
    steps = parse(model, layers)
    if "logits" not in model.anatomy.taps and not streams:
        raise BadInput(f"{model.name} has no logits: ask for streams=True")
    data = engine.batch(model, prompts)
    keep = engine.keep_last(model, data)
    try:
        with lock(model.module), torch.no_grad(), sending(model) as where:
            args, inputs = data.fresh()
            history, z = _run(model.nn, model.anatomy, steps, args, {**inputs, **keep}, where)
    except RuntimeError as error:
        if model.kind not in ("vision", "generic"):
            raise
        raise BadInput(
            f"the blocks of {model.name} do not fit each other in the order {list(layers)}: "
            f"{str(error).splitlines()[0]}"
        ) from None
    result = xr.Dataset()
    if "logits" in model.anatomy.taps:
        z = engine.last(z, data.tokens, keep.get("logits_to_keep")) if z.ndim == 3 else z
        result["logits"] = label(z, ("prompt", "token")).drop_attrs()
        base = engine.run(model, data).logits if compare else None
        if base is not None:
            result["base_logits"] = label(base, ("prompt", "token")).drop_attrs()
            result["moved"] = label(kl(base, z), ("prompt",)).drop_attrs()
    if streams:
        result["resid"] = _resid(data, history, steps)
    return result.assign_attrs(provenance(model, layers=[str(x) for x in layers]))


def _resid(data: engine.Batch, history: list[torch.Tensor], steps: list[Step]) -> xr.DataArray:
    tokens = data.tokens
    coords: dict[str, Any] = {
        "component": (("step",), ["embed", *(f"{kind}.{i}" for i, kind in steps)])
    }
    if tokens is not None:
        history = [labels.own_positions(h, tokens) for h in history]
        coords |= labels.position_coords(tokens, None)
    stream = torch.stack(history)
    dims = ("step", "prompt", *labels.loose_dims(stream.ndim - 1))
    return label(stream, dims, coords).drop_attrs()


def parse(model: Model, layers: Sequence[int | str]) -> list[Step]:
    """Check a sequence, [(layer, "block" | "attn" | "mlp"), ...]; raise BadInput if it fails."""
    if model.kind == "encoder-decoder":
        raise BadInput(
            "chain does not run encoder-decoder models: their blocks hand position biases on"
        )
    if isinstance(layers, str):
        raise BadInput(f"layers={layers!r}: give a list, as in [0, 1, 'attn.2']")
    steps: list[Step] = []
    for item in layers:
        kind, _, number = item.rpartition(".") if isinstance(item, str) else ("", "", str(item))
        kind = kind or "block"
        if kind not in ("block", "attn", "mlp") or not number.removeprefix("-").isdecimal():
            raise BadInput(f"layers: {item!r} is not understood; write 3, 'attn.3' or 'mlp.3'")
        if kind != "block" and f"{kind}_out" not in model.anatomy.writes:
            raise BadInput(f"layers: {item!r}: {model.name} has no {kind}_out to keep")
        if kind != "block" and model.anatomy.stream_norms:
            raise BadInput(
                f"layers: {item!r}: in a post-norm model a sublayer cannot run without its norm"
            )
        steps.append((model.anatomy.layers(int(number))[0], kind))
    if not steps:
        raise BadInput("layers is empty; name at least one block")
    return steps


def _run(
    nn_: Any,
    anatomy: Anatomy,
    steps: list[Step],
    args: tuple[Any, ...],
    inputs: dict[str, Any],
    where: dict[str, Any],
) -> tuple[list[torch.Tensor], torch.Tensor]:
    save = nnsight().save
    with nn_.trace(*args, **inputs, **where):
        out: dict[str, Any] = save({})
        _visit(nn_, anatomy, steps, out)
    return out["streams"], out["logits"]


def _visit(nn_: Any, anatomy: Anatomy, steps: list[Step], out: dict[str, Any]) -> None:
    # Each block is asked for its arguments (masks, rotary tables) and skipped; the sequence then
    # runs out of band, and its result leaves through the last block's place.
    path = anatomy.taps["resid_pre"]
    blocks = [envoy(nn_, path.at(i)) for i in range(anatomy.n_layers)]
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    stream: Any = None
    for i, block in enumerate(blocks):
        args, kwargs = block.inputs
        calls.append((args, kwargs))
        if i == 0:
            stream = block.input
        if i < len(blocks) - 1:
            block.skip(stream)
    history = [stream]
    for layer, kind in steps:
        args, kwargs = calls[layer]
        handles = _silence(nn_, anatomy, layer, kind)
        try:
            stream = tensor_of(blocks[layer](stream, *args[1:], **kwargs))
        finally:
            for handle in handles:
                handle.remove()
        history.append(stream)
    blocks[-1].skip(stream)
    out["streams"] = [h.detach() for h in history]
    out["logits"] = tensor_of(nn_.output).detach()


# No context manager: a decorator does not travel with a function that is sent to a server.
def _silence(nn_: Any, anatomy: Anatomy, layer: int, kind: str) -> list[Any]:
    """Make the sublayers of a block but `kind` write nothing; return the hooks that do it."""
    silent = [s for s in anatomy.writes if kind != "block" and s != f"{kind}_out"]
    modules = [envoy(nn_, anatomy.taps[site].at(layer))._module for site in silent]
    return [module.register_forward_hook(_zero) for module in modules]


def _zero(_module: Any, _args: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)
