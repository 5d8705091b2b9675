"""The handle on recorders that are told what to do, and killed."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Nothing here takes a second on a healthy machine; this is for telling slow from hanging.
PATIENCE: Final = 60.0
_ROOT: Final = Path(__file__).parents[2]


class Died(Exception):
    """The recorder ended instead of answering."""


class Recorder:
    """One recording process.

    Parameters
    ----------
    pid : int
        Its number.
    line : socket.socket
        Where it is told what to do.
    """

    def __init__(self, pid: int, line: socket.socket) -> None:
        self.pid = pid
        self.publisher: int | None = None
        self._process = os.pidfd_open(pid)
        self._line = line
        self._line.settimeout(PATIENCE)
        self._answers = line.makefile("rb")
        self._unanswered = 0

    def send(self, do: str, /, **told: Any) -> None:
        """Tell it something without waiting for the answer."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._line.sendall(json.dumps({"do": do, **told}).encode() + b"\n")
        self._unanswered += 1

    def answers(self) -> Iterator[dict[str, Any]]:
        """Yield the answer to everything that was sent.

        Raises
        ------
        Died
            If it has ended before it answered.
        TimeoutError
            If it neither answers nor ends.
        """
        while self._unanswered:
            try:
                text = self._answers.readline()
            except ConnectionResetError:
                text = b""
            if not text.endswith(b"\n"):
                raise Died
            self._unanswered -= 1
            said = json.loads(text)
            self.publisher = said.get("publisher")
            yield said

    def call(self, do: str, /, **told: Any) -> dict[str, Any]:
        """Tell it something and return what came of it; raises as `answers`."""
        self.send(do, **told)
        return list(self.answers())[-1]

    def end(self, *, kill: bool, publisher_too: bool = False) -> None:
        """Kill it, or let it end by itself; return when it and its publisher are gone."""
        publisher = None if self.publisher is None else _handle_on(self.publisher)
        if kill:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
        if publisher_too and publisher is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(publisher, signal.SIGKILL)
        self._line.shutdown(socket.SHUT_RDWR)
        for process in (self._process, publisher):
            if process is not None:
                _wait(process)
                os.close(process)
        self._answers.close()
        self._line.close()


def _handle_on(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _wait(process: int) -> None:
    if not select.select([process], [], [], PATIENCE)[0]:
        raise TimeoutError("a recorder or its publisher does not end")


class Nursery:
    """Starts recorders in milliseconds: forks of one process that has imported everything."""

    def __enter__(self) -> Self:
        self._control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.machine.recorder", str(other.fileno())],
                pass_fds=[other.fileno()],
                cwd=_ROOT,
            )
        self._control.settimeout(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()
        self._process.wait(PATIENCE)

    def start(self, root: Path, *, has_child: bool, backend: str = "asyncio") -> Recorder:
        """Start a recorder; `has_child`: its publisher is a process, and no power can be cut."""
        ours, theirs = socket.socketpair()
        told = {"root": str(root), "has_child": has_child, "backend": backend}
        with theirs:
            socket.send_fds(self._control, [json.dumps(told).encode()], [theirs.fileno()])
        pid = json.loads(self._control.recv(1 << 16))["pid"]
        return Recorder(pid, ours)
