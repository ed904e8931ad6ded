"""What the command line shows and starts: progress by cell, tables of models, JupyterLab."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lwlab.errors import BadInput
from lwlab.notebook import Progress
from lwlab.runs import registry


@contextmanager
def progress(title: str, console: Any) -> Iterator[Progress | None]:
    """Yield a callback that draws a bar cell by cell; None when nobody watches."""
    if not console.is_terminal:
        yield None
        return
    from rich import progress as rich

    columns = rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn()
    with rich.Progress(*columns, rich.TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task(f"{title}: starting a kernel", total=None)

        def show(cell: int, cells: int, section: str) -> None:
            bar.update(task, completed=cell, total=cells, description=f"{title}: {section[:50]}")

        yield show


def model_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Write the rows of `zoo.status()`, three lines a model."""
    for r in rows:
        size = f"{r['download_mb']:.0f} MB download, {r['disk_mb']:.0f} MB on disk"
        state = "cached" if r["cached"] else "not here yet"
        yield f"{r['name']}  ({r['kind']}, {r['licence']}, {size}, {state})"
        yield f"    {r['summary']}\n    {r['source']}"


def start_lab(port: int, browser: bool) -> None:
    """Replace this process by JupyterLab on the index notebook, reachable from this machine only.

    An installed package is not written to: its notebooks are copied to `./lwlab-notebooks` once.

    Raises
    ------
    BadInput
        If JupyterLab is not installed.
    """
    if find_spec("jupyterlab") is None:
        raise BadInput("JupyterLab is not installed: python -m pip install 'lwlab[lab]'")
    folder = registry.notebooks_dir()
    if registry.checkout() is None:
        copy = Path.cwd() / "lwlab-notebooks"
        if not copy.exists():
            shutil.copytree(folder, copy)
        folder = copy
    # exec: JupyterLab itself gets the terminal's signals
    command = [sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", f"--port={port}"]
    command += [f"--notebook-dir={folder}", "--LabApp.default_url=/lab/tree/index.ipynb"]
    os.execv(sys.executable, command + ([] if browser else ["--no-browser"]))
