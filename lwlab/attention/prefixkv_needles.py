"""Long texts with needles in them: sentences nobody could guess, to be asked for later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lwlab.attention.prefixkv_cache import check
from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.tasks.fit import Fit

_COLOURS = ("red", "green", "blue", "white", "black", "yellow", "brown", "grey")
_PLACES = ("door", "house", "garden", "tower", "bridge", "market", "church", "school")
_WORDS = (
    "marble", "pepper", "falcon", "silver", "cotton", "ginger", "walnut", "copper",
    "violin", "rabbit", "candle", "mirror", "anchor", "basket", "dragon", "pocket",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Haystack:
    """A long text with needles in it, all as ids: context [1, T], what follows it [1, N].

    `questions` and `answers` ask for each needle; `places` are the positions where they begin.
    """

    context: torch.Tensor
    following: torch.Tensor
    questions: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[int, ...], ...]
    places: tuple[int, ...]


def haystacks(
    model: Model,
    texts: Sequence[str],
    n: int = 4,
    *,
    tokens: int = 512,
    following: int = 48,
    needles: int = 4,
    seed: int = 0,
) -> list[Haystack]:
    """Cut n contexts of `tokens` tokens out of `texts`, each with needles at even depths.

    A needle is "The password of the red door is marble.", colours, places and words drawn by
    `seed`, no two alike within a context; its question is the sentence without the word.
    Raises BadInput for too little text, needles that fill over half of the context, or lengths
    that the model does not read, and as `read` does for the model.
    """
    check(model)
    if n < 1 or needles < 0 or following < 2 or tokens < 2:
        raise BadInput(
            f"n={n}, tokens={tokens}, following={following}, needles={needles}: at least one text "
            "of 2 tokens, 2 that follow, and no negative number of needles"
        )
    if needles > len(_COLOURS):
        raise BadInput(f"needles={needles}: at most {len(_COLOURS)} differ in colour and place")
    fit = Fit(model)
    begin = fit.ids("")
    draw = np.random.default_rng(seed)
    out: list[Haystack] = []
    straw = iter(texts)
    ids: list[int] = []
    longest = 0
    for _ in range(n):
        asked, told, said = _needles(model, draw, needles)
        room = tokens - len(begin) - sum(map(len, said))
        if room < tokens / 2:
            raise BadInput(f"{needles} needles fill over half of {tokens} tokens; hide fewer")
        while len(ids) < room + following:
            text = next(straw, None)
            if text is None:
                raise BadInput(f"too little text for {n} contexts of {tokens} tokens")
            ids += _plain(model, text + "\n\n")
        edges = [round(room * (i + 0.5) / needles) for i in range(needles)]
        context, at, places = list(begin), 0, []
        for edge, sentence in zip(edges, said):
            context += ids[at:edge]
            places.append(len(context))
            context += sentence
            at = edge
        context += ids[at:room]
        rest = ids[room : room + following]
        ids = ids[room + following :]
        longest = max(len(context) + len(rest), *(len(context) + len(q + a) for q, a in
                      zip(asked, told)), 0)  # fmt: skip
        if model.max_tokens is not None and longest > model.max_tokens:
            raise BadInput(
                f"{longest} tokens (context, and what follows) are more than the "
                f"{model.max_tokens} that {model.name} reads; lower tokens"
            )
        out.append(
            Haystack(
                torch.tensor([context], device=model.device),
                torch.tensor([rest], device=model.device),
                tuple(map(tuple, asked)), tuple(map(tuple, told)), tuple(places),
            )
        )  # fmt: skip
    return out


def _needles(
    model: Model, draw: np.random.Generator, n: int
) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    asked, told, said = [], [], []
    drawn = (draw.permutation(x)[:n] for x in (_COLOURS, _PLACES, _WORDS))
    for colour, place, word in zip(*drawn):
        lead = f"\n\nThe password of the {colour} {place} is"
        asked.append(_plain(model, lead))
        told.append(_plain(model, f" {word}"))
        said.append(_plain(model, f"{lead} {word}.\n\n"))
    return asked, told, said


def _plain(model: Model, text: str) -> list[int]:
    ids: list[int] = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids
