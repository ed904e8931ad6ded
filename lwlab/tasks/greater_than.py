"""Greater-than: an end year must follow the start year (Hanna et al. 2023, arXiv 2305.00586)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from lwlab.errors import BadInput
from lwlab.tasks.base import Task
from lwlab.tasks.fit import Example, Fit, build, fill
from lwlab.tasks.words import EVENTS

TEMPLATE = "The {noun} lasted from the year {stem}{last} to the year {stem}"
CENTURIES = (11, 12, 13, 14, 15, 16, 17)


def greater_than(
    model: Any,
    n: int = 16,
    seed: int = 0,
    *,
    template: str = TEMPLATE,
    nouns: Sequence[str] = EVENTS,
    centuries: Sequence[int] = CENTURIES,
) -> Task:
    """Make n prompts that stop before the last token of a year that must follow another.

    Where years end in a two-digit token (GPT-2), as in the paper: "The war lasted from the year
    1732 to the year 17" -> any of 33..99, not any of 00..32; the corruption starts at 1701. Where
    they end in a one-digit token (SmolLM, Llama, Qwen): "... 1732 to the year 173" -> any of 3..9,
    not any of 0..2; the corruption starts at 1730. Answers and foils are sets of tokens and the
    metric is `prob_diff`: p(later) - p(not later). `task.attrs["digits"]` is 2 or 1.
    Positions: YY (the start year's last token, where the twins differ), END.

    SmolLM2-135M-Instruct, n=32: p(later) - p(not later) = 0.89 clean, -0.55 corrupt.

    Raises BadInput where years split in another way, too few nouns fit, or n is too large.
    """
    fit, rng = Fit(model), random.Random(f"greater-than {seed}")
    if not centuries or not all(10 <= c <= 99 for c in centuries):
        raise BadInput(f"centuries are numbers of two digits, such as 17; got {list(centuries)}.")
    fitting = fit.keep(nouns, "nouns", 1)
    years, ids = _years(fit, centuries)
    digits = len(years[0][1])
    most = len(fitting) * len(years)
    fit.check_n(n, most, "greater_than")
    examples = []
    for draw in rng.sample(range(most), n):
        stem, last = years[draw // len(fitting)]
        slots = {"noun": fitting[draw % len(fitting)], "stem": stem}
        clean = fill(template, last=last, **slots)
        corrupt = fill(template, last="01" if digits == 2 else "0", **slots)
        later, earlier = tuple(i for i in ids if i > last), tuple(i for i in ids if i <= last)
        examples.append(Example(clean, corrupt, later, earlier, {"YY": "last"}, ("YY",)))
    return build(
        fit,
        "greater_than",
        examples,
        seed=seed,
        groups=range(n),
        measure="prob_diff",
        known=ids,
        attrs={"digits": digits},
    )


def _years(fit: Fit, centuries: Sequence[int]) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Return start years as (stem, last token), and the id of every last token.

    Some years are one token of their own (" 1800" in GPT-2): they are no start years, and the id of
    their ending is taken from another century.
    """
    tens = [str(c) for c in dict.fromkeys([*centuries, *CENTURIES])]
    for stems, lasts, low in (
        (tens, [f"{y:02d}" for y in range(100)], 1),
        ([f"{c}{t}" for c in tens for t in range(10)], [str(y) for y in range(10)], 0),
    ):
        table = {
            (stem, last): fit.single(last, after=f"the year {stem}")
            for stem in stems
            for last in lasts
        }
        ids = {last: i for (_, last), i in table.items() if i is not None}
        corrupt = lasts[low]
        years = [
            (stem, last)
            for (stem, last), i in table.items()
            if i is not None
            and corrupt < last < lasts[-1]
            and table[stem, corrupt] is not None
            and int(stem[:2]) in centuries
        ]
        if years and len(ids) == len(lasts):
            return years, dict(sorted(ids.items()))
    raise BadInput(
        f"greater_than needs years that end in a token of two digits or of one; ' {tens[0]}32' "
        f"splits into {fit.pieces(f' {tens[0]}32', after='the year')} here."
    )
