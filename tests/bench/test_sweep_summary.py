"""The README's table of sweeps is made from the committed results, and has their shape."""

from __future__ import annotations

from pathlib import Path

import pytest

from lwlab.bench import door, report

BEGIN, END = "<!-- bench:sweep-summary -->\n", "<!-- /bench:sweep-summary -->"
README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture(scope="module")
def found() -> report.Report:
    return report.load(door.folder() / "results" / "sweep.json")


def test_the_readmes_table_is_that_of_the_results(found: report.Report) -> None:
    text = README.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    committed = text.partition(BEGIN)[2].partition(END)[0]
    made = door.read("sweep").summary(found)

    def shape(table: str) -> list[int]:
        return [line.count("|") for line in table.splitlines()]

    assert shape(made) == shape(committed)
    assert len(made.splitlines()) == 2 + len(found["cases"])
    assert made == committed


def test_every_case_was_compared_before_it_was_timed(found: report.Report) -> None:
    for id, case in found["cases"].items():
        for way in case["ways"]:
            if way["kind"] == "peer":
                assert 0 <= way["difference"] <= case["tolerance"] == 1e-4, (id, way["name"])
        assert case["figures"]["engine"] == "packed", id
        assert case["figures"]["peak MB with a budget of 512"] <= 512, id
