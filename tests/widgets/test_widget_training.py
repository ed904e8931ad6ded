"""The training monitor: it runs what it is given, pauses between steps, and goes on from there."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest

from lwlab.errors import BadInput
from lwlab.widgets import TrainingMonitor, training

PANELS = {"Accuracy": ["train", "test"], "Loss": ["loss"]}


def run(slope=1):
    """Fall by `slope` a step; the second number is not always there."""
    for step in range(0, 50, 10):
        extra = {"test": 0.5} if step else {}
        yield step, {"train": step / 40, "loss": 100.0 - slope * step, **extra}


@pytest.fixture
def monitor():
    made = training(run, PANELS, 40, knobs={"slope": [1, 2]}, values={"slope": 2})
    yield made
    made.close()


def test_it_shows_every_number_of_the_run(monitor):
    assert monitor.static_text() == "Training (slope 2): not started."
    monitor.order("start")
    assert monitor.wait(10)
    assert (monitor.error, monitor.busy, monitor.paused) == ("", False, False)
    assert monitor.rows == [0, 10, 20, 30, 40]
    assert monitor.names == ["train", "test", "loss"]
    table = np.frombuffer(monitor.data, "<f4").reshape(-1, 4)
    assert np.array_equal(table, monitor.table().astype("<f4"), equal_nan=True)
    assert table[:, 3].tolist() == [100, 80, 60, 40, 20], "two a step: the knob arrived"
    assert np.isnan(table[0, 2])
    assert "at step 40 train 1, test 0.5, loss 20" in monitor.static_text()
    assert monitor.static_png()[:4] == b"\x89PNG"
    monitor.values = {"slope": 1}
    monitor.order("start")
    assert monitor.wait(10)
    assert monitor.series[-1][2] == 60


def test_a_paused_run_goes_on_where_it_was():
    reached, go = threading.Event(), threading.Event()

    def slow():
        for step in range(6):
            yield step, {"loss": float(step)}
            if step == 2:
                reached.set()
                go.wait(10)

    made = training(slow, {"Loss": ["loss"]}, 5)
    made.order("start")
    assert reached.wait(10)
    made.order("pause")
    go.set()
    assert made.wait(10)
    assert made.paused
    before = list(made.rows)
    assert before in ([0, 1, 2], [0, 1, 2, 3])
    made.order("go on")
    assert made.wait(10)
    assert made.rows == [0, 1, 2, 3, 4, 5], "no step is lost and none comes twice"
    assert not made.paused
    made.order("go on")
    assert made.wait(10)
    assert made.rows == [0, 1, 2, 3, 4, 5], "a finished run stays finished"
    made.close()


def test_starting_anew_ends_the_run_that_is_on():
    def endless(first):
        for step in itertools.count():
            yield step, {"loss": float(first)}

    made = training(endless, {"Loss": ["loss"]}, 10, knobs={"first": [1, 2]})
    made.order("start")
    while not made.rows:
        pass
    made.values = {"first": 2}
    made.order("start")
    while not made.series or made.series[0][0] != 2.0:
        pass
    made.order("pause")
    assert made.wait(10)
    assert made.rows[0] == 0
    assert {row[0] for row in made.series} == {2.0}
    made.close()


def test_what_goes_wrong_in_the_training_is_said_and_the_lines_stay():
    def breaks():
        yield 0, {"loss": 1.0}
        raise BadInput("the data ran out")

    made = training(breaks, {"Loss": ["loss"]}, 5)
    made.order("start")
    assert made.wait(10)
    assert made.error == "the data ran out"
    assert made.rows == [0]
    assert "the data ran out" in made.static_text()
    made.close()


def test_marks_are_computed_from_what_came():
    made = training(
        run, PANELS, 40,
        marks=lambda data, names: {"half": data[data[:, 1] >= 0.5][0, 0] if data[-1, 1] >= 0.5
                                   else float("nan")},
    )  # fmt: skip
    made.order("start")
    assert made.wait(10)
    assert made.marks == [["half", 20.0]]
    assert "half: step 20" in made.static_text()
    made.close()


@pytest.mark.parametrize(
    ("panels", "total", "options", "words"),
    [
        ({}, 5, {}, "panels of one to four"),
        ({"a": list("abcde")}, 5, {}, "panels of one to four"),
        (PANELS, 0, {}, "total >= 1"),
        (PANELS, 5, {"values": {"slope": 1}}, "no knob"),
        (PANELS, 5, {"knobs": {"slope": [1, 2]}, "values": {"slope": 3}}, r"one of \[1, 2\]"),
    ],
)
def test_what_cannot_work_is_refused(panels, total, options, words):
    with pytest.raises(BadInput, match=words):
        TrainingMonitor(run, panels, total, **options)


def test_a_value_that_no_knob_has_is_refused(monitor):
    with pytest.raises(BadInput, match="slope=7"):
        monitor.values = {"slope": 7}
    monitor.order("dance")
    assert "no button is called 'dance'" in monitor.error
