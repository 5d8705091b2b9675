"""The child process: what it is told, what it does when, and when it ends.

It follows journals on disk; the pipe says only which, when to publish, and, by its end, that the
recorder is gone. Then it finishes what the journals hold and ends.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import queue
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from trialstore._errors import StorageError, TaskLocked
from trialstore._ondisk.disk import Disk
from trialstore._publishing.task import TaskPublisher, answer

_TICK: Final = 0.1
_REFRESH_EVERY: Final = 1.0
#: A refresh rewrites the table: however long it is, that shall take at most this share of the time.
_REFRESH_SHARE: Final = 0.05
#: Above this growth of the journal, in bytes a second, building waits for a pause: a process of
#: lowest priority that copies the same bytes still halves the recorder's disk throughput
#: (measured).
LOAD_LIMIT: Final = 60e6
_BUILD_BYTES: Final = 32 * 2**20
#: Building stops while the disk has less than this, or less than so many seconds of the journal.
_LEAST_FREE: Final = 4 * 2**20
_TIGHT_SECONDS: Final = 20.0
#: Seconds until what failed is tried again: at first, and at most.
_AGAIN: Final = (2.0, 60.0)
#: The recorder is gone but its lock is held: somebody may be just ending. Never longer than this.
_LAST_PATIENCE: Final = 10.0


@dataclass(slots=True)
class _Again:
    """A task that could not be worked on, and when it is tried again."""

    at: float
    delay: float
    finish: bool
    request: int | None = None


class Service:
    """Publishes the tasks it is told of, until the pipe closes and all is done.

    What fails is tried again, later and later, as long as the recorder lives, and once more at its
    end: a disk that was full may have room by then.
    """

    def __init__(self, pipe: IO[bytes]) -> None:
        self._tasks: dict[Path, TaskPublisher] = {}
        self._told: dict[Path, dict[str, Any]] = {}
        self._again: dict[Path, _Again] = {}
        self._messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._pipe = pipe
        self._refreshed: dict[Path, float] = {}
        self._growth: dict[Path, tuple[float, int]] = {}
        self._disk = Disk()
        self._parent = os.getppid()
        self._parent_gone = False

    def run(self) -> None:
        """Work until the recorder is gone and every task is finished or taken over."""
        threading.Thread(target=self._listen, daemon=True).start()
        is_behind = False
        while not self._parent_gone:
            self._hear(0.0 if is_behind else _TICK)
            # Every task has its turn.
            is_behind = any(list(map(self._work_on, list(self._tasks))))
            self._try_again(time.monotonic())
        self._try_again(float("inf"))
        for folder in list(self._tasks):
            self._finish(folder, None, patience=_LAST_PATIENCE)

    def _listen(self) -> None:
        for line in self._pipe:
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict):
                    self._messages.put(message)
        self._messages.put(None)

    def _hear(self, timeout: float) -> None:
        try:
            message = self._messages.get(timeout=timeout)
            while True:
                if message is None:
                    self._parent_gone = True
                    return
                self._obey(message)
                message = self._messages.get_nowait()
        except queue.Empty:
            return

    def _obey(self, message: dict[str, Any]) -> None:
        folder = Path(str(message["task"]))
        request = message.get("request")
        number = request if isinstance(request, int) else None
        if self._told.get(folder, message).get("session") != message.get("session"):
            # Overwritten or resumed, after what came before could not be published: one that was
            # begun again for that knows another journal. Found by a test that failed once: it
            # took the new recording for another's, and left it alone.
            self._drop(folder)
        self._told[folder] = message
        self._again.pop(folder, None)
        is_end = message["do"] == "close"
        try:
            publisher = self._publisher(folder)
            if message["do"] == "publish":
                publisher.publish()
                answer(folder, number or 0, None)
        except (StorageError, OSError) as error:
            self._fail(folder, number, error, finish=is_end)
            return
        if is_end:
            self._finish(folder, number, patience=0.5)

    def _publisher(self, folder: Path) -> TaskPublisher:
        publisher = self._tasks.get(folder)
        if publisher is None:
            publisher = self._tasks[folder] = _publisher(folder, self._told[folder])
        return publisher

    def _work_on(self, folder: Path) -> bool:
        """Do a portion of what there is; return whether the next may follow at once."""
        publisher = self._tasks.get(folder)
        if publisher is None:
            return False
        is_behind = False
        try:
            grows = self._growth_of(folder, publisher.follow())
            if self._is_tight(folder, grows):
                # Publishing stops first, recording last: what was built so far makes room for it.
                if publisher.is_building:
                    self._drop(folder)
                    self._put_off(folder, finish=False)
                return False
            if grows <= LOAD_LIMIT:
                is_behind = publisher.build(_BUILD_BYTES)
            self._refresh(folder, publisher)
        except FileNotFoundError:
            # Published by another, or moved away by a person: nothing is left to do here.
            self._forget(folder)
            return False
        except (StorageError, OSError) as error:
            self._fail(folder, None, error, finish=False)
            return False
        return is_behind

    def _growth_of(self, folder: Path, scanned: int) -> float:
        """Bytes a second by which the journal grows just now."""
        now = time.monotonic()
        before, was_scanned = self._growth.get(folder, (now - _TICK, scanned))
        self._growth[folder] = (now, scanned)
        return (scanned - was_scanned) / max(now - before, _TICK)

    def _is_tight(self, folder: Path, grows: float) -> bool:
        """Whether the recorder will soon need the room that is left."""
        try:
            free = self._disk.free_bytes(folder)
        except OSError:
            return False
        return free is not None and free < max(_LEAST_FREE, grows * _TIGHT_SECONDS)

    def _refresh(self, folder: Path, publisher: TaskPublisher) -> None:
        now = time.monotonic()
        if now < self._refreshed.get(folder, 0.0):
            return
        publisher.refresh()
        took = time.monotonic() - now
        self._refreshed[folder] = now + max(_REFRESH_EVERY, took / _REFRESH_SHARE)

    def _finish(self, folder: Path, request: int | None, patience: float) -> None:
        end = time.monotonic() + patience
        while True:
            publisher = self._tasks[folder]
            try:
                publisher.finish()
            except TaskLocked:
                owner = publisher.recorder
                if owner not in (None, self._parent):
                    # Another recorder has resumed the task: its own publisher will publish it.
                    self._forget(folder)
                    return
                if time.monotonic() > end:
                    # Our recorder has not let go of it yet, or another publisher is just at work.
                    self._put_off(folder, finish=True, request=request)
                    return
                time.sleep(0.05)
                continue
            except FileNotFoundError:
                self._forget(folder)
                return
            except (StorageError, OSError) as error:
                self._fail(folder, request, error, finish=True)
                return
            if request is not None:
                answer(folder, request, None)
            self._forget(folder)
            return

    # --- what fails -------------------------------------------------------------------------------

    def _fail(self, folder: Path, request: int | None, error: Exception, *, finish: bool) -> None:
        """The journal stays and the task reads from it; a request is answered with the reason."""
        if request is not None:
            answer(folder, request, f"{type(error).__name__}: {error}")
        self._drop(folder)
        self._put_off(folder, finish=finish)

    def _put_off(self, folder: Path, *, finish: bool, request: int | None = None) -> None:
        before = self._again.get(folder)
        delay = _AGAIN[0] if before is None else min(before.delay * 2, _AGAIN[1])
        finish = finish or (before is not None and before.finish)
        self._again[folder] = _Again(time.monotonic() + delay, delay, finish, request)

    def _try_again(self, now: float) -> None:
        for folder, again in list(self._again.items()):
            if again.at > now or (folder in self._tasks and not again.finish):
                continue
            try:
                self._publisher(folder)
            except FileNotFoundError:
                self._forget(folder)
            except (StorageError, OSError):
                self._put_off(folder, finish=again.finish, request=again.request)
            else:
                if again.finish:
                    self._finish(folder, again.request, patience=0.5)

    def _drop(self, folder: Path) -> None:
        publisher = self._tasks.pop(folder, None)
        if publisher is not None:
            publisher.close()

    def _forget(self, folder: Path) -> None:
        """Nothing is left to do for a task."""
        self._drop(folder)
        self._again.pop(folder, None)
        self._told.pop(folder, None)


def _publisher(folder: Path, message: dict[str, Any]) -> TaskPublisher:
    fallback = message.get("fallback") or ()
    told = [fallback] if isinstance(fallback, str) else fallback
    return TaskPublisher(
        folder,
        fallbacks=[Path(str(path)) for path in told],
        keep_journal=message.get("keep_journal") is True,
        session=message.get("session"),
    )


def publish_once(folder: Path, options: dict[str, Any]) -> None:
    """Publish one closed task in this process.

    Raises
    ------
    StorageError, OSError
        If it cannot be done; the journal is untouched.
    """
    publisher = _publisher(folder, options)
    try:
        publisher.finish()
    finally:
        publisher.close()


def main() -> None:
    """Run as the child process: commands on standard input, one JSON object a line."""
    # What a journal becomes is kept until the end and has no cycles: looking for some took a fifth
    # of the time of a hundred thousand rows.
    gc.set_threshold(100_000)
    Service(sys.stdin.buffer).run()
