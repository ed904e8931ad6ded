"""lwlab works wherever Python runs: script, cell, callback, thread, papermill, Dask worker.

nnsight compiles the source of `with` blocks. lwlab's own lie in its files, so its calls work even
where the caller has no source at all; blocks of the user's own work wherever their source is, and
always run the code that is loaded: not an older one, nor what stands in an edited file.
"""

from __future__ import annotations

import importlib
import json
import linecache
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest

import lwlab as lw
from lwlab.notebook.engine import run_notebook

pytestmark = pytest.mark.xdist_group("contexts")  # one worker: they share what is slow to start

# What every context runs: the same model, the same numbers.
CALLS = '''
import lwlab as lw
from lwlab.models import toys

def make():
    return lw.wrap(toys.tiny("gpt2")[0], tokenizer=toys.tokenizer())

def calls(model, prompt="the dog saw a man"):
    """One number or more from each function that traces."""
    scale = 3.0
    edits = {"resid_pre.1": lambda h: h * scale}
    with lw.rules(model) as ruled:
        relevance = lw.grads(ruled, prompt, lambda z: z[:, 5], "resid_pre")
    return {
        "cache": lw.cache(model, prompt, "resid_post").resid_post.values[0, :, 1, 0].tolist(),
        "pattern": lw.cache(model, prompt, "attn_pattern").attn_pattern.values[0, 1, 2, 3].tolist(),
        "patch": lw.patch(model, prompt, edits).logits.values[0, :4].tolist(),
        "grads": lw.grads(model, prompt, lambda z: z[:, 5], "q").q.values[0, 1, 2, 3].tolist(),
        "rules": relevance.resid_pre.values[0, :, 1, 0].tolist(),
        "generate": lw.generate(model, prompt, 3, edits).ids.values.tolist(),
        "chain": lw.chain(model, prompt, [0, 1, 1, 2]).logits.values[0, :4].tolist(),
    }
'''
RAW = """
import nnsight

def scaled(nn):
    with nn.trace("the dog"):
        x = nnsight.save(nn.transformer.h[0].output[0, 0, 0] * {factor})
    return round((x / nn_unit(nn)).item(), 4)

class Tool:
    def scaled(self, nn):
        with nn.trace("the dog"):
            x = nnsight.save(nn.transformer.h[0].output[0, 0, 0] * {factor} * 10)
        return round((x / nn_unit(nn)).item(), 4)

def nn_unit(nn):
    with nn.trace("the dog"):
        x = nnsight.save(nn.transformer.h[0].output[0, 0, 0])
    return x
"""
HERE = "import nnsight\nwith nn.trace('the dog'):\n    x = nnsight.save({value})\n"

namespace: dict[str, Any] = {}
exec(CALLS, namespace)  # code without any source


@pytest.fixture(scope="module")
def model() -> lw.Model:
    made: lw.Model = namespace["make"]()
    return made


@pytest.fixture(scope="module")
def want(model: lw.Model) -> dict[str, Any]:
    found: dict[str, Any] = namespace["calls"](model)
    assert len({json.dumps(v) for v in found.values()}) == 7
    return found


def same(got: dict[str, Any], want: dict[str, Any]) -> bool:
    return got.keys() == want.keys() and all(
        np.shape(got[k]) == np.shape(want[k]) and np.allclose(got[k], want[k], atol=1e-5)
        for k in want
    )


# Scripts


def test_a_script_run_by_runpy(tmp_path: Path, want: dict[str, Any]) -> None:
    script = tmp_path / "study.py"
    script.write_text(CALLS + "result = calls(make())\n")
    assert same(runpy.run_path(str(script))["result"], want)


AFTER_AN_UPGRADE = """
import lwlab.tracing
from pathlib import Path

model = make()
for file in Path(lwlab.tracing.__file__).parent.glob("*.py"):
    text = file.read_text()  # as a checkout or pip would, while this process is at work
    first = text.index("from __future__") if "from __future__" in text else 0
    file.write_text(text[:first] + "# a line more\\n" * 7 + text[first:].replace("save(", "SAVE("))
found = calls(model)
import json
print(json.dumps(found))
"""


def test_a_script_goes_on_with_the_code_that_it_loaded_when_lwlab_is_upgraded_under_it(
    tmp_path: Path, want: dict[str, Any]
) -> None:
    shutil.copytree(Path(lw.__file__).parent, tmp_path / "lwlab")
    script = tmp_path / "study.py"
    script.write_text(CALLS + AFTER_AN_UPGRADE)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert same(json.loads(done.stdout.splitlines()[-1]), want)
    assert "SAVE(" in (tmp_path / "lwlab/tracing/chain.py").read_text()


# Sources that change


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's module with raw traces, `mytraces`, that may be edited."""
    path = tmp_path / "mytraces.py"
    path.write_text(RAW.format(factor=1))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield path
    sys.modules.pop("mytraces", None)


def test_an_edited_module_runs_as_loaded_until_it_is_loaded_anew(
    user: Path, model: lw.Model
) -> None:
    mine: Any = importlib.import_module("mytraces")
    first = mine.scaled
    assert (mine.scaled(model.nn), mine.Tool().scaled(model.nn)) == (1.0, 10.0)
    for factor, above in ((22, ""), (333, "\n\n\n# more lines\n"), (4, "")):
        loaded = mine.scaled(model.nn)
        user.write_text(above + RAW.format(factor=factor))
        assert mine.scaled(model.nn) == loaded
        importlib.reload(mine)
        assert mine.scaled(model.nn) == factor
        assert mine.Tool().scaled(model.nn) == factor * 10
        assert first(model.nn) == 1.0


def test_two_texts_under_one_file_name_each_run_their_own_block(model: lw.Model) -> None:
    def run(text: str, **names: Any) -> Any:
        linecache.cache["cell.py"] = (len(text), None, text.splitlines(True), "cell.py")
        space = {"nn": model.nn, **names}
        exec(compile(text, "cell.py", "exec"), space)
        return space["x"]

    texts = [above + HERE.format(value=value) for value in range(3) for above in ("", "\n\n")]
    assert [run(text) for text in texts] == [0, 0, 1, 1, 2, 2]
    assert [run(text, __spec__=__spec__) for text in texts[::-1]] == [2, 2, 1, 1, 0, 0]


def test_forget_reads_a_script_that_was_executed_again_by_hand(
    tmp_path: Path, model: lw.Model
) -> None:
    script = tmp_path / "again.py"

    def run(text: str) -> Any:
        script.write_text(text)
        space = {"nn": model.nn}
        exec(compile(text, str(script), "exec"), space)
        return space["x"]

    assert run(HERE.format(value=1)) == 1
    lw.tracing.forget(str(script))
    assert run("\n\n" + HERE.format(value=22)) == 22


# A notebook, executed by papermill in a kernel of this interpreter

CELLS = {
    "setup": """
import json, sys, threading
from pathlib import Path
said = {}
""" + CALLS + """
model = make()
nn = model.nn
""",
    "parameters reach lwlab": "said['parameters reach lwlab'] = calls(make(), prompt)",
    "cell": "said['cell'] = calls(model)",
    "%%time": "%%time\nsaid['%%time'] = calls(model)",
    "%%capture": "%%capture\nsaid['%%capture'] = calls(model)\nprint('hidden')",
    "function in a cell": """
def mine():
    return calls(model)
said['function in a cell'] = mine()
""",
    "widget callback": """
import ipywidgets
button = ipywidgets.Button(description="run")
@button.on_click
def press(_):
    said['widget callback'] = calls(model)
button._handle_custom_msg({"event": "click"}, [])  # as a click in the browser arrives
""",
    "interactive widget": """
slider = ipywidgets.IntSlider(0, 0, 3)
def moved(value):
    said['interactive widget'] = calls(model) if value else None
out = ipywidgets.interactive_output(moved, {"value": slider})
slider.value = 2
""",
    "eight asyncio.to_thread": """
import asyncio
everyone = await asyncio.gather(*(asyncio.to_thread(calls, model) for _ in range(8)))
said['eight asyncio.to_thread'] = everyone
""",
    "task of the event loop": """
async def later():
    await asyncio.sleep(0)
    return calls(model)
said['task of the event loop'] = await asyncio.create_task(later())
""",
    "thread": """
thread = threading.Thread(target=lambda: said.update(thread=calls(model)))
thread.start(); thread.join()
""",
    "run_cell": "get_ipython().run_cell(\"said['run_cell'] = calls(model)\");",
    "raw traces": """
import nnsight
with nn.trace("the dog"):
    first = nn.transformer.h[0].output.save()
def again():
    with nn.trace("the dog"):
        inner = nnsight.save([block.output for block in nn.transformer.h])
    return inner
said['raw traces'] = [list(first.shape), len(again()), bool((first == again()[0]).all())]
""",
    "raw trace in %%time": """
%%time
said['raw trace in %%time'] = [len(again())]
""",
    "edit before %autoreload": """
def edit(factor, above=""):
    Path(folder, "mytraces.py").write_text(above + RAW.format(factor=factor))
edit(1)
sys.path.insert(0, folder)
import mytraces
loaded = [mytraces.scaled(nn)]
edit(5, above="\\n\\n\\n")
""",
    "edited without %autoreload": """
said['edited without %autoreload'] = [*loaded, mytraces.scaled(nn), mytraces.Tool().scaled(nn)]
edit(1)
""",
    "%autoreload": "%load_ext autoreload\n%autoreload 2",
    "import": """
import mytraces
from mytraces import Tool, scaled
tool = Tool()
said['%autoreload'] = [[scaled(nn), tool.scaled(nn)]]
edit(22)
""",
    "after an edit": """
said['%autoreload'] += [[mytraces.scaled(nn), scaled(nn), tool.scaled(nn)]]
edit(333, above="\\n# lines above\\n\\n")
""",
    "after another": """
said['%autoreload'] += [[mytraces.scaled(nn), scaled(nn), tool.scaled(nn)]]
edit(4)
import importlib
importlib.reload(mytraces)
said['reload in a cell'] = [mytraces.scaled(nn), mytraces.Tool().scaled(nn)]
""",
    "%run": """
Path(folder, "ran.py").write_text(HERE.format(value=1))
%run -i $folder/ran.py
said['%run again'] = [x]
Path(folder, "ran.py").write_text("\\n\\n" + HERE.format(value=22))
""",
    "%run again": "%run -i $folder/ran.py\nsaid['%run again'] += [x]",
    "lwlab after all that": "said['lwlab after all that'] = calls(model)",
    "report": "print(json.dumps(said))",
}  # fmt: skip
SAME = [
    "cell", "%%time", "%%capture", "function in a cell", "widget callback", "interactive widget",
    "task of the event loop", "thread", "run_cell", "lwlab after all that",
]  # fmt: skip


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the cells of the notebook found."""
    folder = tmp_path_factory.mktemp("notebook")
    cells = [nbformat.v4.new_code_cell(text.lstrip("\n")) for text in CELLS.values()]
    cells.insert(0, nbformat.v4.new_code_cell("folder = prompt = RAW = HERE = None"))
    cells[0].metadata.tags = ["parameters"]
    output = folder / "executed.ipynb"
    given = {"folder": str(folder), "prompt": "John had the red book", "RAW": RAW, "HERE": HERE}
    outcome = run_notebook(
        nbformat.v4.new_notebook(cells=cells), output, parameters=given, cwd=folder, timeout=300
    )
    assert outcome.status == "ok", outcome.failure
    printed = nbformat.read(output, as_version=4).cells[-1].outputs
    found: dict[str, Any] = json.loads("".join(o.get("text", "") for o in printed))
    return found


@pytest.mark.parametrize("where", SAME)
def test_in_a_notebook(where: str, said: dict[str, Any], want: dict[str, Any]) -> None:
    assert same(said[where], want)


def test_eight_threads_of_the_event_loop_at_once(
    said: dict[str, Any], want: dict[str, Any]
) -> None:
    assert [same(one, want) for one in said["eight asyncio.to_thread"]] == [True] * 8


def test_a_parameter_of_papermill_reaches_lwlab(said: dict[str, Any], model: lw.Model) -> None:
    alone = namespace["calls"](model, "John had the red book")
    assert same(said["parameters reach lwlab"], alone)


def test_traces_of_one_s_own_work_in_cells_and_in_their_functions(said: dict[str, Any]) -> None:
    assert said["raw traces"] == [[1, 2, 32], 3, True]
    assert said["raw trace in %%time"] == [3]


def test_autoreload_runs_the_new_code_and_nothing_else_does(said: dict[str, Any]) -> None:
    assert said["edited without %autoreload"] == [1.0, 1.0, 10.0]
    assert said["%autoreload"] == [[1.0, 10.0], [22.0, 22.0, 220.0], [333.0, 333.0, 3330.0]]
    assert said["reload in a cell"] == [4.0, 40.0]


def test_a_script_that_was_edited_runs_anew(said: dict[str, Any]) -> None:
    assert said["%run again"] == [1, 22]


# Dask workers


@pytest.fixture(scope="module", params=["threads", "processes"])
def client(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A Dask cluster of one worker: threads of this process, or a process of its own."""
    distributed = pytest.importorskip("distributed")
    where = {"processes": True, "host": "127.0.0.1"}
    where = where if request.param == "processes" else {"processes": False}
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=4, dashboard_address="127.0.0.1:0", **where
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def test_a_dask_worker_is_sent_the_bare_module(
    client: Any, model: lw.Model, want: dict[str, Any]
) -> None:
    # `work` has no source, as a function of a cell has none in another process.
    exec(
        CALLS + "def work(module, i):\n"
        "    return calls(lw.wrap(module, tokenizer=toys.tokenizer()))\n",
        space := {},
    )
    futures = [client.submit(space["work"], model.module, i) for i in range(4)]
    assert [same(found, want) for found in client.gather(futures)] == [True] * 4


def test_a_dask_worker_is_sent_the_name(
    client: Any, model: lw.Model, want: dict[str, Any], tmp_path: Path
) -> None:
    model.module.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    exec(CALLS + "def work(name, i):\n    return calls(lw.load(name))\n", space := {})
    futures = [client.submit(space["work"], str(tmp_path), i) for i in range(4)]
    assert [same(found, want) for found in client.gather(futures)] == [True] * 4


def test_a_wrapped_model_sent_to_a_worker_is_refused_with_what_to_send(
    client: Any, model: lw.Model
) -> None:
    with pytest.raises(TypeError, match="Could not serialize") as caught:
        client.submit(repr, model).result(timeout=20)
    assert "Send its name" in str(caught.value.__cause__)
