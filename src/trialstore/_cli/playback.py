"""Plays a recording in real time through a `Storage`, as an experiment would record it."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import anyio
import numpy as np

from trialstore import ArrayInfo, Statistics, Storage
from trialstore._cli import ecg

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from trialstore._cli.ecg import Take

TASK: Final = "ecg"
ARRAY: Final = "ecg"
#: What a chunk is in the demo: about 20 ms at 360 Hz.
CHUNK_SAMPLES: Final = 7


@dataclass(frozen=True)
class Plan:
    """What is to be played, where to, how fast.

    Attributes
    ----------
    root : pathlib.Path
        Root of the storage.
    subject : str
        Name of the subject.
    takes : sequence of Take
        The trials.
    rate : float
        Samples per second of the recording.
    speed : float
        How many seconds of the recording are played in one second.
    """

    root: Path
    subject: str
    takes: Sequence[Take]
    rate: float
    speed: float = 1.0

    @property
    def samples(self) -> int:
        """Samples of all trials."""
        return sum(len(take.adc) for take in self.takes)


@dataclass
class Playback:
    """How far a plan has come: the event loop fills this in, the display looks at it.

    Attributes
    ----------
    folder : pathlib.Path or None
        Folder of the task, from its creation on.
    ends : list of int
        For each chunk that was handed over, the number of samples played by then.
    lateness : list of float
        For each chunk, by how many seconds the loop came later than it was due.
    statistics : Statistics
        The storage's figures at the latest chunk, or after closing.
    """

    plan: Plan
    folder: Path | None = None
    ends: list[int] = field(default_factory=list)
    lateness: list[float] = field(default_factory=list)
    statistics: Statistics = field(default_factory=Statistics)

    @property
    def played(self) -> int:
        """Samples handed over so far."""
        return self.ends[-1] if self.ends else 0


async def play(playback: Playback, on_idle: Callable[[], None]) -> None:
    """Record the plan's trials; return when they are published.

    Guarantee: chunk after chunk is handed over when its last sample would have been taken, or as
    soon after that as the event loop gets there; how late it was is noted.

    Parameters
    ----------
    playback : Playback
        What to play, and where to note how it goes.
    on_idle : callable
        Called when a chunk was handed over and the loop is about to sleep until the next one.

    Raises
    ------
    StorageError
        As `Storage` and `Storage.create_task`.
    """
    plan = playback.plan
    info = ArrayInfo(
        rate=plan.rate, unit="1", channels=[ecg.LEAD], dims=("channel", "time"), dtype="uint16"
    )
    storage = Storage(plan.root)
    gc.collect()
    gc.freeze()  # looking through all that was imported would once hold the loop for 30 ms
    try:
        async with storage:
            storage.subject_id = plan.subject
            async with storage.create_task(
                TASK,
                metadata={**ecg.SOURCE, "speed": plan.speed},
                arrays={ARRAY: info},
                repeat=True,
            ) as task:
                playback.folder = task.root
                began = anyio.current_time()
                for take in plan.takes:
                    for start in range(0, len(take.adc), CHUNK_SAMPLES):
                        chunk = take.adc[start : start + CHUNK_SAMPLES]
                        end = playback.played + len(chunk)
                        due = began + end / plan.rate / plan.speed
                        await anyio.sleep_until(due)
                        playback.lateness.append(anyio.current_time() - due)
                        await task.append(ARRAY, chunk[np.newaxis])
                        playback.ends.append(end)
                        playback.statistics = storage.statistics()
                        on_idle()
                    await task.write(take.attrs)
    finally:
        gc.unfreeze()
        playback.statistics = storage.statistics()
