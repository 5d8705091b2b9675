"""The commands together: one module for each, added here."""

from __future__ import annotations

import importlib.metadata
from typing import Annotated

import typer

from trialstore._cli.check import check
from trialstore._cli.demo import demo
from trialstore._cli.drill.command import drill
from trialstore._cli.prune import prune
from trialstore._cli.recover import recover

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # messages in one line each, which can be searched and copied
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(is_asked: bool) -> None:  # noqa: FBT001 - typer's signature
    if is_asked:
        typer.echo(f"trialstore {importlib.metadata.version('trialstore')}")
        raise typer.Exit


@app.callback()
def _trialstore(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Record experiment trials without waiting for the disk, and without losing one."""


for command in (demo, drill, check, recover, prune):
    app.command()(command)
