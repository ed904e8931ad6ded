from __future__ import annotations

from typing import Any

import nbformat
import pytest

from lwlab.errors import BadInput, UnknownName
from lwlab.notebook import Parameter, parameters, validate

SOURCE = """
from typing import Literal
model = "smollm2-135m"  # any name
n: int = 16
# which draw
seed = 0
lr: float = 1e-3
profile: Literal["quick", "full"] = "quick"
sites: list[str] = ["resid_pre"]  # where
layers = [0, 1]
k: int | None = None
flag = True
anything = None
table = {"a": 1}
long = (
    "two = signs = here"  # last
)
late = n * 2
"""


def declared(source: str = SOURCE) -> list[Parameter]:
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
    found = parameters(nbformat.v4.new_notebook(cells=[cell]))
    assert found is not None
    return found


def test_types_defaults_and_help_come_from_the_cell() -> None:
    seen = {p.name: (p.type, p.default, p.help, p.computed) for p in declared()}
    assert seen == {
        "model": ("str", "smollm2-135m", "any name", False),
        "n": ("int", 16, "", False),
        "seed": ("int", 0, "which draw", False),
        "lr": ("float", 1e-3, "", False),
        "profile": ("Literal['quick', 'full']", "quick", "", False),
        "sites": ("list[str]", ["resid_pre"], "where", False),
        "layers": ("list[int]", [0, 1], "", False),
        "k": ("int | None", None, "", False),
        "flag": ("bool", True, "", False),
        "anything": ("", None, "", False),
        "table": ("dict", {"a": 1}, "", False),
        "long": ("str", "two = signs = here", "last", False),
        "late": ("", "n * 2", "", True),
    }


def test_a_notebook_without_the_cell_has_no_parameters() -> None:
    assert parameters(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("n = 1")])) is None


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("model", "gpt2", "gpt2"),
        ("model", "64", "64"),
        ("model", "none", "none"),
        ("n", "64", 64),
        ("n", " -1 ", -1),
        ("lr", "3", 3.0),
        ("lr", "1e-5", 1e-5),
        ("profile", "full", "full"),
        ("sites", "resid_pre,mlp_out", ["resid_pre", "mlp_out"]),
        ("sites", "['a', 'b']", ["a", "b"]),
        ("layers", "1,2", [1, 2]),
        ("layers", "(1, 2)", [1, 2]),
        ("layers", "", []),
        ("k", "none", None),
        ("k", "5", 5),
        ("flag", "false", False),
        ("flag", "True", True),
        ("anything", "hello", "hello"),
        ("anything", "[1, 2]", [1, 2]),
        ("table", "{'b': 2}", {"b": 2}),
    ],
)
def test_what_is_typed_becomes_a_value_of_the_declared_type(
    name: str, text: str, value: Any
) -> None:
    out = validate(declared(), {name: text}, typed=True)[name]
    assert out == value
    assert type(out) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("n", "many", "n is int, by default 16"),
        ("n", "3.5", "n is int"),
        ("n", "true", "n is int"),
        ("n", "", "n is int"),
        ("profile", "fast", r"profile is Literal\['quick', 'full'\]"),
        ("layers", "1,b", r"layers is list\[int\]"),
        ("flag", "2", "flag is bool"),
        ("k", "x", r"k is int \| None"),
        ("table", "3", "table is dict"),
        ("model", "", None),
    ],
)
def test_a_value_of_another_type_names_the_type_and_the_default(
    name: str, text: str, expected: str | None
) -> None:
    if expected is None:
        assert validate(declared(), {name: text}, typed=True) == {name: ""}
        return
    with pytest.raises(BadInput, match=expected):
        validate(declared(), {name: text}, typed=True)


@pytest.mark.parametrize(("name", "value"), [("n", "64"), ("n", 6.0), ("n", True), ("model", 3)])
def test_values_from_python_are_not_guessed_at(name: str, value: Any) -> None:
    with pytest.raises(BadInput, match=f"parameter {name}={value!r} does not fit"):
        validate(declared(), {name: value})


def test_values_from_python_pass_as_they_are() -> None:
    given = {"n": 64, "lr": 1, "layers": (1, 2), "k": None, "flag": False}
    assert validate(declared(), given) == {**given, "lr": 1.0, "layers": [1, 2]}


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="no parameter 'sedd'; did you mean 'seed'"):
        validate(declared(), {"sedd": 1})


def test_a_cell_that_does_not_parse_is_an_error() -> None:
    with pytest.raises(BadInput, match="cannot be parsed"):
        declared("n = = 3")
