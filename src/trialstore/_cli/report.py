"""What the terminal shows while the recording is played, and after it has been read back."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from rich.console import Group
from rich.filesize import decimal
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from trialstore._cli import ecg
from trialstore._cli.playback import CHUNK_SAMPLES
from trialstore._cli.terminal import escaped, line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import pandas as pd
    from rich.console import Console, RenderableType

    from trialstore._cli.playback import Plan, Playback

_BAR_WIDTH: Final = 40
_REFRESH_SECONDS: Final = 0.1
#: A display that has not been told of an idle loop for so long draws all the same.
_FROZEN_SECONDS: Final = 1.0
#: A longer table is shown by its first and last rows.
_TABLE_ROWS: Final = 12
_DIFFERENCES: Final = 10


class Lateness(NamedTuple):
    """How late the loop was over all chunks, in milliseconds.

    Attributes
    ----------
    median, p99, worst : float
        Half of the chunks, 99 % of them, and all of them were no later than this.
    """

    median: float
    p99: float
    worst: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Lateness:
        """Sum up the lateness of each chunk, in seconds; zero without any chunk."""
        ms = 1e3 * np.asarray(seconds or [0.0])
        return cls(float(np.median(ms)), float(np.percentile(ms, 99)), float(ms.max()))

    def __str__(self) -> str:
        return f"{self.median:.2f} ms (median), {self.p99:.2f} ms (99 %), {self.worst:.2f} ms (max)"


def counted(count: int, noun: str) -> str:
    """Return a number of things in words: ``1 trial``, ``5 trials``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def introduction(plan: Plan, backend: str) -> Text:
    """Say what is going to happen."""
    pace = "in real time" if plan.speed == 1 else f"at {plan.speed:g} times its speed"
    every = 1e3 * CHUNK_SAMPLES / plan.rate / plan.speed
    return Text.assemble(
        ("trialstore demo\n", "bold"),
        f"{plan.samples / plan.rate:g} s of a real electrocardiogram are played {pace}"
        f" ({backend}),\n{CHUNK_SAMPLES} samples every {every:.3g} ms, and recorded as"
        f" {counted(len(plan.takes), 'trial')}.\n",
        (f"{ecg.SOURCE['source']}\ndoi:{ecg.SOURCE['doi']}, {ecg.SOURCE['licence']}\n", "dim"),
    )


@contextmanager
def live(playback: Playback, console: Console) -> Iterator[Callable[[], None]]:
    """Show how a playback goes until the context is left.

    A thread of its own draws: a slow terminal must not hold the event loop up. What this yields is
    for `play` to call: the thread draws when the loop has just gone to sleep. If it drew at any
    time, the loop would often wait for the interpreter lock, and the demo measure its own display.
    """
    idle, end = threading.Event(), threading.Event()
    display = Live(get_renderable=lambda: _progress(playback), console=console, auto_refresh=False)

    def draw() -> None:
        while not end.wait(_REFRESH_SECONDS):
            idle.clear()
            idle.wait(_FROZEN_SECONDS)
            display.refresh()

    thread = threading.Thread(target=draw, name="trialstore demo display")
    with display:
        thread.start()
        try:
            yield idle.set
        finally:
            end.set()
            idle.set()
            thread.join()


def _progress(playback: Playback) -> RenderableType:
    plan, statistics = playback.plan, playback.statistics
    bar = Table.grid(padding=(0, 2))
    bar.add_row(
        ProgressBar(total=plan.samples, completed=playback.played, width=_BAR_WIDTH),
        f"{playback.played / plan.rate:.1f} of {plan.samples / plan.rate:.1f} s",
    )
    levels = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("", "accepted", "written", "durable", "published"):
        levels.add_column(title, justify="right" if title else "left", header_style="bold")
    levels.add_row("trials", *(str(count) for count in statistics.trials))
    return Group(bar, Text(), levels, Text(), _figures(playback))


def _figures(playback: Playback) -> Table:
    statistics, lateness = playback.statistics, playback.lateness
    figures = Table.grid(padding=(0, 2))
    figures.add_row(
        "queue",
        f"{decimal(statistics.queue_bytes)} now, at most {decimal(statistics.queue_peak)}",
    )
    figures.add_row(
        "loop",
        f"{1e3 * (lateness[-1] if lateness else 0):.2f} ms late now,"
        f" at most {1e3 * max(lateness, default=0):.2f} ms",
    )
    if statistics.trouble is not None:
        figures.add_row("trouble", Text(statistics.trouble, style="red"))
    return figures


def trials_table(trials: pd.DataFrame) -> Table:
    """Show the trials as they were read back."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in trials.columns:
        table.add_column(line(str(name)), justify="right")
    rows = trials.astype(object).to_numpy().tolist()
    skipped = len(rows) - _TABLE_ROWS
    if skipped > 0:
        half = _TABLE_ROWS // 2
        rows = [*rows[:half], ["..."] * len(trials.columns), *rows[-half:]]
    for row in rows:
        table.add_row(
            *(line(f"{value:.3f}" if isinstance(value, float) else str(value)) for value in row)
        )
    return table


def verdict(plan: Plan, differences: Sequence[str]) -> Text:
    """Say whether what was read back is what was played."""
    if not differences:
        return Text(
            f"Read back {counted(len(plan.takes), 'row')} and {counted(plan.samples, 'sample')}:"
            " bit by bit what was played.",
            style="green",
        )
    shown = [f"  {escaped(difference)}\n" for difference in differences[:_DIFFERENCES]]
    if len(differences) > _DIFFERENCES:
        shown.append(f"  and {len(differences) - _DIFFERENCES} more\n")
    return Text("What was read back is NOT what was played:\n" + "".join(shown), style="bold red")


def summary(playback: Playback) -> Table:
    """Sum up how the loop and the recorder did."""
    statistics = playback.statistics
    table = Table.grid(padding=(0, 2))
    table.add_row(
        "loop",
        f"{counted(len(playback.lateness), 'chunk')}, late by {Lateness.of(playback.lateness)}",
    )
    table.add_row("", f"longest call of trialstore {1e3 * statistics.longest_hold:.2f} ms")
    table.add_row(
        "disk",
        f"{counted(statistics.batches, 'commit')}, accepted to durable in"
        f" {1e3 * statistics.longest_to_durable:.0f} ms at most,"
        f" queue peak {decimal(statistics.queue_peak)}",
    )
    return table


def files(plan: Plan, folder: Path) -> Tree:
    """Show the files of one task, below the root, with their sizes."""
    top = Tree(line(f"{plan.root}{os.sep}"), guide_style="dim")
    _add_files(top.add(line(f"{folder.parent.name}{os.sep}")), folder)
    return top


def _add_files(tree: Tree, folder: Path) -> None:
    branch = tree.add(line(f"{folder.name}{os.sep}"))
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            _add_files(branch, path)
        else:
            branch.add(line(f"{path.name}  {decimal(path.lstat().st_size)}"))
