"""The environment for peers: made once, sees lwlab's packages, and says what is wrong."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from lwlab.bench import peers
from lwlab.errors import FetchError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LWLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_sees_the_packages_of_this_environment_and_is_made_once(
    cache: Path, tmp_path: Path
) -> None:
    pins = tmp_path / "nothing.txt"
    pins.write_text("# lwlab's own packages are enough\n")
    python = peers.create(pins)
    assert cache in python.parents
    code = "import json, sys, torch, lwlab; print(json.dumps([sys.prefix, torch.__version__]))"
    out = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    import torch

    assert json.loads(out) == [str(python.parent.parent), torch.__version__]
    made = (python.parent.parent / "ready").stat().st_mtime_ns
    assert peers.create(pins) == python
    assert (python.parent.parent / "ready").stat().st_mtime_ns == made
    pins.write_text("# other pins, another environment\n")
    assert peers.folder(pins) != python.parent.parent


def test_what_cannot_be_installed_is_an_error_that_names_the_pins(
    cache: Path, tmp_path: Path
) -> None:
    pins = tmp_path / "wrong.txt"
    pins.write_text("this is == no requirement\n")
    with pytest.raises(FetchError, match=r"wrong\.txt could not be installed .*without --peers"):
        peers.create(pins)
    assert not (peers.folder(pins) / "ready").exists()


def test_the_command_runs_again_inside(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = tmp_path / "nothing.txt"
    pins.write_text("")
    monkeypatch.delenv("LWLAB_BENCH_PEERS", raising=False)
    assert not peers.inside()
    assert peers.again(pins, ["--version"]) == 0
    assert peers.again(pins, ["bench", "no-such-benchmark"]) == 2
