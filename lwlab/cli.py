"""The command line: list, models, fetch, run, report, new, bench, doctor, lab, notebooks.

Heavy modules are imported inside the commands, so that `lwlab --help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lwlab import __version__
from lwlab.errors import BadInput, LwlabError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Look inside neural networks layer by layer: one notebook a paper, its claims checked.",
)  # fmt: skip
notebooks_app = typer.Typer(no_args_is_help=True, help="Build and check the committed notebooks.")
app.add_typer(notebooks_app, name="notebooks")


class Profile(StrEnum):
    """How much a notebook computes: `quick` is what CI runs, `full` the paper's scale."""

    quick = "quick"
    full = "full"


def main() -> None:
    """Run the command line; an lwlab error prints its message and exits with 2."""
    if os.name == "posix":  # end a run's kernel, and keep its notebook, on `kill` as on Ctrl-C
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        app()
    except LwlabError as e:
        _console(stderr=True).print(str(e), style="red", markup=False, highlight=False)
        sys.exit(2)


def _console(stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr, soft_wrap=True)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lwlab {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None: ...


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
        _console().print(table)
    if not all:
        typer.echo(f"{len(missing)} papers of the catalogue have no notebook yet: lwlab list --all")


@app.command()
def models() -> None:
    """List the models lwlab fetches by itself, and whether each is on this machine."""
    from lwlab.models import zoo
    from lwlab.runs.console import model_lines

    for line in model_lines(zoo.status()):
        typer.echo(line)
    typer.echo("\nAlso any Hugging Face id, model folder or GGUF file.")


@app.command()
def fetch(
    model: Annotated[str, typer.Argument(help="A name from `lwlab models`, or a hub id.")],
    again: Annotated[bool, typer.Option("--again", help="Fetch anew even if it is here.")] = False,
) -> None:
    """Fetch a model's weights into the cache and verify them."""
    from lwlab.models import zoo

    local = zoo.fetch(model, again=again)
    typer.echo(f"{model} is in {local.path} (checksum {local.checksum[:16]})")


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

    params = _params(param or [])
    if profile:
        params["profile"] = profile.value
    with progress(Path(technique).stem, _console(stderr=True)) as show:
        try:
            done = execute(technique, params, out, timeout=timeout, progress=show, typed=True)
        except Interrupted as e:
            typer.echo(str(e), err=True)
            raise typer.Exit(130) from None
    console = _console()
    table = ClaimTable(done.claims)
    console.print(table if done.claims else "The notebook makes no claim.")
    if not table.ok:
        warning = "A claim's verdict differs from the one pinned for this model."
        console.print(warning, style="bold red")
    typer.echo(f"{done.id} on {done.model}: {done.seconds:.0f} s, {done.peak_memory_mb:.0f} MB")
    typer.echo(f"notebook  {done.notebook}\npage      {done.html}\nrecord    {done.record}")


def _params(given: list[str]) -> dict[str, str]:
    params = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or not name.strip().isidentifier():
            raise BadInput(f"-p {item!r} is not NAME=VALUE, such as -p n=64.")
        params[name.strip()] = value
    return params


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
    _console().print(table)
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
def doctor() -> None:
    """Say what is wrong with this installation; exits with 1 if something needed is broken."""
    from lwlab.runs.doctor import examine

    console, broken = _console(), 0
    looks = {"ok": ("✓", "green"), "note": ("·", "yellow"), "bad": ("✗", "bold red")}
    for check in examine():
        sign, style = looks[check.state]
        broken += check.state == "bad"
        console.print(f"[{style}]{sign}[/]", end=" ")
        console.print(check.what, markup=False, highlight=False)
        if check.state != "ok" and check.fix:
            console.print(f"    {check.fix}", markup=False, highlight=False)
    console.print(f"{broken} to repair" if broken else "all that is needed works")
    if broken:
        raise typer.Exit(1)


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

    known = door.names()
    if not names and not all:
        raise BadInput(f"name a benchmark ({', '.join(known)}) or give --all.")
    if commit and only:
        raise BadInput("--commit writes whole results, so it does not go with --only.")
    worst = "met"
    for name in names or known:
        pins = getattr(door.read(name), "PEERS", None)
        if peers and pins and not environment.inside():
            raise typer.Exit(environment.again(pins, sys.argv[1:]))
        results = door.run(
            name, rounds=rounds, only=only or (), progress=lambda id: typer.echo(id, err=True)
        )
        folder = door.folder() / "results" if commit else out or Path("lwlab-runs/bench")
        path = made.save(results, folder / f"{results['name']}.json")
        typer.echo(made.table(made.load(path)))
        if commit:
            made.publish(made.load(path), door.folder() / "README.md")
        verdict = made.verdict(results)
        typer.echo(f"{name}: {verdict}\nresults  {path}")
        worst = verdict if verdict in ("missed", "unequal") else worst
    if worst != "met":
        raise typer.Exit(1)


@app.command()
def lab(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 8888,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
) -> None:
    """Open JupyterLab on the index notebook, on this machine only."""
    from lwlab.runs.console import start_lab

    start_lab(port, browser)


def _chosen(names: list[str] | None) -> list[Path]:
    from lwlab.notebook import DOOR
    from lwlab.runs import registry

    every = registry.sources()
    if not names:
        return every
    doors = [p for p in every if p.stem == DOOR]
    return [doors[0] if n == DOOR and doors else registry.find(n).source for n in names]


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
        with progress(source.stem, _console(stderr=True)) as show:
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
