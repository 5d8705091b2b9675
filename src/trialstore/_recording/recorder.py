"""The recording side of a Storage, put together: queue, thread, writer task, publisher, open tasks."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import traceback
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread

from trialstore._errors import PublishFailed, StorageError, WriteFailed
from trialstore._ondisk import disk as disk_port
from trialstore._ondisk.entries import CleanEnd
from trialstore._recording import opening
from trialstore._recording.channel import Channel
from trialstore._recording.lifecycle import Lifecycle, State
from trialstore._recording.progress import Level, Levels
from trialstore._recording.publisher import Publisher, answer_for
from trialstore._recording.queue import BoundedQueue
from trialstore._recording.statistics import Statistics, Tally, Trouble
from trialstore._recording.worker import Worker
from trialstore._recording.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trialstore._recording.channel import OnFull
    from trialstore._recording.opening import Opened, Place

logger = logging.getLogger("trialstore")

#: How often the answer of the publisher is looked for: the first looks are close together.
_POLL: Final = (0.002, 0.05)
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
        self.lifecycle = Lifecycle(f"Storage {str(root)!r}")
        self.channels: list[Channel] = []
        self.fallback_root = fallback_root
        self.close_timeout = close_timeout
        self.disk = disk_port.current()
        self._on_full = on_full
        self._keep_journal = keep_journal
        self._on_trouble = on_trouble
        self._publish_here = publish_here
        self._queue = BoundedQueue(queue_bytes)
        self._tally = Tally()
        self._finished = Totals()
        self._trouble_since = 0
        self._free_bytes: int | None = None
        self._requests = 0
        self._pid = os.getpid()
        self.publisher = Publisher()
        self._worker: Worker | None = None
        self._writer: Writer | None = None

    # -- life
    # ---------------------------------------------------------------------------------------

    async def open(self) -> Writer:
        """Start the thread and return the writer, whose `run` the caller starts as a task."""
        self.lifecycle.advance(State.OPENING)
        self._worker = Worker()
        self._writer = Writer(
            self._queue, self._worker, self._tally, tick=self._tick, report=self._report
        )
        try:
            await self.call(lambda: opening.prepare_root(self.disk, self.root))
        except BaseException:
            self._worker.stop(1.0)
            self.lifecycle.advance(State.CLOSED)
            raise
        self.lifecycle.advance(State.OPEN)
        _living.add(self)
        return self._writer

    async def close(self, failure: BaseException | None) -> list[StorageError]:
        """Close every open task, then everything else; return what went wrong."""
        self.lifecycle.advance(State.CLOSING)
        problems = []
        for channel in list(self.channels):
            try:
                await self.close_task(channel, failure)
            except StorageError as error:
                problems.append(error)
        assert self._writer is not None
        assert self._worker is not None
        self._writer.stop()
        with anyio.move_on_after(_PATIENCE):
            await self._writer.stopped.wait()
            await self._see_child_off()
        self._writer.kill()
        # The thread is idle now or hangs in a call; a hanging one is a daemon and is left behind.
        self._worker.stop(0.5)
        self.publisher.stop()
        self.publisher.leave_running()
        self.lifecycle.advance(State.CLOSED)
        _living.discard(self)
        return problems

    async def _see_child_off(self) -> None:
        await self.call(self.publisher.stop)
        if not self.channels and not await self.call(lambda: bool(self.publisher.pending)):
            while not await self.call(self.publisher.has_ended):
                await anyio.sleep(0.005)

    def abandon(self, reason: str) -> None:
        """Write down everything from this thread, for when no event loop will do it.

        Called at garbage collection, at interpreter exit and when a generator is closed under us.
        """
        if os.getpid() != self._pid or self.lifecycle.state in (State.CLOSED, State.FORKED):
            return
        _living.discard(self)
        if self._writer is None:
            return
        for channel in self.channels:
            if channel.lifecycle.state is State.OPEN:
                channel.lifecycle.advance(State.CLOSING)
                channel.put_end(self._end(channel, reason))
        failed = self._writer.drain_now(self.close_timeout)
        for channel in self.channels:
            channel.journal.close()
            channel.lock.release()
        self.publisher.stop()
        self.publisher.leave_running()
        self.lifecycle.state = State.CLOSED
        if failed:
            names = ", ".join(repr(channel.task) for channel in failed)
            logger.error("trials of %s could not be written before the end", names)

    def forget_after_fork(self) -> None:
        """In a forked child: let go of files, locks and pipe; write nothing."""
        self.lifecycle.state = State.FORKED
        for channel in self.channels:
            channel.lifecycle.state = State.FORKED
            channel.journal.forget_after_fork()
            channel.lock.forget_after_fork()
        self.publisher.forget_after_fork()

    # -- tasks
    # --------------------------------------------------------------------------------------

    def place(self, subject: str) -> Place:
        """Where tasks of a subject go."""
        return opening.Place(self.disk, self.root, subject, self.fallback_root)

    async def open_task(self, prepare: Callable[[], Opened]) -> Channel:
        """Run `prepare` in the thread and take up recording.

        Guarantee: cancelled or not, a task that was prepared is either open here or closed again.
        """
        self.lifecycle.require_open()
        with anyio.CancelScope(shield=True):
            opened = await self.call(prepare)
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
        message = {"do": "follow", "session": opened.session, **self._options(opened.task, channel)}
        with anyio.CancelScope(shield=True):
            await self.call(lambda: self.publisher.tell(opened.folder, message))
        return channel

    def _options(self, task: str, channel: Channel) -> dict[str, Any]:
        fallback = None
        if self.fallback_root is not None:
            fallback = str(self.place(channel.folder.parent.name).fallback(task))
        return {"keep_journal": self._keep_journal, "fallback": fallback}

    async def flush(self, channel: Channel) -> None:
        """Wait until everything that a task has accepted is durable.

        Raises
        ------
        WriteFailed
            If the disk has refused for longer than `close_timeout`, or the task had to be given up.
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
        trials = channel.progress.trials[Level.DURABLE - 1]
        nbytes = channel.progress.bytes[Level.DURABLE - 1]
        if not self.publisher.can_start:
            raise PublishFailed(
                "no publisher process can be started here; tasks publish at their end"
            )
        self._requests += 1
        await self._ask(channel, {"do": "publish", "request": self._requests}, self.close_timeout)
        self._note_published(channel, trials, nbytes)

    async def close_task(self, channel: Channel, failure: BaseException | None) -> None:
        """Drain, publish and let go of one task; shielded, and over within `close_timeout`.

        Raises
        ------
        WriteFailed
            If trials could not be made durable in time; they are named.
        PublishFailed
            If the publisher could not publish; the journal is whole.
        """
        channel.lifecycle.advance(State.CLOSING)
        closed = StorageError(f"task {channel.task!r} was closed while this write waited for room")
        self._queue.fail_waiters(channel.lane, closed)
        deadline = anyio.current_time() + self.close_timeout
        with anyio.CancelScope(shield=True):
            story = await self._story(failure, deadline)
            channel.put_end(self._end(channel, story))
            self.writer.hurry()
            problem: StorageError | None = None
            with anyio.CancelScope(deadline=deadline):
                await channel.progress.wait_for_items(channel.progress.accepted_items)
            if channel.progress.durable_items < channel.progress.accepted_items:
                job = self.writer.unsettled(channel)
                problem = self._write_failed(channel, None if job is None else job.error)
                channel.progress.failure = problem
                channel.progress.wake()
            self.writer.drop(channel)
            self.channels.remove(channel)
            remaining = max(0.0, deadline - anyio.current_time())
            with anyio.move_on_after(max(remaining, 1.0)):
                await self.call(lambda: (channel.journal.close(), channel.lock.release()))
            try:
                if problem is None:
                    await self._publish_end(channel, remaining)
            except PublishFailed as error:
                problem = error
            self._finished.add(channel)
            channel.lifecycle.advance(State.CLOSED)
        if problem is not None:
            raise problem

    async def _publish_end(self, channel: Channel, seconds: float) -> None:
        trials = channel.progress.trials[Level.DURABLE - 1]
        nbytes = channel.progress.bytes[Level.DURABLE - 1]
        options = self._options(channel.task, channel)
        if not self.publisher.can_start:
            logger.warning(
                "no publisher process can be started here; task %r is published in a thread",
                channel.task,
            )
            with anyio.move_on_after(seconds) as scope:
                await anyio.to_thread.run_sync(
                    lambda: self._publish_here(channel.folder, options), abandon_on_cancel=True
                )
            if not scope.cancelled_caught:
                self._note_published(channel, trials, nbytes)
            return
        self._requests += 1
        message = {"do": "close", "request": self._requests, **options}
        if await self._ask(channel, message, seconds, must=False):
            await self.call(lambda: self.publisher.forget(channel.folder))
            self._note_published(channel, trials, nbytes)

    async def _ask(
        self, channel: Channel, message: dict[str, Any], seconds: float, *, must: bool = True
    ) -> bool:
        """Tell the publisher, and wait for its answer; look after the child meanwhile."""
        folder, request = channel.folder, message["request"]
        await self.call(lambda: self.publisher.tell(folder, message))
        delay, limit = _POLL
        with anyio.move_on_after(seconds):
            while not await self.call(lambda: answer_for(folder, request)):
                await self.call(self.publisher.check)
                if self.publisher.gave_up:
                    raise PublishFailed(
                        f"the publisher died {self.publisher.deaths} times on task {channel.task!r}; "
                        "the journal is whole and the task is readable from it"
                    )
                await anyio.sleep(delay)
                delay = min(limit, delay * 1.5)
            return True
        if must:
            raise PublishFailed(
                f"task {channel.task!r} was not published within {seconds:.0f} s; "
                "the publisher goes on, and the journal is whole"
            )
        return False

    # -- figures
    # ------------------------------------------------------------------------------------

    def statistics(self) -> Statistics:
        """The figures of all tasks of this Storage, finished ones included."""
        totals = Totals(self._finished.trials, self._finished.bytes)
        for channel in self.channels:
            totals.add(channel)
        tally = self._tally
        return Statistics(
            trials=totals.trials,
            bytes=totals.bytes,
            queue_bytes=self._queue.used,
            queue_peak=self._queue.peak,
            batches=tally.batches,
            longest_hold=tally.longest_hold_ns / 1e9,
            longest_to_durable=tally.longest_to_durable_ns / 1e9,
            stalls=tuple(tally.stalls or ()),
            losses=tally.losses,
            trouble=tally.trouble,
        )

    def _note_published(self, channel: Channel, trials: int, nbytes: int) -> None:
        progress = channel.progress
        progress.reach(Level.PUBLISHED, trials, nbytes - progress.bytes[Level.PUBLISHED - 1])
        progress.wake()

    # -- parts
    # --------------------------------------------------------------------------------------

    @property
    def writer(self) -> Writer:
        """The writer task's object; there is one from `open` on."""
        assert self._writer is not None
        return self._writer

    async def call(self, function: Callable[[], Any]) -> Any:
        """Run a blocking function in the recorder's thread."""
        assert self._worker is not None
        return await self._worker.call(function)

    async def _story(self, failure: BaseException | None, deadline: float) -> str | None:
        """Write the traceback out, in the thread: it reads source files."""
        if failure is None:
            return None
        story = repr(failure)
        with anyio.CancelScope(deadline=deadline):
            story = await self.call(lambda: "".join(traceback.format_exception(failure)))
        return story

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
        named = f"trials {first} to {last - 1} exist" if trials else "what was streamed exists"
        failed = WriteFailed(
            f"task {channel.task!r}: {named} nowhere but in memory and could not be made durable within "
            f"{self.close_timeout:.0f} s: {error or 'the disk does not answer'}",
            trials,
        )
        failed.__cause__ = error
        return failed

    def _tick(self) -> None:
        """Once a second, in the thread."""
        self.publisher.check()
        with contextlib.suppress(OSError):
            self._free_bytes = self.disk.free_bytes(self.root)

    def _report(self, what: str | None) -> None:
        if what is None and self.publisher.gave_up and self.channels:
            what = "the publisher died repeatedly; journals stay and tasks are readable from them"
        if what is None:
            self._tally.trouble = None
            return
        is_new = self._tally.trouble is None
        self._tally.trouble = what
        if not is_new:
            return
        self._trouble_since = time.time_ns()
        logger.warning("%s", what)
        if self._on_trouble is not None:
            trouble = Trouble(
                what, self._trouble_since, self._queue.used, self._queue.capacity, self._free_bytes
            )
            try:
                self._on_trouble(trouble)
            except Exception as error:  # noqa: BLE001 - a broken hook must not end the writer
                # Without a traceback: writing one out reads source files, and this is the loop.
                logger.error("the on_trouble hook failed: %r", error)  # noqa: TRY400


class Totals:
    """Sums over tasks."""

    def __init__(self, trials: Levels = Levels(), nbytes: Levels = Levels()) -> None:
        self.trials = trials
        self.bytes = nbytes

    def add(self, channel: Channel) -> None:
        """Add one task's counts."""
        own = channel.statistics()
        self.trials = Levels(*map(sum, zip(self.trials, own.trials, strict=True)))
        self.bytes = Levels(*map(sum, zip(self.bytes, own.bytes, strict=True)))


_living: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _after_fork() -> None:
    for recorder in list(_living):
        recorder.forget_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def warn_unclosed(what: str) -> None:
    """Tell that something was garbage-collected or left at exit without being closed."""
    warnings.warn(f"{what} was not closed: use 'async with'", ResourceWarning, stacklevel=2)
