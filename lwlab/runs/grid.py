"""The grid of a sweep: every combination of the values given for some parameters."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.notebook import Parameter, validate

MAX_ROWS = 100_000
_RANGE = re.compile(r"([+-]?\d+):([+-]?\d+)(?::([+-]?\d+))?")
_OPEN, _CLOSE = "([{", ")]}"


def read_axes(given: Iterable[str], declared: Sequence[Parameter]) -> dict[str, list[Any]]:
    """Read the axes typed on a command line, each value by its parameter's type.

    Parameters
    ----------
    given : such as `model=smollm2-135m,gpt2`, `seed=0:4` (0 to 3, as Python counts; `0:10:2` takes
        steps; whole-number parameters only), `n=8,32`, `layers=[0,1],[2]` (a comma inside brackets
        or quotes does not separate).
    declared : the notebook's parameters.

    Raises
    ------
    BadInput
        If an axis is not `NAME=VALUES`, is given twice, is empty, or a value does not fit.
    UnknownName
        If the notebook has no such parameter.
    """
    by_name = {p.name: p for p in declared}
    axes: dict[str, list[Any]] = {}
    for item in given:
        name, equals, text = (part.strip() for part in item.partition("="))
        if not equals or not name.isidentifier() or not text:
            raise BadInput(
                f"-g {item!r} is not NAME=VALUES, such as -g n=8,32 or -g seed=0:4 (0 to 3)."
            )
        if name not in by_name:
            raise UnknownName(f"the notebook has no parameter {name!r}" + suggest(name, by_name))
        if name in axes:
            raise BadInput(f"-g {name}=... is given twice; write all its values after one -g.")
        axes[name] = _values(item, text, by_name[name])
    return axes


def rows(
    axes: Mapping[str, Any] | Iterable[Any], declared: Sequence[Parameter]
) -> list[dict[str, Any]]:
    """Return the checked parameter sets of a sweep, in order, the last axis varying fastest.

    Parameters
    ----------
    axes : values by parameter name (one value, or a list, range or array of them), of which every
        combination is taken; or the parameter sets themselves, one mapping each.
    declared : the notebook's parameters.

    Raises
    ------
    BadInput
        If there are no rows or over 100 000, a value does not fit its parameter, or two rows are
        the same.
    UnknownName
        If the notebook has no parameter of a name.
    """
    if isinstance(axes, Mapping):
        lists = {name: _listed(name, v) for name, v in axes.items()}
        count = math.prod(len(v) for v in lists.values())
        if count > MAX_ROWS:
            sizes = " x ".join(f"{name}: {len(v)}" for name, v in lists.items())
            raise BadInput(f"the grid has {count} rows ({sizes}); a sweep takes {MAX_ROWS}.")
        found = [dict(zip(lists, point)) for point in itertools.product(*lists.values())]
    else:
        found = []
        for number, row in enumerate(axes):
            if not isinstance(row, Mapping):
                raise BadInput(f"row {number} of the sweep is {row!r}, not a dict of parameters.")
            found.append({name: _plain(v) for name, v in row.items()})
    if not found:
        raise BadInput("the sweep has no rows: give at least one parameter set.")
    checked = [validate(declared, row) for row in found]
    defaults = {p.name: p.default for p in declared}
    seen: dict[str, int] = {}
    for number, row in enumerate(checked):
        same = seen.setdefault(json.dumps(defaults | row, sort_keys=True, default=str), number)
        if same != number:
            raise BadInput(f"rows {same} and {number} of the sweep are the same: {row}.")
    return checked


def _values(item: str, text: str, parameter: Parameter) -> list[Any]:
    found: list[Any] = []
    for piece in _split(item, text):
        span = _RANGE.fullmatch(piece)
        if span and parameter.type in ("", "int", "int | None", "Optional[int]"):
            start, stop, step = (int(v) if v else 1 for v in span.groups())
            numbers = range(start, stop, step) if step else range(0)
            if not numbers:
                raise BadInput(
                    f"-g {item!r}: {piece} holds no number; 0:4 is 0, 1, 2, 3 and 4:0:-1 is "
                    "4, 3, 2, 1."
                )
            found += numbers
        else:
            found.append(parameter.read(piece))
    return found


def _split(item: str, text: str) -> list[str]:
    """Cut at the commas that stand outside brackets and quotes."""
    pieces, depth, quote, start = [], 0, "", 0
    for i, c in enumerate(text):
        if quote:
            quote = "" if c == quote else quote
        elif c in "\"'":
            quote = c
        elif c in _OPEN:
            depth += 1
        elif c in _CLOSE:
            depth -= 1
        elif c == "," and not depth:
            pieces.append(text[start:i].strip())
            start = i + 1
    pieces.append(text[start:].strip())
    if depth or quote:
        raise BadInput(f"-g {item!r}: a bracket or quote is not closed.")
    if not all(pieces):
        raise BadInput(f"-g {item!r}: there is nothing between two commas, or after the last.")
    return pieces


def _listed(name: str, values: Any) -> list[Any]:
    if hasattr(values, "tolist"):  # an array of numbers
        values = values.tolist()
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        return [_plain(values)]
    found = [_plain(v) for v in values]
    if not found:
        raise BadInput(f"the grid has no value for {name!r}; give at least one, or leave it out.")
    return found


def _plain(value: Any) -> Any:
    """Return numpy and torch scalars as Python's, which a notebook's parameters cell can hold."""
    return value.tolist() if hasattr(value, "tolist") else value
