"""How late an event loop is: a task that wants to run every millisecond, and when it does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import anyio
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PERIOD: Final = 0.001


class Probe:
    """Wakes up every millisecond and notes how late that was, in seconds.

    Deadlines are absolute: a loop that was held up for 10 ms has missed ten, and each of them
    counts, with its own lateness; they are not made up for in turns of the loop of their own.
    """

    def __init__(self, seconds: float) -> None:
        self._late = np.zeros(int(seconds * 2 / PERIOD) + 1000, np.float32)
        self._count = 0

    @property
    def late(self) -> NDArray[np.float32]:
        """Lateness of each tick so far, in seconds."""
        return self._late[: self._count]

    async def run(self) -> None:
        """Run until cancelled."""
        deadline = time.perf_counter()
        while self._count < len(self._late):
            deadline += PERIOD
            now = time.perf_counter()
            await anyio.sleep(max(0.0, deadline - now))
            now = time.perf_counter()
            missed = min(int((now - deadline) / PERIOD) + 1, len(self._late) - self._count)
            self._late[self._count : self._count + missed] = (
                now - deadline - PERIOD * np.arange(missed)
            )
            self._count += missed
            deadline += PERIOD * (missed - 1)


async def idle(seconds: float) -> NDArray[np.float32]:
    """Return how late a loop is that does nothing else."""
    probe = Probe(seconds)
    with anyio.move_on_after(seconds):
        await probe.run()
    return probe.late
