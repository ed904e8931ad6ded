from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from lwlab.runs import doctor


def lines(*steps: object) -> list[tuple[str, str]]:
    return [(c.state, f"{c.what} | {c.fix}") for step in steps for c in step()]  # type: ignore[operator]


def test_this_installation_is_well() -> None:
    checks = list(doctor.examine())
    assert [c.what for c in checks if c.state == "bad" and "widget" not in c.what] == []
    assert any("Jupyter kernel starts and imports lwlab" in c.what for c in checks)


def test_a_requirement_out_of_range_or_missing_is_named_with_the_command_that_repairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    true = metadata.version
    fake = {"nnsight": "0.5.0", "torch": "2.14.0", "xarray": None}

    def version(name: str) -> str:
        if name in fake and fake[name] is None:
            raise metadata.PackageNotFoundError(name)
        return fake.get(name) or true(name)

    monkeypatch.setattr(metadata, "version", version)
    bad = [text for state, text in lines(doctor._requirements) if state == "bad"]
    found = {text.split()[0]: text for text in bad}
    assert set(found) == {"torch", "nnsight", "xarray"}
    assert "nnsight is 0.5.0, lwlab needs" in found["nnsight"]
    assert 'pip install "nnsight' in found["nnsight"]
    assert "xarray is not installed" in found["xarray"]


def test_an_old_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.python_version", lambda: "3.9.1")
    ((state, text),) = lines(doctor._python)
    assert state == "bad"
    assert "use Python" in text


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LWLAB_CACHE", str(tmp_path / "file" / "cache"))
    ((state, text),) = lines(doctor._cache)
    assert state == "bad"
    assert "set LWLAB_CACHE" in text


def test_a_missing_model_is_a_note_with_the_command_and_a_damaged_one_is_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LWLAB_CACHE", str(tmp_path))
    ((state, text),) = lines(doctor._model)
    assert state == "note"
    assert "lwlab fetch smollm2-135m (93 MB)" in text
    (tmp_path / "models" / "smollm2-135m").mkdir(parents=True)
    ((state, text),) = lines(doctor._model)
    assert state == "bad"
    assert "lwlab fetch smollm2-135m --again" in text


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LWLAB_CACHE", str(tmp_path))
    usage = type("usage", (), {"free": 10_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    ((state, text),) = lines(doctor._model)
    assert state == "bad"
    assert "free 0.7 GB" in text


def test_a_kernel_that_does_not_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    ((state, text),) = lines(doctor._kernel)
    assert state == "bad"
    assert "Jupyter kernel" in text


def test_a_check_that_crashes_is_itself_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def _torch() -> None:
        raise OSError("libtorch.so is missing")

    monkeypatch.setattr(doctor, "_torch", _torch)
    bad = [c for c in doctor.examine(kernel=False) if c.what.startswith("torch:")]
    assert [c.what for c in bad] == ["torch: OSError: libtorch.so is missing"]
