"""What cannot work is refused before a sweep starts anything; what is finished is kept."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toybooks import CLAIM, HEADER, Toy

import lwlab as lw
from lwlab.errors import BadInput, RunError, UnknownName
from lwlab.notebook import load, source_hash
from lwlab.runs import cluster, rows
from lwlab.runs.board import Board, State
from lwlab.runs.rows import Row, Task


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "local", lambda *_: pytest.fail("workers were started"))


def task(source: Path, out: Path, **given: Any) -> Task:
    values = {"model": "tiny", "profile": "quick", "seed": 0, "n": 3, **given}
    digest = source_hash(load(source))
    return Task(
        key=rows.row_key(digest, values, ""), id="toy", source=digest, notebook=str(source),
        given=given, values=values, model="tiny", checksum="", folder=str(out), timeout=None,
        memory_mb=None, topic="topic",
    )  # fmt: skip


def test_a_notebook_without_a_parameters_cell_is_refused(tmp_path: Path) -> None:
    plain = tmp_path / "plain.py"
    plain.write_text("# %%\nprint(1)\n")
    with pytest.raises(BadInput, match="no cell tagged 'parameters'"):
        lw.runs.sweep(plain, {"n": [1]})
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"sed": [1]}, "did you mean 'seed'"),
        ({"n": ["many"]}, "n is int, by default 3"),
        ({"n": []}, "no value for 'n'"),
        ([{"n": 1}, {"n": 1}], "are the same"),
    ],
)
def test_wrong_grids_leave_no_folder(toy: Toy, axes: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        lw.runs.sweep(toy(), axes)
    assert not list(Path.cwd().iterdir())


def test_unknown_notebooks_and_numbers_of_workers_are_refused(toy: Toy) -> None:
    with pytest.raises(UnknownName, match="no technique is called 'relpp'"):
        lw.runs.sweep("relpp", {"n": [1]})
    with pytest.raises(BadInput, match="at least one is needed"):
        lw.runs.sweep(toy(), {"n": [1]}, workers=0)


def test_a_misspelt_model_is_refused_before_anything_runs(toy: Toy) -> None:
    source = toy(CLAIM, header=HEADER.replace('"tiny"', '"smollm2-135m"'))
    with pytest.raises(UnknownName, match="did you mean 'smollm2-135m'"):
        lw.runs.sweep(source, {"model": ["smollm2-135m", "smolm2-135m"]})


def test_models_are_made_ready_once_before_the_workers_start(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def resolve(name: str) -> Any:
        order.append(name)
        return type("Local", (), {"checksum": f"sum of {name}"})

    def start(*_: Any) -> Any:
        order.append("workers")
        raise RunError("enough")

    monkeypatch.setattr("lwlab.models.zoo.resolve", resolve)
    monkeypatch.setattr(cluster, "local", start)
    source = toy(CLAIM, header=HEADER.replace('"tiny"', '"smollm2-135m"'))
    with pytest.raises(RunError, match="enough"):
        lw.runs.sweep(source, {"model": ["gpt2", "opt-125m"], "seed": range(3)}, tmp_path / "out")
    assert order == ["gpt2", "opt-125m", "workers"]


def test_a_notebook_that_makes_its_own_models_has_none_fetched(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lwlab.models.zoo.resolve", lambda _: pytest.fail("a model was fetched"))
    source = toy()
    rows.work(task(source, tmp_path, model="mine"))
    assert lw.runs.sweep(source, {"model": ["mine"]}, tmp_path).rows[0].cached


def test_a_folder_that_cannot_be_used_is_refused(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        lw.runs.sweep(toy(), {"n": [1]}, tmp_path / "file" / "out")
    usage = type("usage", (), {"free": 3 * 2**20})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(BadInput, match=r"3 MB are free .* 4 rows may need 8 MB"):
        lw.runs.sweep(toy(), {"n": range(4)}, tmp_path / "out")


def test_a_damaged_table_is_named_and_written_anew_from_the_rows(toy: Toy, tmp_path: Path) -> None:
    source, out = toy(), tmp_path / "out"
    rows.work(task(source, out, n=4))
    sweep = lw.runs.sweep(source, {"n": [4]}, out)
    assert sweep.rows[0].cached
    good = sweep.path.read_bytes()
    for bad in (b"", b"PAR1 not a table", good[: len(good) // 2]):
        sweep.path.write_bytes(bad)
        with pytest.raises(BadInput, match=r"is damaged.*Delete it .* the 1 finished rows"):
            lw.runs.sweep(source, {"n": [4, 5]}, out)
    sweep.path.unlink()
    assert lw.runs.sweep(source, {"n": [4]}, out).table["measured"].tolist() == [4]


def test_a_damaged_row_counts_as_not_done(toy: Toy, tmp_path: Path) -> None:
    one = task(toy(), tmp_path)
    assert rows.finished(tmp_path, one.key) is None
    for bad in ("", "{", "[]", '{"status": "ok"}'):
        one.place.mkdir(parents=True, exist_ok=True)
        (one.place / "run.json").write_text(bad)
        assert rows.finished(tmp_path, one.key) is None
    assert rows.work(one)["record"]["status"] == "ok"


def test_the_key_changes_with_content_parameters_version_and_checksum_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = rows.row_key("source", {"a": 1, "b": 2}, "sum")
    assert key == rows.row_key("source", {"b": 2, "a": 1}, "sum")
    others = [("other", {"a": 1, "b": 2}, "sum"), ("source", {"a": 1, "b": 3}, "sum")]
    others += [("source", {"a": 1, "b": 2}, "other"), ("source", {"a": 1.0, "b": 2}, "sum")]
    keys = {rows.row_key(*o) for o in others}
    monkeypatch.setattr(rows, "__version__", "9")
    keys.add(rows.row_key("source", {"a": 1, "b": 2}, "sum"))
    assert len(keys) == 5
    assert key not in keys


def test_an_edit_of_the_notebook_makes_its_rows_new(toy: Toy, tmp_path: Path) -> None:
    before, after = task(toy(), tmp_path), task(toy(CLAIM, "1"), tmp_path)
    assert before.key != after.key


def test_a_row_of_a_worker(toy: Toy, tmp_path: Path) -> None:
    """Runs, is not run twice, is run again when asked, and waits for who holds it."""
    one = task(toy(), tmp_path)
    first = rows.work(one)
    assert (first["state"], first["cached"], first["record"]["status"]) == ("done", False, "ok")
    assert rows.work(one)["cached"] is True
    assert rows.work(replace(one, again=True))["cached"] is False
    with rows.lock(tmp_path, one.key, timeout=0) as mine:
        assert mine
        assert rows.work(one) == {"state": "busy"}


def test_a_row_that_fails_tells_so_in_its_record(toy: Toy, tmp_path: Path) -> None:
    told = rows.work(task(toy(CLAIM, "1 / 0"), tmp_path))
    assert told["record"]["status"] == "failed"
    row = rows.read_row(tmp_path, "key", told["record"])
    assert row.error == "ZeroDivisionError: division by zero"
    assert [c["id"] for c in row.claims] == ["toy.n"]


def test_a_row_may_hold_what_its_worker_may(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = type("manager", (), {"memory_limit": 300 * 2**20})
    worker = type("worker", (), {"memory_manager": manager, "log_event": lambda *_: None})
    monkeypatch.setattr("distributed.get_worker", worker)
    hungry = "x = bytearray(600_000_000)\nx[::4096] = b'1' * len(x[::4096])\nimport time\n"
    told = rows.work(task(toy(hungry + "time.sleep(30)"), tmp_path))
    assert told["record"]["status"] == "memory"
    assert "over the limit of 300 MB" in told["record"]["failure"]["message"]


def test_a_worker_with_another_copy_of_the_model_refuses_the_row(toy: Toy, tmp_path: Path) -> None:
    one = replace(task(toy(), tmp_path), model="smollm2-135m", checksum="0" * 16)
    record = rows.work(one)["record"]
    assert record["status"] == "failed"
    assert "on this worker and 0000000000000000 where" in record["failure"]["message"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_told_apart_from_a_failing_row(toy: Toy, tmp_path: Path) -> None:
    one = task(toy(), tmp_path)
    one.place.mkdir(parents=True)
    (one.place / "toy.ipynb").symlink_to("/dev/full")
    told = rows.work(one)
    assert told["state"] == "full"
    assert "No space left on device" in told["message"]
    assert not one.place.exists(), "half a row would only take space"


def test_a_scheduler_that_cannot_be_reached_is_named(toy: Toy, tmp_path: Path) -> None:
    for address, why in (("tcp://127.0.0.1:9", "refused"), ("x://y", "unknown address scheme")):
        with pytest.raises(RunError, match=f"no Dask scheduler answers at {address} .*{why}"):
            lw.runs.sweep(toy(), {"n": [1]}, tmp_path / "out", scheduler=address)


class Workers:
    """A client whose workers answer the probe as told."""

    def __init__(self, **answer: Any) -> None:
        self.answer = {"lwlab": lw.__version__, "sees": True, "writes": True, **answer}

    def run(self, function: Any, *args: Any) -> dict[str, Any]:
        if "error" in self.answer:
            raise ModuleNotFoundError(self.answer["error"])
        return {"tcp://w:1": self.answer}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"lwlab": "0.0"}, "tcp://w:1 has lwlab 0.0"),
        ({"sees": False}, "tcp://w:1 does not see"),
        ({"writes": False}, "tcp://w:1 cannot write into"),
        ({"error": "No module named 'lwlab'"}, "the workers cannot run lwlab .*install lwlab"),
    ],
)
def test_workers_that_cannot_run_the_rows_are_named(
    tmp_path: Path, answer: dict[str, Any], message: str
) -> None:
    with pytest.raises(RunError, match=message):
        cluster.check(Workers(**answer), tmp_path)
    cluster.check(Workers(), tmp_path)
    assert not list(tmp_path.glob(".shared*"))


def test_a_worker_says_what_it_sees(tmp_path: Path) -> None:
    (tmp_path / "token").touch()
    assert rows.probe(str(tmp_path), "token") == {
        "lwlab": lw.__version__, "sees": True, "writes": True,
    }  # fmt: skip
    assert not rows.probe(str(tmp_path / "elsewhere"), "token")["sees"]
    assert {p.name for p in tmp_path.iterdir()} == {"here", "token"}


def test_workers_by_default_fit_the_cores_and_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lwlab.notebook.record.cores", lambda: 8)
    memory = type("memory", (), {"available": 10_000 * 2**20, "total": 20_000 * 2**20})
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    assert cluster.how_many(100, 100) == 8
    assert cluster.how_many(3, 100) == 3
    assert cluster.how_many(100, 4000) == 2
    assert cluster.how_many(100, 40_000) == 1
    assert cluster.how_many(100, 0) == 8


@pytest.mark.parametrize(
    ("text", "megabytes"), [("2GiB", 2048), ("1.5 GB", 1430.5), ("800MB", 762.9)]
)
def test_amounts_of_memory_are_read(text: str, megabytes: float) -> None:
    assert cluster.memory_mb(text) == pytest.approx(megabytes, abs=0.1)


@pytest.mark.parametrize("text", ["much", "", "-2GB", "50MB", "5"])
def test_other_amounts_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="such as 2GB"):
        cluster.memory_mb(text)


def test_the_time_left_is_estimated_from_rows_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def row(key: str, seconds: float, **kw: Any) -> Row:
        return Row(key, "ok", {}, seconds, 0.0, [], "", Path(), **kw)

    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    seen: list[State] = []
    board = Board(10, 2, 8.0, seen.append)
    assert board.state().left == 40
    board.end(row("old", 1000, cached=True))
    board.end(row("a", 10))
    board.end(row("b", 14))
    assert seen[-1].left == pytest.approx(7 * 12 / 2)
    board.hear((0.0, {"key": "c", "cell": 0, "cells": 0, "section": ""}))
    now[0] += 6
    board.hear((0.0, {"key": "c", "cell": 2, "cells": 5, "section": "Method"}))
    board.hear((0.0, {"key": "a", "cell": 2, "cells": 5, "section": "late"}))
    state = board.state()
    assert state.running == {"c": "Method (3/5)"}
    assert state.left == pytest.approx((7 * 12 - 6) / 2)
    board.only(set())
    assert board.state().running == {}
    assert Board(1, 1, 0.0).state().left is None


def test_the_command_line_says_what_is_wrong(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lwlab import cli

    source = str(toy())
    for arguments, message in (
        (["-g", "n"], "not NAME=VALUES"),
        (["-g", "n=1", "--memory", "lots"], "such as 2GB"),
        (["-g", "n=1", "--scheduler", "tcp://127.0.0.1:9"], "no Dask scheduler answers"),
    ):
        monkeypatch.setattr("sys.argv", ["lwlab", "sweep", source, *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 2
        assert message in capsys.readouterr().err
