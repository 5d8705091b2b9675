"""The conversation with the publisher about one task: follow it, publish now or at its end."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread

from trialstore._errors import PublishFailed
from trialstore._recording.progress import Level
from trialstore._recording.publisher import Publisher, answer_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trialstore._recording.channel import Channel
    from trialstore._recording.worker import Worker

logger = logging.getLogger("trialstore")

#: Seconds between looks for an answer: close together at first, then less often.
_POLL: Final = (0.002, 0.05)
#: Seconds that a process which ends waits for a publication in a thread of its own.
_LAST_PATIENCE: Final = 10.0

#: One for each task that is being published in a thread of this process; set when that is over.
_in_threads: set[threading.Event] = set()


class Publication:
    """Asks the publisher and waits for its answers, which it reads from the disk.

    Parameters
    ----------
    worker : Worker
        The thread for everything that touches a pipe or the disk.
    options : callable
        Gives what the publisher must know of a task beside its folder.
    publish_here : callable
        Publishes one task in the calling thread, for systems where no child can be started.
    """

    def __init__(
        self,
        worker: Worker,
        options: Callable[[Channel], dict[str, Any]],
        publish_here: Callable[[Path, dict[str, Any]], None],
    ) -> None:
        self.publisher = Publisher()
        self._worker = worker
        self._options = options
        self._publish_here = publish_here
        self._requests = 0

    async def follow(self, channel: Channel) -> None:
        """Let the publisher follow a task from now on; starts it if need be."""
        message = {"do": "follow", **self._options(channel)}
        await self._worker.call(lambda: self.publisher.tell(channel.folder, message))

    async def publish(self, channel: Channel, seconds: float) -> None:
        """Publish what is durable by now; raise PublishFailed if that is not done in time."""
        if not self.publisher.can_start:
            raise PublishFailed(
                "no publisher process can be started here; tasks are published at their end"
            )
        reached = _durable(channel)
        if not await self._ask(channel, "publish", seconds):
            raise PublishFailed(
                f"task {channel.task!r} was not published within {seconds:.0f} s; "
                "the publisher goes on, and the journal is whole"
            )
        _note_published(channel, reached)

    async def finish(self, channel: Channel, seconds: float) -> None:
        """Publish a closed task; what is not done in time goes on without us.

        Raises
        ------
        PublishFailed
            If the publisher says that it cannot, or has died too often.
        """
        reached = _durable(channel)
        if self.publisher.can_start:
            is_done = await self._ask(channel, "close", seconds)
        else:
            is_done = await self._finish_here(channel, seconds)
        if is_done:
            self.publisher.forget(channel.folder)
            _note_published(channel, reached)

    async def _finish_here(self, channel: Channel, seconds: float) -> bool:
        logger.warning(
            "no publisher process can be started here; task %r is published in a thread",
            channel.task,
        )
        options = self._options(channel)

        def publish() -> None:
            done = threading.Event()
            _in_threads.add(done)
            try:
                self._publish_here(channel.folder, options)
            finally:
                _in_threads.discard(done)
                done.set()

        atexit.unregister(_outlast)
        atexit.register(_outlast, os.getpid())
        with anyio.move_on_after(seconds):
            await anyio.to_thread.run_sync(publish, abandon_on_cancel=True)
            return True
        return False

    async def _ask(self, channel: Channel, what: str, seconds: float) -> bool:
        """Ask, and look for the answer and after the child; False if there is none in time."""
        self._requests += 1
        folder, request = channel.folder, self._requests
        message = {"do": what, "request": request, **self._options(channel)}
        delay, limit = _POLL
        with anyio.move_on_after(seconds):
            await self._worker.call(lambda: self.publisher.tell(folder, message))
            while not await self._worker.call(lambda: answer_for(folder, request)):
                await self._worker.call(self.publisher.check)
                if self.publisher.gave_up:
                    deaths = self.publisher.deaths
                    words = await self._worker.call(lambda: self.publisher.last_words)
                    self.publisher.leave_out(folder)  # other tasks are published all the same
                    raise PublishFailed(
                        f"the publisher died {deaths} times on task "
                        f"{channel.task!r}; the journal is whole and the task is readable from it"
                        f"{': ' if words else ''}{words}"
                    )
                await anyio.sleep(delay)
                delay = min(limit, delay * 1.5)
            self.publisher.forgive()
            return True
        return False

    async def see_off(self) -> None:
        """Close the pipe; wait for a child that has nothing left to do."""
        await self._worker.call(self.publisher.stop)
        if not self.publisher.pending:
            # A process that ends tells nobody, and the thread must stay free for the disk.
            while not await self._worker.call(self.publisher.has_ended):  # noqa: ASYNC110
                await anyio.sleep(0.005)

    def leave(self) -> None:
        """Close the pipe and let the child finish what it has, without waiting."""
        self.publisher.stop()
        self.publisher.leave_running()


def _outlast(pid: int) -> None:
    """Let a publication in a thread end before the process does: HDF5 crashes otherwise.

    Found by pressing Ctrl-C twice: the second ends Python's own waiting for its threads.
    """
    if os.getpid() != pid:
        return  # forked: the thread is the parent's
    end = time.monotonic() + _LAST_PATIENCE
    for done in list(_in_threads):
        while not done.is_set() and (left := end - time.monotonic()) > 0:
            with contextlib.suppress(KeyboardInterrupt):
                done.wait(left)


def _durable(channel: Channel) -> tuple[int, int]:
    progress = channel.progress
    return progress.trials[Level.DURABLE - 1], progress.bytes[Level.DURABLE - 1]


def _note_published(channel: Channel, reached: tuple[int, int]) -> None:
    progress, (trials, nbytes) = channel.progress, reached
    progress.reach(Level.PUBLISHED, trials, nbytes - progress.bytes[Level.PUBLISHED - 1])
    progress.wake()
