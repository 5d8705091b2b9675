"""The child process: what it is told, what it does when, and when it ends.

It follows journals on disk; the pipe says only which, when to publish, and, by its end, that the
recorder is gone. Then it finishes what the journals hold and ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any, Final

from trialstore._errors import StorageError, TaskLocked
from trialstore._publishing.task import TaskPublisher

_TICK: Final = 0.1
_REFRESH_EVERY: Final = 1.0
#: A refresh rewrites the table: however long it is, that shall take at most this share of the time.
_REFRESH_SHARE: Final = 0.05
#: Above this growth of the journal, in bytes a second, building waits for a pause: a process of
#: lowest priority that copies the same bytes still halves the recorder's disk throughput
#: (measured).
_LOAD_LIMIT: Final = 60e6
_BUILD_BYTES: Final = 32 * 2**20
#: The recorder is gone but its lock is held: somebody may be just ending. Never longer than this.
_LAST_PATIENCE: Final = 4.0


class Service:
    """Publishes the tasks it is told of, until the pipe closes and all is done."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._tasks: dict[Path, TaskPublisher] = {}
        self._messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._pipe = pipe
        self._refreshed: dict[Path, float] = {}
        self._growth: dict[Path, tuple[float, int]] = {}
        self._parent = os.getppid()
        self._parent_gone = False

    def run(self) -> None:
        """Work until the recorder is gone and every task is finished or taken over."""
        threading.Thread(target=self._listen, daemon=True).start()
        while not self._parent_gone:
            self._hear(_TICK)
            for folder in list(self._tasks):
                self._work_on(folder)
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
        publisher = self._tasks.get(folder)
        try:
            if publisher is None:
                publisher = self._tasks[folder] = _publisher(folder, message)
            if message["do"] == "publish":
                publisher.publish()
                publisher.answer(int(request or 0), None)
        except (StorageError, OSError) as error:
            self._fail(folder, request, error)
            return
        if message["do"] == "close":
            self._finish(folder, int(request or 0), patience=0.5)

    def _work_on(self, folder: Path) -> None:
        publisher = self._tasks.get(folder)
        if publisher is None:
            return
        try:
            if not self._is_loaded(folder, publisher.follow()):
                publisher.build(_BUILD_BYTES)
            self._refresh(folder, publisher)
        except FileNotFoundError:
            # Published by another, or moved away by a person: nothing is left to do here.
            self._drop(folder)
        except (StorageError, OSError) as error:
            self._fail(folder, None, error)

    def _is_loaded(self, folder: Path, scanned: int) -> bool:
        """Whether the recorder writes so fast just now that building would slow it down."""
        now = time.monotonic()
        before, was_scanned = self._growth.get(folder, (now - _TICK, scanned))
        self._growth[folder] = (now, scanned)
        return (scanned - was_scanned) / max(now - before, _TICK) > _LOAD_LIMIT

    def _refresh(self, folder: Path, publisher: TaskPublisher) -> None:
        now = time.monotonic()
        if now < self._refreshed.get(folder, 0.0):
            return
        publisher.refresh()
        took = time.monotonic() - now
        self._refreshed[folder] = now + max(_REFRESH_EVERY, took / _REFRESH_SHARE)

    def _finish(self, folder: Path, request: int | None, patience: float) -> None:
        publisher = self._tasks[folder]
        end = time.monotonic() + patience
        while True:
            try:
                publisher.finish()
            except TaskLocked:
                owner = publisher.recorder
                if owner not in (None, self._parent):
                    # Another recorder has resumed the task: its own publisher will publish it.
                    self._drop(folder)
                    return
                if time.monotonic() > end:
                    return  # our recorder has not let go of it yet; the end of the pipe comes
                time.sleep(0.05)
                continue
            except FileNotFoundError:
                self._drop(folder)
                return
            except (StorageError, OSError) as error:
                self._fail(folder, request, error)
                return
            if request is not None:
                publisher.answer(request, None)
            self._drop(folder)
            return

    def _fail(self, folder: Path, request: object, error: Exception) -> None:
        """The journal stays and the task reads from it; a request is answered with the reason."""
        publisher = self._tasks.get(folder)
        if publisher is not None and isinstance(request, int):
            publisher.answer(request, f"{type(error).__name__}: {error}")
        self._drop(folder)

    def _drop(self, folder: Path) -> None:
        publisher = self._tasks.pop(folder, None)
        if publisher is not None:
            publisher.close()


def _publisher(folder: Path, message: dict[str, Any]) -> TaskPublisher:
    fallback = message.get("fallback")
    return TaskPublisher(
        folder,
        fallback=None if fallback is None else Path(str(fallback)),
        keep_journal=message.get("keep_journal") is True,
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


def be_modest() -> None:
    """Take the lowest priority that the system offers."""
    with contextlib.suppress(OSError, AttributeError):
        os.nice(19)
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def main() -> None:
    """Run as the child process: commands on standard input, one JSON object a line."""
    be_modest()
    Service(sys.stdin.buffer).run()
