"""The application that commands register with, and what they share."""

from __future__ import annotations

import os
import signal
import sys
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


def main() -> None:
    """Run the command line; an lwlab error prints its message and exits with 2."""
    if os.name == "posix":  # end a run's kernel, and keep its notebook, on `kill` as on Ctrl-C
        # not by raising SIGINT, which a background job of a script ignores
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except LwlabError as e:
        console(stderr=True).print(str(e), style="red", markup=False, highlight=False)
        sys.exit(2)


def console(stderr: bool = False) -> Any:
    """Return a console for tables and coloured lines."""
    from rich.console import Console

    return Console(stderr=stderr, soft_wrap=True)


def params(given: list[str]) -> dict[str, str]:
    """Read `NAME=VALUE` options; raises BadInput for one that is not."""
    found = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or not name.strip().isidentifier():
            raise BadInput(f"-p {item!r} is not NAME=VALUE, such as -p n=64.")
        found[name.strip()] = value
    return found


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
