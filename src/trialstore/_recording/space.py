"""How much room the data's disk has, and how long that lasts."""

from __future__ import annotations

from collections import deque
from typing import Final

#: Seconds over which the rate is taken: shorter than a block, longer than a burst.
_WINDOW: Final = 30.0
#: A rate needs a few looks, one a second.
_LEAST: Final = 3.0
#: Told each time less than so many seconds are left: time to tidy up, to end the block, to stop.
_ALARMS: Final = (600.0, 120.0, 20.0)
#: Below this it is told whatever the rate: publishing a task takes as much again as its journal.
_FLOOR: Final = 64 * 2**20


class SpaceWatch:
    """Looks at the free space once a second.

    The rate is that at which free space vanishes, whoever takes it: the recorder's journal, the
    publisher's copy and other programs fill the same disk.

    Guarantee: `alarm` speaks at most once for each limit until there is room again.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self._told = 0

    def note(self, now: float, free: int | None) -> None:
        """Take one look: monotonic time in seconds, and free bytes if the system says."""
        if free is None:
            return
        self._seen.append((now, free))
        while now - self._seen[0][0] > _WINDOW:
            self._seen.popleft()

    @property
    def free_bytes(self) -> int | None:
        """Free space in bytes at the last look."""
        return self._seen[-1][1] if self._seen else None

    @property
    def _span(self) -> float:
        return self._seen[-1][0] - self._seen[0][0] if self._seen else 0.0

    @property
    def rate(self) -> float:
        """Bytes a second by which the free space shrinks; 0 while it does not."""
        if self._span < _LEAST:
            return 0.0
        return max(0.0, (self._seen[0][1] - self._seen[-1][1]) / self._span)

    @property
    def seconds_left(self) -> float | None:
        """How long the free space lasts at the present rate; None while it does not shrink."""
        free, rate = self.free_bytes, self.rate
        return None if free is None or rate == 0.0 else free / rate

    def alarm(self) -> tuple[str | None, bool]:
        """Return what is wrong (None while there is room), and whether that must be told now."""
        free, left = self.free_bytes, self.seconds_left
        if free is None:
            return None, False
        stage = int(free < _FLOOR)
        for number, alarm in enumerate(_ALARMS, start=1):
            # A burst says little about ten minutes, and much about twenty seconds.
            if left is not None and left < alarm and self._span >= min(alarm / 20, _WINDOW - 1):
                stage = number
        if stage == 0:
            self._told = 0
            return None, False
        is_news, self._told = stage > self._told, max(stage, self._told)
        return _sentence(free, self.rate, left), is_news


def _sentence(free: int, rate: float, left: float | None) -> str:
    text = f"the data's disk has {in_bytes(free)} left"
    if left is None:
        return text
    return f"{text}: at the present rate ({in_bytes(rate)}/s) recording can go on for {span(left)}"


def in_bytes(count: float) -> str:
    """Write a number of bytes as a person reads it, in decimal units as disks are sold."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def span(seconds: float) -> str:
    """Write a duration as a person reads it."""
    if seconds < 100:  # noqa: PLR2004 - so far one counts in seconds
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"
