"""What a claim expects, in one short string: `< 1e-3`, `0.95 +- 0.03`, `in [0.2, 0.4]`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from numbers import Real
from typing import Any

from lwlab.errors import BadInput

EXAMPLES = "'< 1e-3', '<= 2', '> 0', '>= 0.9', '== 0', '0.95 +- 0.03', 'in [0.2, 0.4]', 'true'"

_NUMBER = r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
_COMPARE = re.compile(rf"(<=|>=|==|<|>)\s*{_NUMBER}")
_NEAR = re.compile(rf"{_NUMBER}\s*(?:\+-|\+/-|±)\s*{_NUMBER}")
_WITHIN = re.compile(rf"in\s*\[\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\]")

# 0.98 must count as "0.95 +- 0.03" although 0.98 - 0.95 is 0.030000000000000027 in binary.
_SLACK = 1e-12


@dataclass(frozen=True)
class Expectation:
    """A parsed expectation: `op` and its one or two numbers."""

    text: str
    op: str
    a: float = 0.0
    b: float = 0.0

    def holds(self, value: bool | float) -> bool:
        """Say whether `value` meets the expectation; NaN never does."""
        if self.op == "true":
            return value is True
        if math.isnan(value):
            return False
        if self.op == "<":
            return value < self.a
        if self.op == "<=":
            return value <= self.a
        if self.op == ">":
            return value > self.a
        if self.op == ">=":
            return value >= self.a
        if self.op == "==":
            return value == self.a
        slack = _SLACK * max(1.0, abs(self.a), abs(self.b))
        if self.op == "+-":
            return abs(value - self.a) <= self.b + slack
        return self.a - slack <= value <= self.b + slack


def parse(text: str) -> Expectation:
    """Parse an expectation.

    The grammar is `< x | <= x | > x | >= x | == x | x +- tolerance | in [low, high] | true`, with
    decimal numbers. `+-` means |measured - x| <= tolerance; `in` includes both ends.

    Raises
    ------
    BadInput
        If `text` is anything else; the message shows what would work.
    """
    if not isinstance(text, str):
        raise BadInput(f"expect={text!r} is not a string; write one of {EXAMPLES}.")
    body = text.strip()
    if body == "true":
        return Expectation(body, "true")
    if m := _COMPARE.fullmatch(body):
        return Expectation(body, m[1], float(m[2]))
    if m := _NEAR.fullmatch(body):
        if float(m[2]) < 0:
            raise BadInput(f"expect={text!r} has a negative tolerance; write one of {EXAMPLES}.")
        return Expectation(body, "+-", float(m[1]), float(m[2]))
    if m := _WITHIN.fullmatch(body):
        if float(m[1]) > float(m[2]):
            raise BadInput(f"expect={text!r} is an empty range; write the lower end first.")
        return Expectation(body, "in", float(m[1]), float(m[2]))
    hint = f" (did you mean '== {body}'?)" if re.fullmatch(_NUMBER, body) else ""
    raise BadInput(f"expect={text!r} is not an expectation{hint}; write one of {EXAMPLES}.")


def scalar(value: Any) -> bool | int | float:
    """Return `value` as a Python number or truth value.

    Numpy, torch and xarray scalars are accepted (anything of one element with an `item` method).

    Raises
    ------
    BadInput
        If it is not one real number or truth value.
    """
    given = value
    if hasattr(value, "item") and not isinstance(value, bool | int | float):
        try:
            value = value.item()
        except (ValueError, RuntimeError):
            shape = tuple(getattr(given, "shape", ()))
            raise BadInput(
                f"measured has shape {shape}; a claim holds one number, so reduce it first "
                "(a mean, a maximum, a correlation)."
            ) from None
    if isinstance(value, bool | int):
        return value
    if isinstance(value, Real):
        return float(value)
    raise BadInput(
        f"measured is a {type(given).__name__} ({given!r:.60}); a claim holds one number or "
        "True/False."
    )
