"""Arithmetic: small sums whose result is one token."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.tasks.base import Task
from lwlab.tasks.fit import Example, Fit, build, fill

OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}


def arithmetic(
    model: Any,
    n: int = 16,
    seed: int = 0,
    *,
    op: str = "+",
    low: int = 1,
    high: int = 8,
    shots: int = 4,
    template: str = "{a}{op}{b}=",
) -> Task:
    """Make n prompts such as "3+5=" -> "8", after `shots` solved lines of the same form.

    Operands are low..high and written as in `template`. The twin has another second operand of as
    many tokens, so prompts 2i and 2i + 1 are each other's corruption. Only operands of one token
    and results of one token directly after the prompt are used (for SmolLM, which reads digits one
    by one, that means 0 to 9). The solved lines are the same in all prompts and
    hold neither of their sums. Positions: A, B (the operands), END.

    SmolLM2-135M-Instruct, n=32: sums with 4 shots have logit difference 2.7 and beat the twin's
    answer in 94 % of prompts (0.4 and 62 % without shots); products with 4 shots 2.7 and 88 %
    (n=16). It cannot subtract: 0.06 and 56 %, whatever the shots.

    Raises BadInput when fewer results fit than n prompts need, naming those that do not.
    """
    if op not in OPERATORS:
        raise UnknownName(f"no operator {op!r}{suggest(op, OPERATORS)}")
    if low > high or shots < 0:
        raise BadInput(f"low={low}, high={high}, shots={shots} make no sums.")
    fit, rng = Fit(model), random.Random(f"arithmetic {seed}")
    usable: list[tuple[int, int, int]] = []
    for a in range(low, high + 1):
        for b in range(low, high + 1):
            text, c = fill(template, a=str(a), b=str(b), op=op), OPERATORS[op](a, b)
            if c < 0 or fit.place(text, "a") is None or fit.place(text, "b") is None:
                continue
            if fit.single(str(c), after=text.text) is None:
                fit.dropped[str(c)] = fit.pieces(str(c), after=text.text)
            else:
                usable.append((a, b, c))
    rng.shuffle(usable)
    solved, usable = usable[:shots], usable[shots:]
    pairs = [
        (x, y)
        for i, x in enumerate(usable)
        for y in usable[i + 1 :]
        if x[0] == y[0] and x[2] != y[2]
    ]
    fit.check_n(n, 2 * len(pairs), "arithmetic")
    lines = "".join(f"{fill(template, a=str(a), b=str(b), op=op).text}{c}\n" for a, b, c in solved)
    examples: list[Example] = []
    for pair in rng.sample(pairs, -(-n // 2)):
        x, y = (fill(_escape(lines) + template, a=str(a), b=str(b), op=op) for a, b, _ in pair)
        example = Example(
            replace(x, template=template),
            replace(y, template=template),
            (str(pair[0][2]),),
            (str(pair[1][2]),),
            {"A": "a", "B": "b"},
            ("B",),
        )
        examples += [example, example.mirror()]
    groups = [i // 2 for i in range(n)]
    return build(
        fit, "arithmetic", examples[:n], seed=seed, groups=groups, attrs={"op": op, "shots": shots}
    )


def _escape(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
