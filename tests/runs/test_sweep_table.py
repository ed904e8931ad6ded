"""The table of a sweep: typed, tidy, without superseded rows; and its chart."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest

import lwlab as lw
from lwlab import charts
from lwlab.errors import BadInput, UnknownName
from lwlab.notebook import run_notebook
from lwlab.runs import draw, table


def claim(measured: Any, id: str = "toy.x", **kw: Any) -> dict[str, Any]:
    expect = "true" if measured is True else "> 0"
    return lw.claim(id, measured=measured, expect=expect, kind="paper", **kw).record()


def record(parameters: dict[str, Any], *claims: dict[str, Any], **kw: Any) -> dict[str, Any]:
    return {
        "id": "toy", "status": "ok", "parameters": parameters, "claims": list(claims),
        "seconds": 2.0, "peak_memory_mb": 60.0, "model_checksum": "", "source_hash": "s",
        "versions": {"lwlab": "0.1.0"}, "started": "2026-01-01T00:00:00+00:00",
        "notebook": "toy.ipynb", "failure": None, **kw,
    }  # fmt: skip


def put(folder: Path, key: str, content: Any) -> None:
    place = folder / "rows" / key
    place.mkdir(parents=True)
    (place / "run.json").write_text(json.dumps(content, default=str))


def test_one_line_a_claim_and_one_for_a_row_without(tmp_path: Path) -> None:
    two = claim(1.5, interval=(1, 2), n=8, unit="nats"), claim(True, "toy.y")
    failure = {"name": "ValueError", "message": "no"}
    put(tmp_path, "a", record({"n": 8}, *two))
    put(tmp_path, "b", record({"n": 9}, status="failed", failure=failure))
    table.write(tmp_path)
    found = lw.runs.results(tmp_path)
    assert found["key"].tolist() == ["a", "a", "b"]
    first, second, third = (line for _, line in found.iterrows())
    assert (first["claim"], first["measured"], first["low"], first["high"]) == ("toy.x", 1.5, 1, 2)
    assert (first["unit"], first["samples"], first["verdict"]) == ("nats", 8, "reproduced")
    assert (second["claim"], second["measured"]) == ("toy.y", 1.0)
    assert (third["status"], third["error"], third["n"]) == ("failed", "ValueError: no", 9)
    assert third[["claim", "measured", "verdict"]].isna().all()
    assert first["notebook"] == "rows/a/toy.ipynb"


def test_columns_have_types_whatever_is_missing(tmp_path: Path) -> None:
    put(tmp_path, "a", record({"i": 1, "f": 1, "s": "x", "b": True, "l": [1, 2], "m": 1}))
    put(tmp_path, "b", record({"f": 0.5, "s": None, "b": False, "l": [], "m": "one"}))
    table.write(tmp_path)
    found = lw.runs.results(tmp_path)
    kinds = {name: str(found[name].dtype) for name in "ifsblm"}
    assert kinds == {
        "i": "Int64", "f": "float64", "s": "string", "b": "boolean", "l": "string", "m": "string",
    }  # fmt: skip
    assert found["l"].tolist() == ["[1, 2]", "[]"]
    assert found["m"].tolist() == ["1", '"one"']
    assert found["i"].isna().tolist() == [False, True]
    empty = set(found.columns) & {"claim", "verdict", "error"}
    assert {str(found[c].dtype) for c in empty} == {"string"}


def test_numbers_that_are_none_or_infinite_survive(tmp_path: Path) -> None:
    put(tmp_path, "a", record({}, claim(math.nan), claim(math.inf, "toy.y")))
    table.write(tmp_path)
    measured = lw.runs.results(tmp_path)["measured"]
    assert np.isnan(measured[0])
    assert measured[1] == math.inf


def test_a_parameter_may_have_the_name_of_a_column(tmp_path: Path) -> None:
    put(tmp_path, "a", record({"status": "hot", "seconds": 7}, claim(1)))
    table.write(tmp_path)
    found = lw.runs.results(tmp_path)
    assert found[["param_status", "status"]].values.tolist() == [["hot", "ok"]]
    assert found[["param_seconds", "seconds"]].values.tolist() == [[7, 2.0]]


def test_of_rows_with_the_same_parameters_the_latest_counts(tmp_path: Path) -> None:
    put(tmp_path, "old", record({"n": 1}, claim(1), started="2026-01-01T00:00:00+00:00"))
    put(tmp_path, "new", record({"n": 1}, claim(2), started="2026-01-02T00:00:00+00:00"))
    put(tmp_path, "other", record({"n": 1}, claim(3), id="another"))
    (tmp_path / "rows" / "torn").mkdir()
    (tmp_path / "rows" / "torn" / "run.json").write_text("{")
    table.write(tmp_path)
    assert sorted(lw.runs.results(tmp_path)["key"]) == ["new", "other"]


def test_wide_has_a_line_a_row_and_a_column_a_claim(tmp_path: Path) -> None:
    put(tmp_path, "a", record({"n": 1}, claim(1), claim(2, "toy.y")))
    put(tmp_path, "b", record({"n": 2}, claim(3)))
    put(tmp_path, "c", record({"n": 3}, status="failed"))
    table.write(tmp_path)
    wide = lw.runs.wide(lw.runs.results(tmp_path))
    assert wide["n"].tolist() == [1, 2, 3]
    assert wide["toy.x"].tolist()[:2] == [1, 3]
    assert wide["toy.y"].isna().tolist() == [False, True, True]


def test_a_folder_without_a_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no table"):
        lw.runs.results(tmp_path)


@pytest.fixture
def swept(tmp_path: Path) -> Path:
    """Two models, three sizes, two seeds; one claim that fails for one model, and one row."""
    for m, model in enumerate(("small", "large")):
        for n in (8, 16, 32):
            for seed in (0, 1):
                value = n * (1 - 2 * m * (n > 16)) + seed
                parameters = {"model": model, "n": n, "seed": seed}
                claims = claim(value), claim(1, "toy.one", unit="nats")
                put(tmp_path, f"{model}{n}-{seed}", record(parameters, *claims))
    table.write(tmp_path)
    return tmp_path


def test_the_chart_has_a_panel_a_claim_a_point_a_row_and_lines_of_means(swept: Path) -> None:
    found = lw.runs.results(swept)
    assert draw.varied(found) == ["n", "model", "seed"]
    spec = lw.runs.chart(found).to_dict()
    assert len(spec["concat"]) == 2
    line, points = spec["concat"][0]["layer"]
    assert line["encoding"]["x"] == points["encoding"]["x"]
    assert points["encoding"]["x"]["title"] == "n"
    assert points["encoding"]["color"]["title"] == "model"
    assert line["encoding"]["y"]["aggregate"] == "mean"
    values = spec["concat"][0].get("data", points.get("data"))["values"]
    assert len(values) == 12
    assert {v["held"] for v in values} == {"held", "did not"}
    assert charts.to_png(lw.runs.chart(found))[:4] == b"\x89PNG"


def test_the_chart_takes_parameters_and_claims(swept: Path) -> None:
    found = lw.runs.results(swept)
    spec = lw.runs.chart(found, "seed", "n", claims=["toy.one"]).to_dict()
    _, points = spec["layer"]
    assert points["encoding"]["x"]["title"] == "seed"
    assert points["encoding"]["y"]["title"] == "measured (nats)"
    with pytest.raises(UnknownName, match="no parameter 'sed'; did you mean 'seed'"):
        lw.runs.chart(found, "sed")
    with pytest.raises(UnknownName, match=r"no claim 'toy.two'; did you mean"):
        lw.runs.chart(found, claims=["toy.two"])
    with pytest.raises(BadInput, match="nothing to draw"):
        lw.runs.chart(found[found["n"] == 0])


def test_a_sweep_of_one_row_can_be_drawn(tmp_path: Path) -> None:
    put(tmp_path, "a", record({"model": "x"}, claim(1)))
    table.write(tmp_path)
    assert charts.to_png(lw.runs.chart(lw.runs.results(tmp_path)))


def test_the_notebook_beside_the_table_draws_it_and_is_not_overwritten(swept: Path) -> None:
    path = draw.write_notebook(swept, "A toy")
    nb = nbformat.read(path, as_version=4)
    outcome = run_notebook(nb, swept / "executed.ipynb", cwd=swept, timeout=120)
    assert outcome.status == "ok", outcome.failure
    done = nbformat.read(swept / "executed.ipynb", as_version=4)
    shown = [set(o.data) for c in done.cells for o in c.get("outputs", []) if "data" in o]
    assert any("application/vnd.vegalite.v5+json" in mimes for mimes in shown)
    path.write_text("my own work")
    draw.write_notebook(swept, "A toy")
    assert path.read_text() == "my own work"
