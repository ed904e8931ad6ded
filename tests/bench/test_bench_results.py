"""The tables in benchmarks/README.md are those of the results beside it."""

from __future__ import annotations

import pytest

from lwlab.bench import door, report

FILES = sorted((door.folder() / "results").glob("*.json"))


def test_every_benchmark_of_the_checkout_has_a_place_in_the_readme():
    text = (door.folder() / "README.md").read_text(encoding="utf-8")
    for name in door.names():
        assert all(text.count(m) == 1 for m in report.markers(name)), name


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_table_is_made_from_the_results(path):
    found = report.load(path)
    text = (door.folder() / "README.md").read_text(encoding="utf-8")
    assert found["name"] == path.stem
    assert report.embed(text, found) == text, f"lwlab bench {path.stem} --commit, or undo the edit"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_results_follow_the_protocol(path):
    found = report.load(path)
    cases = door.read(path.stem).CASES
    assert set(found["cases"]) | set(found["absent"]) >= set(cases)
    for id, case in found["cases"].items():
        assert not case.get("failed"), id
        assert case["rounds"] >= 3, id
        assert {w["kind"] for w in case["ways"]} >= {"subject", "peer"}, id
        low, high = case["null"]["q1"], case["null"]["q3"]
        assert case["quiet"] or not 0.8 <= low <= high <= 1.25, id
        for way in case["ways"]:
            if "target" in way and case["quiet"]:
                met = way["ratio"]["median"] >= way["target"]
                assert way["verdict"] == ("met" if met else "missed"), (id, way["name"])
