"""What a layer is good for, found by skipping it: effects on later layers, tokens and the output.

With h_l the stream entering layer l and c_l = h_{l+1} - h_l its contribution, a skip of layer s on
the positions P puts h_{s+1} := h_s there, and lets the model run on (or, in the local form, not).
Csordas, Manning & Potts 2025 (arXiv:2505.13898).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import xarray as xr

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.models.model import Model, Prompts
from lwlab.models.tokens import Tokens
from lwlab.results import label, provenance
from lwlab.tracing._nnsight import lock
from lwlab.tracing.blocks import Blocks, capture, check_replayable, together

Mode = Literal["current", "future", "local"]
Part = Literal["layer", "attention", "mlp"]
Removed = Literal["contribution", "random"]

PAPER = "2505.13898"
_FLOOR = 1e-6  # the paper's: a contribution smaller than this does not divide
_TOKENS = 8192  # run at once: about 200 MB of activations at width 576


def skip_effects(
    model: Model,
    prompts: Prompts,
    mode: Mode = "current",
    *,
    t: int | Sequence[int] | None = None,
    part: Part = "layer",
    layers: Iterable[int] | int | None = None,
    removed: Removed = "contribution",
    front: int = 1,
    outputs: bool = True,
    seed: int = 0,
) -> xr.Dataset:
    """Skip each layer in turn and measure what changes.

    Modes, P being the positions where the layer is skipped and R those where changes are read:

    * "current": P = R = {front, ..., T-1}: every token loses the layer.
    * "future": P = {front, ..., t-1}, R = {t, ..., T-1}: only tokens before t lose it, so what
      changes is what later tokens take from them through attention.
    * "local": nothing propagates: every layer l > s reads its own original stream less c_s on P.
      With `t`, P and R as in "future", else as in "current". It has no output effect, and layer s
      itself counts as unchanged.

    D[s, l] = ||c_l - c~_l|| / max(||c_l||, 1e-6), c~_l the contribution in the changed run, and
    O[s] = ||p - p~||_2 between the next-token distributions (at most sqrt 2). Both are reduced over
    R, and over several t, by `statistic` "max" (the paper's) and "mean".

    `part` "attention" or "mlp" sets only that sublayer's output to zero on P; `removed="random"` is
    the placebo: the stream loses, in place of c_s, a random vector of equal norm. `t` may be one
    position, several, or None: then, in mode "future", up to four of {8, 16, ...} (the paper's
    choice; T // 2 in prompts of fewer than 13 tokens) drawn by `seed` for each prompt. `layers` are
    those to skip. Positions before `front` are never skipped nor read: models without a start token
    keep an attention sink at position 0.

    Returns `effect` (statistic, prompt, skipped, layer), 0 for layers before the skipped one,
    which come earlier in the pass and are not run again, and, with `outputs`, `output_effect`
    (statistic, prompt, skipped). Raises, before any skip: BadInput for a prompt too short for t, a
    layer out of range, a `part` in mode "local", t in mode "current" or a model whose blocks cannot
    be run one by one; UnknownName for a mode or part; MissingSite where a model lacks the part.
    """
    skipped = _check(model, mode, part, layers, removed, front)
    tokens = model.tokens(prompts)
    cuts = _cuts(tokens, mode, t, front, np.random.default_rng(seed))
    outputs = outputs and mode != "local" and model.anatomy.unembed is not None
    effect = torch.zeros(2, len(tokens), len(skipped), model.n_layers)
    output = torch.zeros(2, len(tokens), len(skipped))
    noise = torch.Generator().manual_seed(seed)
    with lock(model), torch.no_grad():
        for rows in _groups(tokens, cuts, len(skipped)):
            blocks = capture(model, together(tokens, rows))
            for cut in (ts := cuts[rows[0]]):
                skip = _Skip(blocks, skipped, front, cut, part, removed, noise)
                d, o = (skip.local(), None) if mode == "local" else skip.propagated(outputs)
                effect[0, rows] = torch.maximum(effect[0, rows], d.amax(-1).transpose(0, 1))
                effect[1, rows] += d.mean(-1).transpose(0, 1) / len(ts)
                if o is not None:
                    output[0, rows] = torch.maximum(output[0, rows], o.amax(-1).T)
                    output[1, rows] += o.mean(-1).T / len(ts)
    coords = {"statistic": ["max", "mean"], "skipped": skipped}
    dims = ("statistic", "prompt", "skipped")
    d_coords = {**coords, "layer": list(range(model.n_layers))}
    out = xr.Dataset({"effect": label(effect, (*dims, "layer"), d_coords).drop_attrs()})
    out["effect"].attrs["long_name"] = "relative change of a layer's contribution"
    if outputs:
        out["output_effect"] = label(output, dims, coords).drop_attrs()
        out["output_effect"].attrs["long_name"] = "change of the output distribution (L2)"
    out["layer"].attrs["long_name"] = "layer affected"
    out["skipped"].attrs["long_name"] = "layer skipped"
    return out.assign_coords(text=("prompt", list(tokens.texts))).assign_attrs(
        provenance(
            model, technique=f"layer skip, {mode}", paper=PAPER, mode=mode, part=part,
            removed=removed, front=front, t=[[c for c in ts if c is not None] for ts in cuts],
            n=len(tokens), seed=seed,
        )
    )  # fmt: skip


def require_writes(model: Model, what: str) -> None:
    """Raise unless each layer adds attn_out and mlp_out to its stream, and nothing besides.

    MissingSite where one of them does not exist; BadInput for post-norm and cross-attending layers.
    """
    model.anatomy.require(["attn_out", "mlp_out"])
    if model.anatomy.stream_norms:
        raise BadInput(
            f"{what}: {model.name} normalises its stream after each sublayer, so what a sublayer "
            "adds to the stream is not defined; whole layers can still be skipped"
        )
    if set(model.anatomy.writes) != {"attn_out", "mlp_out"}:
        raise BadInput(
            f"{what}: the layers of {model.name} write {model.anatomy.writes}; "
            "only attn_out and mlp_out are understood"
        )


def _check(
    model: Model,
    mode: str,
    part: str,
    layers: Iterable[int] | int | None,
    removed: str,
    front: int,
) -> list[int]:
    for name, value, known in (
        ("mode", mode, get_args(Mode)), ("part", part, get_args(Part)),
        ("removed", removed, get_args(Removed)),
    ):  # fmt: skip
        if value not in known:
            raise UnknownName(f"{name}={value!r} is unknown{suggest(str(value), known)}")
    if front < 0:
        raise BadInput(f"front={front}: give how many first positions to leave alone, 0 or more")
    if mode == "future" and not model.anatomy.causal:
        raise BadInput(f"{model.name} is not causal: its tokens have no future; use mode='current'")
    check_replayable(model)
    if part != "layer":
        if mode == "local" or removed == "random":
            raise BadInput(f"part={part!r} does not go with mode='local' or removed='random'")
        require_writes(model, f"part={part!r}")
    return sorted(set(model.anatomy.layers(layers)))


def _cuts(
    tokens: Tokens,
    mode: str,
    t: int | Sequence[int] | None,
    front: int,
    rng: np.random.Generator,
) -> list[list[int | None]]:
    """For each prompt the values of t, None standing for "all positions"."""
    if mode == "current" and t is not None:
        raise BadInput("mode='current' skips at every position and takes no t; use 'future'")
    out: list[list[int | None]] = []
    for text, n in zip(tokens.texts, tokens.lengths.tolist()):
        if t is not None:
            wanted = [t] if isinstance(t, int) else [int(x) for x in t]
        elif mode == "future":
            wanted = sorted(int(x) for x in rng.permutation(np.arange(8, n - 4, 8))[:4]) or [n // 2]
        else:
            wanted = []
        if n <= front or any(not front < x < n for x in wanted):
            allowed = f"{front + 1}..{n - 1}" if n > front + 1 else "none: the prompt is too short"
            raise BadInput(
                f"t={t}, front={front} leave nothing to skip or nothing to read in {text!r:.80} of "
                f"{n} tokens; possible t: {allowed}"
            )
        if t is not None and not wanted:
            raise BadInput("t is empty; leave it out or name at least one position")
        out.append([*wanted] or [None])
    return out


def _groups(tokens: Tokens, cuts: list[list[int | None]], skips: int) -> list[list[int]]:
    """Prompts that can share a run: of one length, with the same t, not too many tokens."""
    found: dict[tuple[int, tuple[int | None, ...]], list[int]] = {}
    for i, n in enumerate(tokens.lengths.tolist()):
        found.setdefault((n, tuple(cuts[i])), []).append(i)
    out = []
    for (n, _), rows in found.items():
        size = max(1, _TOKENS // (skips * n))
        out += [rows[i : i + size] for i in range(0, len(rows), size)]
    return out


@dataclass(frozen=True)
class _Skip:
    """The skips of prompts of one length at one t."""

    blocks: Blocks
    skipped: list[int]
    front: int
    cut: int | None
    part: str
    removed: str
    noise: torch.Generator

    @property
    def read(self) -> slice:
        """Positions where changes are read."""
        return slice(self.front if self.cut is None else self.cut, self.blocks.n_positions)

    def propagated(self, outputs: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """D [skipped, prompt, layer, position] and O [skipped, prompt, position]: it runs on."""
        d, n = self._zeros(), self.blocks.model.n_layers
        changed = [self._without(s) for s in self.skipped]
        for i, s in enumerate(self.skipped):
            own = changed[i] - self.blocks.streams[s].to(changed[i].device)
            d[i, :, s] = self._relative(s, own)[0]
        births = {s + 1: y for s, y in zip(self.skipped, changed)}
        for layer, before, after in self.blocks.run(births):
            if layer < n:
                gap = self._relative(layer, after - before.to(after.device))
                d[: len(gap), :, layer] = gap
            elif outputs:
                return d, self.blocks.output_change(after, self.read).cpu()
        return d, None

    def local(self) -> torch.Tensor:
        """D [skipped, prompt, layer, position]: each layer reads its own stream less c_s."""
        d = self._zeros()
        lost = [self._without(s) - self.blocks.streams[s + 1] for s in self.skipped]
        for layer in range(1, self.blocks.model.n_layers):
            if k := sum(s < layer for s in self.skipped):
                here = self.blocks.streams[layer]
                before = torch.cat([here + x.to(here.device) for x in lost[:k]])
                after = self.blocks.block(layer, before)
                d[:k, :, layer] = self._relative(layer, after - before.to(after.device))
        return d

    def _zeros(self) -> torch.Tensor:
        width = self.read.stop - self.read.start
        n_prompts, n_layers = len(self.blocks.tokens), self.blocks.model.n_layers
        return torch.zeros(len(self.skipped), n_prompts, n_layers, width)

    def _relative(self, layer: int, own: torch.Tensor) -> torch.Tensor:
        """||c_l - c~_l|| / max(||c_l||, floor): rows -> [rows / prompts, prompts, positions]."""
        c = self.blocks.write(layer)[:, self.read]
        own = own.view(-1, *c.shape[:1], *own.shape[1:])[:, :, self.read]
        return ((own - c).norm(dim=-1) / c.norm(dim=-1).clamp(min=_FLOOR)).float().cpu()

    def _without(self, s: int) -> torch.Tensor:
        """Return the streams leaving layer s [prompts, positions, d_model], skipped on P."""
        y = self.blocks.streams[s + 1]
        h = self.blocks.streams[s].to(y.device)
        where = torch.zeros(y.shape[1], 1, dtype=torch.bool, device=y.device)
        where[self.front : self.cut] = True
        if self.removed == "random":
            r = torch.randn(y.shape, generator=self.noise).to(y)
            r = r * ((y - h).norm(dim=-1, keepdim=True) / r.norm(dim=-1, keepdim=True))
            return torch.where(where, y - r, y)
        if self.part == "layer":
            return torch.where(where, h, y)
        site = "attn_out" if self.part == "attention" else "mlp_out"
        silent = {site: lambda out: out.masked_fill(where, 0.0)}
        return torch.where(where, self.blocks.block(s, h, silent), y)
