"""The command line: quick to answer, one clean line for what is wrong, exit codes that tell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lwlab import cli

SOURCE = """\
# ---
# jupyter:
#   lwlab:
#     id: toy
#     family: depth
#     title: A toy
#     paper: "2501.00001"
#     cost: {seconds: 3, memory_mb: 100}
#     model: tiny
# ---

# %% [markdown]
# # A toy

# %% tags=["parameters"]
from typing import Literal
model: str = "tiny"  # any name
profile: Literal["quick", "full"] = "quick"
seed: int = 0
n: int = 3  # how many

# %%
import lwlab as lw
lw.claim("toy.n", statement="n is large", measured=n, expect=">= 3", kind="paper",
         n=n, seed=seed, model=model, pinned={"tiny": "reproduced"})
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy notebook, and an empty folder to work in."""
    source = tmp_path / "notebooks" / "depth" / "toy.py"
    source.parent.mkdir(parents=True)
    source.write_text(SOURCE)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr("lwlab.runs.registry.notebooks_dir", lambda: tmp_path / "notebooks")
    return source


class Cli:
    """Runs `lwlab ...` in this process, as the installed script does."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def __call__(self, *args: str) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["lwlab", *args])
        before = signal.getsignal(signal.SIGTERM)
        try:
            cli.main()
            code = 0
        except SystemExit as e:
            code = int(e.code or 0)
        finally:
            signal.signal(signal.SIGTERM, before)
        out, err = self.capsys.readouterr()
        return code, out, err


@pytest.fixture
def lwlab(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line, with a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")
    return Cli(capsys, monkeypatch)


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from lwlab import cli; sys.argv = ['lwlab', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'nnsight', 'nbformat', 'papermill', 'jupytext', 'xarray', 'numpy'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout
    commands = (
        "list", "run", "report", "new", "gallery", "models", "fetch", "doctor", "workshop", "lab",
        "bench",
        "notebooks",
    )  # fmt: skip
    for command in commands:
        assert f" {command} " in done.stdout


def test_version(lwlab: Cli) -> None:
    code, out, _ = lwlab("--version")
    assert (code, out.split()[0]) == (0, "lwlab")


def test_run_prints_the_claims_and_where_everything_is(lwlab: Cli, toy: Path) -> None:
    code, out, err = lwlab("run", "toy", "-p", "n=5", "--profile", "full", "--out", "o")
    assert code == 0
    assert err == ""
    assert "✓ reproduced" in out
    assert "1 claim: 1 reproduced" in out
    for name in ("toy.ipynb", "toy.html", "run.json"):
        assert f"o/{name}" in out
        assert Path("o", name).exists()
    record = json.loads(Path("o/run.json").read_text())
    assert record["parameters"]["profile"] == "full"


def test_run_warns_loudly_when_a_verdict_changed(lwlab: Cli, toy: Path) -> None:
    code, out, _ = lwlab("run", str(toy), "-p", "n=2")
    assert code == 0
    assert "⚠ not reproduced" in out
    assert "differs from the one pinned" in out
    assert lwlab("report")[0] == 0
    code, out, _ = lwlab("report", "--fail-on-change")
    assert code == 1
    assert "CHANGED" in out
    assert Path("lwlab-runs/report.html").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "toy", "-p", "m=3"], "no parameter 'm'. Available: model, n, profile, seed."),
        (["run", "toy", "-p", "n=many"], "n is int, by default 3 (how many)."),
        (["run", "toy", "-p", "n"], "-p 'n' is not NAME=VALUE, such as -p n=64."),
        (["run", "tooy"], "no technique is called 'tooy'; did you mean 'toy'?"),
        (["run", "llm-drop"], "`lwlab new depth/llm-drop` starts one."),
        (["run", "missing.py"], "there is no notebook missing.py."),
        (["new", "depths/x"], "no family 'depths'; did you mean 'depth'?"),
        (["report", "nowhere"], "there is no folder nowhere."),
        (["notebooks", "check", "tooy"], "did you mean 'toy'?"),
        (["fetch", "smollm2"], "did you mean 'smollm2-135m'?"),
    ],
)
def test_what_is_wrong_is_one_message_without_traceback(
    lwlab: Cli, toy: Path, args: list[str], message: str
) -> None:
    code, out, err = lwlab(*args)
    assert code == 2
    assert message in err
    assert "Traceback" not in out + err
    assert len(err.strip().splitlines()) == 1


def test_a_failing_notebook_shows_its_cell_and_exits_with_2(lwlab: Cli, toy: Path) -> None:
    toy.write_text(SOURCE + "\n# %%\nvalue = 1\nvalue / 0\n")
    code, _, err = lwlab("run", "toy", "--out", "o")
    assert code == 2
    assert "ZeroDivisionError: division by zero" in err
    assert ">   2 | value / 0" in err
    assert "o/toy.ipynb" in err
    assert "Traceback" not in err


def test_a_time_limit_ends_a_run(lwlab: Cli, toy: Path) -> None:
    toy.write_text(SOURCE + "\n# %%\nimport time\ntime.sleep(60)\n")
    code, _, err = lwlab("run", "toy", "--timeout", "4")
    assert code == 2
    assert "still running at the limit of 4 s" in err


def test_unknown_options_and_commands_are_usage_errors(lwlab: Cli) -> None:
    assert lwlab("run", "toy", "--profile", "fast")[0] == 2
    assert lwlab("rum")[0] == 2


def test_list_shows_what_is_there_and_counts_what_is_not(lwlab: Cli, toy: Path) -> None:
    code, out, _ = lwlab("list")
    assert code == 0
    assert "toy  depth   A toy  2501.00001  tiny   3 s, 0.1 GB" in out
    assert "205 papers of the catalogue have no notebook yet: lwlab list --all" in out
    _, out, _ = lwlab("list", "--all")
    assert "RelP: Faithful and Efficient" in out


def test_models_lists_names_sizes_licences_and_whether_they_are_here(
    lwlab: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LWLAB_CACHE", str(tmp_path))
    code, out, _ = lwlab("models")
    assert code == 0
    for part in ("smollm2-135m", "Apache-2.0", "93 MB download", "not here yet", "toys/char-gpt2"):
        assert part in out


def test_building_and_checking_notebooks(lwlab: Cli, toy: Path) -> None:
    code, out, _ = lwlab("notebooks", "check")
    assert code == 1
    assert "toy.ipynb: not built" in out
    code, out, _ = lwlab("notebooks", "build", "--stale")
    assert code == 0
    assert "toy.ipynb (" in out
    assert lwlab("notebooks", "check")[:2] == (0, "all notebooks are fit to publish\n")
    assert lwlab("notebooks", "build", "--stale")[:2] == (0, "")


def test_new_writes_into_the_checkout_and_says_what_is_next(
    lwlab: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lwlab.runs.registry.checkout", lambda: tmp_path)
    code, out, _ = lwlab("new", "depth/llm-drop")
    assert code == 0
    assert "1. Read its card, papers/cards/llm-drop.md" in out
    assert (tmp_path / "notebooks/depth/llm_drop.py").exists()
    code, _, err = lwlab("new", "depth/llm-drop")
    assert code == 2
    assert "exists already; nothing was written" in err


def test_doctor_exits_with_1_when_something_needed_is_broken(
    lwlab: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lwlab.runs import doctor

    for bad in (False, True):
        found = [doctor.Check("ok", "Python [3]"), doctor.Check("note", "no GPU", "none needed")]
        found += [doctor.Check("bad", "torch is 2.14", "pip install torch")] if bad else []
        monkeypatch.setattr(doctor, "examine", lambda found=found: iter(found))
        code, out, _ = lwlab("doctor")
        assert code == bad
        assert "✓ Python [3]" in out
        assert ("✗ torch is 2.14\n    pip install torch" in out) == bad


def test_lab_opens_the_index_on_this_machine_only(
    lwlab: Cli, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: ran.append(command))
    assert lwlab("lab", "--port", "9999", "--no-browser")[0] == 0
    (command,) = ran
    assert "--ip=127.0.0.1" in command
    assert f"--notebook-dir={toy.parents[1]}" in command
    assert "--LabApp.default_url=/lab/tree/index.ipynb" in command
    monkeypatch.setattr("lwlab.runs.registry.checkout", lambda: None)
    lwlab("lab")
    assert f"--notebook-dir={Path.cwd() / 'lwlab-notebooks'}" in ran[1]
    assert Path("lwlab-notebooks/depth/toy.py").exists()


def start(toy: Path, out: str, terminal: bool) -> tuple[subprocess.Popen[bytes], int]:
    """Start a run that sleeps in its last cell, in a terminal or not, once it sleeps."""
    import pty

    toy.write_text(SOURCE + "\n# %%\nimport time\nopen('asleep', 'w').close()\ntime.sleep(60)\n")
    watcher, stderr = pty.openpty()
    command = [sys.executable, "-c", "from lwlab.cli import main; main()", "run", str(toy)]
    process = subprocess.Popen(
        [*command, "--out", out], stdout=subprocess.PIPE,
        stderr=stderr if terminal else subprocess.PIPE,
    )  # fmt: skip
    os.close(stderr)
    for _ in range(400):
        if Path("asleep").exists():
            return process, watcher
        time.sleep(0.1)
    raise AssertionError("the run did not reach its last cell")


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_keeps_its_notebook_and_exits_with_130(
    toy: Path, sent: signal.Signals
) -> None:
    process, watcher = start(toy, "o", terminal=False)
    process.send_signal(sent)
    _, err = process.communicate(timeout=30)
    os.close(watcher)
    assert process.returncode == 130
    assert b"stopped from outside" in err
    assert b"Traceback" not in err
    assert json.loads(Path("o/run.json").read_text())["status"] == "interrupted"
    assert "toy.n" in Path("o/toy.ipynb").read_text()


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_progress_is_drawn_by_cell_in_a_terminal(toy: Path) -> None:
    process, watcher = start(toy, "o", terminal=True)
    shown = ""
    for _ in range(100):
        shown += os.read(watcher, 4096).decode(errors="replace")
        if "3/4" in shown:
            break
    process.send_signal(signal.SIGINT)
    process.wait(30)
    os.close(watcher)
    assert "toy: A toy" in shown
    assert "3/4" in shown
