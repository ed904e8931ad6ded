"""A widget's computation: the last question wins, errors are seen, nothing blocks or hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import traitlets as t
from lwlab_widgets import Cancelled, Job, Live

from lwlab.errors import BadInput


class Slow(Live):
    _esm = "export default { render() {} }"
    answer = t.Unicode("").tag(sync=True)

    def static_text(self) -> str:
        return self.answer

    def static_png(self) -> bytes:
        return b""


@pytest.fixture
def slow() -> Iterator[Slow]:
    widget = Slow()
    yield widget
    widget.close()


def test_begin_returns_at_once_and_the_answer_comes(slow: Slow) -> None:
    go = threading.Event()

    def work(job: Job) -> None:
        go.wait(10)
        job.show(answer="42")

    start = time.monotonic()
    slow.begin(work)
    assert time.monotonic() - start < 0.2
    assert slow.busy
    assert slow.answer == ""
    go.set()
    assert slow.wait(10)
    assert (slow.answer, slow.busy, slow.error) == ("42", False, "")


def test_ten_fast_questions_show_the_last_and_run_few(slow: Slow) -> None:
    ran: list[int] = []
    seen: list[str] = []
    slow.observe(lambda change: seen.append(change["new"]), "answer")

    def ask(n: int) -> Any:
        def work(job: Job) -> None:
            ran.append(n)
            for _ in range(10):
                time.sleep(0.01)
                job.check()
            job.show(answer=str(n))

        return work

    for n in range(10):
        slow.begin(ask(n))
    assert slow.wait(10)
    assert seen == ["9"]
    assert len(ran) <= 3


def test_a_stale_job_may_not_show_even_when_it_never_looks(slow: Slow) -> None:
    started, go = threading.Event(), threading.Event()
    outcome: list[str] = []

    def stubborn(job: Job) -> None:
        started.set()
        go.wait(10)
        try:
            job.show(answer="old")
        except Cancelled:
            outcome.append("dropped")
            raise

    slow.begin(stubborn)
    assert started.wait(10)
    slow.begin(lambda job: job.show(answer="new"))
    go.set()
    assert slow.wait(10)
    assert slow.answer == "new"
    assert outcome == ["dropped"]


def test_cancel_ends_it_and_the_widget_can_be_asked_again(slow: Slow) -> None:
    started = threading.Event()

    def endless(job: Job) -> None:
        while True:
            started.set()
            job.tell(0.5, "half way")
            time.sleep(0.005)

    slow.begin(endless)
    assert started.wait(10)
    slow.cancel += 1
    assert slow.wait(10)
    assert (slow.busy, slow.error) == (False, "")
    slow.begin(lambda job: job.show(answer="again"))
    assert slow.wait(10)
    assert slow.answer == "again"


def test_an_exception_is_seen_and_kept_and_the_next_answer_clears_it(slow: Slow) -> None:
    def bad(_job: Job) -> None:
        raise BadInput("an empty prompt")

    slow.begin(bad)
    assert slow.wait(10)
    assert slow.error == "an empty prompt"
    assert "test_live.py" in slow.failure
    slow.begin(lambda job: job.show(answer="fine"))
    assert slow.wait(10)
    assert slow.error == ""


def test_an_exception_of_a_stale_job_is_not_shown(slow: Slow) -> None:
    started, go = threading.Event(), threading.Event()

    def late(_job: Job) -> None:
        started.set()
        go.wait(10)
        raise RuntimeError("too late to matter")

    slow.begin(late)
    assert started.wait(10)
    slow.begin(lambda job: job.show(answer="fine"))
    go.set()
    assert slow.wait(10)
    assert slow.error == ""


def test_closing_stops_the_thread(slow: Slow) -> None:
    started = threading.Event()

    def endless(job: Job) -> None:
        while True:
            started.set()
            job.check()
            time.sleep(0.005)

    slow.begin(endless)
    assert started.wait(10)
    worker = slow._worker
    slow.close()
    assert worker is not None
    worker.join(10)
    assert not worker.is_alive()
