"""Void layers: which blocks grow the norm of a token's stream, and what that says of their use.

The rule and its two readings are in `lwlab.depth.voids`. "Void in Language Models"
(arXiv:2505.14467) reports accuracy while "using" a part of the layers; its release runs every layer
and reads an earlier stream out. Here both readings stand side by side, with controls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch
import xarray as xr
from torch.nn import functional as F

from lwlab.depth.voids import PAPER, Rule, Variant, check_model, check_rule, decide, voided
from lwlab.errors import BadInput
from lwlab.models.model import Model, Prompts
from lwlab.models.sites import Address
from lwlab.models.tokens import Tokens
from lwlab.results import label, provenance
from lwlab.tracing import engine, labels
from lwlab.tracing.blocks import one_by_one

VARIANTS: tuple[Variant, ...] = get_args(Variant)


def activity(
    model: Model,
    prompts: Prompts,
    alpha: float | None = 0.8,
    variant: Variant = "readout",
    *,
    rule: Rule = "norm",
) -> xr.Dataset:
    """Which block is active for which token while prompts are read (prompt processing).

    Returns over (prompt, layer, position), NaN beyond a prompt's end: `active` (1 or 0), `delta`
    (change of the stream's norm), `threshold`, `turn` (1 - cos of what a block makes of the stream:
    what a norm cannot see) and `norm` of the stream that leaves; and `exit` (prompt, position), the
    last active block. Each prompt runs by itself. Raises as `voided`.
    """
    check_rule(alpha, rule, variant)
    check_model(model)
    tokens = model.tokens(prompts)
    n, longest = len(tokens), int(tokens.lengths.max())
    fields = {"active": "active", "delta": "delta", "threshold": "lam", "turn": "turn"}
    names = [*fields, "norm"]
    data = {k: np.full((n, model.n_layers, longest), np.nan, np.float32) for k in names}
    out_at = np.full((n, longest), np.nan, np.float32)
    with voided(model, alpha, variant, rule=rule) as passes:
        for one in one_by_one(tokens):
            _read(model, one.ids)
    for i, p in enumerate(passes):
        wide = p.active[0].shape[-1]
        for name, source in fields.items():
            data[name][i, :, :wide] = p.stacked(source)[:, 0].float().numpy()
        data["norm"][i, :, :wide] = p.stacked("norm")[1:, 0].numpy()
        out_at[i, :wide] = p.exit[0].numpy()
    at = list(range(longest))
    coords: dict[str, Any] = {"layer": list(range(model.n_layers)), "position": at}
    coords["token_str"] = labels.position_coords(tokens, at)["token_str"]
    dims = ("prompt", "layer", "position")
    out = xr.Dataset({k: label(v, dims, coords).drop_attrs() for k, v in data.items()})
    flat = {k: v for k, v in coords.items() if k != "layer"}
    out["exit"] = label(out_at, ("prompt", "position"), flat).drop_attrs()
    for name, title in (("turn", "1 - cos(in, out)"), ("delta", "change of the norm")):
        out[name].attrs["long_name"] = title
    return out.assign_attrs(told(model, alpha, rule, variant=variant, n=n))


def usage(active: xr.DataArray, front: int = 0) -> xr.DataArray:
    """Share of active cells, all prompts and positions from `front` on, by layer."""
    return active.isel(position=slice(front, None)).mean(("prompt", "position"))


def void_losses(
    model: Model,
    texts: str | Sequence[str],
    alphas: Sequence[float | None] = (0.0, 0.1, 0.3, 0.5, 0.8, 1.0),
    *,
    variants: Sequence[Variant] = VARIANTS,
    rule: Rule = "norm",
) -> xr.Dataset:
    """Loss and usage at several alphas, by reading out and by really skipping.

    Returns over (variant, alpha, prompt): `nll` (nats a token), `usage` (share of active cells),
    `agreement` (share of positions with the full model's likeliest token) and `exit` (mean last
    active block); and `full` (prompt), the whole model's loss. Positions count from 0, as in the
    paper. All alphas of "readout" come from one pass; each of "skip" is a pass. In the coordinate,
    alpha None (no threshold) is NaN. Raises as `voided`, and BadInput for a text of one token.
    """
    alphas = list(alphas)
    if not alphas or not variants:
        raise BadInput("give at least one alpha and one variant")
    for alpha in alphas:
        for variant in variants:
            check_rule(alpha, rule, variant)
    tokens = predicted(model, texts)
    names = ("nll", "usage", "agreement", "exit")
    data = np.zeros((4, len(variants), len(alphas), len(tokens)))
    full = np.zeros(len(tokens))
    for i, one in enumerate(one_by_one(tokens)):
        streams = streams_of(model, one)
        norms = streams.float().norm(dim=-1)
        whole = readout(model, streams, torch.ones_like(norms[1:], dtype=torch.bool))
        full[i] = nll(whole, one.ids)
        best = whole.argmax(-1)
        for j, variant in enumerate(variants):
            for k, alpha in enumerate(alphas):
                if variant == "readout":
                    active, _ = decide(norms, alpha, rule)
                    logits = readout(model, streams, active)
                else:
                    with voided(model, alpha, variant, rule=rule) as passes:
                        logits = _read(model, one.ids)[0]
                    active = passes[0].stacked("active")[:, 0]
                data[:, j, k, i] = (
                    nll(logits, one.ids), active.float().mean(),
                    (logits.argmax(-1) == best).float().mean(), last(active).float().mean(),
                )  # fmt: skip
    values = [np.nan if a is None else float(a) for a in alphas]
    coords = {"variant": list(variants), "alpha": values}
    dims = ("variant", "alpha", "prompt")
    out = xr.Dataset({k: label(data[m], dims, coords).drop_attrs() for m, k in enumerate(names)})
    out["full"] = ("prompt", full)
    out["tokens"] = ("prompt", (tokens.lengths - 1).cpu().numpy())
    out["nll"].attrs.update(long_name="loss", unit="nats per token")
    out["usage"].attrs["long_name"] = "share of active cells"
    return out.assign_attrs(told(model, None, rule, n=len(tokens)))


def readout(model: Model, streams: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """Logits [positions, tokens] of the stream after each token's last active block.

    streams: h_0..h_L [L + 1, positions, d_model]; active [L, positions]. A token without an active
    block is read out at h_0. This is all that the paper's "skip" does.
    """
    at = last(active) + 1
    picked = streams[at.to(streams.device), torch.arange(streams.shape[1], device=streams.device)]
    with torch.no_grad():
        return model.unembed(picked).float()


def void_generate(
    model: Model,
    prompts: Prompts,
    alpha: float | None = 0.8,
    variant: Variant = "readout",
    *,
    max_new_tokens: int = 16,
    rule: Rule = "norm",
    seed: int = 0,
    **options: Any,
) -> xr.Dataset:
    """Read prompts and write on, void blocks treated as void; the two phases apart.

    Phase PP is one pass over the prompt, RG one pass for each new token but the last, which is
    never read. Greedy unless `options` (do_sample, temperature, top_p) say otherwise; sampling is
    seeded. Returns `prompt_active` (prompt, layer, position) and `answer_active` (prompt, layer,
    step), NaN where there is none, `usage` (phase, prompt), `rate` (phase, layer), the share of
    tokens for which a layer is active, over all prompts, position 0 left out; `text` (prompt).
    Raises as `voided`, and BadInput for max_new_tokens below 2.
    """
    if max_new_tokens < 2:
        raise BadInput(f"max_new_tokens={max_new_tokens}: two at least, for one pass of generation")
    check_rule(alpha, rule, variant)
    check_model(model)
    if not hasattr(model.module, "generate"):
        raise BadInput(f"{model.name} does not generate text here")
    tokens = model.tokens(prompts)
    end = getattr(model.tokenizer, "pad_token_id", None)
    options = {"do_sample": False, "pad_token_id": end if end is not None else 0, **options}
    read = np.full((len(tokens), model.n_layers, int(tokens.lengths.max())), np.nan)
    write = np.full((len(tokens), model.n_layers, max_new_tokens - 1), np.nan)
    said, strings = [], []
    for i, one in enumerate(one_by_one(tokens)):
        with torch.random.fork_rng(), voided(model, alpha, variant, rule=rule) as passes:
            torch.manual_seed(seed)
            ids = model.module.generate(
                input_ids=one.ids, attention_mask=one.mask, max_new_tokens=max_new_tokens, **options
            )  # type: ignore[operator]
        new = ids[0, one.ids.shape[1] :].tolist()
        read[i, :, : one.ids.shape[1]] = passes[0].stacked("active")[:, 0].numpy()
        for step, p in enumerate(passes[1:]):
            write[i, :, step] = p.stacked("active")[:, 0, 0].numpy()
        decode = model.tokenizer.decode if model.tokenizer else str
        said.append(decode(new))
        words = [decode([t]) for t in new[: max_new_tokens - 1]]
        strings.append(words + [""] * (max_new_tokens - 1 - len(words)))
    at = list(range(read.shape[2]))
    layers = list(range(model.n_layers))
    positions = {
        "layer": layers, "position": at,
        "token_str": labels.position_coords(tokens, at)["token_str"],
    }  # fmt: skip
    steps = {"layer": layers, "step_str": (("prompt", "step"), np.array(strings))}
    out = xr.Dataset({
        "prompt_active": label(read, ("prompt", "layer", "position"), positions).drop_attrs(),
        "answer_active": label(write, ("prompt", "layer", "step"), steps).drop_attrs(),
        "text": ("prompt", said),
    })  # fmt: skip
    phase = xr.Variable("phase", ["PP", "RG"])
    read_, wrote = out.prompt_active, out.answer_active
    used = [read_.mean(("layer", "position")), wrote.mean(("layer", "step"))]
    out["usage"] = xr.concat(used, phase)
    rates = [
        read_.isel(position=slice(1, None)).mean(("prompt", "position")),
        wrote.mean(("prompt", "step")),
    ]
    out["rate"] = xr.concat(rates, phase)
    return out.assign_attrs(told(model, alpha, rule, variant=variant, n=len(tokens), seed=seed))


def told(model: Model, alpha: float | None, rule: str, **more: Any) -> dict[str, Any]:
    """Provenance of a result about voids."""
    return provenance(model, technique="void layers", paper=PAPER, alpha=alpha, rule=rule, **more)


def predicted(model: Model, texts: str | Sequence[str]) -> Tokens:
    """Tokens of texts that have a loss; raise BadInput for one that has none."""
    check_model(model)
    tokens = model.tokens(texts)
    if int(tokens.lengths.min()) < 2:
        raise BadInput(f"a text of one token has no loss: {list(tokens.texts)!r:.80}")
    return tokens


def streams_of(model: Model, one: Tokens) -> torch.Tensor:
    """h_0..h_L [L + 1, positions, d_model] of one text."""
    at = [Address("resid_pre", 0), *(Address("resid_post", i) for i in range(model.n_layers))]
    values = engine.run(model, one, at, logits=None).values
    return torch.stack([values[a][0].to(model.device) for a in at])


def last(active: torch.Tensor) -> torch.Tensor:
    """Last active block of every position, from active [L, positions]; -1 where there is none."""
    numbers = torch.arange(1, len(active) + 1, device=active.device)[:, None]
    return (active * numbers).amax(0) - 1


def _read(model: Model, ids: torch.Tensor) -> torch.Tensor:
    out = model.module(ids)
    return torch.as_tensor(getattr(out, "logits", out)).float()


def nll(logits: torch.Tensor, ids: torch.Tensor) -> float:
    """Mean -log p of each next token of ids [1, T], in nats; logits [T, tokens]."""
    return float(F.cross_entropy(logits[:-1], ids[0, 1:].to(logits.device)))
