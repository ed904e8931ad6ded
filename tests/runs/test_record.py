"""What every run writes down: libraries, model and checksum, seed, machine, time and memory."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import nbformat
import psutil
import pytest
from toybooks import CLAIM, Toy

import lwlab
from lwlab.models import stored, zoo
from lwlab.notebook import build, load, record, source_hash
from lwlab.paths import models_dir
from lwlab.runs import NotebookFailed, execute

FACTS = {
    "versions", "model", "model_checksum", "seed", "hardware", "seconds", "peak_memory_mb",
}  # fmt: skip


def test_an_executed_notebook_and_its_record_say_the_same(toy: Toy) -> None:
    source = toy()
    run = execute(source, {"seed": 7}, "out", html=False)
    inside = nbformat.read(run.notebook, as_version=4).metadata["lwlab"]["run"]
    beside = json.loads(run.record.read_text())
    assert set(inside) == FACTS
    assert {k: beside[k] for k in FACTS} == inside
    assert inside["seed"] == 7
    assert inside["seconds"] == run.seconds > 0
    assert inside["peak_memory_mb"] == run.peak_memory_mb > 20
    assert inside["versions"]["lwlab"] == lwlab.__version__
    assert inside["versions"]["python"] == platform.python_version()
    assert inside["versions"]["torch"] == version("torch")
    assert beside["source_hash"] == source_hash(load(source))


def test_a_run_that_failed_is_recorded_too(toy: Toy) -> None:
    with pytest.raises(NotebookFailed) as caught:
        execute(toy(CLAIM, "1/0"), out_dir="out", html=False)
    assert set(FACTS) <= set(json.loads(caught.value.run.record.read_text()))


def test_a_built_notebook_records_its_run_and_is_not_stale_for_it(toy: Toy) -> None:
    path, outcome = build(toy(), timeout=60)
    about = json.loads(path.read_text())["metadata"]["lwlab"]
    assert set(about["run"]) == FACTS
    assert about["run"]["seconds"] == outcome.seconds
    nb = nbformat.read(path, as_version=4)
    assert source_hash(nb) == about["source_hash"]


def test_an_executed_notebook_can_be_executed_again(toy: Toy, tmp_path: Path) -> None:
    plain = tmp_path / "plain.py"
    plain.write_text("# %%\nprint(1)\n")
    for source in (toy(), plain):
        first = execute(source, out_dir=f"first-{source.stem}", html=False)
        again = execute(first.notebook, out_dir=f"again-{source.stem}", html=False)
        assert again.id == first.id


def test_the_machine_is_described_without_its_name() -> None:
    found = record.hardware()
    assert found["memory_mb"] == pytest.approx(psutil.virtual_memory().total / 2**20, abs=1)
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    assert found["threads"] == os.environ.get("OMP_NUM_THREADS")
    assert platform.node() not in json.dumps(found)


def test_a_models_checksum_is_the_one_loading_gives() -> None:
    entry = models_dir() / "smollm2-135m"
    assert record.checksum("smollm2-135m") == zoo.resolve("smollm2-135m").checksum
    assert record.checksum(str(entry)) == stored.checksum(entry)


@pytest.mark.parametrize(
    "model", ["tiny", "", None, 3, "no-such-org/no-such-model", "/no/such/folder", "x.gguf"]
)
def test_what_is_no_model_here_has_no_checksum_and_fetches_nothing(
    model: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    assert record.checksum(model) == ""


@pytest.mark.parametrize(
    ("name", "is_known"),
    [("smollm2-135m", True), ("gpt2", True), ("org/name", True), ("tiny", False), (None, False)],
)
def test_names_that_may_be_models(name: object, is_known: bool) -> None:
    assert record.known(name) is is_known


def test_a_kernel_over_its_memory_is_killed_and_the_rest_kept(toy: Toy) -> None:
    hungry = "x = bytearray(600_000_000)\nx[::4096] = b'1' * len(x[::4096])\nimport time\n"
    hungry += "time.sleep(30)"
    with pytest.raises(NotebookFailed, match=r"MemoryLimit: held [0-9]+ MB, over the limit of 400"):
        execute(toy(CLAIM, hungry), out_dir="out", memory_mb=400, html=False)
    saved = json.loads(Path("out/run.json").read_text())
    assert saved["status"] == "memory"
    assert [c["id"] for c in saved["claims"]] == ["toy.n"]
    assert saved["seconds"] < 25
