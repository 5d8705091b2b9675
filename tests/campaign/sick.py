"""An experiment on a sick disk: records the model, bears every refusal, and tells what happened.

`record` runs in the calling process, over a disk of `trialstore.testing`; `sessions.Session` runs
the same in a process of its own, over a shim, a limit or a file system:

    python -m tests.campaign.sick '{"root": "...", "count": 12, ...}'
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
import numpy as np

from tests.campaign.content import SUBJECT, TASK, arrays_of, attrs_of
from tests.campaign.story import BEFORE_CREATING, Settings
from trialstore import (
    PublishFailed,
    QueueFull,
    Storage,
    StorageError,
    Trial,
    WriteFailed,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from trialstore import Receipt, TaskWriter

    Tell = Callable[[dict[str, Any]], object]

#: An experimenter tries three times to begin.
_ATTEMPTS: Final = 3
_TICK: Final = 0.001
#: How the warning begins that comes while there is still room.
_EARLY: Final = "the data's disk has"
#: What is told of a failure that was met without anybody's help.
_GOES_ON: Final = "recording goes on in a new segment"
_HERE: Final = Path(__file__).parents[2]


class _Experiment:
    """One run of `record`."""

    def __init__(
        self, settings: Settings, tell: Tell, pause: Callable[[int], Awaitable[None]] | None
    ) -> None:
        self.settings = settings
        self.tell = tell
        self.pause = pause
        self.trouble = anyio.Event()
        self.accepted = 0
        self.late, self.times_late = 0.0, 0
        self.statistics: dict[str, Any] = {}

    async def run(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._tick)
            for _ in range(_ATTEMPTS):
                if await self._enter():
                    break
            group.cancel_scope.cancel()

    async def _tick(self) -> None:
        """Find out whether somebody holds the loop."""
        while True:
            due = anyio.current_time() + _TICK
            await anyio.sleep_until(due)
            late = anyio.current_time() - due
            self.late = max(self.late, late)
            self.times_late += late > self.settings.late

    async def _enter(self) -> bool:
        """Record in a Storage; False if it could not be entered."""
        told = self.settings
        entered = False
        began = anyio.current_time()
        try:
            async with Storage(
                told.root,
                fallback_root=told.fallback or None,
                on_full=told.on_full,
                queue_bytes=told.queue_bytes,
                close_timeout=told.close_timeout,
                keep_journal=told.keep_journal,
                on_trouble=self._hook,
            ) as storage:
                entered = True
                storage.subject_id = SUBJECT
                task = await self._create(storage)
                if task is not None:
                    await self._trials(task)
                    await self._stop(told.count)
                    self.statistics = task.statistics().to_json()
                    began = anyio.current_time()
                    await self._finish(task)
        except StorageError as error:
            if not entered:
                self.tell({"refused": str(error), "left": False})
                return False
            self._note(error)
        self.tell(
            {
                "closed": True,
                "seconds": anyio.current_time() - began,
                "late": self.late,
                "times_late": self.times_late,
                "statistics": self.statistics,
            }
        )
        return True

    def _hook(self, trouble: Any) -> None:
        if trouble.what.startswith(_EARLY):
            self.tell({"warning": trouble.what})
            return
        if _GOES_ON in trouble.what:
            self.tell({"failover": trouble.what})
            return
        self.tell({"trouble": trouble.what})
        self.trouble.set()

    def _note(self, error: StorageError) -> None:
        if isinstance(error, WriteFailed):
            self.tell({"failed": str(error), "trials": list(error.trials)})
        elif isinstance(error, PublishFailed):
            self.tell({"not published": str(error)})
        else:
            raise error

    async def _create(self, storage: Storage) -> TaskWriter | None:
        folder = Path(self.settings.root, SUBJECT, TASK)
        for _ in range(_ATTEMPTS):
            await self._stop(BEFORE_CREATING)
            try:
                return await storage.create_task(TASK)
            except StorageError as error:
                left = await anyio.to_thread.run_sync(folder.exists)
                self.tell({"refused": str(error), "left": left})
        return None

    async def _stop(self, number: int) -> None:
        if self.pause is not None and number in self.settings.stops:
            await self.pause(number)

    async def _trials(self, task: TaskWriter) -> None:
        told = self.settings
        for number in range(told.count):
            await self._stop(number)
            self.tell({"submitted": number})
            if not await self._hand_over(task, number):
                return
            try:
                if told.flush_every and number % told.flush_every == told.flush_every - 1:
                    if not await self._flush(task):
                        return
                    self.tell({"durable": number + 1})
            except WriteFailed as error:
                # Nothing is given up by it: a later flush, or closing, has the last word.
                self.tell({"not flushed": str(error)})
            try:
                if told.publish_every and number % told.publish_every == told.publish_every - 1:
                    await task.publish()
                    self.tell({"published": number + 1})
            except StorageError as error:
                self._note(error)

    async def _hand_over(self, task: TaskWriter, number: int) -> bool:
        """Record one trial, refused or not; False if the experiment is to be given up."""
        while True:
            try:
                receipt = await hand_over(task, number, self.settings)
            except QueueFull as error:
                self.tell({"full": str(error)})
            else:
                if receipt.index is not None:
                    self.accepted = number + 1
                    self.tell({"accepted": number + 1})
                    return True
                self.tell({"dropped": number})
            if self.settings.lasting and self.trouble.is_set():
                return False
            await anyio.sleep(0.01)

    async def _flush(self, task: TaskWriter) -> bool:
        """Wait until everything is durable, or, where the trouble is to last, for that."""
        if not self.settings.lasting:
            await task.flush()
            return True
        failure: WriteFailed | None = None
        async with anyio.create_task_group() as group:

            async def flush() -> None:
                nonlocal failure
                try:
                    await task.flush()
                except WriteFailed as error:
                    failure = error
                group.cancel_scope.cancel()

            group.start_soon(flush)
            await self.trouble.wait()
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return not self.trouble.is_set()

    async def _finish(self, task: TaskWriter) -> None:
        try:
            await task.aclose()
        except WriteFailed as error:
            self._note(error)
            return
        except PublishFailed as error:
            self._note(error)
        self.tell({"durable": self.accepted})


async def hand_over(task: TaskWriter, number: int, settings: Settings) -> Receipt:
    """Record trial `number` of the model, streamed or whole."""
    arrays: dict[str, list[NDArray[Any]]] = arrays_of(number)
    if settings.bulk:
        arrays["bulk"] = [bulk_of(number, settings.bulk)]
    if number % 2 and settings.on_full == "wait":
        for name, chunks in arrays.items():
            for chunk in chunks:
                await task.append(name, chunk)
        return await task.write(attrs_of(number))
    trial = Trial(attrs=attrs_of(number))
    for name, chunks in arrays.items():
        trial.add_array(name)
        for chunk in chunks:
            trial.arrays[name].stack(chunk)
    return await task.write(trial)


def bulk_of(number: int, nbytes: int) -> NDArray[np.uint8]:
    """Return the array that fills the disk."""
    return np.random.default_rng(number).integers(0, 256, (1, nbytes), dtype=np.uint8)


async def record(
    settings: Settings, tell: Tell, pause: Callable[[int], Awaitable[None]] | None = None
) -> None:
    """Record the model on a sick disk.

    Guarantee: ends by itself whatever the disk does, and tells everything that was refused.

    Parameters
    ----------
    settings : Settings
        What and where.
    tell : callable
        Hears of each event as a plain mapping; `Told.hear` understands them.
    pause : callable, optional
        Awaited before the trials in ``settings.stops``.
    """
    await _Experiment(settings, tell, pause).run()


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """Be a frozen application meanwhile: no child is started, publication runs in a thread."""
    sys.frozen = True  # type: ignore[attr-defined] # what PyInstaller and its like set
    try:
        yield
    finally:
        del sys.frozen  # type: ignore[attr-defined]


def say(event: Mapping[str, Any]) -> None:
    """Tell the parent, in one system call."""
    os.write(1, json.dumps(event).encode() + b"\n")


async def _wait_for_parent(number: int) -> None:
    say({"stopped": number})
    await anyio.to_thread.run_sync(sys.stdin.readline)


def main() -> None:
    """Record as told on the command line."""
    told = json.loads(sys.argv[1])
    settings = Settings(**{**told, "stops": tuple(told["stops"])})
    exec(sys.argv[2], {})
    with frozen() if not settings.child else contextlib.nullcontext():
        anyio.run(record, settings, say, _wait_for_parent)


if __name__ == "__main__":
    main()
