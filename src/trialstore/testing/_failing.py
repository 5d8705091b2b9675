"""A disk whose n-th call of a kind fails."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, TypeVar

from trialstore import StorageError
from trialstore._ondisk.disk import Identity
from trialstore.testing._delays import check_kind
from trialstore.testing._watched import WatchedDisk, first_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from trialstore._ondisk.disk import Buffer
    from trialstore.testing._watched import Kind, Where

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Fault:
    """One thing that goes wrong; what `FailingDisk.fail` arms.

    Parameters
    ----------
    kind : Kind
        Which calls are counted.
    nth : int
        The first that fails, counted from 1 at the moment of arming.
    times : int or None
        How many fail from there on; None: all.
    code : int
        The errno.
    only : str
        Only calls whose file or folder has a name that fits this pattern (``"*.segment"``) are
        counted.
    moment : {'before', 'halfway', 'after'}
        ``before``: the call has no effect. ``halfway``: a write has written half of its bytes.
        ``after``: everything was done, and the error comes all the same.

    Attributes
    ----------
    seen : int
        Calls counted so far.
    hits : int
        How many of them failed.
    """

    kind: Kind
    nth: int = 1
    times: int | None = 1
    code: int = errno.EIO
    only: str = "*"
    moment: Literal["before", "halfway", "after"] = "before"
    seen: int = field(default=0, init=False)
    hits: int = field(default=0, init=False)

    def strikes(self, name: str) -> bool:
        """Count one call of its kind; whether that one fails."""
        if not fnmatchcase(name, self.only):
            return False
        self.seen += 1
        if self.seen < self.nth or (self.times is not None and self.hits >= self.times):
            return False
        self.hits += 1
        return True


class FailingDisk(WatchedDisk):
    """A disk that fails at chosen calls.

    Guarantee: exactly the calls that `fail` names raise OSError, everything else is the real disk.

    Parameters
    ----------
    kind : Kind, optional
        Arms a first fault, as `fail` does; without it nothing fails yet.
    nth, times, code, only, moment
        As for `fail`.
    short_writes : int, optional
        Each system call writes at most so many bytes; the recorder must go on by itself.
    forgets : bool, optional
        Behave like Linux after a failed sync: what had not been synced is dropped, while reading
        it back gives what was written and the next sync says that all is well. `drop_caches` then
        shows what is really on the disk.

    Attributes
    ----------
    calls : collections.Counter
        How many calls of each `Kind` were begun: from a run without faults a test learns every n.

    Raises
    ------
    StorageError
        If there is no such kind of call, or a number is below 1.

    Examples
    --------
    Whichever sync fails, the trial becomes durable:

    >>> import tempfile, anyio
    >>> from trialstore import Storage
    >>> async def experiment(root, nth):
    ...     async with Storage(root) as storage:
    ...         storage.subject_id = "p0"
    ...         async with storage.create_task("reach") as task:
    ...             disk.fail("sync", nth)
    ...             for target in range(3):
    ...                 receipt = await task.write({"target": target})
    ...                 await receipt.durable()
    ...             print(receipt.level.name)
    >>> for nth in (1, 2, 3):
    ...     with tempfile.TemporaryDirectory() as root, use(FailingDisk()) as disk:
    ...         anyio.run(experiment, root, nth)
    DURABLE
    DURABLE
    DURABLE
    """

    def __init__(
        self,
        kind: Kind | None = None,
        nth: int = 1,
        *,
        times: int | None = 1,
        code: int = errno.EIO,
        only: str = "*",
        moment: Literal["before", "halfway", "after"] = "before",
        short_writes: int | None = None,
        forgets: bool = False,
    ) -> None:
        if short_writes is not None and short_writes < 1:
            raise StorageError(f"short_writes={short_writes!r}: a write takes at least one byte")
        super().__init__()
        self.short_writes: int | None = short_writes
        self.forgets: bool = forgets
        self._faults: list[Fault] = []
        self._names: dict[int, str] = {}
        self._pages = threading.Lock()
        self._dirty: dict[Identity, list[range]] = {}
        self._dropped: dict[Identity, list[range]] = {}
        if kind is not None:
            self.fail(kind, nth, times=times, code=code, only=only, moment=moment)

    def fail(
        self,
        kind: Kind,
        nth: int = 1,
        *,
        times: int | None = 1,
        code: int = errno.EIO,
        only: str = "*",
        moment: Literal["before", "halfway", "after"] = "before",
    ) -> Fault:
        """Arm one more fault; calls are counted from now on.

        Parameters
        ----------
        kind, nth, times, code, only, moment
            As for `Fault`.

        Returns
        -------
        Fault
            Its `hits` tells whether it was met.

        Raises
        ------
        StorageError
            If there is no such kind of call, or a number is below 1.
        """
        check_kind(kind)
        if nth < 1 or (times is not None and times < 1):
            raise StorageError(f"calls are counted from 1: nth={nth!r}, times={times!r}")
        fault = Fault(kind, nth, times, code, only, moment)
        with self._counting:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """Take every fault back."""
        with self._counting:
            self._faults.clear()

    @property
    def failures(self) -> int:
        """How many calls have failed so far, by faults that are still armed."""
        return sum(fault.hits for fault in self._faults)

    def _around(
        self,
        kind: Kind,
        perform: Callable[[], T],
        *where: Where,
        partly: Callable[[], object] | None = None,
    ) -> T:
        fault = self._strike(kind, where)
        if fault is None:
            return super()._around(kind, perform, *where, partly=partly)
        with self._counting:
            self.calls[kind] += 1
        if fault.moment == "after":
            result = perform()
            if kind == "create" and isinstance(result, int):
                self.close(result)  # nobody will hear of this descriptor
        elif fault.moment == "halfway" and partly is not None:
            partly()
        raise OSError(fault.code, os.strerror(fault.code), self._name(where[-1]))

    def _strike(self, kind: Kind, where: Sequence[Where]) -> Fault | None:
        """Let every armed fault count this call; return one that is met by it."""
        with self._counting:
            name = self._name(where[-1])
            met = [fault for fault in self._faults if fault.kind == kind and fault.strikes(name)]
        return met[0] if met else None

    def _name(self, where: Where) -> str:
        if isinstance(where, int):
            return self._names.get(where, "")
        return where.name

    # --- what a call means for the faults ---------------------------------------------------------

    def create(self, path: Path) -> int:
        """As `Disk.create`; remembers which file a descriptor is."""
        fd = super().create(path)
        self._names[fd] = path.name
        with self._pages:
            # A new file may have the number of one that is gone.
            identity = _identity(fd)
            self._dirty.pop(identity, None)
            self._dropped.pop(identity, None)
        return fd

    def close(self, fd: int) -> None:
        """As `Disk.close`."""
        self._names.pop(fd, None)
        super().close(fd)

    def writev(self, fd: int, pieces: Sequence[Buffer]) -> int:
        """As `Disk.writev`, at most `short_writes` bytes."""
        if self.short_writes is not None:
            pieces = first_bytes(pieces, self.short_writes)
        return super().writev(fd, pieces)

    def write(self, fd: int, pieces: Sequence[Buffer]) -> None:
        """As `Disk.write`, unless it is to fail."""
        before = os.fstat(fd).st_size
        try:
            super().write(fd, pieces)
        finally:
            self._soil(fd, range(before, os.fstat(fd).st_size))

    def write_at(self, fd: int, data: Buffer, offset: int) -> None:
        """As `Disk.write_at`, unless it is to fail."""
        super().write_at(fd, data, offset)
        self._soil(fd, range(offset, offset + len(data)))

    def sync(self, fd: int) -> None:
        """As `Disk.sync`, unless it is to fail; with `forgets`, what was not synced is dropped."""
        with self._pages:
            unsynced = self._dirty.pop(_identity(fd), [])
        try:
            super().sync(fd)
        except OSError:
            if self.forgets:
                with self._pages:
                    self._dropped.setdefault(_identity(fd), []).extend(unsynced)
            raise

    def _soil(self, fd: int, span: range) -> None:
        if self.forgets and span:
            with self._pages:
                self._dirty.setdefault(_identity(fd), []).append(span)

    def drop_caches(self, folder: Path) -> list[Path]:
        """Show what a disk that `forgets` really holds: zeros where a failed sync dropped pages.

        As Linux does when it needs the memory, or at a power cut. Only bytes that no sync has made
        durable are touched.

        Parameters
        ----------
        folder : pathlib.Path
            Files below it are changed.

        Returns
        -------
        list of pathlib.Path
            The files that have lost bytes, sorted.
        """
        changed: list[Path] = []
        for path in sorted(folder.rglob("*")):
            status = path.lstat()
            with self._pages:
                spans = self._dropped.pop(Identity(status.st_dev, status.st_ino), [])
            if spans and path.is_file():
                with path.open("r+b") as file:
                    for span in spans:
                        file.seek(span.start)
                        file.write(bytes(len(span)))
                changed.append(path)
        return changed


def _identity(fd: int) -> Identity:
    status = os.fstat(fd)
    return Identity(status.st_dev, status.st_ino)
