"""A disk that stalls now and then, and fails once in a while."""

from __future__ import annotations

import errno
import random
import time
from typing import TYPE_CHECKING

from trialstore._ondisk.disk import Disk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trialstore._ondisk.disk import Buffer


class SickDisk(Disk):
    """The real disk, with stalls of 0.1 to 3 s and EIO, at random times.

    Parameters
    ----------
    seed : int
        Of the times.
    stall_every, fail_every : float
        Seconds between stalls and between errors, on average.
    """

    def __init__(self, seed: int, stall_every: float, fail_every: float) -> None:
        self.stalls: int = 0
        self.stalled_seconds: float = 0.0
        self.failures: int = 0
        self._dice = random.Random(seed)
        self._every = {"stall": stall_every, "fail": fail_every}
        self._next = {what: self._later(what) for what in self._every}

    def _later(self, what: str) -> float:
        return time.monotonic() + self._dice.expovariate(1 / self._every[what])

    def _is_time_to(self, what: str) -> bool:
        if time.monotonic() < self._next[what]:
            return False
        self._next[what] = self._later(what)
        return True

    def _suffer(self) -> None:
        if self._is_time_to("stall"):
            seconds = self._dice.uniform(0.1, 3.0)
            self.stalls += 1
            self.stalled_seconds += seconds
            time.sleep(seconds)
        if self._is_time_to("fail"):
            self.failures += 1
            raise OSError(errno.EIO, "the soak's disk failed")

    def writev(self, fd: int, pieces: Sequence[Buffer]) -> int:
        """Write some of it: the journal goes on after a short write, or fails in the middle."""
        written = super().writev(fd, pieces[: max(1, len(pieces) // 2)])
        self._suffer()
        return written

    def sync(self, fd: int) -> None:
        """Sync, or stall, or fail."""
        self._suffer()
        super().sync(fd)
