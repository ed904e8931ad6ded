"""Commands on models and this machine: models, fetch, doctor, lab."""

from __future__ import annotations

from typing import Annotated

import typer

from lwlab.cli.app import app, console


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
def doctor() -> None:
    """Say what is wrong with this installation; exits with 1 if something needed is broken."""
    from lwlab.runs.doctor import examine

    out, broken = console(), 0
    looks = {"ok": ("✓", "green"), "note": ("·", "yellow"), "bad": ("✗", "bold red")}
    for check in examine():
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
