"""Indirect object identification: who received the drink (Wang et al. 2022, arXiv 2211.00593)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.tasks.base import Task
from lwlab.tasks.fit import Example, Fit, build, check_n, fill
from lwlab.tasks.words import NAMES, OBJECTS, PLACES

TEMPLATES: dict[str, str] = {
    "store-drink": "When {A} and {B} went to the store, {S} gave a drink to",
    "went": "When {A} and {B} went to the {place}, {S} gave a {object} to",
    "working": "Then, {A} and {B} were working at the {place}. {S} decided to give a {object} to",
    "argument": "Then, {A} and {B} had a long argument, and afterwards {S} said to",
    "thinking": "Then, {A} and {B} were thinking about going to the {place}. {S} wanted to give a "
    "{object} to",
    "found": "Friends {A} and {B} found a {object} at the {place}. {S} gave it to",
}

Names = Sequence[str] | Sequence[tuple[str, str]]


def ioi(
    model: Any,
    n: int = 16,
    seed: int = 0,
    *,
    corruption: Literal["s2", "abc"] = "s2",
    template: str | Sequence[str] = "store-drink",
    names: Names = NAMES,
    places: Sequence[str] = PLACES,
    objects: Sequence[str] = OBJECTS,
    ragged: bool = False,
) -> Task:
    """Make n prompts that end where the name of the indirect object belongs.

    "When Mary and John went to the store, John gave a drink to" -> " Mary", not " John".

    corruption: "s2" puts the other name at S2, so the answer flips; prompts 2i and 2i + 1 are each
    other's corruption (both orders of the names occur, and an odd n leaves the last one alone).
    "abc" puts three fresh names, so nothing is left to answer; prompts are independent.
    template: a name in `TEMPLATES`, a template of your own with {A}, {B}, {S} (and, if you like,
    {place}, {object}), or a list, cycled through pair by pair (`ragged=True` if their lengths
    differ). names: words to draw from, or pairs of them, used in the given order without drawing.
    Words that are not one token are dropped. Positions: IO, S1, "S1+1", S2, END.

    The eight prompts of the RelP card are
    `ioi(model, n=8, names=[("Mary", "John"), ("Tom", "James"), ...])`: four pairs, both orders.

    Raises BadInput when too few words fit the tokenizer (naming them) or n is too large.
    """
    if corruption not in ("s2", "abc"):
        raise UnknownName(f"no corruption {corruption!r}{suggest(corruption, ('s2', 'abc'))}")
    fit, rng = Fit(model), random.Random(f"ioi {seed}")
    templates = [_template(t) for t in ([template] if isinstance(template, str) else template)]
    every = "".join(templates)
    fitting_places = fit.keep(places, "places", 1) if "{place}" in every else [""]
    fitting_objects = fit.keep(objects, "objects", 1) if "{object}" in every else [""]
    size = 2 if corruption == "s2" else 1
    pairs, pool = _pairs(fit, rng, names, n, size, fresh=corruption == "abc")
    examples: list[Example] = []
    for i, (a, b) in enumerate(pairs):
        scene = {"place": rng.choice(fitting_places), "object": rng.choice(fitting_objects)}
        chosen = templates[i % len(templates)]
        if corruption == "s2":
            examples += _swapped(chosen, scene, a, b)
        else:
            others = rng.sample([w for w in pool if w not in (a, b)], 3)
            examples.append(_fresh(chosen, scene, a, b, rng.choice("AB"), others))
    task = build(
        fit,
        "ioi",
        examples[:n],
        seed=seed,
        groups=[i // size for i in range(n)],
        ragged=ragged,
        attrs={"corruption": corruption},
    )
    at = task.positions
    order = {"IO": at["IO"], "S1": at["S1"], "S1+1": at["S1"] + 1, "S2": at["S2"], "END": at["END"]}
    return replace(task, positions=order)


def _swapped(template: str, scene: dict[str, str], a: str, b: str) -> list[Example]:
    """The prompt where B gives to A, and the one where A gives to B: each corrupts the other."""
    gives_b, gives_a = (fill(template, A=a, B=b, S=s, **scene) for s in (b, a))
    where = {"IO": "A", "S1": "B", "S2": "S"}
    first = Example(gives_b, gives_a, (f" {a}",), (f" {b}",), where, ("S2",))
    return [first, replace(first.mirror(), where={"IO": "B", "S1": "A", "S2": "S"})]


def _fresh(
    template: str, scene: dict[str, str], a: str, b: str, giver: str, others: Sequence[str]
) -> Example:
    """The prompt in which `giver` ("A" or "B") gives, corrupted by three other names."""
    subject, receiver = (a, b) if giver == "A" else (b, a)
    clean = fill(template, A=a, B=b, S=subject, **scene)
    corrupt = fill(template, A=others[0], B=others[1], S=others[2], **scene)
    where = {"IO": "B" if giver == "A" else "A", "S1": giver, "S2": "S"}
    return Example(clean, corrupt, (f" {receiver}",), (f" {subject}",), where, ("IO", "S1", "S2"))


def _template(given: str) -> str:
    if given in TEMPLATES:
        return TEMPLATES[given]
    if "{" not in given:
        raise UnknownName(f"no IOI template {given!r}{suggest(given, TEMPLATES)}")
    missing = [slot for slot in ("{A}", "{B}", "{S}") if slot not in given]
    if missing:
        raise BadInput(f"the IOI template {given!r} lacks {', '.join(missing)}.")
    return given


def _pairs(
    fit: Fit, rng: random.Random, names: Names, n: int, size: int, fresh: bool
) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the name pairs of n prompts (`size` prompts a pair) and the names that fit."""
    if names and not isinstance(names[0], str):
        given = cast("Sequence[tuple[str, str]]", names)
        fits = fit.keep([w for pair in given for w in pair], "names", 2)
        pairs = [(a, b) for a, b in given if a != b and a in fits and b in fits]
        check_n(n, size * len(pairs), "ioi")
        return pairs[: -(-n // size)], fit.keep(NAMES, "names", 5) if fresh else fits
    fits = fit.keep(cast("Sequence[str]", names), "names", 5 if fresh else 2)
    most = len(fits) * (len(fits) - 1)
    check_n(n, size * most, "ioi")
    pairs = []
    for draw in rng.sample(range(most), -(-n // size)):
        first, second = divmod(draw, len(fits) - 1)
        pairs.append((fits[first], fits[second + (second >= first)]))
    return pairs, fits
