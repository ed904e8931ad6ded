"""The parameters of a notebook: names, types, defaults and help, read from its parameters cell."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lwlab.errors import BadInput, UnknownName, suggest

_WORDS = {"true": True, "false": False, "none": None}
_ATOMS: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool}


class _Misfit(Exception):
    """A value that is not of the declared type."""


@dataclass(frozen=True)
class Parameter:
    """One parameter. `type` is the annotation, or what the default implies, or '' if unknown."""

    name: str
    type: str
    default: Any
    help: str
    #: True if the default is an expression, not a literal: a value passed for another parameter
    #: would come too late to reach it.
    computed: bool = False

    def read(self, text: str) -> Any:
        """Turn what was typed on a command line into a value of this parameter's type."""
        try:
            return _read(text, self._node())
        except _Misfit:
            raise BadInput(self._complaint(text)) from None

    def check(self, value: Any) -> Any:
        """Return `value` if it is of this parameter's type (a whole number becomes a float)."""
        try:
            return _fit(value, self._node())
        except _Misfit:
            raise BadInput(self._complaint(value)) from None

    def _node(self) -> ast.expr | None:
        return ast.parse(self.type, mode="eval").body if self.type else None

    def _complaint(self, value: Any) -> str:
        return (
            f"parameter {self.name}={value!r} does not fit: {self.name} is {self.type}, "
            f"by default {self.default!r}{f' ({self.help})' if self.help else ''}."
        )


def parameters(nb: Any) -> list[Parameter] | None:
    """Return the parameters declared in the cell of `nb` tagged `parameters`; None without one.

    A parameter is an assignment `name = literal` or `name: type = literal`; a comment at the end
    of its line, or alone above it, is its help.
    """
    for cell in nb.cells:
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
            return _declared(cell.source)
    return None


def validate(
    declared: Iterable[Parameter], given: Mapping[str, Any], *, typed: bool = False
) -> dict[str, Any]:
    """Check parameters before a run.

    Parameters
    ----------
    declared : the notebook's parameters.
    given : names and values.
    typed : True if the values are text typed on a command line, to be read by type.

    Raises
    ------
    UnknownName
        If the notebook has no parameter of that name; the message names those it has.
    BadInput
        If a value is not of the declared type; the message gives the type and the default.
    """
    by_name = {p.name: p for p in declared}
    out = {}
    for name, value in given.items():
        if name not in by_name:
            raise UnknownName(f"the notebook has no parameter {name!r}" + suggest(name, by_name))
        out[name] = by_name[name].read(value) if typed else by_name[name].check(value)
    return out


def _declared(source: str) -> list[Parameter]:
    try:
        body = ast.parse(source).body
    except SyntaxError as e:
        raise BadInput(f"the parameters cell cannot be parsed: {e.msg}, line {e.lineno}.") from None
    comments = _comments(source)
    found = []
    for statement in body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                annotation = ""
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                annotation = ast.unparse(statement.annotation)
            case _:
                continue
        try:
            default, computed = ast.literal_eval(value), False
        except ValueError:
            default, computed = ast.unparse(value), True
        first, last = statement.lineno, statement.end_lineno or statement.lineno
        places = [*range(last, first - 1, -1), -(first - 1)]
        about = next((comments[line] for line in places if line in comments), "")
        kind = annotation or ("" if computed else _implied(default))
        found.append(Parameter(name, kind, default, about, computed))
    return found


def _comments(source: str) -> dict[int, str]:
    """Map line numbers to comments; a comment alone on its line has its number negated."""
    out = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            alone = not token.line[: token.start[1]].strip()
            out[-line if alone else line] = token.string.lstrip("# ").strip()
    return out


def _implied(default: Any) -> str:
    if default is None or isinstance(default, dict):
        return "dict" if isinstance(default, dict) else ""
    if isinstance(default, list | tuple):
        inner = {_implied(v) for v in default}
        return f"list[{inner.pop()}]" if len(inner) == 1 and "" not in inner else "list"
    return type(default).__name__ if type(default).__name__ in _ATOMS else ""


def _fit(value: Any, node: ast.expr | None) -> Any:
    """Return `value` as the type written in `node`, or raise; unknown annotations fit anything."""
    match node:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _first(value, [left, right])
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return _first(value, [inner, ast.Constant(None)])
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=options)):
            return _first(value, options)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            options = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return _require(value, any(_same(value, ast.literal_eval(o)) for o in options))
        case ast.Subscript(value=ast.Name(id="list" | "List"), slice=inner):
            items = _require(value, isinstance(value, list | tuple))
            return [_fit(v, inner) for v in items]
        case ast.Subscript(value=ast.Name(id="tuple" | "Tuple")):
            return list(_require(value, isinstance(value, list | tuple)))
        case ast.Name(id="list" | "tuple"):
            return list(_require(value, isinstance(value, list | tuple)))
        case ast.Subscript(value=ast.Name(id="dict" | "Dict")) | ast.Name(id="dict"):
            return _require(value, isinstance(value, dict))
        case ast.Constant(value=None):
            return _require(value, value is None)
        case ast.Name(id="float"):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return float(_require(value, number))
        case ast.Name(id=name) if name in _ATOMS:
            return _require(value, type(value) is _ATOMS[name])
    return value


def _require(value: Any, fits: bool) -> Any:
    if not fits:
        raise _Misfit
    return value


def _same(value: Any, option: Any) -> bool:
    return type(value) is type(option) and value == option


def _first(value: Any, options: Iterable[ast.expr]) -> Any:
    for option in options:
        try:
            return _fit(value, option)
        except _Misfit:
            continue
    raise _Misfit


def _read(text: str, node: ast.expr | None) -> Any:
    body = text.strip()
    try:
        value = _WORDS[body.lower()] if body.lower() in _WORDS else ast.literal_eval(body)
    except (ValueError, SyntaxError):
        value = text
    try:
        return _fit(value, node)
    except _Misfit:
        match node:
            case ast.Subscript(value=ast.Name(id="list"), slice=inner):
                return [_read(part, inner) for part in body.split(",") if part.strip()]
        return _fit(text, node)
