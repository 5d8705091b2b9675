"""Many tries at once: a lane is a process that forks what is to be killed, try after try.

``python -m tests.campaign.lanes MODULE FUNCTION OPTIONS`` imports everything once; the function is
called with a `Lane` and answers an `Outcome`, which is written to standard output. A forked child
begins to record within milliseconds, where a new interpreter needs half a second.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from tests.campaign.frame import CannotRun, Effort, Outcome
from tests.campaign.recorder import heard

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.campaign.content import Promise

_ROOT: Final = Path(__file__).parents[2]
_PR_SET_PDEATHSIG: Final = 1
_CANNOT: Final = "cannot run"


class Hung(Exception):
    """A process did not end in time."""


@dataclass(slots=True)
class Lane:
    """What one lane is to do.

    Parameters
    ----------
    number : int
        Which of the lanes it is.
    lanes : int
        How many there are.
    count : int
        How many tries this lane makes, where tries are counted.
    seed : int
        Of the whole row.
    is_full : bool
        The effort.
    """

    number: int
    lanes: int
    count: int
    seed: int
    is_full: bool

    @property
    def effort(self) -> Effort:
        """The row's effort, for a workspace."""
        return Effort(self.is_full, self.seed)

    def random(self, attempt: int) -> random.Random:
        """Return the randomness of one try."""
        return random.Random(f"{self.seed}/{self.number}/{attempt}")

    def name(self, attempt: int) -> str:
        """Say what is needed to repeat a try."""
        return f"seed {self.seed}, lane {self.number}, try {attempt}"


def in_lanes(
    function: Callable[[Lane], Outcome], effort: Effort, count: int, lanes: int | None = None
) -> Outcome:
    """Run a function of a module in as many processes as there are processors; add up.

    Raises
    ------
    CannotRun
        If a lane says so.
    RuntimeError
        If a lane ends in any other exception; its traceback is in the message.
    """
    lanes = lanes or min(os.cpu_count() or 1, 4, count)
    share = [count // lanes + (number < count % lanes) for number in range(lanes)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.campaign.lanes"),
                *(function.__module__, function.__name__),
                json.dumps([number, lanes, share[number], effort.seed, effort.is_full]),
            ],
            cwd=_ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(lanes)
    ]
    try:
        answers = [process.communicate() for process in running]
    finally:
        for process in running:
            process.terminate()
            process.communicate()
    return _add_up(function.__name__, [process.returncode for process in running], answers)


def _add_up(name: str, codes: list[int], answers: list[tuple[bytes, bytes]]) -> Outcome:
    total: Outcome | None = None
    for code, (out, errors) in zip(codes, answers, strict=True):
        if code != 0:
            raise RuntimeError(f"a lane of {name} ended with {code}:\n{errors.decode()[-4000:]}")
        told: dict[str, Any] = json.loads(out)
        if _CANNOT in told:
            raise CannotRun(told[_CANNOT])
        part = Outcome(**told)
        if total is None:
            total = part
        else:
            total.add(part)
    if total is None:
        raise RuntimeError(f"{name} has no lane")
    return total


class Child:
    """A forked process that runs `body` with its standard output in a pipe, or in a file.

    Parameters
    ----------
    body : callable
        What it does; it ends with exit code 0, or 1 after an exception.
    folder : pathlib.Path
        Where its standard error goes.
    output : int, optional
        Descriptor that becomes its standard output; a pipe unless given.
    """

    def __init__(self, body: Callable[[], object], folder: Path, output: int | None = None) -> None:
        self._errors = folder / "errors"
        reading, writing = os.pipe() if output is None else (-1, output)
        self.pid = os.fork()
        if self.pid == 0:
            self._live(body, writing, reading)
        if output is None:
            os.close(writing)
        self._pipe = reading
        self._heard = b""
        self.code: int | None = None

    def _live(self, body: Callable[[], object], writing: int, reading: int) -> None:
        code = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.dup2(writing, 1)
            errors = os.open(self._errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(errors, 2)
            for fd in {writing, reading, errors} - {-1, 1, 2}:
                os.close(fd)
            body()
            code = 0
        except BaseException:  # noqa: BLE001 - the parent reads it
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.flush()
            os._exit(code)

    @property
    def errors(self) -> str:
        """The end of what it said on standard error."""
        return self._errors.read_text(errors="replace")[-3000:] if self._errors.exists() else ""

    def listen(self, seconds: float, until: bytes | None = None) -> bool:
        """Hear what it says, at most so long; return whether a line that begins so has come."""
        end = time.monotonic() + seconds
        while until is None or not self._has_said(until):
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._pipe], [], [], left)[0]:
                return False
            data = os.read(self._pipe, 1 << 16)
            if not data:
                return False
            self._heard += data
        return True

    def has_news(self) -> bool:
        """Hear what it has said by now, without waiting; return whether that was anything."""
        if not select.select([self._pipe], [], [], 0.0)[0]:
            return False
        data = os.read(self._pipe, 1 << 16)
        self._heard += data
        return bool(data)

    def _has_said(self, start: bytes) -> bool:
        return any(line.startswith(start) for line in self._heard.splitlines())

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal, unless it was waited for."""
        if self.code is None:
            os.kill(self.pid, number)

    def stop(self) -> None:
        """Stop it (SIGSTOP), and wait until every thread of it has stopped."""
        self.kill(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def wait(self, seconds: float = 60.0) -> int:
        """Wait for its end; return the exit code, negative for a signal.

        Raises
        ------
        Hung
            If it does not end in time; it is killed.
        """
        if self.code is None:
            if not has_ended(self.pid, seconds):
                self.kill()
                os.waitpid(self.pid, 0)
                self.code = -signal.SIGKILL
                raise Hung(f"process {self.pid} had not ended after {seconds:.0f} s\n{self.errors}")
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def lines(self) -> list[str]:
        """Return everything it said; to be asked when it has ended."""
        while self._pipe >= 0:
            data = os.read(self._pipe, 1 << 16)
            self._heard += data
            if not data:
                os.close(self._pipe)
                self._pipe = -1
        return self._heard.decode().splitlines()

    def lines_so_far(self) -> list[str]:
        """Return what was heard by now, while it lives."""
        return self._heard.decode().splitlines()

    def promise(self) -> Promise:
        """Return what a recorder promised; to be asked when it has ended."""
        return heard(line.encode() for line in self.lines())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.code is None:
            self.kill()
            self.wait()
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


def has_ended(pid: int, seconds: float) -> bool:
    """Wait for the end of any process, a child or not; return whether it came in time."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], seconds)[0])
    finally:
        os.close(fd)


def end_process(pid: int) -> None:
    """Kill a process that one of ours has started, if it still lives."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _end_with_parent() -> None:
    """End in order, mounts and children taken back, when the campaign is ended or killed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> None:
    """Be one lane."""
    _end_with_parent()
    module, name, told = sys.argv[1:]
    # What children say must not get between: the answer alone goes to the real standard output.
    answer = os.dup(1)
    os.dup2(2, 1)
    for heavy in ("pandas", "h5py", "trialstore._publishing.service"):
        importlib.import_module(heavy)
    function = getattr(importlib.import_module(module), name)
    try:
        result = function(Lane(*json.loads(told))).to_json()
    except CannotRun as reason:
        result = {_CANNOT: str(reason)}
    os.write(answer, json.dumps(result).encode())


if __name__ == "__main__":
    main()
