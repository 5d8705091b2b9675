"""What the recorder counts about itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trialstore._recording.progress import Levels


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot of a recorder's (or one task's) figures.

    Parameters
    ----------
    trials : Levels
        Trials that have reached each level in this session.
    bytes : Levels
        Bytes that have reached each level in this session (samples and rows).
    queue_bytes, queue_peak : int
        Bytes in the queue now and at most; frames that are not durable yet count.
    batches : int
        Group commits so far.
    longest_hold : float
        Longest time that one call of ours held the event loop, in seconds.
    longest_to_durable : float
        Longest time from accepted to durable, in seconds.
    stalls : tuple of (int, float)
        Unix time in nanoseconds and length in seconds of each commit that took longer than a
        second.
    losses : int
        Trials and chunks refused because the queue was full (``on_full="drop"``).
    trouble : str or None
        What is wrong with the disk or the publisher right now.
    free_bytes : int or None
        Free space on the data's disk, in bytes, if the system says.
    seconds_left : float or None
        How long it lasts at the rate at which it vanished lately; None while it does not shrink.
    """

    trials: Levels = Levels()
    bytes: Levels = Levels()
    queue_bytes: int = 0
    queue_peak: int = 0
    batches: int = 0
    longest_hold: float = 0.0
    longest_to_durable: float = 0.0
    stalls: tuple[tuple[int, float], ...] = ()
    losses: int = 0
    trouble: str | None = None
    free_bytes: int | None = None
    seconds_left: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain JSON values, the levels by name."""
        values = asdict(self)
        values["trials"] = self.trials._asdict()
        values["bytes"] = self.bytes._asdict()
        return values


#: A list of stalls longer than this says no more than its first part.
_STALLS_KEPT = 100


@dataclass(slots=True)
class Tally:
    """The mutable side of `Statistics`: plain counters, so that counting costs nothing."""

    batches: int = 0
    longest_hold_ns: int = 0
    longest_to_durable_ns: int = 0
    losses: int = 0
    stalls: list[tuple[int, float]] | None = None

    def note_hold(self, nanoseconds: int) -> None:
        """A call held the loop for so long."""
        if nanoseconds > self.longest_hold_ns:
            self.longest_hold_ns = nanoseconds

    def note_commit(self, began_unix_ns: int, seconds: float) -> None:
        """A group commit took so long."""
        self.batches += 1
        if seconds > 1.0:
            self.stalls = self.stalls or []
            if len(self.stalls) < _STALLS_KEPT:
                self.stalls.append((began_unix_ns, seconds))

    def statistics(
        self, trials: Levels, nbytes: Levels, queue_bytes: int, queue_peak: int, losses: int
    ) -> Statistics:
        """Return the figures of one task, or of all, with what is common to them."""
        return Statistics(
            trials=trials,
            bytes=nbytes,
            queue_bytes=queue_bytes,
            queue_peak=queue_peak,
            batches=self.batches,
            longest_hold=self.longest_hold_ns / 1e9,
            longest_to_durable=self.longest_to_durable_ns / 1e9,
            stalls=tuple(self.stalls or ()),
            losses=losses,
        )


class Totals:
    """Sums over tasks."""

    def __init__(self, trials: Levels | None = None, nbytes: Levels | None = None) -> None:
        self.trials = trials or Levels()
        self.bytes = nbytes or Levels()

    def add(self, task: Statistics) -> None:
        """Add one task's counts."""
        self.trials = Levels(*map(sum, zip(self.trials, task.trials, strict=True)))
        self.bytes = Levels(*map(sum, zip(self.bytes, task.bytes, strict=True)))
