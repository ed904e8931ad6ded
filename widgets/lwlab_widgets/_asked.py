"""What instruments that run a language model share: checked text, named tokens, a first answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lwlab.errors import BadInput

from ._live import Live

if TYPE_CHECKING:
    import torch

    from lwlab.models import Model


def require_decoder(model: Model, what: str) -> None:
    """Raise BadInput for a model that predicts no next token, or whose weights are elsewhere."""
    if model.kind != "decoder":
        raise BadInput(f"{what} needs a decoder; {model.name} is of kind {model.kind!r}")
    if model.remote:
        raise BadInput(f"{what} needs the weights here; {model.name} runs remotely")
    if model.tokenizer is None:
        raise BadInput(f"{what} reads text, and {model.name} has no tokenizer")


def check_text(model: Model, text: str, what: str, limit: int, least: int = 1) -> int:
    """Return how many tokens `text` has; raise BadInput where it is empty, short or too long."""
    if not text.strip():
        raise BadInput(f"{what} is empty: write something")
    # No tokenizer writes 200 characters as one token: far beyond the limit, nothing is split.
    if len(text) > 200 * limit:
        raise BadInput(f"{what} has {len(text)} characters: at most {limit} tokens are read here")
    length = int(model.tokens(text).lengths[0])
    if length > limit:
        raise BadInput(f"{what} has {length} tokens: at most {limit} are read here, shorten it")
    if length < least:
        raise BadInput(f"{what} has {length} token(s): {least} are needed")
    return length


def named(model: Model, token: int) -> str:
    """Return a token as text, whitespace made visible."""
    text = str(model.tokenizer.decode([token]))
    return text.replace("\n", "↵").replace("\t", "⇥") or f"#{token}"


def top(model: Model, p: torch.Tensor, k: int = 10) -> list[dict[str, Any]]:
    """Return the `k` likeliest tokens of `p` [tokens]: id, text and probability."""
    best = p.topk(min(k, p.numel()))
    pairs = zip(best.indices.tolist(), best.values.tolist())
    return [{"id": i, "token": named(model, i), "p": v} for i, v in pairs]


class Asked(Live):
    """A live instrument that begins to answer when it is made.

    Showing it waits at most `patience` seconds for the first answer, because the static picture is
    made at that moment and not again.
    """

    patience = 4.0

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        self.wait(self.patience)
        return super()._repr_mimebundle_(**kwargs)
