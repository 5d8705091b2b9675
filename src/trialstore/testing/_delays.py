"""Disks that take their time: a slow one, and one that does not answer."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

from trialstore import StorageError
from trialstore.testing._watched import KINDS, WatchedDisk

if TYPE_CHECKING:
    from collections.abc import Callable

    from trialstore.testing._watched import Kind, Where

T = TypeVar("T")


class SlowDisk(WatchedDisk):
    """A disk that waits before each write and each sync.

    Guarantee: a call waits as long as was set when it began, or until `release`.

    Parameters
    ----------
    write : float, optional
        Seconds before each write.
    sync : float, optional
        Seconds before each sync, of a file or a folder.

    Attributes
    ----------
    write_seconds, sync_seconds : float
        May be changed at any time, from any thread.

    Raises
    ------
    StorageError
        If a time is negative.

    Examples
    --------
    >>> import tempfile, anyio
    >>> from trialstore import Storage
    >>> async def experiment(root):
    ...     async with Storage(root) as storage:
    ...         storage.subject_id = "p0"
    ...         async with storage.create_task("reach") as task:
    ...             disk.sync_seconds = 0.05
    ...             receipt = await task.write({"target": 3})
    ...             print(receipt.level.name)
    >>> with tempfile.TemporaryDirectory() as root, use(SlowDisk()) as disk:
    ...     anyio.run(experiment, root)
    ACCEPTED
    """

    def __init__(self, write: float = 0.0, sync: float = 0.0) -> None:
        if write < 0 or sync < 0:
            raise StorageError(f"seconds must not be negative: write={write!r}, sync={sync!r}")
        super().__init__()
        self.write_seconds: float = write
        self.sync_seconds: float = sync
        self._released = threading.Event()

    def release(self) -> None:
        """End every delay, now and from now on."""
        self._released.set()

    def _around(
        self,
        kind: Kind,
        perform: Callable[[], T],
        *where: Where,
        partly: Callable[[], object] | None = None,
    ) -> T:
        if kind in {"write", "write_at"}:
            self._released.wait(self.write_seconds)
        elif kind in {"sync", "sync_folder"}:
            self._released.wait(self.sync_seconds)
        return super()._around(kind, perform, *where, partly=partly)


class HungDisk(WatchedDisk):
    """A disk whose calls do not return, from one of them on, until `release`.

    Guarantee: a call that hangs has had no effect; it takes effect when it is released.

    Parameters
    ----------
    kind : Kind, optional
        Calls that may hang; without it, all of them.
    nth : int, optional
        The first call that hangs, counted from 1. Without it none does before `hang`.

    Attributes
    ----------
    hung : threading.Event
        Set as soon as a call hangs, for a test to wait for.

    Raises
    ------
    StorageError
        If there is no such kind of call, or `nth` is below 1.

    Examples
    --------
    >>> import tempfile, anyio, anyio.to_thread
    >>> from trialstore import Storage
    >>> async def experiment(root):
    ...     async with Storage(root) as storage:
    ...         storage.subject_id = "p0"
    ...         async with storage.create_task("reach") as task:
    ...             disk.hang()
    ...             receipt = await task.write({"target": 3})
    ...             await anyio.to_thread.run_sync(disk.hung.wait)
    ...             print(receipt.level.name)
    ...             disk.release()
    ...             await receipt.durable()
    ...             print(receipt.level.name)
    >>> with tempfile.TemporaryDirectory() as root, use(HungDisk("sync")) as disk:
    ...     anyio.run(experiment, root)
    ACCEPTED
    DURABLE
    """

    def __init__(self, kind: Kind | None = None, nth: int | None = None) -> None:
        if kind is not None:
            check_kind(kind)
        if nth is not None and nth < 1:
            raise StorageError(f"calls are counted from 1, not {nth!r}")
        super().__init__()
        self.hung: threading.Event = threading.Event()
        self._kind = kind
        self._nth = nth
        self._seen = 0
        self._open = threading.Event()
        self._changing = threading.Lock()

    def hang(self) -> None:
        """Let every call (of the kind, if one was given) hang from now on."""
        with self._changing:
            self._open = threading.Event()
            self._nth = self._seen + 1
            self.hung.clear()

    def release(self) -> None:
        """Let the calls that hang take effect and return; none hangs after that, until `hang`."""
        with self._changing:
            self._nth = None
            self._open.set()

    def _around(
        self,
        kind: Kind,
        perform: Callable[[], T],
        *where: Where,
        partly: Callable[[], object] | None = None,
    ) -> T:
        if self._kind in {None, kind}:
            with self._changing:
                self._seen += 1
                gate = self._open if self._nth is not None and self._seen >= self._nth else None
            if gate is not None:
                self.hung.set()
                gate.wait()
        return super()._around(kind, perform, *where, partly=partly)


def check_kind(kind: str) -> None:
    """Raise StorageError unless there is such a kind of call.

    Raises
    ------
    StorageError
        If there is none; the message names those that there are.
    """
    if kind not in KINDS:
        raise StorageError(f"a disk has no call {kind!r}; it has {', '.join(KINDS)}")
