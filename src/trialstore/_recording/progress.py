"""How far the trials of one task have come, and who waits for it."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import anyio

if TYPE_CHECKING:
    from trialstore._errors import StorageError


class Level(IntEnum):
    """How safe a trial is; each level includes those before it.

    ``ACCEPTED``: the call returned; survives cancellation and exceptions of the experiment.
    ``WRITTEN``: the kernel has every byte; survives ``kill -9``. ``DURABLE``: the disk said so;
    survives a power cut. ``PUBLISHED``: stands in verified plain files; needs no trialstore to
    read.
    """

    ACCEPTED = 1
    WRITTEN = 2
    DURABLE = 3
    PUBLISHED = 4


class Levels(NamedTuple):
    """One count for each level.

    Parameters
    ----------
    accepted, written, durable, published : int
        A trial that has come further counts at every level before as well.
    """

    accepted: int = 0
    written: int = 0
    durable: int = 0
    published: int = 0


class Progress:
    """Counts of one task: trials as numbers one past the last, bytes as sums.

    Guarantee: counts only rise, in the order accepted, written, durable, published.
    """

    def __init__(self, first: int) -> None:
        self.first = first
        self.trials: list[int] = [first] * 4
        self.bytes: list[int] = [0] * 4
        #: Position in the stream of everything accepted, chunks included; for `flush`.
        self.accepted_items: int = 0
        self.durable_items: int = 0
        self.failure: StorageError | None = None
        self._waiters: list[tuple[int, Level | None, anyio.Event]] = []

    def level_of(self, index: int) -> Level:
        """Return how far trial `index` has come."""
        reached = sum(index < count for count in self.trials)
        return Level(max(1, reached))

    def reach(self, level: Level, trials: int, nbytes: int) -> None:
        """Note that the trials before number `trials` reached `level`, with `nbytes` more bytes."""
        if trials > self.trials[level - 1]:
            self.trials[level - 1] = trials
        self.bytes[level - 1] += nbytes

    def accept(self, trials: int, nbytes: int) -> None:
        """Note one more accepted item; `reach` without its detours, as every chunk comes here."""
        self.accepted_items += 1
        self.trials[0] = trials
        self.bytes[0] += nbytes

    def wake(self) -> None:
        """Let go of everybody whose condition holds now, or all of them after a failure."""
        if self.failure is not None:
            waiting, self._waiters = self._waiters, []
            for *_, event in waiting:
                event.set()
            return
        remaining = []
        for waiter in self._waiters:
            target, level, event = waiter
            done = self.durable_items if level is None else self.trials[level - 1]
            if done >= target:
                event.set()
            else:
                remaining.append(waiter)
        self._waiters = remaining

    async def wait_for_trial(self, index: int, level: Level) -> None:
        """Wait until trial `index` has reached `level`; raise the failure if it cannot."""
        await self._wait(index + 1, level)

    async def wait_for_items(self, target: int) -> None:
        """Wait until the first `target` accepted items are durable, or raise the failure."""
        await self._wait(target, None)

    async def _wait(self, target: int, level: Level | None) -> None:
        def is_reached() -> bool:
            return (self.durable_items if level is None else self.trials[level - 1]) >= target

        if not is_reached() and self.failure is None:
            event = anyio.Event()
            self._waiters.append((target, level, event))
            await event.wait()
        if not is_reached() and self.failure is not None:
            raise self.failure
