"""The recording side of a Storage: queue, thread, writer task, publisher and open tasks."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import traceback
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
import anyio.lowlevel

from trialstore._errors import StorageError, WriteFailed
from trialstore._ondisk import disk as disk_port
from trialstore._ondisk.entries import CleanEnd
from trialstore._recording import opening
from trialstore._recording.channel import Channel
from trialstore._recording.lifecycle import Lifecycle, State
from trialstore._recording.progress import Level
from trialstore._recording.publication import Publication
from trialstore._recording.queue import BoundedQueue
from trialstore._recording.statistics import Statistics, Tally, Totals, Trouble
from trialstore._recording.worker import Worker
from trialstore._recording.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from pathlib import Path

    from trialstore._recording.channel import OnFull
    from trialstore._recording.opening import Opened, Place
    from trialstore._recording.publisher import Publisher

    Spawn = Callable[[Callable[[], Coroutine[Any, Any, None]]], object]

T = TypeVar("T")

logger = logging.getLogger("trialstore")

#: A writer and a child that have nothing left to do are gone in milliseconds.
_PATIENCE: Final = 5.0


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
        self._on_trouble = on_trouble
        self._publish_here = publish_here
        self._queue = BoundedQueue(queue_bytes)
        self._tally = Tally()
        self._finished = Totals()
        self._free_bytes: int | None = None
        self._pid = os.getpid()

    # --- life -------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Start the thread and look at the root; `run` comes next.

        Raises
        ------
        StorageError
            If it was opened before, or the root cannot be used.
        """
        self.lifecycle.advance(State.OPENING)
        self._worker = Worker()
        self._publication = Publication(self._worker, self._options, self._publish_here)
        self.writer: Writer = Writer(
            self._queue, self._worker, self._tally, tick=self._tick, report=self._report
        )
        try:
            await self.call(lambda: opening.prepare_root(self.disk, self.root))
        except BaseException:
            self._worker.stop(1.0)
            self.lifecycle.advance(State.CLOSED)
            raise

    def start(self, spawn: Spawn) -> None:
        """Begin to record; `spawn` starts a task that lives as long as the Storage."""
        self.lifecycle.advance(State.OPEN)
        _living.add(self)
        self._spawn = spawn
        spawn(self.writer.run)

    async def insist(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run `function` to its end, in a task of its own, whatever happens to the caller.

        A shield keeps anyio's cancellation out, but asyncio's own (``asyncio.timeout``, a second
        Ctrl-C) passes it. A caller that is cancelled meanwhile gets its cancellation afterwards.
        """
        done = anyio.Event()
        failure: BaseException | None = None
        has_begun = False

        async def body() -> None:
            nonlocal failure, has_begun
            has_begun = True
            try:
                with anyio.CancelScope(shield=True):
                    await function()
            except Exception as error:  # noqa: BLE001 - raised again in the caller
                failure = error
            except BaseException as error:  # noqa: BLE001 - raised again in the caller
                # Cancelled in spite of the shield: the whole loop is being torn down. What nobody
                # will write any more is written here and now.
                failure = error
                self.abandon("the event loop was shut down")
            finally:
                done.set()

        self._spawn(body)
        interruption: BaseException | None = None
        with anyio.CancelScope(shield=True):
            while not done.is_set():
                try:
                    if interruption is None or has_begun:
                        await done.wait()
                    else:
                        await anyio.lowlevel.checkpoint()
                        if not has_begun:
                            # The task was cancelled before its first step, and will have none.
                            self.abandon("the event loop was shut down")
                            break
                except (anyio.get_cancelled_exc_class(), KeyboardInterrupt) as error:
                    interruption = error
        if failure is not None or interruption is not None:
            raise failure or interruption  # type: ignore[misc] # one of them is there

    async def close(self, failure: BaseException | None) -> list[StorageError]:
        """Close every open task, then everything else; return what went wrong."""
        if self.lifecycle.state is State.CLOSED:  # abandoned when the loop was torn down
            self._end_threads()
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
            self._end_threads()
            return problems
        self.writer.stop()
        with anyio.move_on_after(_PATIENCE):
            await self.writer.stopped.wait()
            await self._publication.see_off()
        self._end_threads()
        self._publication.leave()
        self.lifecycle.advance(State.CLOSED)
        _living.discard(self)
        return problems

    def _end_threads(self) -> None:
        """End writer and thread whatever they wait for: an interruption may have eaten it."""
        self.writer.kill()
        # The thread is idle now or hangs in a call; a hanging one is a daemon and is left behind.
        self._worker.stop(0.5)

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
                channel.put_end(self._end(channel, reason))
        failed = self.writer.drain_now(self.close_timeout)
        for channel in self.channels:
            channel.let_go()
            channel.lifecycle.state = State.CLOSED
        self._publication.leave()
        self.lifecycle.state = State.CLOSED
        for channel in failed:
            logger.error("%s", self._write_failed(channel, None))

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
        return opening.Place(self.disk, self.root, subject, self.fallback_root)

    async def open_task(self, prepare: Callable[[], Opened]) -> Channel:
        """Run `prepare` in the thread and take up recording.

        Guarantee: cancelled or not, a task that was prepared is either open here or let go again.

        Raises
        ------
        StorageError
            Of `prepare`; or if the disk does not answer within `close_timeout`.
        """
        self.lifecycle.require_open()
        prepared = _Prepared(prepare)
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
            queue=self._queue,
            on_full=self._on_full,
            tally=self._tally,
            notify=self.writer.notify,
        )
        self.channels.append(channel)
        self.writer.channels.append(channel)
        with anyio.move_on_after(self.close_timeout, shield=True):
            await self._publication.follow(channel)
        return channel

    def _options(self, channel: Channel) -> dict[str, Any]:
        fallback = self.place(channel.folder.parent.name).fallback(channel.task)
        return {
            "keep_journal": self._keep_journal,
            "fallback": None if fallback is None else str(fallback),
        }

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
                raise self._write_failed(channel, job.error)

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
            await self._drain(channel, failure, deadline)
            await self._publication.finish(channel, deadline - anyio.current_time())
        except StorageError:
            if not self.writer.stopped.is_set():
                raise
            # The writer was ended from outside, by a second Ctrl-C: there will be no other.
            self.abandon("the event loop was shut down")
        finally:
            self._finished.add(channel.statistics())
            channel.lifecycle.state = State.CLOSED
            channel.closed.set()

    async def _drain(
        self, channel: Channel, failure: BaseException | None, deadline: float
    ) -> None:
        """Make everything durable and let go of journal and lock, or raise WriteFailed."""
        if self.writer.stopped.is_set():
            raise WriteFailed("the event loop was torn down")
        story = await self._story(failure, deadline)
        progress = channel.progress
        with anyio.CancelScope(deadline=deadline):
            # Twice, so that the end can tell the figures of everything before it.
            self.writer.hurry()
            await progress.wait_for_items(progress.accepted_items)
            channel.put_end(self._end(channel, story))
            self.writer.hurry()
            await progress.wait_for_items(progress.accepted_items)
        problem: WriteFailed | None = None
        if progress.durable_items < progress.accepted_items:
            job = self.writer.unsettled(channel)
            problem = self._write_failed(channel, None if job is None else job.error)
            progress.failure = problem
            progress.wake()
        self.writer.drop(channel)
        self.channels.remove(channel)
        with anyio.move_on_after(max(deadline - anyio.current_time(), 1.0)):
            await self.call(channel.let_go)
        if problem is not None:
            raise problem

    # --- figures and trouble ----------------------------------------------------------------------

    def statistics(self) -> Statistics:
        """The figures of all tasks of this Storage, finished ones included."""
        totals = Totals(self._finished.trials, self._finished.bytes)
        for channel in self.channels:
            totals.add(channel.statistics())
        return self._tally.statistics(
            totals.trials, totals.bytes, self._queue.used, self._queue.peak, self._tally.losses
        )

    def _tick(self) -> None:
        """Once a second, in the thread."""
        self.publisher.check()
        with contextlib.suppress(OSError):
            self._free_bytes = self.disk.free_bytes(self.root)

    def _report(self, what: str | None) -> None:
        if what is None and self.publisher.gave_up and self.channels:
            what = "the publisher died repeatedly; journals stay and tasks are readable from them"
        is_new = what is not None and self._tally.trouble is None
        self._tally.trouble = what
        if what is None or not is_new:
            return
        logger.warning("%s", what)
        if self._on_trouble is None:
            return
        trouble = Trouble(
            what, time.time_ns(), self._queue.used, self._queue.capacity, self._free_bytes
        )
        try:
            self._on_trouble(trouble)
        except Exception as error:  # noqa: BLE001 - a broken hook must not end the writer
            # Without a traceback: writing one out reads source files, and this is the loop.
            logger.error("the on_trouble hook failed: %r", error)  # noqa: TRY400

    # --- parts ------------------------------------------------------------------------------------

    @property
    def publisher(self) -> Publisher:
        """The handle on the child."""
        return self._publication.publisher

    async def call(self, function: Callable[[], T]) -> T:
        """Run a blocking function in the recorder's thread."""
        return await self._worker.call(function)

    async def _story(self, failure: BaseException | None, deadline: float) -> str | None:
        """Write the traceback out, in the thread: it reads source files."""
        if failure is None:
            return None
        with anyio.CancelScope(deadline=deadline):
            return await self.call(lambda: "".join(traceback.format_exception(failure)))
        return repr(failure)

    def _end(self, channel: Channel, story: str | None) -> CleanEnd:
        return CleanEnd(
            trials=channel.next_trial,
            status="complete" if story is None else "interrupted",
            traceback=story,
            unix_ns=time.time_ns(),
            monotonic_ns=time.monotonic_ns(),
            statistics=channel.statistics().to_json(),
        )

    def _write_failed(self, channel: Channel, error: Exception | None) -> WriteFailed:
        first, last = channel.progress.trials[Level.DURABLE - 1], channel.next_trial
        trials = range(first, last)
        what = f"trials {first} to {last - 1} exist" if trials else "what was streamed exists"
        failed = WriteFailed(
            f"task {channel.task!r}: {what} nowhere but in memory and could not be made durable "
            f"within {self.close_timeout:.0f} s: {error or 'the disk does not answer'}",
            trials,
        )
        failed.__cause__ = error
        return failed


class _Prepared:
    """A task being opened in the thread, and who it belongs to in the end."""

    def __init__(self, prepare: Callable[[], Opened]) -> None:
        self._prepare = prepare
        self._opened: Opened | None = None
        self._is_unwanted = False

    def run(self) -> None:
        """Open the task; let go of it at once if nobody waits any more."""
        self._opened = self._prepare()
        if self._is_unwanted:
            self._let_go()

    def take(self, *, is_wanted: bool) -> Opened | None:
        """Return the opened task; otherwise see that it is let go of, now or when it comes."""
        if is_wanted and self._opened is not None:
            return self._opened
        self._is_unwanted = True
        self._let_go()
        return None

    def _let_go(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.journal.close()
            opened.lock.release()


_living: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _after_fork() -> None:
    for recorder in list(_living):
        recorder.forget_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def warn_unclosed(what: str) -> None:
    """Tell that something was garbage-collected or left at exit without being closed."""
    warnings.warn(f"{what} was not closed: use 'async with'", ResourceWarning, stacklevel=2)
