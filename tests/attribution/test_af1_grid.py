"""The grid of sums: every combination once, checked against the tokenizer before anything runs."""

from __future__ import annotations

import pytest

import lwlab as lw
from lwlab.errors import BadInput, UnknownName
from lwlab.models import toys
from lwlab.tasks import arithmetic_grid

WORDS = toys.tokenizer([*map(str, range(28)), "+", "*", "="])
DIGITS = toys.characters()  # every sign a token, spaces too, as SmolLM reads numbers


def test_every_combination_once_with_its_own_answer_and_twin() -> None:
    task = arithmetic_grid(WORDS, (range(3), range(4), [5, 7]), template="{a} + {b} + {c} =")
    assert len(task) == 24
    sums = [(a, b, c) for a in range(3) for b in range(4) for c in (5, 7)]
    for (a, b, c), prompt, answer, twin, foil in zip(
        sums, task.clean, task.answers, task.corrupt, task.foils
    ):
        other = 12 - c
        assert prompt.endswith(f", {a} + {b} + {c} =")
        assert twin.endswith(f", {a} + {b} + {other} =")
        assert (answer, foil) == (str(a + b + c), str(a + b + other))
    ids = WORDS(list(task.clean))["input_ids"]
    for slot, i in (("A", 0), ("B", 1), ("C", 2)):
        at = task.positions[slot].tolist()
        assert [WORDS.decode([row[p]]) for row, p in zip(ids, at)] == [str(s[i]) for s in sums]


def test_a_space_of_its_own_is_no_part_of_an_operand() -> None:
    task = arithmetic_grid(DIGITS, (range(1, 4), range(1, 4)), prefix="1 + 1 = 2, ")
    assert task.clean[0] == "1 + 1 = 2, 1 + 1 = "
    assert task.positions["A"].tolist() == [11] * 9
    assert task.positions["B"].tolist() == [15] * 9


def test_products_whose_last_operand_changes_nothing_have_no_twin() -> None:
    task = arithmetic_grid(WORDS, ([1, 2], [2, 3]), op="*", template="{a} * {b} =")
    assert task.answers == ("2", "3", "4", "6")
    with pytest.raises(BadInput, match=r"0 \* 2 =' has no twin.*changes the result"):
        arithmetic_grid(WORDS, ([0, 1], [2, 3]), op="*", template="{a} * {b} =")


def test_numbers_that_the_tokenizer_splits_are_named() -> None:
    with pytest.raises(BadInput, match=r"numbers that the tokenizer splits.*'10' = \['1', '0'\]"):
        arithmetic_grid(DIGITS, (range(8, 12), range(1, 3)))
    with pytest.raises(BadInput, match=r"'12' = \['1', '2'\].*smaller range"):
        arithmetic_grid(DIGITS, (range(5, 9), range(1, 5)))


def test_other_grids_that_cannot_work_are_refused() -> None:
    with pytest.raises(UnknownName, match="no operator '/'"):
        arithmetic_grid(WORDS, op="/")
    with pytest.raises(BadInput, match="has no twin"):
        arithmetic_grid(WORDS, ([1], [2]))
    with pytest.raises(BadInput, match="one slot a list"):
        arithmetic_grid(WORDS, template="{a} + {c} =")
    with pytest.raises(BadInput, match="one slot a list"):
        arithmetic_grid(WORDS, ([1, 2], []))
    assert lw.tasks.arithmetic_grid is arithmetic_grid
