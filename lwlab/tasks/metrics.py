"""Metrics: differentiable numbers, one a prompt, from the logits of the last position.

Ids are one token a prompt [n], or a set a prompt [n, k] padded with -1. A set counts as the event
"one of these tokens", so its logit is the log-sum-exp of its members, and a difference of two such
logits is the log odds of the two events. For single tokens this is the plain logit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import xarray as xr
from torch import Tensor

from lwlab.errors import BadInput, UnknownName, suggest

Ids = int | Sequence[int] | Sequence[Sequence[int]] | Tensor
_Logits = TypeVar("_Logits", Tensor, xr.DataArray)


@dataclass(frozen=True)
class Metric:
    """A named function of last-position logits [n, d_vocab] -> [n].

    Also takes a DataArray with the dimensions `prompt` and `token` (and any others) and returns
    one without `token`. `n` is the number of prompts the metric is about, None for any.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    n: int | None = None

    def __call__(self, logits: _Logits) -> _Logits:
        """Return the metric; raise BadInput for logits of another shape or number of prompts."""
        if isinstance(logits, xr.DataArray):
            return self._labelled(logits)
        if logits.ndim != 2:
            raise BadInput(
                f"{self.name} wants last-position logits [prompts, vocabulary], got shape "
                f"{tuple(logits.shape)}; from [prompts, positions, vocabulary] take [:, -1]."
            )
        if self.n is not None and len(logits) != self.n:
            raise BadInput(
                f"{self.name} is about {self.n} prompts and got logits of {len(logits)}; "
                "task.subset(...) makes the task that fits."
            )
        return self.function(logits)

    def _labelled(self, logits: xr.DataArray) -> xr.DataArray:
        missing = {"prompt", "token"} - set(logits.dims)
        if missing:
            raise BadInput(f"{self.name} wants dimensions prompt and token, got {logits.dims}.")
        ordered = logits.transpose(..., "prompt", "token")
        flat = torch.as_tensor(ordered.values.copy()).reshape(-1, *ordered.shape[-2:])
        values = torch.stack([self(part) for part in flat]).reshape(ordered.shape[:-1])
        return ordered.isel(token=0, drop=True).copy(data=values.numpy()).rename(self.name)


def _table(ids: Ids, what: str) -> Tensor:
    """Return ids as a LongTensor [n, k], -1 where a set has no more members."""
    table = torch.as_tensor(ids)
    if table.dtype == torch.bool or table.is_floating_point():
        raise BadInput(f"{what} must be token ids (integers), got {table.dtype}.")
    table = table.long().reshape(1, 1) if table.ndim == 0 else table.long()
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or table.numel() == 0:
        raise BadInput(f"{what} must be ids [n] or sets of ids [n, k], got {tuple(table.shape)}.")
    if bool((table < 0).all(1).any()):
        raise BadInput(f"{what} has a prompt without any token id.")
    return table


def _gather(values: Tensor, table: Tensor, empty: float) -> Tensor:
    """Return values [n, k] at the ids in `table`, `empty` where the table has -1."""
    table = table.to(values.device).expand(len(values), -1)
    largest = int(table.max())
    if largest >= values.shape[1]:
        raise BadInput(
            f"token id {largest} is outside these {values.shape[1]} logits; was the task made for "
            "another model's tokenizer?"
        )
    picked = values.gather(1, table.clamp(min=0))
    return picked.masked_fill(table < 0, empty)


def _event(values: Tensor, table: Tensor) -> Tensor:
    """Return the log-sum-exp of values over each set, [n]."""
    picked = _gather(values, table, float("-inf"))
    return picked[:, 0] if picked.shape[1] == 1 else picked.logsumexp(1)


def _prompts(*tables: Tensor) -> int | None:
    sizes = {len(t) for t in tables} - {1}
    if len(sizes) > 1:
        raise BadInput(f"answers and foils are for different numbers of prompts: {sorted(sizes)}.")
    return sizes.pop() if sizes else None


def logit_diff(answer: Ids, foil: Ids) -> Metric:
    """logit(answer) - logit(foil): the log odds of answer against foil, 0 when undecided."""
    a, f = _table(answer, "answer"), _table(foil, "foil")
    return Metric("logit_diff", lambda z: _event(z, a) - _event(z, f), _prompts(a, f))


def prob_diff(answer: Ids, foil: Ids) -> Metric:
    """p(answer) - p(foil), between -1 and 1; as in greater-than (arXiv 2305.00586)."""
    a, f = _table(answer, "answer"), _table(foil, "foil")

    def function(z: Tensor) -> Tensor:
        p = z.softmax(1)
        return _gather(p, a, 0.0).sum(1) - _gather(p, f, 0.0).sum(1)

    return Metric("prob_diff", function, _prompts(a, f))


def logit(answer: Ids) -> Metric:
    """The logit of the answer alone."""
    a = _table(answer, "answer")
    return Metric("logit", lambda z: _event(z, a), _prompts(a))


def log_prob(answer: Ids) -> Metric:
    """The natural log of the answer's probability, at most 0."""
    a = _table(answer, "answer")
    return Metric("log_prob", lambda z: _event(z.log_softmax(1), a), _prompts(a))


def kl(reference: Tensor) -> Metric:
    """KL(p || q) in nats, p from the `reference` logits [n, d_vocab], q from the given ones."""
    if reference.ndim != 2:
        raise BadInput(f"reference must be logits [n, d_vocab], got {tuple(reference.shape)}.")
    log_p = reference.detach().log_softmax(1)

    def function(z: Tensor) -> Tensor:
        if z.shape != log_p.shape:
            raise BadInput(f"logits {tuple(z.shape)} against reference {tuple(log_p.shape)}.")
        p = log_p.to(z.device)
        return (p.exp() * (p - z.log_softmax(1))).sum(1)

    return Metric("kl", function, len(reference))


def top1(answer: Ids) -> Metric:
    """1.0 where the most likely token of all is (one of) the answer, else 0.0; no gradient."""
    a = _table(answer, "answer")

    def function(z: Tensor) -> Tensor:
        return (z.argmax(1)[:, None] == a.to(z.device)).any(1).to(z.dtype)

    return Metric("top1", function, _prompts(a))


MEASURES: dict[str, Callable[[Ids, Ids], Metric]] = {
    "logit_diff": logit_diff,
    "prob_diff": prob_diff,
    "logit": lambda answer, foil: logit(answer),
    "log_prob": lambda answer, foil: log_prob(answer),
    "top1": lambda answer, foil: top1(answer),
}


def measure(name: str, answer: Ids, foil: Ids) -> Metric:
    """Return the metric called `name` for these answers and foils; raise UnknownName if none is."""
    if name not in MEASURES:
        raise UnknownName(f"no metric {name!r}{suggest(name, MEASURES)}")
    return MEASURES[name](answer, foil)
