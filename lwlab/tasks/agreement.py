"""Subject-verb agreement, with a noun of the other number in between (Linzen et al. 2016)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Literal

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.tasks.base import Task
from lwlab.tasks.fit import Example, Fit, build, fill
from lwlab.tasks.words import NOUNS

TEMPLATES: dict[str, str] = {
    "simple": "The {subject}",
    "near": "The {subject} near the {attractor}",
    "behind": "The {subject} behind the {attractor}",
    "relative": "The {subject} that the {attractor} saw",
    "report": "I think that the {subject} near the {attractor}",
}


def agreement(
    model: Any,
    n: int = 16,
    seed: int = 0,
    *,
    template: str = "near",
    attractor: Literal["opposite", "same"] = "opposite",
    verbs: tuple[str, str] = ("is", "are"),
    nouns: Sequence[tuple[str, str]] = NOUNS,
) -> Task:
    """Make n prompts that end before a verb which must agree with the subject.

    "The keys near the cabinet" -> " are", not " is". The twin has the subject in the other number
    and the same attractor, so its answer is the other verb. Even prompts have a singular subject,
    odd ones a plural. attractor: the number of the noun in between, "opposite" to that of the clean
    prompt's subject or the "same". template: a name in `AGREEMENT_TEMPLATES`, or your own with
    {subject} (and {attractor}). verbs: singular and plural. nouns: pairs (singular, plural).
    Prompts 2i and 2i + 1 share their nouns. Positions: SUBJECT, ATTRACTOR (if there is one), END.

    SmolLM2-135M-Instruct, n=32: with the attractor "near", logit difference 2.0 (opposite; right
    in 91 % of prompts) and 2.5 (same); without one, 4.7. Other words than the verb come first.

    Raises BadInput when too few nouns fit the tokenizer (naming them) or n is too large.
    """
    if attractor not in ("opposite", "same"):
        raise UnknownName(f"no attractor {attractor!r}{suggest(attractor, ('opposite', 'same'))}")
    frame = TEMPLATES.get(template, template)
    if "{subject}" not in frame:
        raise UnknownName(f"no agreement template {template!r}{suggest(template, TEMPLATES)}")
    fit, rng = Fit(model), random.Random(f"agreement {seed}")
    fits = set(fit.keep([form for pair in nouns for form in pair], "nouns", 4))
    pairs = [pair for pair in nouns if set(pair) <= fits]
    between = "{attractor}" in frame
    most = len(pairs) * (len(pairs) - 1) if between else len(pairs)
    if most < 1:
        raise BadInput(f"{len(pairs)} nouns fit the tokenizer in both numbers; give more nouns.")
    fit.check_n(n, 2 * most, "agreement")
    examples: list[Example] = []
    for draw in rng.sample(range(most), -(-n // 2)):
        first, second = divmod(draw, len(pairs) - 1) if between else (draw, 0)
        subject, other = pairs[first], pairs[second + (second >= first)] if between else ("", "")
        for plural in (0, 1):
            number = plural if attractor == "same" else 1 - plural
            clean, corrupt = (
                fill(frame, subject=subject[form], attractor=other[number])
                for form in (plural, 1 - plural)
            )
            where = {"SUBJECT": "subject"} | ({"ATTRACTOR": "attractor"} if between else {})
            answer, foil = (f" {verbs[form]}" for form in (plural, 1 - plural))
            examples.append(Example(clean, corrupt, (answer,), (foil,), where, ("SUBJECT",)))
    groups = [i // 2 for i in range(n)]
    attrs = {"attractor": attractor} if between else {}
    return build(fit, "agreement", examples[:n], seed=seed, groups=groups, attrs=attrs)
