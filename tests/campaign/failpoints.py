"""A disk that kills its process at the n-th call, and the recording that is driven over it."""

from __future__ import annotations

import errno
import functools
import os
import signal
from typing import TYPE_CHECKING, Any, Final

import anyio

from tests.campaign.content import SUBJECT, TASK, arrays_of
from tests.campaign.recorder import hand_over, say
from trialstore import Storage
from trialstore._ondisk import layout
from trialstore._ondisk.disk import Disk, use

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from trialstore import TaskWriter

    Life = Callable[[Path, "KillingDisk"], Awaitable[None]]

#: Every call of the port; the failpoints are before and after each.
CALLS: Final = tuple(
    sorted(name for name, call in vars(Disk).items() if callable(call) and name[0] != "_")
)


class KillingDisk(Disk):
    """The real disk, until its n-th call.

    Calls that others are made of count as calls of their own: ``replace`` is entered, then
    ``rename``, then ``sync_folder``.

    Parameters
    ----------
    at : int
        Number of the call at which the process is killed, from 0.
    is_after : bool
        Kill when the call has returned, not before it is made.
    """

    #: Published in this process: the publisher's calls are failpoints as well.
    reaches_children = False

    def __init__(self, at: int, *, is_after: bool) -> None:
        self.calls = 0
        self.fails_next_sync = False
        self.dies_at_publication = False
        self._at = at
        self._is_after = is_after

    def sync(self, fd: int) -> None:
        if self.fails_next_sync:
            self.fails_next_sync = False
            raise OSError(errno.EIO, "injected")
        super().sync(fd)

    def create(self, path: Path) -> int:
        if self.dies_at_publication and "publisher-" in path.name:
            self.die()
        return super().create(path)

    def die(self) -> None:
        """Kill the process, here and now."""
        os.kill(os.getpid(), signal.SIGKILL)

    def enter(self) -> int:
        """Count a call and return its number."""
        self.calls += 1
        return self.calls - 1

    def reach(self, name: str, call: int, *, is_after: bool) -> None:
        """Kill the process if this is the moment; tell which it was."""
        if call == self._at and is_after is self._is_after:
            os.write(1, f"K {name}\n".encode())
            self.die()


def _with_failpoints(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(disk: KillingDisk, *args: Any, **kwargs: Any) -> Any:
        number = disk.enter()
        disk.reach(name, number, is_after=False)
        try:
            return method(disk, *args, **kwargs)
        finally:
            disk.reach(name, number, is_after=True)

    return call


for _name in CALLS:
    # `getattr`: what the class itself defines (a sync that fails) has failpoints as well.
    setattr(KillingDisk, _name, _with_failpoints(_name, getattr(KillingDisk, _name)))


def over(disk: KillingDisk, body: Callable[[], object]) -> Callable[[], None]:
    """Return what a child process does: `body` over `disk`, and tell how many calls it made."""

    def run() -> None:
        with use(disk):
            body()
        say("N", disk.calls)

    return run


# --- what is recorded -----------------------------------------------------------------------------


async def _in_turn(task: TaskWriter, first: int, last: int, epoch: int = 0) -> None:
    """Record trials one at a time, each durable before the next: the calls are the same ones."""
    for number in range(first, last):
        await hand_over(task, number, epoch)
        await task.flush()
        say("D", number)


async def _pickle(task: TaskWriter, number: int) -> None:
    say("y", number)
    await task.pickle({"n": number}, "calibration")
    say("Y", number)


async def whole_life(root: Path, disk: KillingDisk) -> None:
    """Create, stream, fail over, pickle, close, resume, overwrite: every use of the port."""
    async with Storage(root) as storage:
        storage.subject_id = SUBJECT
        say("E", 0)
        async with storage.create_task(TASK) as task:
            say("O", 0)
            await _in_turn(task, 0, 2)
            disk.fails_next_sync = True
            await _in_turn(task, 2, 3)
            for path in sorted((task.root / layout.JOURNAL).glob("*.segment"))[-1:]:
                say("U", 3)
                path.unlink()  # what is deleted under the recorder, it writes again
            await _in_turn(task, 3, 4)
            await _pickle(task, 1)
            await _leave_open(task, 4)
        say("C", 4)
        async with storage.resume_task(TASK) as task:
            await _in_turn(task, 4, 6)
            await _pickle(task, 2)
        say("C", 6)
    async with Storage(root, allow_overwrite=True) as storage:
        storage.subject_id = SUBJECT
        say("E", 1)
        async with storage.create_task(TASK) as task:
            await _in_turn(task, 0, 2, epoch=1)
        say("C", 2)


# --- what recovery begins with --------------------------------------------------------------------


async def _leave_open(task: TaskWriter, trial: int) -> None:
    await task.append("emg", arrays_of(trial)["emg"][0])
    await task.flush()


async def _killed(root: Path, disk: KillingDisk) -> None:
    async with Storage(root) as storage:
        storage.subject_id = SUBJECT
        task = await storage.create_task(TASK)
        await _in_turn(task, 0, 3)
        disk.fails_next_sync = True
        await _in_turn(task, 3, 5)
        await _pickle(task, 1)
        await _leave_open(task, 5)
        disk.die()


async def _killed_again(root: Path, disk: KillingDisk) -> None:
    async with Storage(root) as storage:
        storage.subject_id = SUBJECT
        async with storage.create_task(TASK) as task:
            await _in_turn(task, 0, 3)
            await _pickle(task, 1)
        task = await storage.resume_task(TASK)
        await _in_turn(task, 3, 5)
        await _leave_open(task, 5)
        disk.die()


async def _closed(root: Path, disk: KillingDisk) -> None:
    disk.dies_at_publication = True
    async with Storage(root) as storage:
        storage.subject_id = SUBJECT
        async with storage.create_task(TASK) as task:
            await _in_turn(task, 0, 5)


#: Tasks that are not published: killed with an open trial, killed after resuming, closed in order.
STATES: Final = {"killed": _killed, "killed again": _killed_again, "closed": _closed}
#: Trials in each of them.
TRIALS: Final = 5


def live(life: Life, root: Path, disk: KillingDisk) -> Callable[[], None]:
    """Return what a child process does: one of the recordings above."""
    return over(disk, lambda: anyio.run(life, root, disk))
