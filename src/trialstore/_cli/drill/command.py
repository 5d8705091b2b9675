"""``trialstore drill`` answers whether this computer can record an experiment.

Exit codes: 0 it can, 1 it cannot or something was lost, 2 an option makes no sense, 130
interrupted.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import anyio
import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from trialstore import StorageError
from trialstore._cli import INTERRUPTED
from trialstore._cli.drill import disk, loop, recording, victim
from trialstore._cli.drill.load import Load, seconds_of
from trialstore._cli.drill.show import show
from trialstore._cli.drill.verdict import Findings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Stage = Callable[[str], Callable[[float], None]]

#: Seconds for the disk alone, for the idle loop, and for each higher rate; never longer than what
#: was asked for.
_DISK, _IDLE, _STEP = 6.0, 3.0, 4.0
_HIGHEST: Final = 1024.0
#: A higher rate may use at most this share of the free space, journal and published copy together.
_SHARE: Final = 0.25
_KILL_AFTER: Final = 40


def _duration(text: str) -> str:
    try:
        seconds_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return text


def _dtype(text: str) -> str:
    try:
        dtype = np.dtype(text)
    except TypeError as error:
        raise typer.BadParameter(f"{text!r} is no NumPy dtype: write int16 or float32") from error
    if dtype.kind not in "iuf":
        raise typer.BadParameter(f"{text!r} is no dtype of samples: write int16 or float32")
    return text


def drill(
    root: Annotated[Path, typer.Argument(help="Folder on the disk to be measured.")],
    *,
    channels: Annotated[int, typer.Option(min=1, help="Number of channels.")] = 64,
    rate: Annotated[float, typer.Option(min=1e-3, help="Sampling rate in Hz.")] = 30_000.0,
    dtype: Annotated[str, typer.Option(callback=_dtype, help="Of a sample.")] = "int16",
    chunk: Annotated[str, typer.Option(callback=_duration, help="Signal in a chunk.")] = "1ms",
    duration: Annotated[
        str, typer.Option(callback=_duration, help="How long to record at this rate.")
    ] = "30s",
    plot: Annotated[Path, typer.Option(help="Picture of how late the loop was.")] = Path(
        "trialstore-drill.png"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Measure whether this computer records an experiment: its disk, its loop, and a crash."""
    load = Load(channels, rate, np.dtype(dtype), seconds_of(chunk))
    findings = Findings(load)
    console = Console(highlight=False, stderr=as_json)
    code = 0
    try:
        with _workspace(root) as folder, _progress(console) as progress:
            run(findings, folder, seconds_of(duration), progress)
    except KeyboardInterrupt:
        console.print("Interrupted; this is what is known by now.")
        code = INTERRUPTED
    except (StorageError, OSError) as error:
        console.print(Text(f"{type(error).__name__}: {error}", style="bold red"), soft_wrap=True)
        code = 1
    if as_json:
        typer.echo(json.dumps(findings.to_json(), indent=2))
    else:
        show(findings, console)
    if findings.idle is not None:
        from trialstore._cli.drill.plot import draw  # loads matplotlib, which takes a second

        draw(findings, plot)
        console.print(Text(f"Plot: {plot}"), soft_wrap=True)
    raise typer.Exit(code or int(not findings.is_good))


def run(
    findings: Findings,
    folder: Path,
    seconds: float,
    stage: Callable[[str], Callable[[float], None]],
) -> None:
    """Measure everything, one part after the other; `findings` knows each as soon as it is done.

    Raises
    ------
    StorageError, OSError
        If the disk refuses.
    """
    stage("idle loop")
    findings.idle = anyio.run(loop.idle, min(_IDLE, seconds))
    findings.disk = disk.measure(folder, min(_DISK, seconds), stage("disk"))
    _record(findings, folder, 1.0, seconds, stage("recording"))
    findings.file_system = recording.file_system(folder / recording.SUBJECT / "x1")
    if findings.holds:
        _raise_rate(findings, folder, min(_STEP, seconds), stage)
    stage("crash")
    findings.crash = victim.kill_one(folder / "crash", findings.load, _KILL_AFTER, 10.0)


def _raise_rate(findings: Findings, folder: Path, seconds: float, stage: Stage) -> None:
    """Double the rate until something gives way, then look once or twice in between."""
    factor = 2.0
    while factor <= _HIGHEST and _has_room(findings, factor * seconds):
        _record(findings, folder, factor, seconds, stage(f"{factor:g} times the rate"))
        if findings.limit is not None:
            break
        factor *= 2
    for _ in range(2 * (findings.limit is not None)):
        lowest = min(s.factor for s in findings.steps if findings.limit_of(s) is not None)
        factor = (findings.headroom + lowest) / 2
        _record(findings, folder, factor, seconds, stage(f"{factor:g} times the rate"))


def _has_room(findings: Findings, seconds: float) -> bool:
    assert findings.disk is not None
    needed = 2 * seconds * findings.load.bytes_per_second
    return needed < _SHARE * findings.disk.free


def _record(
    findings: Findings, folder: Path, factor: float, seconds: float, tick: Callable[[float], None]
) -> None:
    name = f"x{factor:g}".replace(".", "-")
    step = anyio.run(recording.record, folder, name, findings.load, factor, seconds, tick)
    findings.steps.append(step)
    if factor != 1.0:
        shutil.rmtree(folder / recording.SUBJECT / name)  # noqa: TID251 - made above, to be measured


@contextmanager
def _workspace(root: Path) -> Iterator[Path]:
    """Give a hidden folder on the disk to be measured; nothing of it, or of the root, remains."""
    made = [parent for parent in (root, *root.parents) if not parent.exists()]
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".trialstore-drill-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # noqa: TID251 - of data made to be measured
        for parent in made:
            parent.rmdir()


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str], Callable[[float], None]]]:
    """Show one bar for each part; a part without news shows that something goes on."""
    columns: tuple[Any, ...] = (
        TextColumn("{task.description:<22}"), BarColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=not console.is_terminal) as display:
        running: list[Any] = []

        def stage(name: str) -> Callable[[float], None]:
            for task in running:
                display.update(task, completed=1.0, total=1.0)
            running[:] = [display.add_task(name, total=None)]
            mine = running[0]
            return lambda share: display.update(mine, completed=min(share, 1.0), total=1.0)

        yield stage
        for task in running:
            display.update(task, completed=1.0, total=1.0)
