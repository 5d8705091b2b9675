"""``trialstore demo``: records a real electrocardiogram in real time, reads it back, compares it.

Exit codes: 0 all equal, 1 something differs or failed, 2 an option makes no sense, 130 interrupted.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import anyio
import typer
from rich.console import Console
from rich.text import Text

from trialstore import InvalidName, StorageError, StorageReader, TaskReader
from trialstore._cli import INTERRUPTED, ecg, report
from trialstore._cli.comparison import differences
from trialstore._cli.playback import ARRAY, Plan, Playback, play
from trialstore._cli.terminal import line

_DEFAULT_ROOT: Final = Path("trialstore-demo")


class Backend(StrEnum):
    """Event loops that the demo can run on."""

    ASYNCIO = "asyncio"
    TRIO = "trio"


def _positive(value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(f"must be a positive number, not {value!r}")
    return value


def _installed(backend: Backend) -> Backend:
    if importlib.util.find_spec(backend.value) is None:
        raise typer.BadParameter(f"{backend.value} is not installed: pip install {backend.value}")
    return backend


def demo(
    *,
    seconds: Annotated[
        float, typer.Option(callback=_positive, help="How much of the recording to play (300 s).")
    ] = 20.0,
    trial_seconds: Annotated[
        float, typer.Option(callback=_positive, help="Length of a trial in the recording.")
    ] = 4.0,
    speed: Annotated[
        float, typer.Option(callback=_positive, help="Seconds of the recording played in a second.")
    ] = 1.0,
    subject: Annotated[str, typer.Option(help="Name of the subject.")] = "p0",
    root: Annotated[
        Path | None,
        typer.Option(
            help="Folder to record into; runs are kept beside one another."
            f"  [default: {_DEFAULT_ROOT}]"
        ),
    ] = None,
    keep: Annotated[
        bool, typer.Option(help="Keep the data, or record into a temporary folder.")
    ] = True,
    backend: Annotated[Backend, typer.Option(callback=_installed, help="Event loop.")] = (
        Backend.ASYNCIO
    ),
) -> None:
    """Play a real electrocardiogram in real time, record it, read it back and compare every bit."""
    recording = ecg.load()
    if seconds > recording.seconds:
        raise typer.BadParameter(
            f"the recording is {recording.seconds:g} s long, not {seconds:g}",
            param_hint="'--seconds'",
        )
    if root is not None and not keep:
        raise typer.BadParameter(
            "--root keeps the data; leave one of the two out", param_hint="'--no-keep'"
        )
    _check_place(root or _DEFAULT_ROOT, subject)
    takes = ecg.cut(recording, seconds, trial_seconds)
    place = (root or _DEFAULT_ROOT) if keep else Path(tempfile.mkdtemp(prefix="trialstore-demo-"))
    playback = Playback(Plan(place, subject, takes, recording.rate, speed))
    console = Console(highlight=False)
    code = run(playback, backend.value, console, pictures=place if keep else Path())
    if not keep and code == 0:
        shutil.rmtree(place)  # noqa: TID251 - a temporary folder, made above, of data compared as equal
        console.print("The data was removed again, as --no-keep says.")
    raise typer.Exit(code)


def _check_place(root: Path, subject: str) -> None:
    reader = StorageReader(root)
    try:
        reader.subject_id = subject
    except InvalidName as error:
        raise typer.BadParameter(str(error), param_hint="'--subject'") from error
    try:
        reader.subject_ids  # noqa: B018 - raises where the root is a file
    except StorageError as error:
        raise typer.BadParameter(str(error), param_hint="'--root'") from error


def run(playback: Playback, backend: str, console: Console, pictures: Path) -> int:
    """Record, then read back; return the exit code."""
    try:
        record(playback, backend, console)
        return examine(playback, console, pictures)
    except KeyboardInterrupt:
        _tell_interrupted(playback, console)
        return INTERRUPTED
    except (StorageError, OSError) as error:
        console.print(line((f"{type(error).__name__}: {error}", "bold red")), soft_wrap=True)
        return 1


def record(playback: Playback, backend: str, console: Console) -> None:
    """Play, with a display; the event loop has ended when this returns.

    Raises
    ------
    StorageError
        If the storage cannot be made, or trials not be made durable or published.
    """
    console.print(report.introduction(playback.plan, backend))
    try:
        with report.live(playback, console) as on_idle:
            anyio.run(play, playback, on_idle, backend=backend)
    finally:
        console.print()  # rich ends the display's last line on terminals only


def examine(playback: Playback, console: Console, pictures: Path) -> int:
    """Read back, compare, tell, draw; return the exit code.

    Raises
    ------
    OSError
        If the picture cannot be written.
    """
    from trialstore._cli.plot import draw  # loads matplotlib, which takes a second

    assert playback.folder is not None
    plan, reader = playback.plan, TaskReader(playback.folder)
    found = differences(reader, ARRAY, plan.takes)
    if found:
        console.print(report.verdict(plan, found))
        console.print(Text(f"The data is in {str(reader.root)!r}."), soft_wrap=True)
        return 1
    for part in (
        report.trials_table(reader.trials),
        report.verdict(plan, found),
        report.summary(playback),
        report.files(plan, reader.root),
    ):
        console.print(part)
        console.print()
    picture = pictures / f"{plan.subject}-{reader.root.name}.png"
    draw(playback, reader, picture)
    console.print(line(f"Plot: {picture}"), soft_wrap=True)
    return 0


def _tell_interrupted(playback: Playback, console: Console) -> None:
    if playback.folder is None:
        console.print("Interrupted before anything was recorded.")
        return
    # First of all: whoever presses Ctrl-C again shall have read this.
    message = f"Interrupted. What was recorded is kept in {str(playback.folder)!r}."
    console.print(Text(message, style="bold"), soft_wrap=True)
    reader = TaskReader(playback.folder)
    count = report.counted(len(reader.trials), "trial")
    console.print(f"It holds {count}, status {reader.status}.")
