"""Running a notebook: what it hands back when all goes well, and what is kept when it does not."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from toybooks import CLAIM, Toy

from lwlab.errors import BadInput, RunError, UnknownName
from lwlab.notebook import build
from lwlab.runs import Interrupted, NotebookFailed, Run, execute

NUMBER = "print('kernel', __import__('os').getpid())"


def kernel_pid(notebook: Path) -> int:
    """The process that a run's first code cell printed."""
    match = re.search(r"kernel (\d+)", notebook.read_text())
    assert match
    return int(match[1])


def gone(pid: int) -> bool:
    for _ in range(50):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def test_a_run_leaves_notebook_page_record_and_claims(toy: Toy) -> None:
    steps: list[tuple[int, int, str]] = []
    source = toy(NUMBER, "import sys, os; print(sys.executable, os.getcwd())", CLAIM)
    run = execute(source, {"n": 5, "seed": 7}, progress=lambda *at: steps.append(at))
    assert run.status == "ok"
    assert run.parameters == {"model": "tiny", "profile": "quick", "seed": 7, "n": 5}
    assert [(c["id"], c["measured"], c["verdict"]) for c in run.claims] == [
        ("toy.n", 5, "reproduced")
    ]
    assert run.notebook.parent.parent == Path.cwd() / "lwlab-runs" / "toy"
    assert steps == [(i, 6, "A toy") for i in range(6)]
    assert 0 < run.seconds < 60
    assert 20 < run.peak_memory_mb < 2000
    text = run.notebook.read_text()
    assert sys.executable in text
    assert str(Path.cwd()) in text
    assert gone(kernel_pid(run.notebook))
    record = json.loads(run.record.read_text())
    assert record["status"] == "ok"
    assert record["parameters"]["n"] == 5
    assert record["seed"] == 7
    assert record["claims"] == json.loads(json.dumps(run.claims))
    assert record["versions"]["papermill"][0].isdigit()
    assert record["failure"] is None


def test_the_page_is_whole_and_needs_no_network(toy: Toy) -> None:
    chart = {"mark": "bar", "data": {"values": [{"x": 1}]}, "encoding": {"x": {"field": "x"}}}
    mime = "application/vnd.vegalite.v5+json"
    cell = f"from IPython.display import display\ndisplay({{{mime!r}: {chart!r}}}, raw=True)"
    run = execute(toy(cell, CLAIM))
    assert run.html is not None
    page = run.html.read_text()
    assert "<script" not in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "data:image/png;base64" in page
    assert "<math" in page
    assert "reproduced" in page
    assert "<title>A toy: toy</title>" in page


def test_a_claim_counts_once_however_its_cell_ends(toy: Toy) -> None:
    def made(id: str) -> str:
        return f"lw.claim({id!r}, measured=1, expect='> 0', kind='exact')"

    first = "import lwlab as lw\n" + made("toy.a")
    cells = (first, made("toy.b") + ";", f"c = {made('toy.c')}\nc", "c", "lw.claims.table()")
    run = execute(toy(*cells))
    assert [c["id"] for c in run.claims] == ["toy.a", "toy.b", "toy.c"]
    nb = nbformat.read(run.notebook, as_version=4)
    shown = [len(cell.outputs) for cell in nb.cells if cell.cell_type == "code"]
    assert shown == [0, 1, 1, 1, 1, 1]
    assert "3 claims: 3 hold" in nb.cells[-1].outputs[0].data["text/html"]


def test_a_built_notebook_runs_like_its_source(toy: Toy) -> None:
    path, _ = build(toy(), timeout=60)
    run = execute(path, {"n": "4"}, "out", typed=True, html=False)
    assert run.id == "toy"
    assert run.html is None
    assert run.notebook == Path("out/toy.ipynb")
    assert run.claims[0]["measured"] == 4


def test_a_file_without_header_runs_too(tmp_path: Path) -> None:
    plain = tmp_path / "my_notes.py"
    plain.write_text("# %%\nprint(1)\n")
    assert execute(plain, html=False).id == "my-notes"
    with pytest.raises(BadInput, match="takes no parameters"):
        execute(plain, {"n": 1})


def test_folders_with_braces_are_plain_folders(toy: Toy) -> None:
    assert execute(toy(), {"n": 3}, "odd {n} folder", html=False).notebook.exists()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"m": "3"}, "no parameter 'm'"),
        ({"sed": "3"}, "did you mean 'seed'"),
        ({"n": "many"}, "n is int, by default 3 \\(how many\\)"),
        ({"profile": "fast"}, "profile is Literal"),
    ],
)
def test_bad_parameters_stop_a_run_before_anything_starts(
    toy: Toy, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        execute(toy(), params, typed=True)
    assert not list(Path.cwd().iterdir())


def test_unknown_targets_are_refused_with_what_would_work(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="there is no notebook"):
        execute(tmp_path / "missing.py")
    with pytest.raises(UnknownName, match="no technique is called 'relpp'"):
        execute("relpp")
    broken = tmp_path / "broken.ipynb"
    broken.write_text("{}")
    with pytest.raises(BadInput, match="cannot be read as a notebook"):
        execute(broken)
    assert not list(Path.cwd().iterdir())


def failed(target: Path, **kw: Any) -> tuple[Run, str]:
    with pytest.raises(NotebookFailed) as caught:
        execute(target, **kw)
    assert isinstance(caught.value, RunError)
    return caught.value.run, str(caught.value)


def test_a_failing_cell_is_shown_with_its_line_and_the_rest_is_kept(toy: Toy) -> None:
    bad = "values = {'a': 1}\n\n\ndef look(key):\n    return values[key]\n\n\nlook('b')"
    run, message = failed(toy(NUMBER, CLAIM, bad, "print('never')"))
    assert run.status == "failed"
    assert "KeyError: 'b'" in message
    assert ">   5 |     return values[key]" in message
    assert ">   8 | look('b')" in message
    assert str(run.notebook) in message
    nb = nbformat.read(run.notebook, as_version=4)
    assert run.failure is not None
    assert nb.cells[run.failure.cell].source == bad
    assert "never" not in json.dumps([c.get("outputs") for c in nb.cells])
    assert [c["id"] for c in run.claims] == ["toy.n"]
    assert run.html is not None
    assert run.html.exists()
    record = json.loads(run.record.read_text())
    assert record["failure"]["name"] == "KeyError"
    assert "\x1b" not in record["failure"]["traceback"]
    assert gone(kernel_pid(run.notebook))


def test_a_broken_exact_claim_stops_the_run_and_is_recorded(toy: Toy) -> None:
    cell = "import lwlab as lw\nlw.claim('toy.zero', measured=1, expect='== 0', kind='exact')"
    run, message = failed(toy(cell))
    assert "ClaimFailed: exact claim 'toy.zero' is broken: measured 1, expected == 0" in message
    assert [(c["id"], c["verdict"]) for c in run.claims] == [("toy.zero", "broken")]


def test_a_syntax_error_is_shown(toy: Toy) -> None:
    _, message = failed(toy("x = = 1"), html=False)
    assert "SyntaxError" in message
    assert "| x = = 1" in message


def test_the_time_limit_covers_the_whole_run_and_keeps_the_traceback(toy: Toy) -> None:
    nap = "import time\ntime.sleep(1.5)"
    run, message = failed(toy(NUMBER, nap, nap, nap, nap), timeout=5, html=False)
    assert run.status == "timeout"
    assert 5 <= run.seconds < 15
    assert "Timeout: still running at the limit of 5 s" in message
    assert ">   2 | time.sleep(1.5)" in message
    assert gone(kernel_pid(run.notebook))


@pytest.mark.skipif(os.name != "posix", reason="interrupts are POSIX signals")
def test_a_cell_that_ignores_the_interrupt_is_killed(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lwlab.notebook.engine._GRACE", 1.0)
    stubborn = (
        "import time\nwhile True:\n    try:\n        time.sleep(60)\n"
        "    except KeyboardInterrupt:\n        pass"
    )
    run, message = failed(toy(NUMBER, stubborn), timeout=4, html=False)
    assert run.status == "timeout"
    assert run.seconds < 15
    assert "| while True:" in message
    assert gone(kernel_pid(run.notebook))


def test_a_kernel_that_dies_is_reported_with_the_cell_that_killed_it(toy: Toy) -> None:
    run, message = failed(toy(NUMBER, CLAIM, "import os\nos._exit(7)"), html=False)
    assert run.status == "dead"
    assert "DeadKernel" in message
    assert "| os._exit(7)" in message
    assert [c["id"] for c in run.claims] == ["toy.n"]


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_ctrl_c_ends_the_kernel_and_keeps_the_partial_notebook(toy: Toy, tmp_path: Path) -> None:
    asleep = tmp_path / "asleep"
    nap = f"import time\nopen({str(asleep)!r}, 'w').close()\ntime.sleep(60)"

    def press() -> None:
        for _ in range(300):
            if asleep.exists():
                return os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(Interrupted) as caught:
        execute(toy(NUMBER, CLAIM, nap), html=False)
    run = caught.value.run
    assert run.status == "interrupted"
    assert [c["id"] for c in run.claims] == ["toy.n"]
    assert gone(kernel_pid(run.notebook))
    assert json.loads(run.record.read_text())["status"] == "interrupted"
    assert isinstance(caught.value, KeyboardInterrupt)


def test_peak_memory_is_what_the_kernel_held_for_a_moment(toy: Toy) -> None:
    run = execute(toy("x = bytearray(300_000_000)\nx[::4096] = b'1' * len(x[::4096])\ndel x"))
    assert 300 < run.peak_memory_mb < 600


def test_a_user_kernelspec_named_python3_is_not_asked(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tmp_path / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["/bin/false"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    assert execute(toy(), html=False).status == "ok"


def test_runs_in_threads_do_not_mix(toy: Toy) -> None:
    from concurrent.futures import ThreadPoolExecutor

    source = toy()
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(execute, source, {"n": n}, f"out{n}", html=False) for n in (4, 5)]
        assert [job.result().claims[0]["measured"] for job in jobs] == [4, 5]


def test_a_notebook_can_run_another(toy: Toy) -> None:
    inner = toy(id="inner")
    call = f"import lwlab as lw\nlw.runs.execute({str(inner)!r}, {{'n': 9}}, 'inner', html=False)"
    run = execute(toy(f"{call}.claims[0]['measured']"), html=False)
    assert nbformat.read(run.notebook, as_version=4).cells[-1].outputs[-1].data["text/plain"] == "9"


def test_two_runs_of_one_second_get_folders_of_their_own(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101-000000")
    names = {execute(toy(), html=False).notebook.parent.name for _ in range(2)}
    assert names == {"20260101-000000", "20260101-000000-2"}
