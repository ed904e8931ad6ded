"""Commands on models and this machine: models, fetch, doctor, workshop, lab."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from lwlab.cli.app import app, console
from lwlab.errors import BadInput

if TYPE_CHECKING:
    from lwlab.runs.doctor import Check


@app.command()
def models() -> None:
    """List the models lwlab fetches by itself, and whether each is on this machine."""
    from lwlab.models import toys, zoo
    from lwlab.runs.console import model_lines

    for line in model_lines(zoo.status()):
        typer.echo(line)
    typer.echo(
        "\nSmall ones, trained on this machine at the first use: "
        + ", ".join(f"toys/{name}" for name in toys.TABLE)
    )
    typer.echo("Also any Hugging Face id, model folder or GGUF file.")


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
def doctor() -> None:
    """Say what is wrong with this installation; exits with 1 if something needed is broken."""
    from lwlab.runs.doctor import examine

    _say(examine())


@app.command()
def workshop(
    check: Annotated[bool, typer.Option("--check", help="Verify a classroom machine.")] = False,
    run: Annotated[
        bool, typer.Option("--run", help="With --check: also execute every notebook of the path.")
    ] = False,
    answers: Annotated[
        bool, typer.Option("--answers", help="The instructor's page: exercises with answers.")
    ] = False,
) -> None:
    """Print the two-hour workshop's path, or verify that this machine is ready for it."""
    from rich.markdown import Markdown

    from lwlab import workshop as two_hours

    if run and not check:
        raise BadInput("--run goes with --check: lwlab workshop --check --run")
    if check:
        _say(two_hours.check(run))
        return
    text = two_hours.answers() if answers else two_hours.page()
    out = console()
    out.print(Markdown(text) if out.is_terminal else text, markup=False, highlight=False)


def _say(checks: Iterable[Check]) -> None:
    """Print checks as they are made; exit with 1 if something is broken."""
    out, broken = console(), 0
    looks = {"ok": ("✓", "green"), "note": ("·", "yellow"), "bad": ("✗", "bold red")}
    for check in checks:
        sign, style = looks[check.state]
        broken += check.state == "bad"
        out.print(f"[{style}]{sign}[/]", end=" ")
        out.print(check.what, markup=False, highlight=False)
        if check.state != "ok" and check.fix:
            out.print(f"    {check.fix}", markup=False, highlight=False)
    out.print(f"{broken} to repair" if broken else "all that is needed works")
    if broken:
        raise typer.Exit(1)


@app.command()
def lab(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 8888,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
) -> None:
    """Open JupyterLab on the index notebook, on this machine only."""
    from lwlab.runs.console import start_lab

    start_lab(port, browser)
