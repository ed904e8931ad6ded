"""Concept word lists in short sentences: what an unsupervised feature can be held against."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lwlab.errors import BadInput


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


#: Ten concepts; the words of each are named after one another in everyday English.
CONCEPTS: dict[str, tuple[str, ...]] = {
    "days": _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "months": _words(
        "January February March April May June July August September October November December"
    ),
    "colours": _words(
        "red blue green yellow purple orange pink brown black white gray violet gold silver crimson"
    ),
    "animals": _words(
        "dog cat horse cow sheep lion tiger bear wolf rabbit mouse elephant monkey snake frog"
    ),
    "numbers": _words(
        "one two three four five six seven eight nine ten eleven twelve twenty thirty hundred"
    ),
    "countries": _words(
        "France Germany Italy Spain China Japan India Brazil Canada Mexico Russia Egypt Greece "
        "Poland Sweden"
    ),
    "body": _words("hand foot arm leg head nose ear eye mouth knee finger shoulder neck toe chest"),
    "family": _words(
        "mother father brother sister uncle aunt cousin son daughter wife husband nephew niece "
        "grandmother grandfather"
    ),
    "food": _words(
        "bread cheese rice soup pasta butter meat cake pizza salad sugar honey potato apple banana"
    ),
    "tools": _words(
        "hammer knife saw drill shovel axe wrench screwdriver ladder nail rope scissors brush "
        "needle rake"
    ),
}

#: The word comes last, where a causal model has read all there is.
TEMPLATES = ("We talked about {word}", "The next one is {word}", "They wrote down: {word}")

#: Beginnings that call for none of the concepts.
NEUTRAL = (
    "I think that the", "She told me about the", "Here is a picture of", "We would like to see",
    "It has to be", "The story is about", "My favorite one is", "They said it was",
    "You can choose a", "In the end there was",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Concepts:
    """n sentences that end in a word of a known concept; made by `concepts`.

    texts, words: the sentences and their last words. labels [n]: the concept of each, an index
    into `names`. held_out [n]: whether the word was set aside (a third of each concept's words).
    positions [n]: the word's last token, counted from the end of the prompt. lists: the one-token
    words of each concept by name, with their ids.
    """

    texts: tuple[str, ...]
    words: tuple[str, ...]
    names: tuple[str, ...]
    labels: NDArray[np.int64]
    held_out: NDArray[np.bool_]
    positions: NDArray[np.int64]
    lists: Mapping[str, Mapping[str, int]]
    seed: int = 0
    name: str = "concepts"

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"<Concepts: {len(self)} sentences of {len(self.names)} concepts>"

    def ids(self, held_out: bool | None = None) -> dict[str, list[int]]:
        """Token ids of each concept's one-token words; only those (not) held out, if asked."""
        out = dict(zip(self.words, self.held_out.tolist()))
        return {
            c: [i for w, i in words.items() if held_out is None or out[w] == held_out]
            for c, words in self.lists.items()
        }


def concepts(
    model: Any,
    words: Mapping[str, Sequence[str]] | None = None,
    templates: Sequence[str] = TEMPLATES,
    *,
    n: int | None = None,
    seed: int = 0,
) -> Concepts:
    """Put every word of every concept in every template.

    `words`: concept -> its words (`CONCEPTS` by default); at most `n` of each, drawn by `seed`, as
    is the third of them that is held out. `templates` end in {word}. Words may be several tokens:
    the last one is looked at. Raises BadInput for fewer than two concepts (one class has nothing
    to be told from), a concept of fewer than three words, a word in two concepts, a template that
    does not end in {word}, or a model without a tokenizer.
    """
    given = CONCEPTS if words is None else words
    tokenizer = getattr(model, "tokenizer", model)
    if not callable(tokenizer):
        raise BadInput(f"concepts are sentences: {model!r} has no tokenizer to read them with")
    if len(given) < 2:
        raise BadInput(
            f"{len(given)} concept given ({', '.join(given) or 'none'}): with one class there is "
            "nothing to tell it from; give at least two"
        )
    if not templates or (bad := [t for t in templates if not t.endswith("{word}")]):
        raise BadInput(f"templates must end in {{word}}: {bad[0]!r}" if templates else "none given")
    seen: dict[str, str] = {}
    rng = random.Random(f"concepts {seed}")
    rows: list[tuple[str, str, int, bool]] = []
    lists: dict[str, dict[str, int]] = {}
    for c, (concept, listed) in enumerate(given.items()):
        chosen = list(dict.fromkeys(listed))
        rng.shuffle(chosen)
        chosen = chosen[:n]
        if len(chosen) < 3:
            raise BadInput(f"concept {concept!r} has {len(chosen)} words; at least three, please")
        for w in chosen:
            if w in seen:
                raise BadInput(f"{w!r} is in two concepts, {seen[w]!r} and {concept!r}")
            seen[w] = concept
        aside = set(chosen[-max(1, len(chosen) // 3) :])
        rows += [(t.replace("{word}", w), w, c, w in aside) for t in templates for w in chosen]
        lists[concept] = {w: i for w in chosen if (i := _single(tokenizer, " " + w)) is not None}
    texts, last, labels, held = zip(*rows)
    tail = _tail(tokenizer)
    return Concepts(
        texts, last, tuple(given), np.array(labels), np.array(held),
        np.full(len(rows), -1 - tail), lists, seed,
    )  # fmt: skip


def _single(tokenizer: Any, text: str) -> int | None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    unknown = getattr(tokenizer, "unk_token_id", None)
    return int(ids[0]) if len(ids) == 1 and ids[0] != unknown else None


def _tail(tokenizer: Any) -> int:
    """How many tokens of its own the tokenizer puts after a text ([SEP])."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    for tail in range(len(full) - len(bare) + 1):
        if full[len(full) - tail - len(bare) : len(full) - tail] == bare:
            return tail
    return 0
