"""Grids: what is typed and what is passed, read by type, and refused before anything starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from toybooks import Toy

from lwlab.errors import BadInput, UnknownName
from lwlab.notebook import Parameter, load, parameters
from lwlab.runs import grid

DECLARED = [
    Parameter("model", "str", "tiny", ""),
    Parameter("seed", "int", 0, ""),
    Parameter("rate", "float", 0.1, ""),
    Parameter("layers", "list[int]", [0], ""),
    Parameter("flag", "bool", False, ""),
    Parameter("loose", "", None, ""),
]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("model=smollm2-135m,gpt2", ["smollm2-135m", "gpt2"]),
        ("model=0:4", ["0:4"]),
        ("model='a,b',c", ["a,b", "c"]),
        ("seed=0:4", [0, 1, 2, 3]),
        ("seed=4:0:-2", [4, 2]),
        ("seed=0:2,7", [0, 1, 7]),
        ("loose=1:3", [1, 2]),
        ("rate=1,1e-3", [1.0, 0.001]),
        ("layers=[0,1],[2]", [[0, 1], [2]]),
        ("flag=true,false", [True, False]),
        (" seed = 3 ", [3]),
    ],
)
def test_axes_are_read_by_their_parameters_type(text: str, values: list[Any]) -> None:
    (found,) = grid.read_axes([text], DECLARED).values()
    assert found == values
    assert [type(v) for v in found] == [type(v) for v in values]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["seed"], "is not NAME=VALUES"),
        (["seed="], "is not NAME=VALUES"),
        (["=3"], "is not NAME=VALUES"),
        (["se ed=3"], "is not NAME=VALUES"),
        (["seed=1,,2"], "nothing between two commas"),
        (["seed=1,"], "nothing between two commas"),
        (["seed=4:0"], "holds no number"),
        (["seed=0:4:0"], "holds no number"),
        (["seed=one"], "seed is int, by default 0"),
        (["seed=0:4.5"], "seed is int"),
        (["layers=[0,1"], "not closed"),
        (["model='a"], "not closed"),
        (["seed=1", "seed=2"], "given twice"),
    ],
)
def test_malformed_axes_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        grid.read_axes(given, DECLARED)


def test_unknown_parameters_are_refused_with_a_guess() -> None:
    with pytest.raises(UnknownName, match="did you mean 'seed'"):
        grid.read_axes(["sed=1"], DECLARED)
    with pytest.raises(UnknownName, match="did you mean 'seed'"):
        grid.rows({"sed": [1]}, DECLARED)


def test_rows_are_every_combination_the_last_axis_fastest() -> None:
    axes = {"model": ["a", "b"], "seed": range(2), "rate": 1}
    assert grid.rows(axes, DECLARED) == [
        {"model": m, "seed": s, "rate": 1.0} for m in "ab" for s in (0, 1)
    ]


def test_numpy_values_become_plain_ones() -> None:
    found = grid.rows({"seed": np.arange(2), "rate": [np.float64(0.5)]}, DECLARED)
    assert found == [{"seed": 0, "rate": 0.5}, {"seed": 1, "rate": 0.5}]
    assert {type(v) for row in found for v in row.values()} == {int, float}


def test_rows_may_be_given_one_by_one() -> None:
    given = [{"seed": 1, "rate": 2}, {"seed": 2}]
    assert grid.rows(given, DECLARED) == [{"seed": 1, "rate": 2.0}, {"seed": 2}]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"seed": []}, "no value for 'seed'"),
        ([], "no rows"),
        ([3], "not a dict"),
        ({"seed": [1, 1]}, "rows 0 and 1 of the sweep are the same"),
        ([{"seed": 0}, {}], "are the same"),
        ({"seed": ["x"]}, "seed is int"),
        ({"seed": range(1000), "rate": range(1000)}, "1000000 rows"),
    ],
)
def test_impossible_grids_are_refused(axes: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        grid.rows(axes, DECLARED)


def test_a_notebooks_own_parameters_are_read(toy: Toy) -> None:
    declared = parameters(load(toy()))
    assert declared is not None
    axes = grid.read_axes(["profile=quick,full", "n=8,32"], declared)
    assert len(grid.rows(axes, declared)) == 4
    with pytest.raises(BadInput, match="profile is Literal"):
        grid.read_axes(["profile=fast"], declared)
