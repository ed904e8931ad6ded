"""Indirect object identification: who received the drink (Wang et al. 2022, arXiv 2211.00593)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.tasks.base import Task
from lwlab.tasks.fit import Example, Fit, build, fill
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

# The four pairs behind the numbers of the RelP study on SmolLM2 (use with n=8, order="abba").
RELP_PAIRS = (("Mary", "John"), ("Tom", "James"), ("Dan", "Sarah"), ("Anna", "Paul"))

Names = Sequence[str] | Sequence[tuple[str, str]]


def ioi(
    model: Any,
    n: int = 16,
    seed: int = 0,
    *,
    corruption: Literal["s2", "abc"] = "s2",
    order: Literal["mixed", "abba", "baba"] = "mixed",
    template: str | Sequence[str] = "store-drink",
    names: Names = NAMES,
    places: Sequence[str] = PLACES,
    objects: Sequence[str] = OBJECTS,
    ragged: bool = False,
) -> Task:
    """Make n prompts that end where the name of the indirect object belongs.

    "When Mary and John went to the store, John gave a drink to" -> " Mary", not " John".

    corruption: "s2" puts the other name at S2, so the answer flips; "abc" puts three fresh names,
    so nothing is left to answer.
    order: "abba" names the receiver first, as above, so IO, S1 and S2 stand at the same positions
    in all prompts; "baba" names the giver first; in both, prompts 2i and 2i + 1 exchange the two
    names. "mixed" has both: with "s2", prompts 2i and 2i + 1 are each other's corruption.
    template: a name in `IOI_TEMPLATES`, a template of your own with {A}, {B}, {S} (and, if you
    like, {place}, {object}), or a list of them, cycled through pair by pair (`ragged=True` where
    their lengths differ). names: words to draw from, or pairs of words, used in the given order.
    Words that are not one token are dropped. Positions: IO, S1, "S1+1", S2, END.

    The eight prompts measured in the RelP card: `ioi(model, n=8, names=IOI_RELP_PAIRS,
    order="abba")` (SmolLM2: clean +5.19, corrupt -4.75).

    SmolLM2-135M-Instruct, n=32: logit difference 4.9 to 6.0, the answer first among all tokens in
    81 to 100 % of prompts; but 1.5 and 53 % on the template "found".

    Raises BadInput when too few words fit the tokenizer (naming them) or n is too large.
    """
    for given, known in ((corruption, ("s2", "abc")), (order, ("mixed", "abba", "baba"))):
        if given not in known:
            raise UnknownName(f"IOI knows no {given!r}{suggest(given, known)}")
    fit, rng = Fit(model), random.Random(f"ioi {seed}")
    templates = [_template(t) for t in ([template] if isinstance(template, str) else template)]
    every = "".join(templates)
    fitting_places = fit.keep(places, "places", 1) if "{place}" in every else [""]
    fitting_objects = fit.keep(objects, "objects", 1) if "{object}" in every else [""]
    pairs, pool = _pairs(fit, rng, names, n, both=order == "mixed", fresh=corruption == "abc")
    examples: list[Example] = []
    for i, (a, b) in enumerate(pairs):
        scene = {"place": rng.choice(fitting_places), "object": rng.choice(fitting_objects)}
        for first, second, giver in _orders(a, b, order):
            others = None
            if corruption == "abc":
                others = rng.sample([w for w in pool if w not in (a, b)], 3)
            frame = templates[i % len(templates)]
            examples.append(_example(frame, scene, first, second, giver, others))
    task = build(
        fit,
        "ioi",
        examples[:n],
        seed=seed,
        groups=[i // 2 for i in range(n)],
        ragged=ragged,
        attrs={"corruption": corruption, "order": order},
    )
    at = task.positions
    named = {"IO": at["IO"], "S1": at["S1"], "S1+1": at["S1"] + 1, "S2": at["S2"], "END": at["END"]}
    return replace(task, positions=named)


def _orders(a: str, b: str, order: str) -> list[tuple[str, str, str]]:
    """Return two prompts of one pair of names: (first name, second name, slot of the giver)."""
    if order == "mixed":
        return [(a, b, "B"), (a, b, "A")]
    giver = "B" if order == "abba" else "A"
    return [(a, b, giver), (b, a, giver)]


def _example(
    template: str,
    scene: dict[str, str],
    first: str,
    second: str,
    giver: str,
    others: Sequence[str] | None,
) -> Example:
    """The prompt in which the name in slot `giver` gives; `others` are the fresh names of "abc"."""
    subject, receiver = (first, second) if giver == "A" else (second, first)
    clean = fill(template, A=first, B=second, S=subject, **scene)
    a, b, s = others if others else (first, second, receiver)
    corrupt = fill(template, A=a, B=b, S=s, **scene)
    where = {"IO": "B" if giver == "A" else "A", "S1": giver, "S2": "S"}
    changed = ("IO", "S1", "S2") if others else ("S2",)
    return Example(clean, corrupt, (f" {receiver}",), (f" {subject}",), where, changed)


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
    fit: Fit, rng: random.Random, names: Names, n: int, both: bool, fresh: bool
) -> tuple[list[tuple[str, str]], list[str]]:
    """Return a pair of names for every two prompts, and the names that fit.

    With `both`, (a, b) and (b, a) are different pairs.
    """
    wanted = -(-n // 2)
    if names and not isinstance(names[0], str):
        given = cast("Sequence[tuple[str, str]]", names)
        fits = fit.keep([w for pair in given for w in pair], "names", 0)
        pairs = [(a, b) for a, b in given if a != b and a in fits and b in fits]
        fit.check_n(n, 2 * len(pairs), "ioi")
        return pairs[:wanted], fit.keep(NAMES, "names", 5) if fresh else fits
    fits = fit.keep(cast("Sequence[str]", names), "names", 5 if fresh else 2)
    most = len(fits) * (len(fits) - 1)
    fit.check_n(n, 2 * most if both else most, "ioi")
    pairs = []
    seen: set[frozenset[str]] = set()
    for draw in rng.sample(range(most), most if not both else wanted):
        a, b = divmod(draw, len(fits) - 1)
        pair = (fits[a], fits[b + (b >= a)])
        if both or frozenset(pair) not in seen:
            pairs.append(pair)
            seen.add(frozenset(pair))
        if len(pairs) == wanted:
            break
    return pairs, fits
