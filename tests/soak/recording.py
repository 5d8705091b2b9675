"""The experiment: paced tasks one after another and side by side, resumed, published, cancelled."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import anyio
import numpy as np

from tests.soak import footprint
from tests.soak.content import CHUNKS, attrs_of, chunk_of
from trialstore import ArrayInfo, PublishFailed, Storage, StorageError
from trialstore._recording.publisher import MAX_DEATHS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.soak.footprint import Footprint
    from tests.soak.sick import SickDisk
    from trialstore import Receipt, TaskWriter
    from trialstore._storage import TaskOpening

_PROBLEMS_KEPT: Final = 20
_INFO: Final = {"emg": ArrayInfo(rate=10_000.0, unit="mV", dims=("channel", "time"))}
#: About one call in so many is given less time than it may need.
_CANCEL_ONE_IN: Final = 25


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how hard.

    Parameters
    ----------
    root : pathlib.Path
        Where to record.
    seconds : float
        How long; the round that has begun is completed.
    block : int
        Trials of a block.
    rate : float
        Chunks a second of each task.
    kill_every : float
        Seconds between deaths of the publisher, on average.
    queue_bytes : int
        Small enough for a stall of the disk to fill it.
    seed : int
        Of everything random.
    """

    root: Path
    seconds: float
    block: int = 40
    rate: float = 500.0
    kill_every: float = 12.0
    queue_bytes: int = 12 * 2**20
    seed: int = 1


@dataclass(slots=True)
class Ledger:
    """What was accepted, what went wrong, and what it took.

    Parameters
    ----------
    tasks : dict
        Subject and name of each task: its number, and how many trials were accepted.
    problems : list of str
        Broken promises.
    counts : Counter
        Kills, cancellations, publications.
    lateness : array of float
        Seconds by which each tick of an independent 2 ms clock on the loop came late. Eight bytes
        each: a list of the same looked like a leak.
    looks : list
        Time and footprint between two rounds, every task closed.
    """

    tasks: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    lateness: array[float] = field(default_factory=lambda: array("d"))
    looks: list[tuple[float, Footprint]] = field(default_factory=list)

    @property
    def trials(self) -> int:
        """Trials accepted in all."""
        return sum(count for _, count in self.tasks.values())

    def breach(self, what: str) -> None:
        """Keep a broken promise."""
        self.counts["breaches"] += 1
        if len(self.problems) < _PROBLEMS_KEPT:
            self.problems.append(what)


class Experiment:
    """Records by the plan and keeps the ledger.

    Parameters
    ----------
    plan : Plan
        What to do.
    disk : SickDisk
        Told of in the progress.
    """

    def __init__(self, plan: Plan, disk: SickDisk) -> None:
        self.ledger = Ledger()
        self._plan = plan
        self._disk = disk
        self._dice = random.Random(plan.seed)
        self._began = time.monotonic()
        self._deaths_in_a_row = 0

    async def run(self) -> None:
        """Record until the time is over."""
        plan = self._plan
        async with (
            Storage(plan.root, queue_bytes=plan.queue_bytes, close_timeout=60.0) as storage,
            anyio.create_task_group() as others,
        ):
            others.start_soon(self._watch_the_clock)
            others.start_soon(self._kill_publishers, storage)
            others.start_soon(self._tell, storage)
            number = 0
            while time.monotonic() - self._began < plan.seconds:
                storage.subject_id = f"p{number % 3}"
                await self._round(storage, number)
                number += 1
                look = footprint.look()
                self.ledger.looks.append((time.monotonic() - self._began, look))
            others.cancel_scope.cancel()

    async def _round(self, storage: Storage, number: int) -> None:
        """One task alone, two side by side, then the first one again."""
        alone = f"alone{number}"
        async with await self._open(lambda: storage.create_task(alone, arrays=_INFO)) as task:
            await self._record(task, 3 * number)
            await self._publish(task)
            await self._record(task, 3 * number)
        self._deaths_in_a_row = 0
        async with anyio.create_task_group() as both:
            for side, name in ((1, "left"), (2, "right")):
                both.start_soon(self._whole_task, storage, f"{name}{number}", 3 * number + side)
        async with await self._open(lambda: storage.resume_task(alone)) as task:
            await self._record(task, 3 * number)
        self._deaths_in_a_row = 0

    async def _whole_task(self, storage: Storage, name: str, number: int) -> None:
        async with await self._open(lambda: storage.create_task(name, arrays=_INFO)) as task:
            await self._record(task, number)

    async def _open(self, opening: Callable[[], TaskOpening]) -> TaskWriter:
        """Open a task; when the disk refuses, which leaves nothing half done, once more."""
        while True:
            try:
                return await opening()
            except StorageError as error:
                if not isinstance(error.__cause__, OSError):
                    raise
                self.ledger.counts["tasks refused by the disk"] += 1

    async def _record(self, task: TaskWriter, number: int) -> None:
        """Record one block, a chunk every so often."""
        key = (task.root.parent.name, task.task_id)
        _, first = self.ledger.tasks.get(key, (number, 0))
        due = time.monotonic()
        for trial in range(first, first + self._plan.block):
            for position in range(CHUNKS):
                chunk = chunk_of(number, trial, position)
                await self._append(task, chunk)
                due = max(due + 1 / self._plan.rate, time.monotonic() - 1.0)
                await anyio.sleep(max(0.0, due - time.monotonic()))
            receipt = await self._write(task, number, trial)
            self.ledger.tasks[key] = (number, trial + 1)
            if receipt.index != trial:
                self.ledger.breach(f"{key}: trial {trial} was given number {receipt.index}")
            if trial % 10 == 0:
                await self._perhaps(task.flush)

    # --- calls that may be cancelled --------------------------------------------------------------

    async def _perhaps(self, call: Callable[[], Awaitable[Any]]) -> tuple[bool, Any]:
        """Make a call, perhaps with too little time; say whether it was cancelled."""
        if self._dice.randrange(_CANCEL_ONE_IN):
            return False, await call()
        answer = None
        with anyio.move_on_after(self._dice.choice((0.0, 0.0005, 0.05))) as scope:
            answer = await call()
        self.ledger.counts["calls cancelled" if scope.cancelled_caught else "calls in time"] += 1
        return scope.cancelled_caught, answer

    async def _append(self, task: TaskWriter, chunk: Any) -> None:
        """Append a chunk, until it was taken; what was cancelled was not (the end will tell)."""
        mine = np.array(chunk)
        while (await self._perhaps(lambda: task.append("emg", mine)))[0]:
            pass
        mine[:] = np.nan  # it was copied: the caller may use its buffer again

    async def _write(self, task: TaskWriter, number: int, trial: int) -> Receipt:
        """Write a trial, until it was taken; a cancelled call must have taken nothing."""
        before = task.statistics().trials.accepted
        attrs = attrs_of(number, trial)
        while True:
            was_cancelled, receipt = await self._perhaps(lambda: task.write(attrs))
            taken = task.statistics().trials.accepted - before
            if taken != (not was_cancelled):
                self.ledger.breach(
                    f"write of trial {trial}: cancelled {was_cancelled}, {taken} taken"
                )
            if not was_cancelled:
                return receipt  # type: ignore[no-any-return]

    async def _publish(self, task: TaskWriter) -> None:
        try:
            await task.publish()
        except PublishFailed as error:
            if "was not published within" not in str(error):
                self.ledger.breach(f"publish: {error}")
            self.ledger.counts["publications too late"] += 1
            return
        self._deaths_in_a_row = 0
        self.ledger.counts["publications"] += 1

    # --- beside it --------------------------------------------------------------------------------

    async def _watch_the_clock(self) -> None:
        """Note how late a tick of 2 ms comes: whoever holds the loop is seen here."""
        period = 0.002
        due = time.perf_counter()
        while True:
            due = max(due + period, time.perf_counter())
            await anyio.sleep(max(0.0, due - time.perf_counter()))
            self.ledger.lateness.append(time.perf_counter() - due)

    async def _kill_publishers(self, storage: Storage) -> None:
        """Kill the publisher at random, less often in a row than makes the recorder give up."""
        publisher = storage._recorder.publisher
        while True:
            await anyio.sleep(self._dice.expovariate(1 / self._plan.kill_every))
            pid = publisher.pid
            if pid is None or self._deaths_in_a_row >= MAX_DEATHS - 1:
                continue
            self._deaths_in_a_row += 1
            self.ledger.counts["publishers killed"] += 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def _tell(self, storage: Storage) -> None:
        """One line every ten seconds."""
        while True:
            await anyio.sleep(10)
            counts, disk, look = self.ledger.counts, self._disk, footprint.look()
            statistics = storage.statistics()
            print(  # noqa: T201
                f"{time.monotonic() - self._began:5.0f} s  {self.ledger.trials} trials, "
                f"{counts['publishers killed']} publishers killed, {disk.stalls} stalls, "
                f"{disk.failures} errors, {counts['calls cancelled']} calls cancelled, "
                f"queue {statistics.queue_bytes >> 20} MiB, {look.memory >> 20} MiB, "
                f"{look.files} files, {look.threads} threads, {counts['breaches']} breaches",
                flush=True,
            )
