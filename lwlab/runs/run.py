"""Run one technique's notebook: checked parameters in, executed notebook, claims and record out."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lwlab._quick import quick_imports
from lwlab.claims import read_claims
from lwlab.errors import BadInput, RunError, UnknownName
from lwlab.notebook import (
    Failure,
    Header,
    Parameter,
    Progress,
    bake,
    file_stem,
    load,
    parameters,
    parse_header,
    record,
    run_notebook,
    source_hash,
    validate,
)
from lwlab.paths import write_atomic
from lwlab.runs import registry
from lwlab.runs.html import write_html

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Run:
    """One run of a notebook and the files it left."""

    id: str
    status: str
    model: str
    parameters: dict[str, Any]
    seconds: float
    peak_memory_mb: float
    claims: list[dict[str, Any]]
    failure: Failure | None
    notebook: Path
    html: Path | None
    record: Path


class NotebookFailed(RunError):
    """A run that stopped before its end; `run` tells what is left of it."""

    def __init__(self, message: str, run: Run) -> None:
        super().__init__(message)
        self.run = run


class Interrupted(KeyboardInterrupt):
    """A run stopped by Ctrl-C; its kernel is gone, `run` tells what is left of it."""

    def __init__(self, message: str, run: Run) -> None:
        super().__init__(message)
        self.run = run


def execute(
    target: str | Path,
    params: Mapping[str, Any] | None = None,
    out_dir: str | Path | None = None,
    *,
    timeout: float | None = None,
    memory_mb: float | None = None,
    progress: Progress | None = None,
    typed: bool = False,
    html: bool = True,
    pictures: bool = True,
) -> Run:
    """Execute a technique's notebook in a kernel of its own.

    Parameters
    ----------
    target : id of a technique (`relp`), or path of a `.py` (py:percent) or `.ipynb` notebook.
    params : values for the notebook's parameters, checked before anything starts.
    out_dir : folder for the results; by default `./lwlab-runs/<id>/<date-time>`.
    timeout : seconds for the whole run.
    memory_mb : megabytes the kernel may hold; above them it is killed.
    progress : called before each cell with its index, the number of cells and the section.
    typed : True if `params` holds text from a command line, to be read by each parameter's type.
    html : also write the notebook as a self-contained page.
    pictures : also store charts as pictures, for readers that cannot draw them.

    Returns
    -------
    Run
        With the executed notebook, its page, its claims and the path of `run.json` (parameters,
        claims, and what `record.facts` says: versions, model and checksum, seed, hardware, cost).
        The facts also stand in the notebook's metadata, under `lwlab.run`.

    Raises
    ------
    UnknownName, BadInput
        Before running: no such technique or parameter, or a value of the wrong type.
    NotebookFailed
        A cell failed, the kernel died, or the time or memory was up; the message shows the cell.
    Interrupted
        Ctrl-C. In both cases the partial notebook and the record are kept.
    """
    quick_imports()
    import nbformat

    header, nb = open_notebook(target)
    declared = parameters(nb)
    if params and declared is None:
        raise BadInput(f"{header.id} has no cell tagged 'parameters', so it takes no parameters.")
    given = validate(declared or [], params or {}, typed=typed)
    folder = Path(out_dir) if out_dir is not None else _fresh_folder(header.id)
    folder.mkdir(parents=True, exist_ok=True)
    notebook = folder / f"{file_stem(header.id)}.ipynb"
    digest, started = source_hash(nb), datetime.now(UTC)

    outcome = run_notebook(
        nb, notebook, parameters=given, timeout=timeout, memory_mb=memory_mb, progress=progress
    )
    values = effective(declared or [], given)
    facts = record.facts({"model": header.model, **values}, outcome.seconds, outcome.peak_memory_mb)
    done = nbformat.read(notebook, as_version=4)
    done.metadata["lwlab"] = {**done.metadata.get("lwlab", {}), "run": facts}
    text = nbformat.writes(bake(done) if pictures else done)
    write_atomic(notebook, text + "\n")
    page = write_html(done, notebook.with_suffix(".html"), header.title) if html else None
    run = Run(
        id=header.id, status=outcome.status, model=str(values.get("model", header.model)),
        parameters=values, seconds=outcome.seconds, peak_memory_mb=outcome.peak_memory_mb,
        claims=read_claims(done), failure=outcome.failure, notebook=notebook, html=page,
        record=folder / "run.json",
    )  # fmt: skip
    _write_record(run, header, digest, started, facts)
    if outcome.status == "interrupted":
        raise Interrupted(_explain(run), run)
    if outcome.failure is not None:
        raise NotebookFailed(_explain(run), run)
    return run


def open_notebook(target: str | Path) -> tuple[Header, Any]:
    """Return the header and the content of a notebook; files need no header of their own."""
    quick_imports()
    path = Path(target).expanduser()
    if path.suffix not in (".py", ".ipynb"):
        technique = registry.find(str(target))
        return technique.header, load(technique.source)
    if not path.is_file():
        raise UnknownName(f"there is no notebook {path}.")
    if path.suffix == ".py":
        nb = load(path)
    else:
        import nbformat

        try:
            nb = nbformat.read(path, as_version=4)
        except (ValueError, AttributeError, nbformat.ValidationError) as e:
            raise BadInput(f"{path} cannot be read as a notebook: {e}") from None
    fields = {k: v for k, v in nb.metadata.get("lwlab", {}).items() if k != "run"}
    id = path.stem.replace("_", "-")
    return (parse_header(fields, path.name) if fields else Header(id=id, title=path.stem)), nb


def _fresh_folder(id: str) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    base = Path.cwd() / "lwlab-runs" / id
    for suffix in ("", *(f"-{i}" for i in range(2, 100))):
        folder = base / f"{stamp}{suffix}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise RunError(f"{base} has a hundred runs of this second; pass out_dir.")


def effective(declared: list[Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return every parameter with the value it has in a run: the given one, or its default."""
    return {p.name: given.get(p.name, p.default) for p in declared}


def _write_record(
    run: Run, header: Header, digest: str, started: datetime, facts: dict[str, Any]
) -> None:
    failure = asdict(run.failure) if run.failure else None
    if failure:
        failure["traceback"] = _ANSI.sub("", failure["traceback"])
    content = {
        "id": run.id, "title": header.title, "family": header.family, "paper": header.paper,
        "status": run.status, **facts, "model": run.model, "parameters": run.parameters,
        "started": started.isoformat(timespec="seconds"), "source_hash": digest,
        "notebook": run.notebook.name, "html": run.html.name if run.html else None,
        "failure": failure, "claims": run.claims,
    }  # fmt: skip
    write_atomic(run.record, json.dumps(content, indent=1, default=str) + "\n")


def _explain(run: Run) -> str:
    """Say which cell stopped the run, with the lines around the failing one."""
    f = run.failure
    assert f is not None
    at = "before its first cell" if f.cell is None else f"in cell {f.cell}"
    lines = [f"{run.id} stopped {at} after {run.seconds:.0f} s: {f.name}: {f.message}"]
    frames = re.findall(r"^Cell In\[(\d+)\], line (\d+)", _ANSI.sub("", f.traceback), re.MULTILINE)
    # the outermost frame is in the cell that failed; others may be in functions of earlier cells
    marked = {int(line) for cell, line in frames if cell == frames[0][0]}
    first = max(0, min(marked, default=1) - 5)
    for i, text in list(enumerate(f.source.splitlines(), 1))[first : first + 20]:
        lines.append(f"{'>' if i in marked else ' '} {i:3} | {text}")
    return "\n".join([*lines, f"The notebook up to there: {run.notebook}"])
