"""The commands over several runs: `sweep` and `diff`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from lwlab.cli.app import app, console


@app.command()
def sweep(
    technique: Annotated[str, typer.Argument(help="An id from `lwlab list`, or a notebook file.")],
    grid: Annotated[
        list[str],
        typer.Option(
            "-g",
            "--grid",
            metavar="NAME=VALUES",
            help="Values of a parameter: n=8,32 or seed=0:4 (0 to 3). Every combination is run.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for rows and table. [./lwlab-sweeps/ID]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Rows at a time. [as cores and memory allow]")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory a row may hold, such as 2GB. [a share of 90 %]")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds for each row.", min=1)] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="tcp://HOST:PORT", help="Use this Dask scheduler.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also run the rows that are done.")
    ] = False,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Serve Dask's dashboard on 127.0.0.1.")
    ] = False,
) -> None:
    """Execute a notebook for every combination of parameter values, into one table."""
    from lwlab.runs import SweepInterrupted
    from lwlab.runs import sweep as run
    from lwlab.runs.cluster import memory_mb

    limit = memory_mb(memory) if memory else None
    try:
        with _watched(grid, console(stderr=True)) as show:
            done = run(
                technique, grid, out, typed=True, workers=workers, memory_mb=limit,
                timeout=timeout, scheduler=scheduler, again=again, dashboard=dashboard,
                progress=show,
            )  # fmt: skip
    except SweepInterrupted as e:
        typer.echo(str(e), err=True)
        raise typer.Exit(130) from None
    cached = sum(r.cached for r in done.rows)
    changed = sum(c["changed"] for r in done.rows for c in r.claims)
    typer.echo(
        f"{len(done.rows)} rows: {len(done.rows) - len(done.failed)} ok"
        + (f" ({cached} of them before)" if cached else "")
        + (f", {len(done.failed)} failed" if done.failed else "")
        + (f"; {changed} verdicts differ from their pins" if changed else "")
        + f"; {done.seconds:.0f} s"
    )
    typer.echo(f"table     {done.path}\nnotebook  {done.folder / 'sweep.ipynb'}")
    if done.failed:
        raise typer.Exit(1)


@contextmanager
def _watched(grid: list[str], screen: Any) -> Iterator[Any]:
    """Yield a watcher: a live line with the counts in a terminal, and a line a row that ends."""
    from rich import progress as rich

    names = {item.partition("=")[0].strip() for item in grid}
    columns = rich.BarColumn(), rich.TextColumn("{task.description}")
    with rich.Progress(
        *columns, console=screen, transient=True, disable=not screen.is_terminal
    ) as bar:
        task = bar.add_task("starting workers", total=None)

        def show(state: Any) -> None:
            bar.update(task, total=state.rows, completed=state.done, description=_line(state))
            if (row := state.last) is not None and not row.cached:
                what = ", ".join(f"{k}={v}" for k, v in row.parameters.items() if k in names)
                words = f"[{state.done}/{state.rows}] {row.status:<7} {row.seconds:6.1f} s  {what}"
                words += f"  {row.error}" if row.error else ""
                words += "" if screen.is_terminal else f"  ({_left(state.left)})"
                style = None if row.ok else "red"
                screen.print(words, style=style, markup=False, highlight=False)

        yield show


def _line(state: Any) -> str:
    failed = f", {state.failed} failed" if state.failed else ""
    where = f": {next(iter(state.running.values()))[:40]}" if len(state.running) == 1 else ""
    return (
        f"{state.done} of {state.rows} rows done, {len(state.running)} running{where}{failed}, "
        f"{_left(state.left)}"
    )


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "time left unknown"
    if seconds < 90:
        return f"about {seconds:.0f} s left"
    return (
        f"about {seconds / 60:.0f} min left" if seconds < 5400 else f"{seconds / 3600:.1f} h left"
    )


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(help="A run's folder or notebook, or a folder of runs.")],
    second: Annotated[Path, typer.Argument(help="What to compare it with.")],
    every: Annotated[bool, typer.Option("--all", help="Also claims that are the same.")] = False,
    fail_on_change: Annotated[
        bool, typer.Option("--fail-on-change", help="Exit with 1 if a verdict changed or is gone.")
    ] = False,
) -> None:
    """Show which claims moved between two runs, by how much, and what else differs."""
    from lwlab.runs import diff as compare

    found = compare(first, second)
    if every or any(c.state != "same" for c in found.changes):
        console().print(found.table(every))
    for run, what in found.remarks:
        typer.echo(f"{run}: {what}")
    for run, what, before, after in found.context:
        typer.echo(f"{run}: {what}: {before} -> {after}")
    typer.echo(found.summary())
    if fail_on_change and not found.ok:
        raise typer.Exit(1)
