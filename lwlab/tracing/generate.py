"""`generate`: text from an edited model, the edit made anew at every step."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
import xarray as xr

from lwlab.errors import BadInput, NoFiring
from lwlab.models.model import Model, Prompts
from lwlab.models.sites import Address
from lwlab.results import label, provenance
from lwlab.tracing import engine
from lwlab.tracing._nnsight import lock
from lwlab.tracing.edits import Edit, Value, parse_edits


def generate(
    model: Model,
    prompts: Prompts,
    max_new_tokens: int = 32,
    edits: Mapping[str | Address, Value] | None = None,
    *,
    positions: Literal["all", "last"] = "all",
    **options: Any,
) -> xr.Dataset:
    """Generate with Hugging Face's `generate`, with `edits` (see `patch`) at every forward pass.

    In the first pass an edit sees all prompt positions [prompts, positions, ...], in later ones the
    new position alone; with positions="last" it touches only the newest position. `options` go to
    `generate` (do_sample, temperature, streamer, ...); decoding is greedy by default.

    Returns a Dataset: `ids` (prompt, step) with -1 after the end, `text` (prompt) of the new
    tokens. Raises BadInput for a model that does not generate, and NoFiring.
    """
    if not hasattr(model.module, "generate") or "logits" not in model.anatomy.taps:
        raise BadInput(f"{model.name} does not generate text; load a decoder")
    if positions not in ("all", "last"):
        raise BadInput(f"positions={positions!r}; use 'all' or 'last'")
    if max_new_tokens < 1:
        raise BadInput("max_new_tokens must be at least 1")
    tokens = model.tokens(prompts, padding_side="left")
    work = parse_edits(model.anatomy, edits, None) if edits else []
    if positions == "last":
        work = [Edit(e.at, _newest(e)) for e in work]
    inputs = {"input_ids": tokens.ids, "attention_mask": tokens.mask}
    options = {"do_sample": False, "max_new_tokens": max_new_tokens, **options}
    pad = getattr(model.tokenizer, "pad_token_id", None)
    options.setdefault("pad_token_id", pad if pad is not None else 0)
    with lock(model), torch.no_grad():
        result = _run(model.nn, inputs, options, engine.plan(model, [], work))
    for edit in work:
        if not edit.fired:
            raise NoFiring(f"the edit of {edit.at} never ran during generation")
        edit.finish()
    new = result[:, tokens.ids.shape[1] :]
    return _label(model, tokens.texts, new, work, pad)


def _newest(edit: Edit) -> Any:
    def last_only(part: torch.Tensor) -> torch.Tensor:
        new = edit.value(part[:, -1:]) if callable(edit.value) else edit.value
        out = part.clone()
        out[:, -1:] = torch.as_tensor(new, device=part.device, dtype=part.dtype)
        return out

    return last_only


def _run(
    nn_: Any, inputs: dict[str, Any], options: dict[str, Any], events: list[Any]
) -> torch.Tensor:
    if not events:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out: torch.Tensor = nn_._module.generate(**inputs, **options)
        return out
    with nn_.edit() as (tracer, edited):
        for _ in tracer.iter[:]:
            engine.visit(edited, events)
    with warnings.catch_warnings():
        # The open-ended loop always leaves one request for a step that never comes.
        warnings.simplefilter("ignore")
        result = _generate(edited, inputs, options)
    return result


def _generate(edited: Any, inputs: dict[str, Any], options: dict[str, Any]) -> torch.Tensor:
    with edited.generate(**inputs, **options) as tracer:
        result: torch.Tensor = tracer.result.save()
    return result


def _label(
    model: Model, texts: tuple[str, ...], new: torch.Tensor, edits: list[Edit], pad: int | None
) -> xr.Dataset:
    eos = (
        model.module.generation_config.eos_token_id
        if hasattr(model.module, "generation_config")
        else None
    )
    ends = set(eos) if isinstance(eos, list) else {eos}
    rows, said = [], []
    for row in new.tolist():
        stop = next(
            (i for i, t in enumerate(row) if t in ends or (pad not in ends and t == pad)), len(row)
        )
        rows.append([*row[:stop], *[-1] * (len(row) - stop)])
        said.append(model.tokenizer.decode(row[:stop]) if model.tokenizer else "")
    told = [f"{e.at}: fired {e.fired}" for e in edits]
    ids = label(torch.tensor(rows), ("prompt", "step"))
    return xr.Dataset(
        {"ids": ids.drop_attrs(), "text": ("prompt", said)},
        coords={"prompt_text": ("prompt", list(texts))},
        attrs=provenance(model, edits=told),
    )
