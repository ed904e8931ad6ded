"""A grid of sums: every combination of the operands once, so that averages over it are exact."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.tasks.arithmetic import OPERATORS
from lwlab.tasks.base import Task
from lwlab.tasks.fit import Example, Fit, Text, build, fill

PREFIX = "1 + 2 = 3, 4 + 5 = 9, 3 + 3 = 6, "


def arithmetic_grid(
    model: Any,
    operands: Sequence[Iterable[int]] = (range(1, 6), range(1, 5)),
    *,
    op: str = "+",
    prefix: str = PREFIX,
    template: str = "{a} + {b} = ",
) -> Task:
    """Make one prompt for each combination of operands, as in "5 + 4 = " -> "9".

    `operands` gives the values of slots a, b, ... of `template`, which are joined by `op` from the
    left; `prefix` is put before each prompt, the same for all. Nothing is sampled or left out: in
    a full grid the operands are independent, so the mean over all prompts that share one operand
    tells nothing of the others. A prompt's twin has the next value of the last operand that gives
    another result. Positions: A, B, ..., END. The order is that of `itertools.product`.

    SmolLM2-135M-Instruct answers all 20 of the default grid right (greedy, whole vocabulary);
    without the prefix it answers few.

    Raises BadInput, before anything runs, for a number that is not one token where it stands
    (SmolLM reads digits one by one: operands and results 0 to 9), naming how it splits, and for a
    grid in which a prompt has no twin.
    """
    if op not in OPERATORS:
        raise UnknownName(f"no operator {op!r}{suggest(op, OPERATORS)}")
    values = [list(dict.fromkeys(int(v) for v in o)) for o in operands]
    slots = [s for _, s, _, _ in string.Formatter().parse(template) if s is not None]
    names = list(string.ascii_lowercase[: len(values)])
    if len(values) < 2 or slots != names or not all(values):
        raise BadInput(
            f"template {template!r} has slots {slots} and operands= gives {len(values)} lists; "
            "give two or more lists of values, and one slot a list: {a}, {b}, ... in this order"
        )
    fit = Fit(model)
    results = {row: reduce(OPERATORS[op], row) for row in itertools.product(*values)}
    texts = {row: _text(fit, prefix, template, names, row) for row in results}
    _check(fit, texts, results)
    where = {n.upper(): n for n in names}
    examples = []
    for row, c in results.items():
        at = values[-1].index(row[-1])
        others = [(*row[:-1], v) for v in values[-1][at + 1 :] + values[-1][:at]]
        twin = next((o for o in others if results[o] != c), None)
        if twin is None:
            raise BadInput(
                f"{texts[row].text!r} has no twin: every last operand of {values[-1]} gives {c}; "
                "give operands whose last one changes the result"
            )
        answers = (str(c),), (str(results[twin]),)
        examples.append(Example(texts[row], texts[twin], *answers, where, (names[-1].upper(),)))
    n = len(examples)
    about = {"op": op, "prefix": prefix, "operands": [f"{v[0]}..{v[-1]}" for v in values]}
    return build(fit, "arithmetic_grid", examples, seed=0, groups=range(n), attrs=about)


def _text(fit: Fit, prefix: str, template: str, names: list[str], row: tuple[int, ...]) -> Text:
    """Fill the template; where a space is a token of its own, a slot's span leaves it out."""
    whole = prefix.replace("{", "{{").replace("}", "}}") + template
    text = fill(whole, **{n: str(v) for n, v in zip(names, row)})
    spans = dict(text.spans)
    for slot, (start, end) in text.spans.items():
        bare = replace(text, spans={slot: (start + 1, end)})
        if fit.place(text, slot) is None and text.text[start] == " " and fit.place(bare, slot):
            spans[slot] = (start + 1, end)
    return Text(text.text, spans, template)


def _check(
    fit: Fit, texts: dict[tuple[int, ...], Text], results: dict[tuple[int, ...], int]
) -> None:
    """Raise BadInput naming every operand and result that is not one token."""
    for row, text in texts.items():
        for slot, (start, end) in text.spans.items():
            if fit.place(text, slot) is None:
                word = text.text[start:end]
                fit.dropped[word] = fit.pieces(word, after=text.text[:start] or "the")
        if fit.single(str(results[row]), after=text.text) is None:
            fit.dropped[str(results[row])] = fit.pieces(str(results[row]), after=text.text)
    if fit.dropped:
        raise BadInput(
            "this grid has numbers that the tokenizer splits, so that they have no position of "
            f"their own.{fit.why()} Take a smaller range of operands."
        )
