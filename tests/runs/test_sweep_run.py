"""Sweeps on real Dask workers: whole, resumed, killed, stopped, and two into one folder."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from toybooks import CLAIM, HEADER

import lwlab as lw
from lwlab.runs import Sweep, SweepStopped, cluster, rows
from lwlab.runs.board import State

# one process: clusters are slow to start, and two at once would only wait for each other
pytestmark = [pytest.mark.xdist_group("sweep"), pytest.mark.slow]

MARK = """
import os, pathlib, time
marks = pathlib.Path({marks!r})
marks.mkdir(exist_ok=True)
(marks / f"{{seed}}-{{time.time_ns()}}").write_text(f"{{os.getpid()}} {{os.getppid()}}")
times = len(list(marks.glob(f"{{seed}}-*")))
"""


def book(folder: Path, *cells: str, id: str = "toy") -> Path:
    """A notebook whose every run leaves a mark: its seed, kernel and worker."""
    path = folder / f"{id}.py"
    first = MARK.format(marks=str(folder / "marks"))
    path.write_text(HEADER.format(id=id) + "".join(f"\n# %%\n{c}\n" for c in (first, *cells)))
    return path


def marks(folder: Path, seed: int | None = None) -> list[Path]:
    pattern = "*-*" if seed is None else f"{seed}-*"
    return sorted((folder / "marks").glob(pattern))


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not happen")


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


class Watched:
    """A sweep of six rows of which two fail, and what was seen while it ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.states: list[State] = []
        self.listening: set[str] = set()
        self.source = book(folder, CLAIM, "if seed == 2: 1 / 0")
        self.result = self.sweep()

    def sweep(self, **kw: Any) -> Sweep:
        axes = {"seed": range(3), "n": [2, 8]}
        out = self.folder / "out"
        return lw.runs.sweep(self.source, axes, out, workers=2, progress=self.see, **kw)

    def see(self, state: State) -> None:
        self.states.append(state)
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            try:
                connections = process.net_connections(kind="inet")
            except psutil.Error:
                continue
            self.listening |= {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    return Watched(tmp_path_factory.mktemp("watched"))


def test_one_failure_does_not_stop_the_rest(watched: Watched) -> None:
    found = [(r.parameters["seed"], r.parameters["n"], r.status) for r in watched.result.rows]
    assert found == [
        (s, n, "failed" if s == 2 else "ok") for s in range(3) for n in (2, 8)
    ]  # fmt: skip
    assert {r.error for r in watched.result.failed} == {"ZeroDivisionError: division by zero"}
    assert not watched.result.ok
    assert len(marks(watched.folder)) == 6


def test_the_table_holds_parameters_claims_and_measured_values(watched: Watched) -> None:
    table = watched.result.table
    assert table["seed"].tolist() == sorted(table["seed"])
    ended = table[table["status"] == "ok"]
    assert set(zip(ended["n"], ended["measured"], ended["verdict"])) == {
        (2, 2.0, "not reproduced"),
        (8, 8.0, "reproduced"),
    }
    assert set(ended["model"]) == {"tiny"}
    assert (ended["seconds"] > 0).all()
    assert (ended["peak_memory_mb"] > 20).all()
    for path in table["notebook"]:
        assert (watched.result.folder / path).is_file()


def test_progress_counts_rows_done_running_failed_and_the_time_left(watched: Watched) -> None:
    ended = [s for s in watched.states[:] if s.last]
    first = ended[:6]
    assert [s.done for s in first] == [1, 2, 3, 4, 5, 6]
    assert first[-1].failed == 2
    assert any(len(s.running) == 2 for s in watched.states)
    assert any("A toy (" in where for s in watched.states for where in s.running.values())
    lefts = [s.left for s in first]
    assert None not in lefts
    assert lefts[-1] == 0


def test_everything_listens_on_the_loopback_interface_only(watched: Watched) -> None:
    assert watched.listening == {"127.0.0.1"}


def test_what_is_done_is_not_run_again_and_what_failed_is(watched: Watched) -> None:
    before = {seed: len(marks(watched.folder, seed)) for seed in range(3)}
    again = watched.sweep()
    assert [r.cached for r in again.rows] == [True] * 4 + [False] * 2
    after = {seed: len(marks(watched.folder, seed)) for seed in range(3)}
    assert after == before | {2: before[2] + 2}
    assert watched.states[-1].cached == 4
    assert len(again.table) == 6


def test_a_finished_sweep_starts_no_cluster(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "local", lambda *_: pytest.fail("a cluster was started"))
    axes = {"seed": [0, 1], "n": [2, 8]}
    done = lw.runs.sweep(watched.source, axes, watched.folder / "out")
    assert all(r.cached for r in done.rows)
    assert len(done.table) == 4
    assert len(lw.runs.results(watched.folder / "out")) == 6


def test_a_killed_worker_costs_its_row_one_more_try_and_no_other_row(tmp_path: Path) -> None:
    nap = "if seed == 1 and times == 1: time.sleep(60)"
    suicide = "if seed == 2:\n    os.kill(os.getppid(), 9)\n    time.sleep(60)"
    source = book(tmp_path, nap, suicide, CLAIM)
    left: list[bool] = []

    def kill() -> None:
        (mark,) = wait_for(lambda: [m for m in marks(tmp_path, 1) if m.read_text()])
        kernel, worker = map(int, mark.read_text().split())
        os.kill(worker, signal.SIGKILL)
        left.append(bool(wait_for(lambda: gone(kernel), 20)))

    killer = threading.Thread(target=kill)
    killer.start()
    result = lw.runs.sweep(source, {"seed": range(5)}, tmp_path / "out", workers=2)
    killer.join()
    assert left == [True]
    assert [r.status for r in result.rows] == ["ok", "ok", "dead", "ok", "ok"]
    assert "killed while it ran this row, twice" in result.rows[2].error
    assert [len(marks(tmp_path, s)) for s in range(5)] == [1, 2, 2, 1, 1]
    table = result.table.set_index("seed")
    assert table.loc[2, "status"] == "dead"
    assert table.loc[1, "measured"] == 3


SCRIPT = """
import lwlab as lw
if __name__ == "__main__":
    lw.runs.sweep({source!r}, {{"seed": range(4)}}, {out!r}, workers=2)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_sweep_loses_only_the_rows_in_flight(
    tmp_path: Path, sent: signal.Signals
) -> None:
    source = book(tmp_path, "if seed > 1 and times == 1: time.sleep(60)", CLAIM)
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(SCRIPT.format(source=str(source), out=str(out)))
    with subprocess.Popen(
        [sys.executable, script], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        wait_for(lambda: len(marks(tmp_path, 2) + marks(tmp_path, 3)) == 2)
        pids = [int(p) for m in marks(tmp_path) for p in wait_for(m.read_text).split()]
        process.send_signal(sent)
        _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    wait_for(lambda: all(gone(p) for p in pids), 20)
    if sent == signal.SIGINT:
        assert f"2 of 4 rows are finished and kept in {out}" in said
        assert set(lw.runs.results(out)["seed"]) == {0, 1}
    result = lw.runs.sweep(source, {"seed": range(4)}, out, workers=2)
    assert [r.cached for r in result.rows] == [True, True, False, False]
    assert result.ok
    assert [len(marks(tmp_path, s)) for s in range(4)] == [1, 1, 2, 2]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A scheduler with two workers, as somebody else would have started it."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
    ) as running:
        yield running.scheduler_address


def test_two_sweeps_into_one_folder_share_their_rows(tmp_path: Path, address: str) -> None:
    source = book(tmp_path, "time.sleep(0.5)", CLAIM)

    def go(seeds: list[int]) -> Sweep:
        return lw.runs.sweep(source, {"seed": seeds}, tmp_path / "out", scheduler=address)

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(go, ([0, 1, 2, 3], [3, 2, 1, 4]))
    assert one.ok
    assert two.ok
    assert [len(marks(tmp_path, s)) for s in range(5)] == [1] * 5
    assert [r.parameters["seed"] for r in two.rows] == [3, 2, 1, 4]
    assert sorted(lw.runs.results(tmp_path / "out")["seed"]) == [0, 1, 2, 3, 4]


def test_other_work_on_the_scheduler_is_none_of_ours(tmp_path: Path, address: str) -> None:
    from distributed import Client

    seen: list[State] = []
    source = book(tmp_path, "time.sleep(2)", CLAIM)
    with Client(address, set_as_default=False) as other:
        sleeping = other.submit(time.sleep, 5, key=("other", 1), pure=False)
        result = lw.runs.sweep(
            source, {"seed": [0]}, tmp_path / "out", scheduler=address, progress=seen.append
        )
        sleeping.result()
    assert result.ok
    assert {key for s in seen for key in s.running} == {result.rows[0].key}


def test_a_full_disk_stops_the_sweep_and_keeps_what_is_finished(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    source = book(tmp_path, CLAIM)
    out = tmp_path / "out"
    done = lw.runs.sweep(source, {"seed": [0]}, out, scheduler=address)
    real = rows.row_key

    def with_a_full_device(*args: Any) -> str:
        key = real(*args)
        place = out / "rows" / key
        if not place.exists():
            place.mkdir()
            (place / "toy.ipynb").symlink_to("/dev/full")  # every write: no space left on device
        return key

    monkeypatch.setattr(rows, "row_key", with_a_full_device)
    with pytest.raises(SweepStopped, match=r"is full .*No space left.*1 of 3 rows are finished"):
        lw.runs.sweep(source, {"seed": [0, 1, 2]}, out, scheduler=address)
    assert lw.runs.results(out)["seed"].tolist() == [0]
    monkeypatch.undo()
    result = lw.runs.sweep(source, {"seed": [0, 1, 2]}, out, scheduler=address)
    assert result.ok
    assert result.rows[0].cached
    assert done.rows[0].key == result.rows[0].key


def test_the_command_line_sweeps_and_compares(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from lwlab import cli

    source = book(tmp_path, CLAIM, "if seed == 1: 1 / 0")

    def type_in(*arguments: object) -> tuple[Any, str, str]:
        monkeypatch.setattr("sys.argv", ["lwlab", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    out = tmp_path / "out"
    grid = ("-g", "seed=0:2", "-g", "n=2,5", "--out", out, "--scheduler", address)
    code, said, progress = type_in("sweep", source, *grid)
    assert code == 1, "a row failed"
    assert "4 rows: 2 ok, 2 failed; 2 verdicts differ from their pins;" in said
    assert f"table     {out / 'results.parquet'}" in said
    assert "[4/4]" in progress
    assert re.search(r"failed .* seed=1, n=2  ZeroDivisionError: division by zero", progress)
    code, said, _ = type_in("sweep", source, "-g", "seed=0", "-g", "n=2,5", "--out", out)
    assert (code, said.splitlines()[0][:33]) == (0, "2 rows: 2 ok (2 of them before); ")
    places = sorted(
        (out / "rows").iterdir(), key=lambda p: rows.finished(out, p.name)["parameters"]["n"]
    )
    code, said, _ = type_in("diff", places[0], places[-1], "--fail-on-change")
    assert code == 1
    assert "VERDICT CHANGED" in said
    assert "parameter n: 2 -> 5" in said
    code, said, _ = type_in("diff", places[0], places[0], "--all")
    assert code == 0
    assert "toy.n" in said
    assert "1 claim: 1 the same" in said


def test_a_lost_scheduler_stops_the_sweep_and_keeps_what_is_finished(tmp_path: Path) -> None:
    from distributed import LocalCluster

    source = book(tmp_path, "if seed: time.sleep(60)", CLAIM)
    running = LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
    )

    def lose() -> None:
        wait_for(lambda: marks(tmp_path, 1))
        running.close()

    loser = threading.Thread(target=lose)
    loser.start()
    with pytest.raises(SweepStopped, match="1 of 2 rows are finished"):
        lw.runs.sweep(
            source, {"seed": [0, 1]}, tmp_path / "out", scheduler=running.scheduler_address
        )
    loser.join()
    assert lw.runs.results(tmp_path / "out")["seed"].tolist() == [0]
