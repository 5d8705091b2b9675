"""What the commands that look after data share: safe text, a progress bar, JSON, errors."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.text import Text

from trialstore import StorageError
from trialstore._cli import INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from trialstore import upkeep

#: Longer lists of numbers are cut.
_RANGES: Final = 12


def escaped(text: str) -> str:
    """Return `text` with everything that could steer a terminal, or hide, as an escape.

    Names of files and what stands in a manifest may come from a stranger.
    """
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )


def line(*parts: str | tuple[str, str]) -> Text:
    """Put escaped pieces of text, plain or with a style, into one line."""
    styled = [(part, "") if isinstance(part, str) else part for part in parts]
    return Text.assemble(*((escaped(text), style) for text, style in styled))


def console(*, is_error: bool = False) -> Console:
    """Return a terminal that shows texts as they are and leaves long lines to the terminal."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True, stderr=is_error)


def print_json(value: Any) -> None:
    """Print JSON, in ASCII."""
    typer.echo(json.dumps(value, indent=2))


def ranges(numbers: Sequence[int]) -> str:
    """Return numbers in words: ``trial 3``, ``trials 0-4, 7``."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number <= spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    shown = [f"{a}" if a == b else f"{a}-{b}" for a, b in spans[:_RANGES]]
    more = ", ..." if len(spans) > _RANGES else ""
    return f"{'trial' if len(numbers) == 1 else 'trials'} {', '.join(shown)}{more}"


@contextmanager
def bar() -> Iterator[Callable[[upkeep.Progress], None]]:
    """Show on the error stream how far the work on many tasks has come, if it is a terminal."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    terminal = console(is_error=True)
    is_seen = terminal.is_terminal
    with Progress(*columns, console=terminal, transient=True, disable=not is_seen) as display:
        shown = display.add_task("", total=None)

        def update(progress: upkeep.Progress) -> None:
            name = f"{progress.task.parent.name}/{progress.task.name}"
            display.update(
                shown,
                description=escaped(f"{progress.number} of {progress.tasks}  {name!r}"),
                completed=progress.done,
                total=progress.total,
            )

        yield update


@contextmanager
def refusals() -> Iterator[None]:
    """End with exit code 1 and one line where something cannot be done, and 130 on Ctrl-C."""
    try:
        yield
    except StorageError as error:
        text = line((f"{type(error).__name__}: {error}", "bold red"))
        console(is_error=True).print(text)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        console(is_error=True).print("Interrupted; run it again.")
        sys.exit(INTERRUPTED)
