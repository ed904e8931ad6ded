"""The command `bench`."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from lwlab.cli.app import app
from lwlab.errors import BadInput


@app.command()
def bench(
    names: Annotated[list[str] | None, typer.Argument(help="Files of benchmarks/.")] = None,
    all: Annotated[bool, typer.Option("--all", help="Every benchmark.")] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="CASE", help="Only this case of it.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Instead of each case's own.", min=1)] = None,
    out: Annotated[Path | None, typer.Option(help="[./lwlab-runs/bench]")] = None,
    commit: Annotated[
        bool, typer.Option("--commit", help="Write benchmarks/results and the README's table.")
    ] = False,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also peers that need an environment of their own.")
    ] = False,
) -> None:
    """Time lwlab against its peers, side by side in one process; needs a checkout."""
    # Before torch and numba are imported: two threads on a busy machine measure the machine.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = "1"
    from lwlab.bench import door
    from lwlab.bench import peers as environment
    from lwlab.bench import report as made

    def keep(path: Path, old: made.Report | None, new: made.Report) -> None:
        made.save(new if old is None else made.merge(old, new), path)

    known = door.names()
    if not names and not all:
        raise BadInput(f"name a benchmark ({', '.join(known)}) or give --all.")
    worst = "met"
    for name in names or known:
        pins = getattr(door.read(name), "PEERS", None)
        if peers and pins and not environment.inside():
            raise typer.Exit(environment.again(pins, sys.argv[1:]))
        folder = door.folder() / "results" if commit else out or Path("lwlab-runs/bench")
        path = folder / f"{name.replace('-', '_')}.json"
        # Some cases measured again take their places among the others, unless versions differ.
        before = made.load(path) if commit and only and path.exists() else None
        results = door.run(
            name, rounds=rounds, only=only or (),
            progress=lambda id: typer.echo(id, err=True),
            partial=functools.partial(keep, path, before),
        )  # fmt: skip
        keep(path, before, results)
        typer.echo(made.table(made.load(path)))
        if commit:
            made.publish(made.load(path), door.folder() / "README.md")
        verdict = made.verdict(made.load(path))
        typer.echo(f"{name}: {verdict}\nresults  {path}")
        worst = verdict if verdict in ("missed", "failed") else worst
    if worst != "met":
        raise typer.Exit(1)
