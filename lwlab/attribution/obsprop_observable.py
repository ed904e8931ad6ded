"""Observables: linear functionals of the logits, such as logit(" she") - logit(" he")."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import xarray as xr

from lwlab.errors import BadInput, MissingSite
from lwlab.models.model import Model
from lwlab.models.tokens import token_strings
from lwlab.tasks.metrics import Metric
from lwlab.tracing import lock

Words = str | int | Sequence[str | int]
_Logits = TypeVar("_Logits", torch.Tensor, xr.DataArray)
_PIECE = re.compile(r"\"([^\"]*)\"|'([^']*)'|([^\s,]+)")


@dataclass(frozen=True)
class Observable:
    """n . logits for a sparse vector n: `weights[i]` on token `ids[i]`, called `tokens[i]`.

    Of logits [..., vocabulary] (or a DataArray with the dimension `token`) it gives n . logits,
    in logits. With soft-capped logits it is about those before the cap.
    """

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, model: Model, plus: Words, minus: Words = ()) -> Observable:
        """The mean logit of `plus` less the mean logit of `minus` (which may be empty).

        Words are taken as written, with their leading space, and must be one token each; whole
        numbers are token ids. Raises BadInput for a word of several tokens (showing them) or one
        the tokenizer does not know, for no word at all, or where both sides cancel; MissingSite
        for a model without logits.
        """
        sides = [_ids(model, w) for w in (plus, minus)]
        weights: dict[int, float] = {}
        for ids, sign in zip(sides, (1.0, -1.0)):
            for i in ids:
                weights[i] = weights.get(i, 0.0) + sign / len(ids)
        return cls._made(model, weights)

    @classmethod
    def weighted(cls, model: Model, weights: Mapping[str | int, float]) -> Observable:
        """n as it is given, token -> weight. Raises as `of` does."""
        total: dict[int, float] = {}
        for word, weight in weights.items():
            (i,) = _ids(model, [word])
            total[i] = total.get(i, 0.0) + float(weight)
        return cls._made(model, total)

    @classmethod
    def parse(cls, model: Model, plus: str, minus: str = "") -> Observable:
        """Read what a user types: words between spaces or commas.

        A word stands for the token with a leading space, where there is one, else for the bare
        one; quoted ("he", ' he') it is taken as written. Raises as `of` does.
        """
        return cls.of(model, _typed(model, plus), _typed(model, minus))

    @classmethod
    def _made(cls, model: Model, weights: Mapping[int, float]) -> Observable:
        if model.anatomy.unembed is None:
            raise MissingSite(f"{model.name} has no unembedding, so there are no logits to observe")
        if not weights:
            raise BadInput('the observable is empty: name a token, as in plus=[" she"]')
        if any(w != w or abs(w) == float("inf") for w in weights.values()):
            raise BadInput("weights must be finite numbers")
        kept = {i: w for i, w in weights.items() if w}
        if not kept:
            raise BadInput("both sides name the same tokens, so the observable is zero everywhere")
        names = token_strings(model.tokenizer, kept)
        return cls(tuple(names), tuple(kept), tuple(kept.values()))

    @property
    def name(self) -> str:
        """Positive tokens less negative ones, as in 'she - he'."""
        pairs = [(t.strip() or repr(t), w) for t, w in zip(self.tokens, self.weights)]
        plus = " + ".join(t for t, w in pairs if w > 0)
        minus = "".join(f" - {t}" for t, w in pairs if w < 0)
        return f"{plus}{minus}".strip()

    def __neg__(self) -> Observable:
        """-n."""
        return Observable(self.tokens, self.ids, tuple(-w for w in self.weights))

    def __call__(self, logits: _Logits) -> _Logits:
        """n . logits, without the last axis (or the dimension `token`)."""
        if isinstance(logits, xr.DataArray):
            if "token" not in logits.dims:
                raise BadInput(f"an observable wants the dimension token, got {logits.dims}")
            weights = xr.DataArray(list(self.weights), dims="token")
            picked = logits.isel(token=list(self.ids)).drop_vars("token", errors="ignore")
            return (picked * weights).sum("token").rename(self.name)
        if not logits.ndim or logits.shape[-1] <= max(self.ids):
            raise BadInput(f"logits of shape {tuple(logits.shape)} lack token {max(self.ids)}")
        return logits[..., list(self.ids)] @ torch.tensor(self.weights).to(logits)

    def metric(self) -> Metric:
        """The observable as a metric, for `lw.grads`, `lw.sweep` and their like."""
        return Metric(self.name, self)


def _ids(model: Model, words: Words) -> list[int]:
    listed = [words] if isinstance(words, str | int) else list(words)
    return [_one(model, w) for w in dict.fromkeys(listed)]


def _one(model: Model, word: str | int) -> int:
    if isinstance(word, bool) or not isinstance(word, str | int):
        raise BadInput(f"{word!r} is neither a word nor a token id")
    if isinstance(word, int):
        if not 0 <= word < (model.d_vocab or 0):
            raise BadInput(f"token {word} is outside the vocabulary, 0..{(model.d_vocab or 0) - 1}")
        return word
    if not word:
        raise BadInput('an empty word: write one, as in " she"')
    i = model.token_id(word)
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    if i == unknown and word.strip() != getattr(model.tokenizer, "unk_token", None):
        raise BadInput(f"{model.name} does not know the word {word!r}; use one of its tokens")
    return i


def _typed(model: Model, text: str) -> list[str]:
    out = []
    for double, single, bare in _PIECE.findall(text):
        if not bare:
            out.append(double or single)
            continue
        try:
            _one(model, f" {bare}")
            out.append(f" {bare}")
        except BadInput as spaced:
            try:
                _one(model, bare)
            except BadInput:
                raise spaced from None
            out.append(bare)
    return out


def final_functional(model: Model, observable: Observable) -> tuple[torch.Tensor, float]:
    """(W_U^T n, n . b): what n is of the normed stream, [d_model] float32, and its constant."""
    a = model.anatomy
    if a.unembed is None or a.d_model is None:
        raise MissingSite(f"{model.name} has no unembedding, so there are no logits to observe")
    head = model.module.get_submodule(a.unembed)
    with lock(model), torch.enable_grad():
        x = torch.zeros(1, a.d_model, device=model.device, dtype=model.dtype, requires_grad=True)
        value = observable(head(x * a.logit_scale)[0].float())
        (y,) = torch.autograd.grad(value, x)
    return y[0].float().detach(), float(value.detach())
