"""The end of a task: everything durable by a deadline, or told what is not, and saved if possible.

In this order: what is queued, then the end record; past the deadline the last resort: the reserve
is given back to a full disk, a second disk takes over from one that hangs, and if the trials cannot
be written anywhere, a note in the journal names them.
"""

from __future__ import annotations

import logging
import time
import traceback
from typing import TYPE_CHECKING, Final

import anyio

from trialstore._errors import WriteFailed
from trialstore._ondisk.entries import CleanEnd, LossNote, encode
from trialstore._ondisk.losses import Loss
from trialstore._recording.items import encode_batch
from trialstore._recording.progress import Level
from trialstore._recording.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from trialstore._ondisk.entries import Entry
    from trialstore._recording.channel import Channel
    from trialstore._recording.writer import Writer

logger = logging.getLogger("trialstore")

#: Seconds for the last resort, beyond the deadline.
_LAST_RESORT: Final = 5.0
#: Seconds that a commit in flight may still take before the disk counts as hanging.
_STILL_ALIVE: Final = 1.0


class Closing:
    """Brings tasks to their end.

    Guarantee: when `drain` returns, everything that the task has accepted is durable; when it
    raises WriteFailed, the exception names every trial that is not.

    Parameters
    ----------
    worker : Worker
        The recorder's thread.
    writer : Writer
        The task that makes what is queued durable.
    close_timeout : float
        Seconds that closing may take, for messages.
    """

    def __init__(self, worker: Worker, writer: Writer, close_timeout: float) -> None:
        self._worker = worker
        self._writer = writer
        self._close_timeout = close_timeout

    async def drain(self, channel: Channel, failure: BaseException | None, deadline: float) -> None:
        """Make everything durable and let go of journal and lock.

        Raises
        ------
        WriteFailed
            If trials could be made durable neither in time nor by the last resort.
        """
        if self._writer.stopped.is_set():
            raise WriteFailed("the event loop was torn down")
        story = await self._story(failure, deadline)
        progress = channel.progress
        with anyio.CancelScope(deadline=deadline):
            # Twice, so that the end can tell the figures of everything before it.
            self._writer.hurry()
            await progress.wait_for_items(progress.accepted_items)
            channel.put_end(end_of(channel, story))
            self._writer.hurry()
            await progress.wait_for_items(progress.accepted_items)
        problem: WriteFailed | None = None
        if progress.durable_items < progress.accepted_items:
            problem = await self._rescue(channel, story)
        else:
            self._writer.drop(channel)
        with anyio.move_on_after(max(deadline - anyio.current_time(), 1.0)):
            await self._worker.call(channel.let_go)
        if problem is not None:
            raise problem

    async def _rescue(self, channel: Channel, story: str | None) -> WriteFailed | None:
        """Try the last resort, in a thread of its own: the recorder's may hang."""
        problem, entries = self._given_up(channel, story)
        thread = Worker("trialstore last resort")
        is_saved = False
        with anyio.move_on_after(_LAST_RESORT):
            is_saved = await thread.call(lambda: self._last_resort(channel, entries(), problem))
        thread.stop(0.0)
        progress = channel.progress
        if is_saved:
            for level in (Level.WRITTEN, Level.DURABLE):
                progress.reach(level, channel.next_trial, 0)
            progress.durable_items = progress.accepted_items
        else:
            progress.failure = problem
        progress.wake()
        return None if is_saved else problem

    def rescue_now(self, channel: Channel, story: str) -> None:
        """Try the last resort in this thread, for when no event loop will; logs what is lost."""
        problem, entries = self._given_up(channel, story)
        if not self._last_resort(channel, entries(), problem):
            logger.error("%s", problem)

    def _given_up(
        self, channel: Channel, story: str | None
    ) -> tuple[WriteFailed, Callable[[], list[Entry]]]:
        """Take a task away from the writer; return what went wrong and what is to be saved."""
        if not channel.has_end:
            channel.put_end(end_of(channel, story))
        job = self._writer.unsettled(channel)
        problem = self.write_failed(channel, None if job is None else job.error)
        items = [item for parcel in channel.lane.parcels for item in parcel.items]
        losses = (() if job is None else job.losses) + channel.take_losses()
        self._writer.drop(channel)

        def entries() -> list[Entry]:
            notes = [encode(LossNote(losses))] if losses else []
            return notes + encode_batch(items)

        return problem, entries

    def _last_resort(self, channel: Channel, entries: list[Entry], problem: WriteFailed) -> bool:
        """Save what can be saved; True if that was everything. Blocks."""
        journal = channel.journal
        if not self._writer.committing.acquire(timeout=_STILL_ALIVE):
            try:
                path = journal.salvage(entries)
            except OSError as error:
                logger.error("nothing could be saved while the disk hangs: %s", error)  # noqa: TRY400
                return False
            logger.warning("the disk hangs; its trials were saved to %r", str(path))
            return True
        try:
            journal.give_reserve_back()
            try:
                journal.commit(entries, channel.next_trial)
            except OSError:
                self._leave_note(channel, entries[-1], problem)
                return False
            return True
        finally:
            self._writer.committing.release()

    def _leave_note(self, channel: Channel, end: Entry, problem: WriteFailed) -> None:
        """Name in the journal what is not in it: there may be room for that."""
        count = len(problem.trials)
        what = f"{count} trial{'s' if count > 1 else ''}" if count else "chunks of the open trial"
        note = LossNote((Loss(problem.trials, what, "missing", evidence=str(problem)),))
        try:
            channel.journal.commit([encode(note), end], channel.next_trial)
        except OSError as error:
            logger.error("%s; not even a note could be written: %s", problem, error)  # noqa: TRY400

    async def _story(self, failure: BaseException | None, deadline: float) -> str | None:
        """Write the traceback out, in the thread: it reads source files."""
        if failure is None:
            return None
        with anyio.CancelScope(deadline=deadline):
            return await self._worker.call(lambda: "".join(traceback.format_exception(failure)))
        return repr(failure)

    def write_failed(self, channel: Channel, error: Exception | None) -> WriteFailed:
        """Name the trials that exist nowhere but in memory."""
        first, last = channel.progress.trials[Level.DURABLE - 1], channel.next_trial
        trials = range(first, last)
        what = f"trials {first} to {last - 1} exist" if trials else "what was streamed exists"
        failed = WriteFailed(
            f"task {channel.task!r}: {what} nowhere but in memory and could not be made durable "
            f"within {self._close_timeout:.0f} s: {error or 'the disk does not answer'}",
            trials,
        )
        failed.__cause__ = error
        return failed


def end_of(channel: Channel, story: str | None) -> CleanEnd:
    """Return the end record of a task, with its figures up to now."""
    return CleanEnd(
        trials=channel.next_trial,
        status="complete" if story is None else "interrupted",
        traceback=story,
        unix_ns=time.time_ns(),
        monotonic_ns=time.monotonic_ns(),
        statistics=channel.statistics().to_json(),
    )
