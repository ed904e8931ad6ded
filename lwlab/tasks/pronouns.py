"""Gendered pronouns: a tag question takes the pronoun of the name (Mathwin et al. 2023)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from lwlab.errors import UnknownName, suggest
from lwlab.tasks.base import Task
from lwlab.tasks.fit import Example, Fit, build, fill
from lwlab.tasks.words import FEMALE, MALE

TEMPLATES: dict[str, tuple[str, str, str]] = {
    "isnt": ("So {name} is a really great friend, isn't", " he", " she"),
    "because": ("We all like {name} very much, because", " he", " she"),
    "lost": ("Then {name} was sad, having lost the only picture of", " himself", " herself"),
    "mother": ("When {name} came home late that night,", " his", " her"),
}


def pronouns(
    model: Any,
    n: int = 16,
    seed: int = 0,
    *,
    template: str = "isnt",
    male: Sequence[str] = MALE,
    female: Sequence[str] = FEMALE,
) -> Task:
    """Make n prompts whose next word is a pronoun that agrees with a name.

    "So Mary is a really great friend, isn't" -> " she", not " he". The twin has a name of the other
    gender: prompts 2i and 2i + 1 are each other's corruption. `template` is a name in
    `PRONOUN_TEMPLATES`. Positions: NAME, END.

    SmolLM2-135M-Instruct, n=32: logit difference 3.8 to 5.4, right in every prompt of every
    template; with "lost" and "mother" likelier words stand before both pronouns.

    Raises BadInput when too few names fit the tokenizer (naming them) or n is too large.
    """
    if template not in TEMPLATES:
        raise UnknownName(f"no pronoun template {template!r}{suggest(template, TEMPLATES)}")
    frame, he, she = TEMPLATES[template]
    fit, rng = Fit(model), random.Random(f"pronouns {seed}")
    men, women = fit.keep(male, "male names", 1), fit.keep(female, "female names", 1)
    most = len(men) * len(women)
    fit.check_n(n, 2 * most, "pronouns")
    examples: list[Example] = []
    for draw in rng.sample(range(most), -(-n // 2)):
        his, her = (
            fill(frame, name=name) for name in (men[draw // len(women)], women[draw % len(women)])
        )
        example = Example(his, her, (he,), (she,), {"NAME": "name"}, ("NAME",))
        examples += [example, example.mirror()]
    return build(fit, "pronouns", examples[:n], seed=seed, groups=[i // 2 for i in range(n)])
