"""The benchmark protocol: what it measures, what it refuses to time, what it says when noisy."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

from lwlab import bench, cli
from lwlab.bench import door, protocol, report
from lwlab.errors import BadInput, UnknownName


def told(seconds, result=1.0):
    """A way whose CPU time is given, so that every figure below is exact."""
    given = itertools.cycle(seconds if isinstance(seconds, list) else [seconds])
    return lambda: bench.Timed(result, next(given))


def case(**changes):
    ways = {"ours": told(1.0), "peer": told(3.0), "floor": bench.Way(told(0.5), limit=True)}
    given = {"title": "t", "subject": "ours", "ways": ways, "targets": {"peer": 2.0}}
    return bench.Case(**{**given, "min_seconds": 0.0, "rounds": 5, **changes})


def by_name(row):
    return {w["name"]: w for w in row["ways"]}


def test_a_ratio_is_the_ways_time_over_the_subjects():
    row = bench.measure(case())
    ways = by_name(row)
    assert ways["peer"]["ratio"]["median"] == 3.0
    assert ways["floor"]["ratio"]["median"] == 0.5
    assert ways["peer"]["verdict"] == "met"
    assert row["rounds"] == 5
    assert row["quiet"]


def test_ratios_are_taken_within_their_round_not_between_medians():
    # Seconds rise together from call to call: the quotient of sums would not be 2 in each round.
    ours = [1.0, 1.0, 1.0, 5.0, 5.0, 9.0, 9.0]  # check, warm-up with its null, rounds with nulls
    peer = [2.0, 2.0, 2.0, 10.0, 18.0]
    ways = {"ours": told(ours), "peer": told(peer[1:])}
    row = bench.measure(case(ways=ways, targets={}, rounds=2, null="ours"))
    assert by_name(row)["peer"]["ratio"]["min"] == by_name(row)["peer"]["ratio"]["max"] == 2.0


def test_a_missed_target_says_so():
    row = bench.measure(case(targets={"peer": 3.5}))
    assert by_name(row)["peer"]["verdict"] == "missed"


def test_a_restless_null_pair_makes_the_verdict_inconclusive():
    ways = {"ours": told([1.0, 1.0, 3.0]), "peer": told(30.0)}
    row = bench.measure(case(ways=ways))
    assert not row["quiet"]
    assert by_name(row)["peer"]["verdict"] == "INCONCLUSIVE"


def test_unequal_results_are_never_timed():
    calls = []

    def wrong():
        calls.append(1)
        return 1.5

    with pytest.raises(bench.Unequal, match=r"'peer' differs from 'ours' by 0.5"):
        bench.measure(case(ways={"ours": told(1.0), "peer": wrong}, tolerance=0.4))
    assert len(calls) == 1


def test_nan_is_a_difference():
    with pytest.raises(bench.Unequal):
        bench.check(case(ways={"ours": told(1.0), "peer": told(1.0, float("nan"))}, tolerance=9.0))


def test_every_round_runs_every_way_once_in_an_order_that_changes():
    seen = []
    ways = {n: (lambda n=n: seen.append(n)) for n in "abc"}
    taken = protocol.rounds_of(case(subject="a", ways=ways, targets={}, rounds=7))
    assert all(len(pairs) == 7 for pairs in taken.values())
    rounds = [tuple(seen[i : i + 4]) for i in range(0, len(seen), 4)]  # a twice: the null pair
    assert all(sorted(r) == ["a", "a", "b", "c"] for r in rounds)
    assert len(set(rounds)) >= 5
    assert {r[0] for r in rounds} == set("abc")


def test_short_calls_are_repeated_until_a_timing_is_long_enough():
    calls = []
    taken = protocol.rounds_of(
        case(subject="a", ways={"a": lambda: calls.append(sum(range(2000)))}, targets={},
             rounds=2, min_seconds=0.02)
    )  # fmt: skip
    assert len(calls) > 100
    assert all(0 < cpu < 0.002 for cpu, _ in taken["a"])


def test_a_way_that_does_a_part_counts_for_the_whole():
    ways = {"ours": told(1.0), "part": bench.Way(told(0.25), scale=420 / 25)}
    row = bench.measure(case(ways=ways, targets={}))
    assert by_name(row)["part"]["ratio"]["median"] == pytest.approx(4.2)


def test_a_way_that_gives_a_part_is_compared_with_that_part():
    ways = {
        "ours": told(1.0, {"a": torch.arange(3.0), "b": 7.0}),
        "first": bench.Way(told(1.0, 0.25), part=lambda r: r["a"][0]),
        "raw": bench.Way(told(1.0, [2.0]), part=lambda r: r["a"][2:], raw=True),
    }
    found = bench.check(
        case(ways=ways, targets={}, tolerance=0.5,
             compare=lambda r: r if isinstance(r, dict) else torch.tensor(r))
    )  # fmt: skip
    assert found == {"first": 0.25, "raw": 0.0}


def test_limits_are_not_compared_and_rates_come_from_the_subject():
    ways = {"ours": told(2.0), "floor": bench.Way(told(1.0, "nothing"), limit=True)}
    row = bench.measure(case(ways=ways, targets={}, flops=4e9, bytes=6e9))
    assert row["rates"] == {"gflop_per_s": 2.0, "gb_per_s": 3.0}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"subject": "mine"}, "subject 'mine' is none"),
        ({"null": "mine"}, "null 'mine' is none"),
        ({"targets": {"other": 2}}, "targets for"),
        ({"subject": "floor", "targets": {}}, "marked as a limit"),
    ],
)
def test_a_case_that_makes_no_sense_is_refused(changes, what):
    with pytest.raises(BadInput, match=what):
        bench.measure(case(**changes))


def test_differences_of_every_kind_of_result():
    a = {"x": torch.tensor([1.0, float("nan")]), "y": [1, (2, None, "b")]}
    b = {"x": np.array([1.25, np.nan]), "y": [1, (2, None, "b")]}
    assert bench.difference(a, b) == 0.25
    assert bench.difference(a, b | {"y": [1, (2, None, "c")]}) == float("inf")
    assert bench.difference({"x": 1}, {"z": 1}) == float("inf")
    assert bench.difference(torch.zeros(2), torch.zeros(3)) == float("inf")
    assert bench.difference(np.inf, np.inf) == 0
    assert bench.difference(np.inf, 1.0) == float("inf")
    assert bench.difference(torch.zeros(0), torch.zeros(0)) == 0
    one = xr.Dataset({"v": ("x", [1.0, 2.0])})
    assert bench.difference(one, one + 0.5) == 0.5
    half = torch.ones(2, dtype=torch.bfloat16)
    assert bench.difference(half, half) == 0


def test_peak_memory_sees_a_temporary():
    def wasteful():
        return torch.ones(25_000_000).sum()

    wasteful()
    assert 90 < bench.peak_mb(wasteful) < 160
    assert bench.peak_mb(lambda: None) < 20


DEFINITION = """
from lwlab import bench

def one():
    ways = {"ours": lambda: bench.Timed(1, 1.0), "peer": lambda: bench.Timed(1, 4.0)}
    return bench.Case("one title", "ours", ways, targets={"peer": 3}, min_seconds=0, rounds=3)

def wrong():
    return bench.Case("two", "a", {"a": lambda: 1, "b": lambda: 2})

def gone():
    raise bench.Absent("no such device")

def broken():
    return 1 / 0

CASES = {"one": one, "wrong": wrong, "gone": gone, "broken": broken}
ABSENT = {"peerlib": "does not install"}
"""


@pytest.fixture
def definitions(tmp_path, monkeypatch):
    (tmp_path / "made_up.py").write_text(DEFINITION)
    (tmp_path / "helper.py").write_text("x = 1\n")
    begin, end = report.markers("made_up")
    (tmp_path / "README.md").write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    monkeypatch.setattr(door, "folder", lambda: tmp_path)
    monkeypatch.setattr("lwlab.bench.machine.rates", lambda: {"read, GB/s": 1.0})
    return tmp_path


def test_the_report_is_saved_and_its_table_comes_from_the_file(definitions):
    assert door.names() == ["made_up"]
    so_far = []
    made = door.run("made_up", partial=lambda r: so_far.append(list(r["cases"])))
    path = report.save(made, definitions / "results" / "made_up.json")
    table = report.table(report.load(path))
    assert "| peer | 4000 | 4 (4 .. 4) | 0 | at least 3: met |" in table
    assert "NOT TIMED: two: 'b' differs from 'a' by 1" in table
    assert "- gone: no such device" in table
    assert "- peerlib: does not install" in table
    assert "NOT TIMED: ZeroDivisionError" in table
    assert report.verdict(made) == "failed"
    assert so_far == [["one"], ["one", "wrong"], ["one", "wrong"], ["one", "wrong", "broken"]]
    assert list((definitions / "results").iterdir()) == [path]  # nothing half-written beside it
    assert json.loads(path.read_text())["versions"]["torch"] == torch.__version__


def test_the_table_replaces_what_is_between_the_markers(definitions):
    made = door.run("made-up", only=["one"])
    readme = report.publish(made, definitions / "README.md")
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert report.table(made) in text
    with pytest.raises(BadInput, match="needs one <!-- bench:made_up -->"):
        report.embed("no markers", made)


def test_the_command_runs_prints_writes_and_fails_on_unequal_results(definitions, tmp_path):
    call = CliRunner().invoke
    done = call(cli.app, ["bench", "made_up", "--only", "one", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "one title" in done.output
    assert "made_up: met" in done.output
    assert (tmp_path / "out" / "made_up.json").is_file()
    assert call(cli.app, ["bench", "--all", "--out", str(tmp_path / "out")]).exit_code == 1


def test_wrong_names_and_files_are_clear_errors(definitions, monkeypatch):
    with pytest.raises(UnknownName, match="did you mean 'made_up'"):
        door.run("made_upp")
    with pytest.raises(UnknownName, match="no case 'onee'; did you mean 'one'"):
        door.run("made_up", only=["onee"])
    with pytest.raises(BadInput, match="rounds is 0"):
        door.run("made_up", rounds=0)
    with pytest.raises(BadInput, match="no benchmark report"):
        report.load(definitions / "made_up.py")
    assert isinstance(CliRunner().invoke(cli.app, ["bench"]).exception, BadInput)


def test_outside_a_checkout_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr("lwlab.runs.registry.checkout", lambda: None)
    with pytest.raises(BadInput, match="clone the repository"):
        door.folder()


def test_cases_measured_again_join_the_others_unless_versions_differ(definitions):
    whole, part = door.run("made_up"), door.run("made_up", only=["one"], rounds=2)
    joined = report.merge(whole, part)
    assert list(joined["cases"]) == list(whole["cases"])
    assert joined["cases"]["one"]["rounds"] == 2
    assert joined["absent"] == whole["absent"]
    part["versions"]["torch"] = "0"
    with pytest.raises(BadInput, match=r"versions of \['torch'\] differ"):
        report.merge(whole, part)
