"""The rule that calls a layer void for a token, and forward passes that obey it.

Let h_0 be the stream entering the first block and h_l the one leaving block l = 1..L, of one token:

    n_l = ||h_l||,  delta_l = n_l - n_{l-1},
    lam_l = alpha (max_{j<l} delta_j - min_{j<l} delta_j),  lam_1 = 0,
    block l is void for that token iff delta_l < lam_l.

Shemiranifar, "Void in Language Models" (arXiv:2505.14467); as in its released code, where no sign
and no absolute value is taken: a block that shrinks the norm is always void. (The release takes
lam_1 over the texts of a batch; it is 0 for a batch of one, and here for every text.)
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.models.model import Model
from lwlab.tracing import engine
from lwlab.tracing._nnsight import lock
from lwlab.tracing.blocks import check_replayable

Variant = Literal["readout", "skip"]
Rule = Literal["norm", "magnitude"]

PAPER = "2505.14467"


def decide(
    norms: torch.Tensor, alpha: float | None, rule: Rule = "norm"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (active, lam), both [L, ...], from the norms n_0..n_L [L + 1, ...] of a plain pass.

    `rule` "magnitude" is a control: |delta| in place of delta throughout. With alpha None the
    threshold is -inf: every block is active. Raises as `check_rule`.
    """
    check_rule(alpha, rule)
    delta = norms.diff(dim=0)
    delta = delta.abs() if rule == "magnitude" else delta
    if alpha is None:
        return torch.ones_like(delta, dtype=torch.bool), torch.full_like(delta, -math.inf)
    spread = delta.cummax(0).values - delta.cummin(0).values
    lam = torch.cat([torch.zeros_like(delta[:1]), alpha * spread[:-1]])
    return delta >= lam, lam


def check_rule(alpha: float | None, rule: str = "norm", variant: str = "readout") -> None:
    """Raise BadInput for an alpha out of range, UnknownName for a rule or variant."""
    if alpha is not None and not 0 <= alpha < math.inf:
        raise BadInput(
            f"alpha={alpha}: give a number from 0 up (the paper's is 0.8), or None for no threshold"
        )
    for what, value, names in (
        ("rule", rule, get_args(Rule)), ("variant", variant, get_args(Variant))
    ):  # fmt: skip
        if value not in names:
            raise UnknownName(f"{what}={value!r} is unknown{suggest(str(value), names)}")


def check_model(model: Model) -> None:
    """Raise BadInput for a model without a stream that runs from block to block to an output."""
    check_replayable(model)
    if model.kind != "decoder" or model.anatomy.unembed is None:
        raise BadInput(f"{model.name} does not predict the next token; this needs a decoder")
    if model.anatomy.stream_norms:
        raise BadInput(
            f"{model.name} normalises its stream after each sublayer, so the norm of the stream "
            "says nothing about what a layer did"
        )


@dataclass
class Pass:
    """One forward pass: all [L, texts, positions] but `norm` [L + 1, ...]; of the streams as run.

    `turn` is 1 - cos between what entered a block and what it made of it, void or not.
    """

    norm: list[torch.Tensor] = field(default_factory=list)
    delta: list[torch.Tensor] = field(default_factory=list)
    lam: list[torch.Tensor] = field(default_factory=list)
    active: list[torch.Tensor] = field(default_factory=list)
    turn: list[torch.Tensor] = field(default_factory=list)

    def stacked(self, name: str) -> torch.Tensor:
        """One of the fields as a tensor, layers first."""
        return torch.stack([x.cpu() for x in getattr(self, name)])

    @property
    def exit(self) -> torch.Tensor:
        """Last active block of every token [texts, positions]; -1 where there is none."""
        active = self.stacked("active")
        numbers = torch.arange(1, len(active) + 1)[:, None, None]
        return (active * numbers).amax(0) - 1


@contextlib.contextmanager
def voided(
    model: Model,
    alpha: float | None = 0.8,
    variant: Variant = "readout",
    *,
    rule: Rule = "norm",
    force: torch.Tensor | None = None,
) -> Iterator[list[Pass]]:
    """Make every forward pass inside treat void blocks as void; yield the passes as they come.

    * "readout", what the paper's release does: every block runs on the untouched stream, and what
      the final norm reads is the stream after the token's last active block. Nothing is saved.
    * "skip": a void block leaves its token's stream as it was, x_{l+1} = x_l. Later blocks, and
      through keys and values other tokens, see that; so do the norms that decide on later blocks.

    Each pass decides anew, also in generation (first the prompt, then one token a pass). `force`
    [L, texts, positions] gives the active cells instead of the rule, for controls. The module's
    lock is held. Raises BadInput or UnknownName before anything runs: see `check_rule` and
    `check_model`; and BadInput where `force` does not fit a pass.
    """
    check_rule(alpha, rule, variant)
    check_model(model)
    if force is not None and len(force) != model.n_layers:
        raise BadInput(f"force has {len(force)} layers, {model.name} has {model.n_layers}")
    passes: list[Pass] = []
    state: dict[str, torch.Tensor] = {}

    def before(_m: Any, args: tuple[Any, ...], kwargs: dict[str, Any], layer: int) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        if layer == 0:
            passes.append(Pass())
            state.clear()
            state["read"] = x
            passes[-1].norm.append(_norm(x))
            if force is not None and force.shape[1:] != x.shape[:2]:
                raise BadInput(
                    f"force is for {tuple(force.shape[1:])} texts and positions; the pass has "
                    f"{tuple(x.shape[:2])}"
                )
        state["x"] = x.clone()  # some blocks add in place

    def after(_m: Any, _args: Any, output: Any, layer: int) -> Any:
        p, y = passes[-1], engine.tensor_of(output)
        state.update({k: v.to(y.device) for k, v in state.items()})  # blocks may lie on several
        x, before_it = state["x"], p.norm[-1].to(y.device)
        delta = _norm(y) - before_it
        size = delta.abs() if rule == "magnitude" else delta
        lam = torch.zeros_like(size)
        if layer and alpha is not None:
            lam = alpha * (state["high"] - state["low"])
        if alpha is None:
            lam = torch.full_like(size, -math.inf)
        for key, better in (("high", torch.maximum), ("low", torch.minimum)):
            state[key] = better(state[key], size) if layer else size
        active = size >= lam if force is None else force[layer].to(size.device)
        p.delta.append(delta)
        p.lam.append(lam)
        p.active.append(active)
        p.turn.append(1 - torch.cosine_similarity(x.float(), y.float(), dim=-1))
        if variant == "skip":
            new = torch.where(active[..., None], y, x)
            p.norm.append(torch.where(active, _norm(y), before_it))
            return _with(output, new)
        p.norm.append(_norm(y))
        state["read"] = torch.where(active[..., None], y, state["read"])
        return _with(output, state["read"]) if layer == model.n_layers - 1 else None

    blocks = model.module.get_submodule(model.anatomy.blocks).children()
    with lock(model), torch.no_grad(), contextlib.ExitStack() as hooks:
        for i, block in enumerate(blocks):
            pre = _bound(before, i)
            hooks.callback(block.register_forward_pre_hook(pre, with_kwargs=True).remove)
            hooks.callback(block.register_forward_hook(_bound(after, i)).remove)
        yield passes


def _bound(hook: Any, layer: int) -> Any:
    return lambda *args: hook(*args, layer)


def _norm(x: torch.Tensor) -> torch.Tensor:
    return x.float().norm(dim=-1)


def _with(output: Any, new: torch.Tensor) -> Any:
    return (new, *output[1:]) if isinstance(output, tuple) else new
