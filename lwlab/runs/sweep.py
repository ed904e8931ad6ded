"""Sweeps: one notebook executed for every point of a grid, on Dask workers, into one table."""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwlab.errors import BadInput
from lwlab.notebook import Header, Parameter, file_stem, parameters, record, source_hash
from lwlab.paths import write_atomic
from lwlab.runs import cluster, grid, rows, table
from lwlab.runs.board import Board, Watcher
from lwlab.runs.drive import Drive, SweepStopped, so_far
from lwlab.runs.rows import Row, Task
from lwlab.runs.run import effective, open_notebook

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

_ROW_MB = 2.0  # disk a row is assumed to need: its executed notebook


class SweepInterrupted(KeyboardInterrupt):
    """A sweep stopped by Ctrl-C; its finished rows are kept."""


@dataclass(frozen=True)
class Sweep:
    """A finished sweep: its rows in the order of the grid, and the folder that holds everything."""

    id: str
    folder: Path
    rows: list[Row]
    seconds: float

    @property
    def ok(self) -> bool:
        """True if every row ran to its end with no claim broken or changed."""
        clean = all(not c["changed"] for r in self.rows for c in r.claims)
        return clean and not self.failed

    @property
    def failed(self) -> list[Row]:
        """The rows that did not run to their end."""
        return [r for r in self.rows if not r.ok]

    @property
    def path(self) -> Path:
        """The table of the folder, a parquet file; it may hold rows of other sweeps too."""
        return self.folder / table.NAME

    @property
    def table(self) -> pd.DataFrame:
        """The rows of this sweep, one line a claim (see `lw.runs.results`)."""
        every = table.read(self.folder)
        return every[every["key"].isin([r.key for r in self.rows])].reset_index(drop=True)

    def chart(self, x: str | None = None, colour: str | None = None, **options: Any) -> alt.Chart:
        """Draw every claim's measured value along a parameter (see `lw.runs.chart`)."""
        from lwlab.runs.draw import chart

        return chart(self.table, x, colour, **options)


def sweep(
    target: str | Path,
    axes: Mapping[str, Any] | Iterable[Mapping[str, Any]] | Iterable[str],
    out_dir: str | Path | None = None,
    *,
    typed: bool = False,
    workers: int | None = None,
    memory_mb: float | None = None,
    timeout: float | None = None,
    scheduler: str | None = None,
    again: bool = False,
    dashboard: bool = False,
    progress: Watcher | None = None,
) -> Sweep:
    """Execute a notebook once for every combination of parameter values.

    A row that fails does not stop the others. A row that is in `out_dir` already (same notebook,
    parameters, version of lwlab and model checksum) is not run again, so an interrupted sweep goes
    on where it was; one that failed is. Several sweeps may share a folder, at the same time too.

    Parameters
    ----------
    target : id of a technique, or path of a notebook; it must have a parameters cell.
    axes : values by parameter, such as `{"model": ["smollm2-135m", "gpt2"], "seed": range(4)}`, of
        which every combination is a row; or a list of dicts, one a row.
    out_dir : folder for rows and table; by default `./lwlab-sweeps/<id>`.
    typed : True if `axes` is a list of texts from a command line, such as `seed=0:4`.
    workers : rows at a time on this machine; by default as many as cores and memory allow.
    memory_mb : megabytes a row's kernel may hold before it is killed; by default nine tenths of
        the machine's memory, shared by the workers, or the limit that a scheduler's workers have.
    timeout : seconds for each row.
    scheduler : address of a Dask scheduler whose workers to use instead, such as
        `tcp://10.0.0.5:8786`; they must share `out_dir`, and have this version of lwlab.
    again : run every row, also those that are done.
    dashboard : serve Dask's dashboard, on 127.0.0.1 only.
    progress : called with a `State` when a row ends and about every second.

    Returns
    -------
    Sweep
        With its rows, and the table of parameters, claims and measured values.

    Raises
    ------
    UnknownName, BadInput, FetchError
        Before any row runs: no such notebook, parameter or model, a value that does not fit, a
        folder that cannot be used, a table in it that is damaged.
    RunError
        The scheduler cannot be reached, or its workers cannot run the rows.
    SweepStopped
        The disk is full, or the scheduler was lost; finished rows are kept.
    SweepInterrupted
        Ctrl-C; finished rows are kept.
    """
    start = time.perf_counter()
    header, nb = open_notebook(target)
    declared = parameters(nb)
    if declared is None:
        raise BadInput(
            f"{header.id} has no cell tagged 'parameters', so there is nothing to sweep over."
        )
    if typed:
        axes = grid.read_axes(map(str, axes), declared)
    points = grid.rows(axes, declared)
    if workers is not None and workers < 1:
        raise BadInput(f"workers={workers}: at least one is needed.")
    folder = Path(out_dir or Path("lwlab-sweeps") / header.id).expanduser().absolute()
    _usable(folder, len(points))
    values = [{"model": header.model, **effective(declared, p)} for p in points]
    checksums = _models(header, declared, values)
    digest = source_hash(nb)
    count = workers or cluster.how_many(len(points), header.memory_mb)
    limit = memory_mb or (None if scheduler else cluster.share_mb(count))
    notebook = _snapshot(folder, header, nb, digest)
    topic = f"lwlab-sweep-{uuid.uuid4().hex[:8]}"
    tasks = {}
    for point, all_values in zip(points, values):
        checksum = checksums[str(all_values["model"])]
        shown = effective(declared, point)
        key = rows.row_key(digest, shown, checksum)
        tasks[key] = Task(
            key=key, id=header.id, source=digest, notebook=str(notebook), given=point,
            values=shown, model=str(all_values["model"]), checksum=checksum, folder=str(folder),
            timeout=timeout, memory_mb=limit, topic=topic, again=again,
        )  # fmt: skip
    board = Board(len(tasks), count, header.seconds, progress)
    todo = []
    for task in tasks.values():
        there = None if again else rows.finished(folder, task.key)
        if there is not None and there["status"] == "ok":
            board.end(rows.read_row(folder, task.key, there, cached=True))
        else:
            todo.append(task)
    try:
        if todo:
            size = min(count, len(todo))
            place = (
                cluster.remote(scheduler)
                if scheduler
                else cluster.local(size, limit or 0.0, dashboard)
            )
            with place as client:
                cluster.check(client, folder)
                board.workers = min(len(client.nthreads()), len(todo))
                Drive(client, board, folder, topic).run(todo)
    except KeyboardInterrupt:
        _keep(folder, header)
        raise SweepInterrupted(so_far(board, folder)) from None
    except BaseException:
        _keep(folder, header)
        raise
    try:
        _write(folder, header)
    except OSError as e:
        raise SweepStopped(f"the table cannot be written ({e}). {so_far(board, folder)}") from e
    done = [board.done[key] for key in tasks]
    return Sweep(header.id, folder, done, round(time.perf_counter() - start, 2))


def _usable(folder: Path, count: int) -> None:
    """Make sure, before anything runs, that `folder` can take the results of `count` rows."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free / 2**20
        write_atomic(folder / ".locks" / "writable", "")
    except OSError as e:
        raise BadInput(f"the folder {folder} cannot be written: {e.strerror}.") from None
    if free < count * _ROW_MB:
        raise BadInput(
            f"{free:.0f} MB are free for {folder}; {count} rows may need {count * _ROW_MB:.0f} MB."
        )
    if (folder / table.NAME).exists():
        table.read(folder)


def _models(
    header: Header, declared: Sequence[Parameter], values: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """Return the checksums of all models by name, fetched now so that workers find them there.

    A notebook whose own default is no name that lwlab knows makes its models itself; then nothing
    is fetched, and names are not checked.
    """
    from lwlab.models import zoo

    names = dict.fromkeys(str(v["model"]) for v in values)
    default = {p.name: p.default for p in declared}.get("model", header.model)
    if not record.known(default):
        return {name: record.checksum(name) for name in names}
    return {name: zoo.resolve(name).checksum for name in names}


def _snapshot(folder: Path, header: Header, nb: Any, digest: str) -> Path:
    """Keep the notebook as it is now: all rows run this copy, whatever happens to the source."""
    import nbformat

    path = folder / "sources" / digest / f"{file_stem(header.id)}.ipynb"
    if not path.exists():
        write_atomic(path, nbformat.writes(nb) + "\n")
    return path


def _write(folder: Path, header: Header) -> None:
    from lwlab.runs.draw import write_notebook

    table.write(folder)
    write_notebook(folder, header.title)


def _keep(folder: Path, header: Header) -> None:
    """Write the table of what there is, when something else went wrong already."""
    with contextlib.suppress(OSError):
        if any(folder.glob(f"rows/*/{rows.RECORD}")):
            _write(folder, header)
