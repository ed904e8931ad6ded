"""`generate`: text from an edited model, the edit made anew at every step."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
import xarray as xr

from lwlab.errors import BadInput
from lwlab.models.model import Model, Prompts
from lwlab.models.sites import SITES, Address
from lwlab.models.tokens import Tokens
from lwlab.results import label, provenance
from lwlab.tracing import engine
from lwlab.tracing._nnsight import lock, nnsight, refuse_nested
from lwlab.tracing.batch import from_encoding
from lwlab.tracing.edits import Edit, Value, parse_edits
from lwlab.tracing.pattern import exposed
from lwlab.tracing.remote import accounts, credit, sending
from lwlab.tracing.visit import visit


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
    new position alone, so an array must not run over positions; with positions="last" it touches
    only the newest position. `options` go to `generate` (do_sample, temperature, streamer, ...);
    decoding is greedy by default.

    Returns a Dataset: `ids` (prompt, step) with -1 after the end, `text` (prompt) of the new
    tokens. Raises BadInput for a model that does not generate or an edit that cannot be made at
    every step, and NoFiring.
    """
    if model.kind != "decoder" or not hasattr(model.module, "generate"):
        raise BadInput(f"{model.name} does not generate text here; load a decoder")
    if positions not in ("all", "last"):
        raise BadInput(f"positions={positions!r}; use 'all' or 'last'")
    if max_new_tokens < 1:
        raise BadInput("max_new_tokens must be at least 1")
    if options.get("num_return_sequences", 1) != 1 or options.get("return_dict_in_generate"):
        raise BadInput("one text comes back for each prompt: repeat a prompt to have several")
    refuse_nested("generate")
    if isinstance(prompts, Mapping):
        prompts = from_encoding(model, prompts)
    tokens = model.tokens(prompts, padding_side="left")
    longest = int(tokens.lengths.max()) + max_new_tokens
    if model.max_tokens and longest > model.max_tokens:
        raise BadInput(
            f"{longest} tokens (the longest prompt and {max_new_tokens} new ones) are more than "
            f"the {model.max_tokens} that {model.name} reads; lower max_new_tokens"
        )
    work = _edits(model, tokens, edits, positions) if edits else []
    inputs = {"input_ids": tokens.ids, "attention_mask": tokens.mask}
    options = {"do_sample": False, "max_new_tokens": max_new_tokens, **options}
    pad = getattr(model.tokenizer, "pad_token_id", None)
    options.setdefault("pad_token_id", pad if pad is not None else 0)
    pattern = any(e.at.site == "attn_pattern" for e in work)
    with lock(model.module), exposed(model.module, pattern), torch.no_grad():
        events = engine.plan(model, [], work)
        if model.remote:
            result = _send(model, inputs, options, events, work)
        else:
            result = engine.guarded(work, _run, model.nn, inputs, options, events)
    engine.fired(work)
    return _label(model, tokens, result[:, tokens.ids.shape[1] :], options, work)


def _edits(
    model: Model, tokens: Tokens, edits: Mapping[str | Address, Value], positions: str
) -> list[Edit]:
    """Check edits as for a prompt of one position: that is what every step but the first has."""
    one = Tokens(tokens.ids[:, -1:], tokens.mask[:, -1:], tokens.strings, tokens.texts)
    work = parse_edits(model.anatomy, edits, None, one)
    if positions == "all":
        return work
    if patterns := [e.at for e in work if SITES[e.at.site].dims[0] != "position"]:
        raise BadInput(f"positions='last' does not apply to {patterns[0]}")
    return [Edit(e.at, _newest(e)) for e in work]


def _newest(edit: Edit) -> Any:
    def last_only(part: torch.Tensor) -> torch.Tensor:
        inner = Edit(edit.at, edit.value)
        part[:, -1:] = inner.replacement(part[:, -1:])
        return part

    return last_only


def _run(
    nn_: Any, inputs: dict[str, Any], options: dict[str, Any], events: list[engine.Event]
) -> torch.Tensor:
    with warnings.catch_warnings():
        # An open-ended loop always leaves one request, for a step that never comes.
        warnings.filterwarnings("ignore", ".*was never reached: the loop asked", UserWarning)
        if not events:
            plain: torch.Tensor = nn_._module.generate(**inputs, **options)
            return plain
        return _generate(_edited(nn_, events), inputs, options)


def _edited(nn_: Any, events: list[engine.Event]) -> Any:
    with nn_.edit() as (tracer, edited):
        for _ in tracer.iter[:]:
            visit(edited, events, engine.Reading())
    return edited


def _generate(edited: Any, inputs: dict[str, Any], options: dict[str, Any]) -> torch.Tensor:
    with edited.generate(**inputs, **options) as tracer:
        result: torch.Tensor = tracer.result.save()
    return result


def _send(
    model: Model,
    inputs: dict[str, Any],
    options: dict[str, Any],
    events: list[engine.Event],
    edits: list[Edit],
) -> torch.Tensor:
    """Generate on a server: all the steps, because an edit cannot be sent but as a counted loop.

    No token ends the text there (the id is none's); `_label` cuts it at the first that would have.
    """
    steps = int(options["max_new_tokens"])
    options = {**options, "eos_token_id": model.d_vocab}
    with sending(model) as where:
        out = engine.guarded(
            edits, _generate_far, model.nn, {**inputs, **options}, events, steps, edits, where
        )
    credit(edits, out["edits"])
    ids: torch.Tensor = out["ids"]
    return ids


def _generate_far(
    nn_: Any,
    inputs: dict[str, Any],
    events: list[engine.Event],
    steps: int,
    edits: list[Edit],
    where: dict[str, Any],
) -> dict[str, Any]:
    save = nnsight().save
    reading = engine.Reading()
    with nn_.generate(**inputs, **where) as tracer:
        out: dict[str, Any] = save({})
        for _ in tracer.iter[:steps]:
            visit(nn_, events, reading)
        out["ids"] = tracer.result
        out["edits"] = accounts(edits)
    return out


def _label(
    model: Model, tokens: Tokens, new: torch.Tensor, options: dict[str, Any], edits: list[Edit]
) -> xr.Dataset:
    config: Any = getattr(model.module, "generation_config", None)
    eos = options.get("eos_token_id", getattr(config, "eos_token_id", None))
    ends = set(eos) if isinstance(eos, list | tuple) else {eos}
    rows, said = [], []
    for row in new.tolist():
        stop = next((i for i, t in enumerate(row) if t in ends), len(row))
        rows.append([*row[:stop], *[-1] * (len(row) - stop)])
        said.append(model.tokenizer.decode(row[:stop]) if model.tokenizer else "")
    told = [f"{e.at}: fired {e.fired}" for e in edits]
    ids = label(torch.tensor(rows), ("prompt", "step"))
    return xr.Dataset(
        {"ids": ids.drop_attrs(), "text": ("prompt", said)},
        coords={"prompt_text": ("prompt", list(tokens.texts))},
        attrs=provenance(model, edits=told),
    )
