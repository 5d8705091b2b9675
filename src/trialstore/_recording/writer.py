"""The writer task: makes what is queued durable in one worker-thread call, tells who waits.

A batch is everything queued at that moment; the disk's own speed makes batches grow. What fails is
held: the batch stays in memory, within the queue's bound, and is tried again every second until the
disk takes it or the task must be closed.

The thread rests between batches, not this task: of a timeout on the loop, and of every further step
there, a 1 kHz loop felt more than of the writing (p99 of its lateness 2.1 ms; a bare thread that
writes the same bytes, 1.3).
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Final

import anyio

from trialstore._errors import StorageError
from trialstore._recording.job import Job, next_job
from trialstore._recording.progress import Level

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trialstore._recording.channel import Channel
    from trialstore._recording.queue import BoundedQueue
    from trialstore._recording.statistics import Tally
    from trialstore._recording.trouble import Troubles
    from trialstore._recording.worker import Worker

#: Seconds from one batch to the next. A thread hop costs the loop 60-90 us (measured); a hundred a
#: second cost it less than one percent.
PAUSE: Final = 0.010
RETRY_AFTER: Final = 1.0
#: Seconds after which a loop that never rests must do so while a batch is being written.
STARVED_AFTER: Final = 0.005
#: Share of that time which a loop that never rests has spent at work. Of a loop that is paced by a
#: device or a clock it is less, and the thread has the interpreter in its pauses.
BUSY_SHARE: Final = 0.8
IDLE_TICK: Final = 1.0
#: Longer than a spinning disk's worst second and shorter than a person's patience.
HUNG_AFTER: Final = 5.0


class Writer:
    """The background task of a Storage.

    Guarantee: whatever was accepted is either durable, or in memory and reported as not durable.

    Parameters
    ----------
    queue : BoundedQueue
        Where the tasks' items are.
    worker : Worker
        The thread.
    tally : Tally
        Counters.
    troubles : Troubles
        Told what is wrong, and when all is well again.
    tick, tock : callable
        Housekeeping about once a second: in the thread, and then on the loop.
    is_orphaned : callable
        Says whether nobody is left who could close the Storage.
    """

    def __init__(
        self,
        queue: BoundedQueue,
        worker: Worker,
        tally: Tally,
        troubles: Troubles,
        *,
        tick: Callable[[], None],
        tock: Callable[[], None],
        is_orphaned: Callable[[], bool],
    ) -> None:
        self.channels: list[Channel] = []
        self.stopped: anyio.Event = anyio.Event()
        #: Held while a journal is written to.
        self.committing: threading.Lock = threading.Lock()
        self._queue = queue
        self._worker = worker
        self._tally = tally
        self._troubles = troubles
        self._tick = tick
        self._tock = tock
        self._is_orphaned = is_orphaned
        self._jobs: dict[Channel, Job] = {}
        self._is_idle = False
        self._work = anyio.Event()
        self._urgent = threading.Event()
        self._stopping = False
        self._is_abandoned = False
        self._scope = anyio.CancelScope(shield=True)
        self._last_tick = time.monotonic()
        self._poisonings = 0
        self._marked: dict[Channel, int] = {}
        #: From when it is given a batch, but for its rest: it wants the interpreter now and then.
        self._is_thread_at_work = False
        self._committed_at = 0.0
        self._looked = (0.0, 0.0)

    # --- called by others on the loop -------------------------------------------------------------

    def notify(self) -> None:
        """There is work."""
        if self._is_idle:
            self._is_idle = False
            self._work.set()

    def is_starving(self) -> bool:
        """Whether the thread may be kept waiting for the interpreter by a loop that never rests.

        A thread that wants CPython's lock asks for it after 5 ms of waiting in vain, and begins
        anew whenever the lock was free for an instant: a loop that looks at its sockets every
        millisecond kept it out for a whole burst (found by measuring: 110 of 300 ms). A loop that
        rests by itself is left alone: on a disk that takes 200 ms for a sync there always is a
        batch being written, and the rest made every fiftieth tick of a 1 kHz loop late.
        """
        now = time.monotonic()
        since, worked_before = self._looked
        if not self._is_thread_at_work or now - since < STARVED_AFTER:
            return False
        worked = time.thread_time()
        self._looked = now, worked
        return worked - worked_before >= BUSY_SHARE * (now - since)

    def hurry(self) -> None:
        """Somebody waits: no rest before the next batch."""
        self._urgent.set()
        self.notify()

    def stop(self) -> None:
        """End the task after the present batch."""
        self._stopping = True
        self.hurry()

    def kill(self) -> None:
        """End the task now, for when the disk has stopped answering."""
        self._stopping = True
        self._scope.cancel()

    def unsettled(self, channel: Channel) -> Job | None:
        """The batch of a task that is not durable yet."""
        return self._jobs.get(channel)

    def drop(self, channel: Channel) -> None:
        """Give a task up: whatever of it is not durable leaves the queue."""
        self._jobs.pop(channel, None)
        self._marked.pop(channel, None)
        if channel in self.channels:
            self.channels.remove(channel)
        channel.leave()

    # --- the task ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until `stop`; shielded: an experiment's cancellation must not lose its trials."""
        is_torn_down = False
        try:
            with self._scope:
                while not self._stopping:
                    try:
                        await self._turn()
                    except anyio.get_cancelled_exc_class():
                        # asyncio's own cancellation passes a shield, as when a loop is torn down.
                        # What was begun is found again in the next turn.
                        if self._scope.cancel_called:
                            raise
                        is_torn_down = True
                    if is_torn_down and self._is_orphaned():
                        # asyncio.run would wait for us for ever; the rest is written at exit.
                        return
        finally:
            self.stopped.set()
            if not self._stopping:
                # A KeyboardInterrupt in our own code: nobody may wait for us any more.
                for channel in self.channels:
                    channel.progress.failure = StorageError("the event loop was torn down")
                    channel.progress.wake()

    async def watch(self) -> None:
        """Tell of a disk that does not answer, until `run` has ended.

        A task of its own, which wakes every five seconds: a deadline for each batch cost the loop
        70 us each time.
        """
        # Suppressed: the loop is being torn down, and there is nobody to be told any more.
        cancelled = anyio.get_cancelled_exc_class()
        with anyio.CancelScope(shield=True), contextlib.suppress(cancelled):
            while not self.stopped.is_set():
                silence = self._worker.busy_for
                if silence < HUNG_AFTER:
                    self._troubles.end("hung")
                    left = HUNG_AFTER - silence
                else:
                    self._troubles.begin("hung", f"the disk has not answered for {silence:.0f} s")
                    left = HUNG_AFTER
                with anyio.move_on_after(left):
                    await self.stopped.wait()

    async def _turn(self) -> None:
        jobs = self._gather()
        if jobs:
            await self._commit(jobs)
        elif not self._stopping:
            await self._wait_for_work()
        await self._housekeep()

    async def _wait_for_work(self) -> None:
        delay = IDLE_TICK
        if self._jobs:
            soonest = min(job.retry_at for job in self._jobs.values())
            delay = max(0.0, min(delay, soonest - time.monotonic()))
        self._work, self._is_idle = anyio.Event(), True
        with anyio.move_on_after(delay):
            await self._work.wait()
        self._is_idle = False

    def _gather(self) -> list[Job]:
        now = time.monotonic()
        jobs = []
        for channel in self.channels:
            held = self._jobs.get(channel)
            if held is not None:
                if held.retry_at <= now or self._urgent.is_set():
                    jobs.append(held)
                continue
            job = next_job(channel)
            if job is not None or self._wants_mark(channel):
                job = job or Job(channel, channel.progress.trials[Level.DURABLE - 1])
                self._jobs[channel] = job
                jobs.append(job)
        # Whoever came first in this batch comes last in the next.
        self.channels.extend(self.channels[:1])
        del self.channels[:1]
        return jobs

    def _wants_mark(self, channel: Channel) -> bool:
        """After a second of silence, say on disk that everything before it is durable."""
        items = channel.progress.durable_items
        if items == self._marked.get(channel, 0):
            return False
        if time.monotonic_ns() - channel.last_activity_ns < IDLE_TICK * 1e9:
            return False
        self._marked[channel] = items
        return True

    async def _commit(self, jobs: list[Job]) -> None:
        self._is_thread_at_work = True
        self._tally.note_commit(*await self._worker.call(lambda: self._run_jobs(jobs)))
        self._troubles.end("hung")
        for job in jobs:
            self._settle(job)
        self._report_state()

    def _run_jobs(self, jobs: Sequence[Job]) -> tuple[int, float]:
        """Write a batch, in the thread; return when that began (Unix), and seconds it took."""
        with self.committing:
            self._rest()
            began, began_unix = time.monotonic(), time.time_ns()
            for job in jobs:
                # Not what was given up, or written by somebody else, while this thread waited.
                if self._jobs.get(job.channel) is job and not self._is_abandoned:
                    job.run()
            self._is_thread_at_work = False
            self._committed_at = time.monotonic()
        return began_unix, self._committed_at - began

    def _rest(self) -> None:
        """Let a batch become one, unless somebody waits or the queue fills up."""
        if not self._urgent.is_set():
            for channel in tuple(self.channels):
                channel.slabs.prepare()
        left = self._committed_at + PAUSE - time.monotonic()
        if left > 0 and not self._queue.is_pressed:
            self._is_thread_at_work = False
            self._urgent.wait(left)
            self._is_thread_at_work = True
        self._urgent.clear()

    def _settle(self, job: Job) -> None:
        if job.error is not None or not job.committed:
            job.retry_at = time.monotonic() + RETRY_AFTER
            return
        channel, progress = job.channel, job.channel.progress
        if self._jobs.pop(channel, None) is None:
            return  # given up while the disk did not answer; its bytes were released then
        if job.parcel is not None:
            channel.lane.drop()
        for level in (Level.WRITTEN, Level.DURABLE):
            progress.reach(level, job.trials, job.nbytes)
        progress.durable_items += job.count
        if job.oldest_ns is not None:
            waited = time.monotonic_ns() - job.oldest_ns
            self._tally.longest_to_durable_ns = max(self._tally.longest_to_durable_ns, waited)
        self._queue.release(job.size)
        progress.wake()

    def _report_state(self) -> None:
        held = next((job for job in self._jobs.values() if job.error is not None), None)
        if held is not None:
            self._troubles.begin(
                "held",
                f"task {held.channel.task!r} cannot be written ({held.error}); "
                "its trials are held in memory and tried again every second",
            )
            return
        self._troubles.end("held")
        poisonings = sum(len(channel.journal.poisoned) for channel in self.channels)
        if poisonings > self._poisonings:
            notes = [note for channel in self.channels for note in channel.journal.poisoned]
            what = f"the disk failed; recording goes on in a new segment: {notes[-1]}"
            self._troubles.tell(what)
        self._poisonings = poisonings

    async def _housekeep(self) -> None:
        now = time.monotonic()
        if now - self._last_tick >= IDLE_TICK:
            self._last_tick = now
            await self._worker.call(self._tick)
            self._tock()

    # --- without a loop ---------------------------------------------------------------------------

    def drain_now(self, patience: float) -> list[Channel]:
        """Commit everything from this thread, when the loop is gone; return the failed tasks.

        The worker thread may be in the middle of a batch: it is given `patience` seconds to finish.
        """
        self._stopping = True
        self._urgent.set()
        if not self.committing.acquire(timeout=patience):
            return list(self.channels)
        try:
            self._is_abandoned = True
            failed = []
            for channel in self.channels:
                while job := self._jobs.get(channel) or next_job(channel):
                    job.run()
                    if not job.committed:
                        failed.append(channel)
                        break
                    self._jobs.pop(channel, None)
                    if job.parcel is not None:
                        channel.lane.drop()
                    channel.progress.reach(Level.DURABLE, job.trials, job.nbytes)
            return failed
        finally:
            self.committing.release()
