"""A notebook pair: built from its source, frozen, and refused by the gate when it is not fit."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from toybooks import CLAIM, HEADER, Toy

from lwlab.charts.png import encode
from lwlab.errors import BadInput, RunError
from lwlab.notebook import (
    bake,
    build,
    freeze,
    is_stale,
    load,
    problems,
    read_header,
    source_hash,
)

CHART = {
    "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
    "data": {"values": [{"x": 1, "y": 2}]},
    "mark": "bar",
    "encoding": {"x": {"field": "x", "type": "ordinal"}, "y": {"field": "y"}},
}
WIDGET = "application/vnd.jupyter.widget-view+json"
VEGALITE = "application/vnd.vegalite.v5+json"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One good pair, built once; tests that spoil it work on copies."""
    folder = tmp_path_factory.mktemp("pair") / "notebooks" / "depth"
    folder.mkdir(parents=True)
    py = folder / "toy.py"
    chart = f"from IPython.display import display\ndisplay({{{VEGALITE!r}: {CHART!r}}}, raw=True)"
    slider = "import ipywidgets\nipywidgets.IntSlider()"
    cells = (CLAIM, chart, slider, "print('same'); object()", "print('same'); object()")
    py.write_text(HEADER.format(id="toy") + "".join(f"\n# %%\n{c}\n" for c in cells))
    path, outcome = build(py, timeout=120)
    assert outcome.status == "ok"
    assert outcome.peak_memory_mb > 20
    return py, path.read_text()


@pytest.fixture
def pair(built: tuple[Path, str], toy: Toy) -> Path:
    """A fresh copy of the good pair."""
    py = toy()
    py.write_text(built[0].read_text())
    py.with_suffix(".ipynb").write_text(built[1])
    return py


def edit(py: Path, change: Any) -> list[str]:
    """Apply `change` to the built notebook and return what the gate says."""
    ipynb = py.with_suffix(".ipynb")
    nb = nbformat.read(ipynb, as_version=4)
    change(nb)
    nbformat.write(nb, ipynb)
    return problems(py)


def outputs(text: str) -> list[Any]:
    return [o for c in json.loads(text)["cells"] for o in c.get("outputs", [])]


def test_a_pair_built_from_its_source_passes_the_gate(pair: Path) -> None:
    assert problems(pair) == []
    assert not is_stale(pair)


def test_a_built_notebook_keeps_nothing_that_only_a_kernel_can_show(
    built: tuple[Path, str],
) -> None:
    assert WIDGET not in built[1]
    nb = json.loads(built[1])
    assert not any("papermill" in part["metadata"] for part in [nb, *nb["cells"]])
    assert " at 0x" not in built[1]
    assert "IntSlider(value=0)" in built[1]
    assert nb["metadata"]["lwlab"]["id"] == "toy"


def test_a_built_chart_is_a_picture(built: tuple[Path, str]) -> None:
    assert not any(VEGALITE in o.get("data", {}) for o in outputs(built[1]))
    (chart,) = [o for o in outputs(built[1]) if "image/png" in o.get("data", {})]
    png = base64.b64decode(chart["data"]["image/png"])
    assert png.startswith(b"\x89PNG")
    assert 0 < chart["metadata"]["image/png"]["height"] < 1000


def test_building_twice_gives_the_same_bytes_but_for_the_cost(
    built: tuple[Path, str], pair: Path
) -> None:
    path, _ = build(pair, timeout=120)
    first, second = json.loads(built[1]), json.loads(path.read_text())
    for run in (nb["metadata"]["lwlab"]["run"] for nb in (first, second)):
        assert 0 < run.pop("seconds") < 120
        assert 20 < run.pop("peak_memory_mb") < 2000
    assert json.dumps(first) == json.dumps(second)


def test_cell_ids_follow_content_so_that_one_edit_changes_one_id(toy: Toy) -> None:
    first = [c.id for c in load(toy("a = 1", "b = 2", "b = 2")).cells]
    second = [c.id for c in load(toy("zero = 0", "a = 1", "b = 2", "b = 2")).cells]
    assert len(set(second)) == len(second)
    assert [i for i in second if i not in first] == [second[2]]


def test_any_edit_of_the_source_makes_the_pair_stale(pair: Path) -> None:
    text = pair.read_text()
    for edited in (
        text + "\n# %%\n1\n",
        text.replace('title: "A toy: toy"', 'title: "Another"'),
        text.replace("n: int = 3", "n: int = 4"),
        text.replace("# %%\nimport ipywidgets", '# %% tags=["x"]\nimport ipywidgets'),
    ):
        assert edited != text
        pair.write_text(edited)
        assert is_stale(pair)
        assert any("stale; run `lwlab notebooks build toy`" in p for p in problems(pair))
    pair.write_text(text)
    assert problems(pair) == []


def test_outputs_do_not_count_as_source(pair: Path) -> None:
    nb = load(pair)
    before = source_hash(nb)
    nb.cells[-1].outputs = [nbformat.v4.new_output("stream", text="x")]
    nb.cells[-1].execution_count = 7
    assert source_hash(nb) == before


def test_a_missing_notebook_is_named_with_the_command_that_builds_it(toy: Toy) -> None:
    assert problems(toy()) == ["toy.ipynb: not built; run `lwlab notebooks build toy`"]


def code_cell(nb: Any, i: int = -1) -> Any:
    return [c for c in nb.cells if c.cell_type == "code"][i]


def put(data: dict[str, Any]) -> Any:
    def change(nb: Any) -> None:
        code_cell(nb).outputs.append(nbformat.v4.new_output("display_data", data=data))

    return change


def _claims(nb: Any) -> list[dict[str, Any]]:
    mime = "application/vnd.lwlab.claim+json"
    return [
        o.data[mime] for c in nb.cells for o in c.get("outputs", []) if mime in o.get("data", {})
    ]


def set_claim(**fields: Any) -> Any:
    return lambda nb: _claims(nb)[0].update(fields)


def repeat_claim(nb: Any) -> None:
    code_cell(nb).outputs.append(code_cell(nb, 1).outputs[0])


def error(nb: Any) -> None:
    out = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
    code_cell(nb).outputs.append(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put({WIDGET: {"model_id": "x"}}), "a live widget without a static form"),
        (put({VEGALITE: CHART, "text/plain": "chart"}), "a chart that could not be drawn"),
        (put({"text/html": "x" * 300_001}), "an output of 300"),
        (put({"text/plain": "saved to /home/ada/x.nc"}), "path of this machine: /home/ada/x.nc"),
        (put({"text/html": "<a href='/tmp/x/y'>"}), "path of this machine: /tmp/x/y"),
        (put({"application/json": {"p": "/root/.cache"}}), "path of this machine: /root/.cache"),
        (put({"text/plain": "C:\\Users\\ada"}), "path of this machine: C:\\Users"),
        (lambda nb: nb.metadata.update(widgets={}), "holds widget state"),
        (lambda nb: code_cell(nb).update(execution_count=None), "not executed"),
        (error, "ends in ValueError: no"),
        (set_claim(changed=True, verdict="not reproduced"), "claim toy.n changed: pinned 'repr"),
        (set_claim(verdict="broken", kind="exact"), "claim toy.n is broken"),
        (set_claim(pinned=None), "claim toy.n has no pinned verdict for tiny"),
        (set_claim(statement=""), "claim toy.n does not say in words"),
        (repeat_claim, "claim 'toy.n' is made twice"),
        (lambda nb: code_cell(nb, 1).update(outputs=[]), "makes no claim"),
    ],
)
def test_the_gate_names_what_is_not_fit_to_publish(pair: Path, change: Any, message: str) -> None:
    found = edit(pair, change)
    assert any(message in p for p in found), found
    assert len(found) == 1


def test_paths_in_addresses_and_pictures_are_not_machine_paths(pair: Path) -> None:
    picture = base64.b64encode(b"x" * 10).decode() + "/tmp/a"
    fine = {"image/png": picture, "text/plain": "https://host.org/home/x and and/home/y"}
    assert edit(pair, put(fine)) == []


def test_a_file_over_a_megabyte_is_refused(pair: Path) -> None:
    def change(nb: Any) -> None:
        for _ in range(4):
            put({"text/plain": "x " * 140_000})(nb)

    assert any("over 1000000" in p for p in edit(pair, change))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("#   lwlab:", "#   other:", "no `lwlab:` under `jupyter:`"),
        ("#     id: toy\n", "", "lwlab.id is None"),
        ("#     family: depth\n", "", "lwlab.family is None"),
        ('"2501.00001"', "2501.00001", r'quote it: paper: "2501.00001"'),
        ("seconds: 3", "seconds: soon", "lwlab.cost.seconds is 'soon'"),
        ("{seconds: 3, memory_mb: 100}", "3", "lwlab.cost.seconds is None"),
        ("#     id: toy", "#     id: [", "YAML header cannot be read"),
        ("id: toy", "id: other", "should be other.py"),
        ("family: depth", "family: steering", "folder is 'depth'"),
        ('tags=["parameters"]', 'tags=["x"]', "no cell is tagged 'parameters'"),
        ("seed: int = 0\n", "", "has no 'seed'"),
        ("n: int = 3", "n: int = 3 if profile == 'quick' else 64", "n = 3 if profile"),
        ('model: str = "tiny"', 'model: str = "gpt2"', "'gpt2' by default, 'tiny' in the header"),
    ],
)
def test_the_gate_names_what_is_wrong_with_a_source(
    toy: Toy, old: str, new: str, message: str
) -> None:
    py = toy()
    text = py.read_text()
    assert old in text
    py.write_text(text.replace(old, new, 1))
    assert any(message in p for p in problems(py)), problems(py)


def test_the_door_needs_only_a_title(toy: Toy) -> None:
    door = "# ---\n# jupyter:\n#   lwlab:\n#     id: {id}\n#     title: The door\n# ---\n"
    py = toy("print('welcome')", id="index", header=door)
    assert read_header(py).title == "The door"
    build(py, timeout=60)
    assert problems(py) == []


def test_a_failed_build_leaves_the_committed_notebook_alone(pair: Path) -> None:
    before = pair.with_suffix(".ipynb").read_text()
    pair.write_text(pair.read_text() + "\n# %%\nraise KeyError('gone')\n")
    with pytest.raises(RunError, match=r"toy\.py cell \d+: KeyError: 'gone'"):
        build(pair, timeout=60)
    assert pair.with_suffix(".ipynb").read_text() == before
    assert sorted(p.name for p in pair.parent.iterdir()) == ["toy.ipynb", "toy.py"]


def test_a_source_without_header_cannot_be_built(toy: Toy) -> None:
    with pytest.raises(BadInput, match="no `lwlab:`"):
        build(toy("1", header=""))


def test_freezing_prefers_the_picture_of_a_widget() -> None:
    dot = encode(np.zeros((1, 1, 3), np.uint8))
    data = {WIDGET: {}, "text/plain": "map", "text/html": "<b>map</b>"}
    data["image/png"] = base64.b64encode(dot).decode()
    out = nbformat.v4.new_output("display_data", data=data)
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[out])])
    freeze(nb)
    assert set(nb.cells[0].outputs[0].data) == {"text/plain", "image/png"}


def test_a_chart_that_cannot_be_drawn_does_not_lose_a_run() -> None:
    out = nbformat.v4.new_output("display_data", data={VEGALITE: {"mark": 3}})
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[out])])
    assert "image/png" not in bake(nb).cells[0].outputs[0].data
