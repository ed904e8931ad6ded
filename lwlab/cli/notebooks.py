"""Commands on notebooks: list, run, report, new, gallery; notebooks build, notebooks check."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lwlab.cli.app import app, console, notebooks_app, params


class Profile(StrEnum):
    """How much a notebook computes: `quick` is what CI runs, `full` the paper's scale."""

    quick = "quick"
    full = "full"


@app.command("list")
def list_(
    all: Annotated[bool, typer.Option("--all", help="Also papers without a notebook yet.")] = False,
) -> None:
    """List the techniques that have a notebook."""
    from rich.table import Table

    from lwlab import catalog
    from lwlab.runs import registry

    table = Table(box=None, header_style="bold")
    for name in ("id", "family", "title", "arXiv", "model", "cost"):
        table.add_column(name, no_wrap=name == "id")
    known = registry.techniques()
    for t in known:
        h = t.header
        cost = f"{h.seconds:.0f} s, {h.memory_mb / 1000:.1f} GB"
        table.add_row(h.id, h.family, h.title, h.paper, h.model, cost)
    written = {t.header.id for t in known}
    missing = [p for p in catalog.papers() if p.id not in written]
    for p in missing if all else ():
        table.add_row(p.id, p.family, p.title, p.arxiv, "", "no notebook yet", style="dim")
    if table.rows:
        console().print(table)
    if not all:
        typer.echo(f"{len(missing)} papers of the catalogue have no notebook yet: lwlab list --all")


@app.command()
def run(
    technique: Annotated[str, typer.Argument(help="An id from `lwlab list`, or a notebook file.")],
    param: Annotated[
        list[str] | None,
        typer.Option("-p", "--param", metavar="NAME=VALUE", help="Set a notebook parameter."),
    ] = None,
    profile: Annotated[
        Profile | None, typer.Option(help="quick is what CI runs; full is the paper's scale.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results. [./lwlab-runs/ID/DATE-TIME]")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds for the whole run.", min=1)] = None,
) -> None:
    """Execute a technique's notebook and print the claims it checked."""
    from lwlab.claims import ClaimTable
    from lwlab.runs import Interrupted, execute
    from lwlab.runs.console import progress

    given = params(param or [])
    if profile:
        given["profile"] = profile.value
    with progress(Path(technique).stem, console(stderr=True)) as show:
        try:
            done = execute(technique, given, out, timeout=timeout, progress=show, typed=True)
        except Interrupted as e:
            typer.echo(str(e), err=True)
            raise typer.Exit(130) from None
    page = console()
    table = ClaimTable(done.claims)
    page.print(table if done.claims else "The notebook makes no claim.")
    if not table.ok:
        warning = "A claim's verdict differs from the one pinned for this model."
        page.print(warning, style="bold red")
    typer.echo(f"{done.id} on {done.model}: {done.seconds:.0f} s, {done.peak_memory_mb:.0f} MB")
    typer.echo(f"notebook  {done.notebook}\npage      {done.html}\nrecord    {done.record}")


@app.command()
def report(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Where executed notebooks are. [./lwlab-runs, else the committed ones]"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to. [./lwlab-runs]")] = None,
    fail_on_change: Annotated[
        bool, typer.Option("--fail-on-change", help="Exit with 1 if a claim changed or broke.")
    ] = False,
) -> None:
    """Gather the claims of all executed notebooks into one page and one JSON file."""
    from rich.table import Table

    from lwlab.runs.report import report as write

    result = write(folders or (), out)
    table = Table("technique", "model", "status", "claims", box=None, header_style="bold")
    for e in result.entries:
        status = e.status if e.ok or e.status != "ok" else "CHANGED"
        style = None if e.ok else "bold red"
        table.add_row(e.id, e.model, status, e.table.summary(), style=style)
    console().print(table)
    typer.echo(f"page  {result.html}\ndata  {result.json}")
    if fail_on_change and not result.ok:
        raise typer.Exit(1)


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="FAMILY/ID", help="Such as depth/layer-skip.")],
    title: Annotated[str, typer.Option(help="Title, if the catalogue does not have it.")] = "",
    arxiv: Annotated[str, typer.Option(help="arXiv number, if the catalogue has none.")] = "",
) -> None:
    """Start a technique: module, notebook and tests that fail until it is written."""
    from lwlab.runs.scaffold import scaffold

    started = scaffold(name, title=title, arxiv=arxiv)
    for path in started.paths:
        typer.echo(f"wrote {path}")
    for i, step in enumerate(started.steps, 1):
        typer.echo(f"{i}. {step}")


@app.command()
def gallery(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Executed notebooks on other models. [./lwlab-runs, if it is there]"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the site. [./lwlab-gallery]")] = None,
    execute: Annotated[
        bool, typer.Option(help="Execute notebooks whose source changed since they were.")
    ] = True,
) -> None:
    """Build a static site of all notebooks that opens without a network."""
    from lwlab.gallery import build as make

    made = make(out, runs or (), execute=execute, progress=lambda text: typer.echo(text, err=True))
    typer.echo(f"{len(made.pages)} notebooks, {len(made.executed)} executed\n{made.index.as_uri()}")


def _chosen(names: list[str] | None) -> list[Path]:
    from lwlab.notebook import ROOTS
    from lwlab.runs import registry

    every = registry.sources()
    if not names:
        return every
    roots = {p.stem: p for p in every if p.stem in ROOTS}
    return [roots.get(n) or registry.find(n).source for n in names]


@notebooks_app.command()
def build(
    names: Annotated[list[str] | None, typer.Argument(help="Ids; all by default.")] = None,
    stale: Annotated[
        bool, typer.Option("--stale", help="Only those whose source changed.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds for each.", min=1)] = 1800,
) -> None:
    """Execute notebook sources and write the .ipynb files to commit."""
    from lwlab import notebook
    from lwlab.runs.console import progress

    for source in _chosen(names):
        if stale and not notebook.is_stale(source):
            continue
        with progress(source.stem, console(stderr=True)) as show:
            path, outcome = notebook.build(source, timeout=timeout, progress=show)
        size = path.stat().st_size / 1000
        cost = f"{outcome.seconds:.0f} s, {outcome.peak_memory_mb:.0f} MB, {size:.0f} kB"
        typer.echo(f"{path} ({cost})")
        for problem in notebook.problems(source):
            typer.echo(f"  {problem}")


@notebooks_app.command()
def check(
    names: Annotated[list[str] | None, typer.Argument(help="Ids; all by default.")] = None,
) -> None:
    """Check the committed notebooks without executing them; exits with 1 if one is not fit."""
    from lwlab import notebook

    found = [p for source in _chosen(names) for p in notebook.problems(source)]
    for problem in found:
        typer.echo(problem)
    typer.echo(f"{len(found)} problems" if found else "all notebooks are fit to publish")
    if found:
        raise typer.Exit(1)
