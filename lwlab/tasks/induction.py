"""Induction: a list starts over, so what followed last time follows again (arXiv 2209.11895)."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.tasks.base import Task
from lwlab.tasks.fit import Example, Fit, Text, build, fill
from lwlab.tasks.words import THINGS


def induction(
    model: Any,
    n: int = 16,
    seed: int = 0,
    *,
    length: int = 12,
    repeats: int = 1,
    kind: Literal["words", "tokens"] = "words",
    words: Sequence[str] = THINGS,
    start: str = "Words:",
) -> Task:
    """Make n prompts that repeat a random list of `length` words and stop halfway through it.

    "Words: a b c d e f a b c" -> " d": d followed c when the list was first read (`repeats` full
    readings come first). The twin has another word in place of d, so its answer is that word:
    prompts 2i and 2i + 1 are each other's corruption. No word occurs twice in a list.
    kind: "words" draws common nouns, "tokens" any entries of the vocabulary that are a space and
    letters. Positions: A1 (c, first reading), B1 (d, first reading; B2, B3, ... with more), END
    (c, in the last reading).

    SmolLM2-135M-Instruct, n=32: logit difference 8.7 with words and 13.1 with tokens, the answer
    first among all tokens in 78 % of prompts (88 and 97 % with repeats=2).

    Raises BadInput when the words do not fit the tokenizer, or the numbers make no list.
    """
    if kind not in ("words", "tokens"):
        raise UnknownName(f"no kind {kind!r} of list{suggest(kind, ('words', 'tokens'))}")
    if length < 3 or repeats < 1 or not start.strip():
        raise BadInput(
            f"length={length}, repeats={repeats}, start={start!r}: a list has at least 3 words, "
            "is read at least once, and follows a word."
        )
    fit, rng = Fit(model), random.Random(f"induction {seed}")
    fit.check_n(n, 100_000, "induction")
    if kind == "words":
        pool = fit.keep(words, "words", length + 1)
    else:
        pool = fit.keep(_entries(fit, rng, n * (length + 1)), "vocabulary entries", length + 1)
    stop = length // 2
    examples: list[Example] = []
    for _ in range(-(-n // 2)):
        *items, other = rng.sample(pool, length + 1)
        twin = [*items[:stop], other, *items[stop + 1 :]]
        where = {"A1": f"w0_{stop - 1}"} | {f"B{r + 1}": f"w{r}_{stop}" for r in range(repeats)}
        example = Example(
            clean=_listing(start, items, repeats, stop),
            corrupt=_listing(start, twin, repeats, stop),
            answer=(f" {items[stop]}",),
            foil=(f" {other}",),
            where=where,
            changed=tuple(f"B{r + 1}" for r in range(repeats)),
        )
        examples += [example, example.mirror()]
    groups = [i // 2 for i in range(n)]
    return build(fit, "induction", examples[:n], seed=seed, groups=groups, attrs={"kind": kind})


def _listing(start: str, items: Sequence[str], repeats: int, stop: int) -> Text:
    """Write the items `repeats` times and then the first `stop` of them; slots are w{round}_{i}."""
    slots = {f"w{r}_{i}": item for r in range(repeats) for i, item in enumerate(items)}
    slots |= {f"w{repeats}_{i}": item for i, item in enumerate(items[:stop])}
    text = fill(" ".join([start, *(f"{{{slot}}}" for slot in slots)]), **slots)
    return replace(text, template=f"{start} {len(items)} words x {repeats}, then {stop}")


def _entries(fit: Fit, rng: random.Random, wanted: int) -> list[str]:
    """Return random vocabulary entries that are a space and letters, without the space."""
    ids = sorted(set(fit.tokenizer.get_vocab().values()))
    letters = re.compile(r" ([A-Za-z]+)")
    found: list[str] = []
    for i in rng.sample(ids, len(ids)):
        match = letters.fullmatch(fit.tokenizer.decode([i]))
        if match:
            found.append(match[1])
        if len(found) >= min(wanted, 2000):
            break
    return found
