"""Processes that record as they are told, line by line, until they are killed.

``python -m tests.machine.recorder FD`` imports everything once; each message on the Unix socket FD
brings the socket of one recorder, which is a fork of this process: a new one costs milliseconds.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import anyio
import h5py  # noqa: F401 - loaded before the fork, for those that publish in the recorder

import trialstore._publishing.service  # noqa: F401 - the same
from tests.campaign.content import SUBJECT, arrays_of, attrs_of
from trialstore import Storage, StorageError, Trial, WriteFailed
from trialstore.testing import FailingDisk, PowerCutDisk, use

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from trialstore import TaskWriter
    from trialstore.testing import Kind

T = TypeVar("T")

#: Which trials a recorder could not write that has ended by itself.
FAILED: Final = "failed.json"


def die() -> None:
    """End as ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)


class MortalDisk(FailingDisk):
    """A disk in the middle of whose n-th call the process dies."""

    def __init__(self) -> None:
        super().__init__()
        self._calls_left = 0
        self._moment = ""
        self._dying: AbstractContextManager[object] = threading.Lock()

    def arm(self, nth: int, moment: str) -> None:
        """Die ``before``, ``halfway`` in or ``after`` the n-th call from now."""
        self._calls_left, self._moment = nth, moment

    def die(self) -> NoReturn:
        """End as ``kill -9`` does, once: of two threads that are to die, one waits for the end.

        Found by the machine: both left a state in one folder, and one killed the other halfway.
        """
        with self._dying:
            self.last_act()
            die()
        raise SystemExit  # not reached: the signal comes first

    def last_act(self) -> None:
        """What happens to the disk when the process dies: nothing."""

    def _around(
        self,
        kind: Kind,
        perform: Callable[[], T],
        *where: Any,
        partly: Callable[[], object] | None = None,
    ) -> T:
        self._calls_left -= 1
        if self._calls_left == 0:
            if self._moment == "halfway" and partly is not None:
                partly()
            elif self._moment == "after":
                super()._around(kind, perform, *where, partly=partly)
            self.die()
        return super()._around(kind, perform, *where, partly=partly)


class PoweredDisk(MortalDisk, PowerCutDisk):
    """A mortal disk that loses its power, if told so, when the process dies.

    Parameters
    ----------
    folder : pathlib.Path
        Everything is below it.
    """

    def __init__(self, folder: Path) -> None:
        PowerCutDisk.__init__(self, folder)
        self._calls_left, self._moment = 0, ""
        self._dying = self._logging  # nothing is done to a disk, and told, after its power was cut
        self._after: tuple[Path, int] | None = None

    def arm_power(self, after: Path, seed: int) -> None:
        """Leave one of the states that a power cut may leave in the folder `after`."""
        self._after = (after, seed)

    def last_act(self) -> None:
        """Leave one state of those at this moment."""
        if self._after is None:
            return
        folder, seed = self._after
        states = self.states(limit=16, seed=seed, first=self.position)
        chosen = list(states)
        self.materialise(chosen[seed % len(chosen)], folder)


class Session:
    """One Storage and its task, and what can be asked of them."""

    def __init__(self, storage: Storage, disk: MortalDisk) -> None:
        self._storage = storage
        self._disk = disk
        self._task: TaskWriter | None = None
        self._first = 0
        self._handed = 0
        #: The open trial, if chunks of it were appended.
        self._streamed: int | None = None

    @property
    def task(self) -> TaskWriter:
        """The open task."""
        if self._task is None:
            raise StorageError("no task is open")
        return self._task

    async def answer(self, name: str, told: dict[str, Any]) -> dict[str, Any]:
        """Do as told; say what came of it and how far all trials are by now."""
        said: dict[str, Any] = {}
        try:
            said = await getattr(self, f"do_{name}")(**told) or {}
        except StorageError as error:
            said = {"error": type(error).__name__, "message": str(error)}
            if isinstance(error, WriteFailed):
                said["trials"] = error.trials
        publisher = self._storage._recorder.publisher
        return {**said, "publisher": publisher.pid, **self._levels()}

    def _levels(self) -> dict[str, int]:
        if self._task is None:
            return {}
        counts = self._task.statistics().trials
        return {
            "accepted": self._first + counts.accepted,
            "written": self._first + counts.written,
            "durable": self._first + counts.durable,
        }

    async def do_open(self, how: str, task: str) -> dict[str, Any]:
        """Open a task: ``create``, ``overwrite``, ``repeat`` or ``resume``."""
        self._task = None
        self._storage.allow_overwrite = how == "overwrite"
        if how == "resume":
            self._task = await self._storage.resume_task(task)
        else:
            self._task = await self._storage.create_task(task, repeat=how == "repeat")
        self._first = self._task._channel.next_trial
        return {"task": self._task.task_id, "first": self._first}

    async def do_append(self, serial: int) -> None:
        """Append the chunks of a trial that `do_write` commits later."""
        for name, chunks in arrays_of(serial).items():
            for chunk in chunks:
                await self.task.append(name, chunk)
        self._streamed = serial

    async def do_write(self, serial: int, wait: str) -> dict[str, Any]:
        """Hand a trial over, whole unless its chunks are there, and wait for a level."""
        trial = Trial(attrs=attrs_of(serial))
        if self._streamed != serial:
            for name, chunks in arrays_of(serial).items():
                trial.add_array(name)
                for chunk in chunks:
                    trial.arrays[name].stack(chunk)
        receipt = await self.task.write(trial)
        self._streamed = None
        if wait == "written":
            await receipt.written()
        elif wait == "durable":
            await receipt.durable()
        return {"index": receipt.index}

    async def do_flush(self) -> None:
        """Make everything durable."""
        await self.task.flush()

    async def do_publish(self) -> dict[str, Any]:
        """Publish between blocks."""
        await self.task.publish()
        return {"published": self._levels()["durable"]}

    async def do_pickle(self, serial: int, name: str) -> None:
        """Store an object."""
        await self.task.pickle({"serial": serial}, name)

    async def do_close(self) -> dict[str, Any]:
        """Close the task."""
        task = self.task
        try:
            await task.aclose()
        finally:
            levels = self._levels()
            self._task, self._streamed = None, None
        return levels

    async def do_fault(self, **told: Any) -> None:
        """Let calls of the disk fail from now on."""
        self._disk.fail(**told)

    async def do_heal(self) -> None:
        """Let nothing fail any more."""
        self._disk.heal()

    async def do_mortal(
        self, nth: int, moment: str, after: str | None = None, seed: int = 0
    ) -> None:
        """Die at a call of the disk that is to come, by power cut if `after` is a folder."""
        if after is not None and isinstance(self._disk, PoweredDisk):
            self._disk.arm_power(Path(after), seed)
        self._disk.arm(nth, moment)

    async def do_power_cut(self, after: str, seed: int) -> None:
        """Lose the power now."""
        if isinstance(self._disk, PoweredDisk):
            self._disk.arm_power(Path(after), seed)
        await anyio.to_thread.run_sync(self._disk.die)


async def serve(line: socket.socket, root: Path, *, has_child: bool) -> None:
    """Do what is told on a socket, one JSON object a line, until it closes."""
    disk = MortalDisk() if has_child else PoweredDisk(root.parent)
    pending = b""
    line.setblocking(False)
    with use(disk):
        async with Storage(root, close_timeout=20.0) as storage:
            storage.subject_id = SUBJECT
            session = Session(storage, disk)
            while True:
                await anyio.wait_readable(line)
                pending += (data := line.recv(1 << 16))
                if not data:
                    return
                *lines, pending = pending.split(b"\n")
                for text in lines:
                    told = json.loads(text)
                    said = await session.answer(told.pop("do"), told)
                    line.sendall(json.dumps(said).encode() + b"\n")


def become(line: socket.socket, told: dict[str, Any]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    code, root = 1, Path(told["root"])
    try:
        anyio.run(lambda: serve(line, root, has_child=told["has_child"]), backend=told["backend"])
        code = 0
    except WriteFailed as error:  # the line is closed by now: nobody else can be told
        (root.parent / FAILED).write_text(json.dumps(error.trials))
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Fork a recorder for each socket that comes, until there will be no more."""
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 1)
        if not message:
            return
        line = socket.socket(fileno=descriptors[0])
        pid = os.fork()
        if pid == 0:
            control.close()
            become(line, json.loads(message))
        line.close()
        control.sendall(json.dumps({"pid": pid}).encode())


if __name__ == "__main__":
    main()
