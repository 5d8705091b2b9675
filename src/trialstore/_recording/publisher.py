"""The recorder's handle on the publisher: start it, tell it what there is, see how it fares.

Everything here blocks for at most milliseconds and runs in the worker thread. The pipe goes one
way; answers are read from the disk, where they survive the death of either side.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import IO, TYPE_CHECKING, Any, Final

from trialstore._errors import PublishFailed
from trialstore._ondisk import layout
from trialstore._ondisk.disk import read_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: When the publisher has died so often in a row, tasks are left as journals, which read as well.
MAX_DEATHS: Final = 3
#: Deaths that are further apart than this, in seconds, are not in a row: what kills a publisher
#: again and again (a sick disk, one trial) meets the next one as soon as it has caught up.
FORGIVEN_AFTER: Final = 300.0
_WORDS_KEPT: Final = 2000
#: Not `-m`: the package may be importable only through the parent's sys.path. `-P` keeps the
#: experiment's folder, with its own `random.py`, out of the way until the parent's path is taken
#: over.
_PROGRAM: Final = (
    "from trialstore._publishing.modesty import be_modest; be_modest();"
    "from trialstore._publishing.service import main; main()"
)


#: For glibc; others do not look at it. Samples go through memory that is taken and given back for
#: each trial, and to find its pages anew took a quarter of the time (2.5 s instead of 1.9 for 410
#: MB, measured).
_MEMORY: Final = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
}

#: Children that outlive their Storage: kept, so that they are reaped and Python does not warn of
#: them.
_alone: list[subprocess.Popen[bytes]] = []


def reap() -> None:
    """Forget children that have ended since; a zombie would stay as long as the experiment."""
    _alone[:] = [process for process in _alone if process.poll() is None]


class Publisher:
    """One child process, started with the first task and again when it dies.

    Attributes
    ----------
    deaths : int
        How often it died in a row: without a publication, or `FORGIVEN_AFTER` seconds, in between.
    can_start : bool
        False where no child can be started; `tell` then does nothing.
    """

    def __init__(self) -> None:
        reap()
        self.deaths: int = 0
        self.can_start: bool = bool(sys.executable) and not getattr(sys, "frozen", False)
        self._process: subprocess.Popen[bytes] | None = None
        self._messages: dict[Path, dict[str, Any]] = {}
        self._pid = os.getpid()
        self._is_left = False
        self._started = time.monotonic()
        #: What the child says on standard error: a file without a name, gone with us.
        self._words: IO[bytes] | None = None

    @property
    def last_words(self) -> str:
        """The end of what the child said on standard error."""
        if self._words is None:
            return ""
        end = self._words.seek(0, os.SEEK_END)
        self._words.seek(max(0, end - _WORDS_KEPT))
        return self._words.read().decode("utf-8", "replace").strip()

    @property
    def pid(self) -> int | None:
        """Process number of the child, or None while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def pending(self) -> int:
        """Tasks that are not published yet."""
        return len(self._messages)

    @property
    def gave_up(self) -> bool:
        """Whether the child died so often that it is not started again."""
        return self.deaths >= MAX_DEATHS

    def tell(self, folder: Path, message: Mapping[str, Any]) -> None:
        """Tell the child about a task; remembered, so that a new child learns it too."""
        self._messages[folder] = {**message, "task": str(folder)}
        if self._process is None:
            self._start()
        else:
            self._send(self._messages[folder])

    def forget(self, folder: Path) -> None:
        """A task is published: a new child need not know of it."""
        self._messages.pop(folder, None)

    def leave_out(self, folder: Path) -> None:
        """Children die of a task: the next one does not learn of it, and starts without a past."""
        self.forget(folder)
        self.forgive()

    def forgive(self) -> None:
        """Something was published: whatever killed earlier children does not kill all of them."""
        self.deaths = 0

    def check(self) -> None:
        """Start a new child if the last one died with work to do."""
        if self._process is None or self._process.poll() is None:
            return
        self._reap()
        if time.monotonic() - self._started > FORGIVEN_AFTER:
            self.forgive()
        self.deaths += 1
        if self._messages and not self.gave_up:
            self._start()

    def _start(self) -> None:
        # A thread that hung in a call of the disk may come back when everybody has left.
        if not self.can_start or self.gave_up or self._is_left:
            return
        environment = {**_MEMORY, **os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        options: dict[str, Any] = {}
        if sys.platform == "win32":  # pragma: no cover - Windows only
            options["creationflags"] = (
                subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.IDLE_PRIORITY_CLASS
            )
        else:
            # Ctrl-C in the terminal is for the experiment alone. Not a session of its own: Linux
            # weighs sessions before processes (sched(7), autogroup), and the child's low priority
            # meant nothing then: a loop that woke up waited for it, up to 4 ms.
            options["process_group"] = 0
        try:
            if self._words is None:
                self._words = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as we do
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-X", "faulthandler", "-c", _PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._words,
                env=environment,
                **options,
            )
        except OSError:
            # Locked-down systems: publication then runs in a thread after the task has closed.
            self.can_start = False
            return
        self._started = time.monotonic()
        if self._process.stdin is not None and hasattr(os, "set_blocking"):
            # A stopped child must not hold the recorder up: a full pipe counts as its death.
            with contextlib.suppress(OSError):
                os.set_blocking(self._process.stdin.fileno(), False)
        for message in list(self._messages.values()):
            self._send(message)

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._process is None or self._process.stdin is None:
            return
        line = json.dumps(message).encode() + b"\n"
        try:
            written = os.write(self._process.stdin.fileno(), line)
        except OSError:
            written = 0
        if written < len(line):
            # Half a line would be read as one with the next: end this child, the next one learns
            # all.
            self._process.kill()

    def stop(self) -> None:
        """Close the pipe: the child finishes what there is and ends by itself."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def has_ended(self) -> bool:
        """Whether the child has ended (and was waited for, so that no zombie is left)."""
        if self._process is None:
            return True
        if self._process.poll() is None:
            return False
        self._reap()
        return True

    def leave_running(self) -> None:
        """Let the child go on alone with what it has left to do; no other is started."""
        self._is_left = True
        if self._words is not None:
            self._words.close()
            self._words = None
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            _alone.append(process)

    def forget_after_fork(self) -> None:
        """Close a forked child's end of the pipe, or the publisher would never see it close."""
        if os.getpid() != self._pid and self._process is not None:
            self.stop()
            self.leave_running()

    def _reap(self) -> None:
        if self._process is not None:
            self.stop()
            self._process.wait()
            self._process = None


def answer_for(folder: Path, request: int) -> bool:
    """Look whether a request was answered; True when the task (or what there was) is published.

    Raises
    ------
    PublishFailed
        With the publisher's own words, if it could not.
    """
    try:
        data = read_file(folder / layout.JOURNAL / layout.ANSWER, 1 << 20)
    except OSError:
        # Without the folder the journal has been published and taken away.
        return not (folder / layout.JOURNAL).is_dir()
    try:
        answer = json.loads(data)
    except ValueError:
        return False
    match answer:
        case {"request": int(number), "error": error} if number >= request:
            if error is None:
                return True
            raise PublishFailed(
                f"{str(folder)!r} was not published: {error}. The journal is whole and the task "
                "is readable from it"
            )
    return False
