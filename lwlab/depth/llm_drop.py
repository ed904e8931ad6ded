"""Which sublayers to drop: those that turn the stream least, all at once, without training.

Of a sublayer with its residual and its norm, X -> Y = X + F(N(X)), the importance is

    S = 1 - mean over tokens of cos(X, Y),

X and Y [tokens, d_model] in float32. Attention: X is the stream entering the layer; MLP: the stream
after attention; block: entering and leaving the layer. He, Sun, Shen & Li, "What Matters in
Transformers? Not All Attention is Needed" (arXiv:2406.15786); formulas as in its released code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
import xarray as xr

from lwlab.depth.removal import plan, require_branches
from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.models.model import Model, Prompts
from lwlab.models.sites import Address
from lwlab.results import label, provenance
from lwlab.tracing import engine
from lwlab.tracing.blocks import check_replayable, one_by_one
from lwlab.tracing.edits import Edit

Part = Literal["attn", "mlp", "block"]
Mode = Literal["attn", "mlp", "block", "joint"]
Order = Literal["similar", "reverse", "random", "last"]

PAPER = "2406.15786"
PARTS: tuple[Part, ...] = get_args(Part)


def importance(
    model: Model,
    prompts: Prompts,
    *,
    parts: Iterable[Part] = PARTS,
    front: int = 1,
    without: Sequence[int | str] = (),
) -> xr.Dataset:
    """S of every attention, MLP and block (paper, eq. 1): 0 for one that turns nothing.

    Positions before `front` are left out: a first token with a massive activation has a cosine
    near 1 from there on in every layer, and makes all that follows look redundant. The parts named
    in `without` (see `remove`) write nothing while the others are scored, and have S = 0.

    Returns `importance` (part, layer), the mean over all tokens, `by_prompt` (part, prompt, layer),
    and `sublayer` (part, layer), the name that `remove` takes. Raises UnknownName for a part;
    BadInput for a prompt with no token from `front` on, and for parts "attn" and "mlp" of a model
    whose attention and MLP are not two residual steps in a row (parallel blocks, post-norm).
    """
    chosen = list(dict.fromkeys(parts))
    known(chosen, PARTS, "part")
    if not chosen:
        raise BadInput(f"parts is empty; name some of {', '.join(PARTS)}")
    check_replayable(model)
    if set(chosen) - {"block"}:
        require_branches(model, f"scores of {' and '.join(p for p in chosen if p != 'block')}")
    tokens = model.tokens(prompts)
    short = int(tokens.lengths.argmin())
    if front < 0 or int(tokens.lengths[short]) <= front:
        raise BadInput(
            f"front={front} leaves no token of {tokens.texts[short]!r:.60}, which has "
            f"{int(tokens.lengths[short])}"
        )
    layers = range(model.n_layers)
    silent = _silenced(model, without)
    sites = ["resid_pre", "resid_post"] + (["attn_out"] if set(chosen) - {"block"} else [])
    similar = torch.zeros(len(chosen), len(tokens), model.n_layers)
    for i, one in enumerate(one_by_one(tokens)):
        edits = [Edit(at, 0.0) for at in silent]
        reads = [Address(s, n) for s in sites for n in layers]
        read = engine.run(model, one, reads, edits, logits=None).values
        for n in layers:
            x, y = (read[Address(s, n)][0, front:].float() for s in ("resid_pre", "resid_post"))
            mid = x + read[Address("attn_out", n)][0, front:].float() if len(sites) > 2 else x
            ends = {"attn": (x, mid), "mlp": (mid, y), "block": (x, y)}
            for j, part in enumerate(chosen):
                similar[j, i, n] = torch.cosine_similarity(*ends[part], dim=-1).mean()
    counts = (tokens.lengths - front).float().cpu()
    coords = {"part": chosen, "layer": list(layers)}
    whole = (similar * counts[None, :, None]).sum(1) / counts.sum()
    names = [[_name(p, n) for n in layers] for p in chosen]
    out = xr.Dataset(
        {
            "importance": label(1 - whole, ("part", "layer"), coords).drop_attrs(),
            "by_prompt": label(1 - similar, ("part", "prompt", "layer"), coords).drop_attrs(),
            "sublayer": label(np.array(names), ("part", "layer"), coords).drop_attrs(),
        }
    )
    out["importance"].attrs["long_name"] = "importance S = 1 - cos(in, out)"
    return out.assign_attrs(
        provenance(
            model, technique="importance of sublayers", paper=PAPER, front=front, n=len(tokens),
            tokens=int(counts.sum()),
        )
    )  # fmt: skip


def drop_order(
    scores: xr.Dataset, mode: Mode = "attn", *, kind: Order = "similar", seed: int = 0
) -> list[str]:
    """Return the sublayers in the order in which they go, as `remove` names them.

    `mode` "joint" puts attention and MLP on one list (2 L entries). `kind` "similar" is the
    paper's: lowest S first, all scored once; "reverse": highest S first, the worst case; "random":
    a permutation drawn by `seed`; "last": from the last layer down. Raises UnknownName for a mode
    or kind, BadInput where the scores lack a part.
    """
    known([mode], get_args(Mode), "mode")
    known([kind], get_args(Order), "kind")
    parts = ["attn", "mlp"] if mode == "joint" else [mode]
    have = scores["part"].values.tolist()
    if missing := [p for p in parts if p not in have]:
        raise BadInput(f"mode={mode!r} needs scores of {missing[0]!r}; these are of {have}")
    names = [str(n) for p in parts for n in scores["sublayer"].sel(part=p).values]
    s = np.concatenate([scores["importance"].sel(part=p).values for p in parts])
    layer = np.concatenate([scores["layer"].values] * len(parts))
    if kind == "random":
        at = np.random.default_rng(seed).permutation(len(names))
    elif kind == "last":
        at = np.argsort(-layer, kind="stable")
    else:
        at = np.argsort(s if kind == "similar" else -s, kind="stable")
    return [names[i] for i in at]


def iterative_order(
    model: Model,
    prompts: Prompts,
    mode: Mode = "mlp",
    *,
    k: int,
    step: int = 1,
    front: int = 1,
    scores: xr.Dataset | None = None,
) -> list[str]:
    """Score, drop the `step` lowest, score what is left again, until k are gone.

    One forward pass over `prompts` a round; `scores`, where they are known, save the first. A
    part's number is that of the whole model throughout.
    Raises as `importance` and `remove`, and BadInput for k or step below 1.
    """
    if k < 1 or step < 1:
        raise BadInput(f"k={k}, step={step}: both must be at least 1")
    known([mode], get_args(Mode), "mode")
    if scores is None:
        scores = importance(model, prompts, front=front, parts=_parts(mode))
    gone: list[str] = []
    plan(model, drop_order(scores, mode)[:k])  # refuses a k that is too large
    while len(gone) < k:
        left = [x for x in drop_order(scores, mode) if x not in gone]
        gone += left[: min(step, k - len(gone))]
        if len(gone) < k:
            scores = importance(model, prompts, front=front, parts=_parts(mode), without=gone)
    return gone


def _silenced(model: Model, without: Sequence[int | str]) -> list[Address]:
    """What the parts named write to the stream."""
    if not len(without):
        return []
    if model.anatomy.stream_norms or not model.anatomy.writes:
        raise BadInput(f"{model.name}: what its blocks add to the stream cannot be silenced")
    gone = plan(model, without)
    found = [Address(w, n) for n in gone.blocks for w in model.anatomy.writes]
    found += [Address("attn_out", n) for n in gone.attn]
    return found + [Address("mlp_out", n) for n in gone.mlp]


def _parts(mode: Mode) -> list[Part]:
    return ["attn", "mlp"] if mode == "joint" else [mode]


def _name(part: str, layer: int) -> str:
    return f"{part}.{layer}"


def known(given: Iterable[str], names: Sequence[str], what: str) -> None:
    """Raise UnknownName for a `given` name that is none of `names`."""
    for name in given:
        if name not in names:
            raise UnknownName(f"{what}={name!r} is unknown{suggest(str(name), names)}")
