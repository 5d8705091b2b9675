"""The recording side of a Storage: queue, thread, writer task, publisher and open tasks."""

from __future__ import annotations

import asyncio  # noqa: TID251 - it alone ends a task before those that it has begun
import contextlib
import importlib
import os
import time
import warnings
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from trialstore._errors import StorageError
from trialstore._ondisk import disk as disk_port
from trialstore._recording.channel import Channel
from trialstore._recording.claims import Place
from trialstore._recording.closing import Closing, end_of
from trialstore._recording.insisting import insist
from trialstore._recording.lifecycle import Lifecycle, State
from trialstore._recording.opening import Prepared, prepare_root
from trialstore._recording.publication import Publication
from trialstore._recording.queue import BoundedQueue
from trialstore._recording.space import SpaceWatch
from trialstore._recording.statistics import Statistics, Tally, Totals
from trialstore._recording.trouble import Troubles
from trialstore._recording.worker import Worker
from trialstore._recording.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from trialstore._recording.channel import OnFull
    from trialstore._recording.insisting import Spawn
    from trialstore._recording.opening import Opened
    from trialstore._recording.publisher import Publisher
    from trialstore._recording.trouble import Trouble

# anyio loads its part for asyncio when a loop first asks: 5 to 35 ms in which that loop stands
# still.
with contextlib.suppress(ImportError):
    importlib.import_module("anyio._backends._asyncio")

T = TypeVar("T")

#: A writer and a child that have nothing left to do are gone in milliseconds.
_PATIENCE: Final = 5.0
#: An idle thread ends at once.
_LAST_CALL: Final = 0.5
_GAVE_UP: Final = "the publisher died repeatedly; journals stay and tasks are readable from them"


class Recorder:
    """Everything behind an entered Storage.

    Parameters
    ----------
    root : pathlib.Path
        Where the data lies.
    queue_bytes : int
        Bound of the queue.
    on_full : {'wait', 'raise', 'drop'}
        What a write does when the queue has no room.
    fallback_root : pathlib.Path or None
        Where segments go when the root's disk fails.
    keep_journal : bool
        Leave journals in place after publication.
    close_timeout : float
        Seconds that closing may take.
    on_trouble : callable or None
        The user's hook.
    publish_here : callable
        Publishes one task in the calling thread, for systems where no child can be started.
    """

    def __init__(
        self,
        root: Path,
        *,
        queue_bytes: int,
        on_full: OnFull,
        fallback_root: Path | None,
        keep_journal: bool,
        close_timeout: float,
        on_trouble: Callable[[Trouble], object] | None,
        publish_here: Callable[[Path, dict[str, Any]], None],
    ) -> None:
        self.root = root
        self.lifecycle: Lifecycle = Lifecycle(f"Storage {str(root)!r}")
        self.channels: list[Channel] = []
        self.fallback_root = fallback_root
        self.close_timeout = close_timeout
        self.disk: disk_port.Disk = disk_port.current()
        self._on_full = on_full
        self._keep_journal = keep_journal
        self._space = SpaceWatch()
        self.troubles: Troubles = Troubles(on_trouble, self._gauges)
        self._publish_here = publish_here
        self._queue = BoundedQueue(queue_bytes)
        self._tally = Tally()
        self._finished = Totals()
        self._owner: asyncio.Task[Any] | None = None
        self._pid = os.getpid()

    # --- life -------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Start the thread and look at the root; `run` comes next.

        Raises
        ------
        StorageError
            If it was opened before, the root cannot be used, or its disk does not answer within
            `close_timeout`.
        """
        self.lifecycle.advance(State.OPENING)
        self._worker = Worker()
        self._publication = Publication(self._worker, self._options, self._publish_here)
        self.publisher.can_start &= self.disk.reaches_children
        self.writer: Writer = Writer(
            self._queue,
            self._worker,
            self._tally,
            self.troubles,
            tick=self._tick,
            tock=self._tock,
            is_orphaned=self._is_orphaned,
        )
        self._closing = Closing(self._worker, self.writer, self.close_timeout)
        is_ready = False
        try:
            with anyio.move_on_after(self.close_timeout):
                await self.call(self._prepare_root)
                is_ready = True
        finally:
            if not is_ready:
                self._worker.stop(0.0)
                self.lifecycle.advance(State.CLOSED)
        if not is_ready:
            raise StorageError(
                f"the disk of root {str(self.root)!r} has not answered for "
                f"{self.close_timeout:.0f} s"
            )

    def start(self, spawn: Spawn) -> None:
        """Begin to record; `spawn` starts a task that lives as long as the Storage."""
        self.lifecycle.advance(State.OPEN)
        _living.add(self)
        with contextlib.suppress(RuntimeError):  # another event loop's
            self._owner = asyncio.current_task()
        self._spawn = spawn
        spawn(self.writer.run)
        spawn(self.writer.watch)

    def _is_orphaned(self) -> bool:
        """Whether the task that entered the Storage has ended and left it open."""
        return self._owner is not None and self._owner.done()

    async def insist(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run `function` to its end, whatever happens to the caller; see `insisting.insist`."""
        await insist(function, self._spawn, self._shut_down)

    def _shut_down(self) -> None:
        self.abandon("the event loop was shut down")

    async def close(self, failure: BaseException | None) -> list[StorageError]:
        """Close every open task, then everything else; return what went wrong."""
        if self.lifecycle.state is State.CLOSED:  # abandoned when the loop was torn down
            await self._end_threads()
            return []
        self.lifecycle.advance(State.CLOSING)
        deadline = anyio.current_time() + self.close_timeout
        problems: list[StorageError] = []
        for channel in list(self.channels):
            try:
                await self.close_task(channel, failure, deadline)
            except StorageError as error:
                problems.append(error)
        if self.channels:
            self.abandon("closing was interrupted")
        if self.lifecycle.state is not State.CLOSING:
            await self._end_threads()
            return problems
        self.writer.stop()
        with anyio.move_on_after(_PATIENCE):
            await self.writer.stopped.wait()
            await self._publication.see_off()
        await self._end_threads()
        self._publication.leave()
        self.lifecycle.advance(State.CLOSED)
        _living.discard(self)
        return problems

    async def _end_threads(self) -> None:
        """End writer and thread whatever they wait for: an interruption may have eaten it."""
        self.writer.kill()
        # The thread is idle now or hangs in a call; a hanging one is a daemon and is left behind.
        self._worker.stop(0.0)
        with anyio.move_on_after(_LAST_CALL, shield=True):
            while self._worker.is_alive:  # noqa: ASYNC110 - a thread that ends tells nobody
                await anyio.sleep(0.002)

    def abandon(self, reason: str) -> None:
        """Write down everything from this thread, for when no event loop will do it.

        Called at garbage collection, at interpreter exit and when a generator is closed under us.
        """
        is_ours = os.getpid() == self._pid
        if not is_ours or self.lifecycle.state not in (State.OPEN, State.CLOSING):
            return
        _living.discard(self)
        for channel in self.channels:
            if not channel.has_end:
                channel.put_end(end_of(channel, reason))
        for channel in self.writer.drain_now(self.close_timeout):
            self._closing.rescue_now(channel, reason)
        for channel in self.channels:
            channel.let_go()
            channel.lifecycle.state = State.CLOSED
        self._publication.leave()
        self.lifecycle.state = State.CLOSED

    def forget_after_fork(self) -> None:
        """In a forked child: let go of files, locks and pipe; write nothing."""
        self.lifecycle.state = State.FORKED
        for channel in self.channels:
            channel.lifecycle.state = State.FORKED
            channel.journal.forget_after_fork()
            channel.lock.forget_after_fork()
        self.publisher.forget_after_fork()

    # --- tasks ------------------------------------------------------------------------------------

    def place(self, subject: str) -> Place:
        """Where tasks of a subject go."""
        return Place(self.disk, self.root, subject, self.fallback_root)

    async def open_task(self, prepare: Callable[[], Opened]) -> Channel:
        """Run `prepare` in the thread and take up recording.

        Guarantee: cancelled or not, a task that was prepared is either open here or let go again.

        Raises
        ------
        StorageError
            Of `prepare`; or if the disk does not answer within `close_timeout`.
        """
        self.lifecycle.require_open()
        prepared = Prepared(prepare)
        try:
            with anyio.move_on_after(self.close_timeout, shield=True):
                await self.call(prepared.run)
        except BaseException:
            prepared.take(is_wanted=False)
            raise
        opened = prepared.take(is_wanted=self.lifecycle.is_open)
        if opened is None:
            self.lifecycle.require_open()
            raise StorageError(f"the disk has not answered for {self.close_timeout:.0f} s")
        channel = Channel(
            opened.folder,
            opened.task,
            opened.first,
            opened.arrays,
            opened.journal,
            opened.lock,
            opened.fallbacks,
            queue=self._queue,
            on_full=self._on_full,
            tally=self._tally,
            notify=self.writer.notify,
            is_starving=self.writer.is_starving,
        )
        self.channels.append(channel)
        self.writer.channels.append(channel)
        with anyio.move_on_after(self.close_timeout, shield=True):
            await self._publication.follow(channel)
        return channel

    def _options(self, channel: Channel) -> dict[str, Any]:
        return {
            "keep_journal": self._keep_journal,
            "fallback": [str(folder) for folder in channel.fallbacks],
            "session": channel.journal.session,
        }

    def _gauges(self) -> tuple[int, int, int | None]:
        return self._queue.used, self._queue.capacity, self._space.free_bytes

    async def flush(self, channel: Channel) -> None:
        """Wait until everything that a task has accepted is durable.

        Raises
        ------
        WriteFailed
            If the disk has refused for longer than `close_timeout`, or the task was given up.
        """
        target = channel.progress.accepted_items
        self.writer.hurry()
        began = time.monotonic()
        while True:
            with anyio.move_on_after(1.0):
                await channel.progress.wait_for_items(target)
                return
            job = self.writer.unsettled(channel)
            if time.monotonic() - began > self.close_timeout and job is not None:
                raise self._closing.write_failed(channel, job.error)

    async def publish(self, channel: Channel) -> None:
        """Make everything durable so far readable with foreign tools.

        Raises
        ------
        WriteFailed
            As `flush`.
        PublishFailed
            If the publisher cannot do it, or not within `close_timeout`.
        """
        channel.lifecycle.require_open()
        await self.flush(channel)
        await self._publication.publish(channel, self.close_timeout)

    async def close_task(
        self, channel: Channel, failure: BaseException | None, deadline: float | None = None
    ) -> None:
        """Drain, publish and let go of one task, by `deadline`; to be called through `insist`.

        Raises
        ------
        WriteFailed
            If trials could not be made durable in time; they are named.
        PublishFailed
            If the publisher could not publish; the journal is whole.
        StorageError
            Handed to those who wait for room in this task's part of the queue.
        """
        if not channel.lifecycle.is_open:  # another task of the experiment closes it, or did
            with anyio.move_on_after(self.close_timeout):
                await channel.closed.wait()
            return
        channel.lifecycle.advance(State.CLOSING)
        closed = StorageError(f"task {channel.task!r} was closed while this write waited for room")
        self._queue.fail_waiters(channel.lane, closed)
        if deadline is None:
            deadline = anyio.current_time() + self.close_timeout
        try:
            try:
                await self._closing.drain(channel, failure, deadline)
            finally:
                if channel not in self.writer.channels:
                    self.channels.remove(channel)
            await self._publication.finish(channel, deadline - anyio.current_time())
        except StorageError:
            if not self.writer.stopped.is_set():
                raise
            # The writer was ended from outside, by a second Ctrl-C: there will be no other.
            self._shut_down()
        finally:
            self._finished.add(channel.statistics())
            channel.lifecycle.state = State.CLOSED
            channel.closed.set()

    # --- figures and trouble ----------------------------------------------------------------------

    def statistics(self) -> Statistics:
        """The figures of all tasks of this Storage, finished ones included."""
        totals = Totals(self._finished.trials, self._finished.bytes)
        for channel in self.channels:
            totals.add(channel.statistics())
        found = self._tally.statistics(
            totals.trials, totals.bytes, self._queue.used, self._queue.peak, self._tally.losses
        )
        return self.with_state(found)

    def with_state(self, found: Statistics) -> Statistics:
        """Add what is true of the whole recorder now: trouble, and room on the disk."""
        return replace(
            found,
            trouble=self.troubles.current,
            free_bytes=self._space.free_bytes,
            seconds_left=self._space.seconds_left,
        )

    def _prepare_root(self) -> None:
        prepare_root(self.disk, self.root)
        self._look_at_space()

    def _tick(self) -> None:
        """Once a second, in the thread."""
        for channel in tuple(self.writer.channels):
            channel.slabs.give_back()
        self.publisher.check()
        self._look_at_space()

    def _look_at_space(self) -> None:
        free = None
        with contextlib.suppress(OSError):
            free = self.disk.free_bytes(self.root)
        self._space.note(time.monotonic(), free)

    def _tock(self) -> None:
        """After it, on the loop: tell what was seen."""
        what, is_news = self._space.alarm()
        if what is None:
            self.troubles.end("space")
        elif is_news:
            self.troubles.end("space")
            self.troubles.begin("space", what)
        if self.publisher.gave_up and self.channels:
            self.troubles.begin("publisher", _GAVE_UP)

    # --- parts ------------------------------------------------------------------------------------

    @property
    def publisher(self) -> Publisher:
        """The handle on the child."""
        return self._publication.publisher

    async def call(self, function: Callable[[], T]) -> T:
        """Run a blocking function in the recorder's thread."""
        return await self._worker.call(function)


_living: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _after_fork() -> None:
    for recorder in list(_living):
        recorder.forget_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def warn_unclosed(what: str) -> None:
    """Tell that something was garbage-collected or left at exit without being closed."""
    warnings.warn(f"{what} was not closed: use 'async with'", ResourceWarning, stacklevel=2)
