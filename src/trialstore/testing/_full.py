"""A disk with little space left."""

from __future__ import annotations

import errno
import os
import stat
import threading
from typing import TYPE_CHECKING, TypeVar

from trialstore import StorageError
from trialstore.testing._watched import WatchedDisk, first_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from trialstore._ondisk.disk import Buffer
    from trialstore.testing._watched import Kind, Where

T = TypeVar("T")


class FullDisk(WatchedDisk):
    """A disk that takes a number of bytes and no more.

    Guarantee: of a write that does not fit, the bytes that do are in the file when the error comes;
    files grow by no more than `free` says, and what is removed or replaced gives its bytes back.

    Parameters
    ----------
    free : int
        Bytes that may still be written.
    code : int, optional
        What is said when there is no room: ``errno.ENOSPC``, or ``errno.EDQUOT`` for a quota.

    Raises
    ------
    StorageError
        If `free` is negative.

    Notes
    -----
    Folders and names take no space, but none can be made when not a byte is left. Bytes that pass
    the port by (locks, HDF5) are not counted.

    Examples
    --------
    >>> import tempfile, anyio
    >>> from trialstore import Storage
    >>> async def experiment(root):
    ...     async with Storage(root) as storage:
    ...         storage.subject_id = "p0"
    ...         async with storage.create_task("reach") as task:
    ...             disk.fill()
    ...             receipt = await task.write({"target": 3})
    ...             disk.add_space(1_000_000)
    ...             await receipt.durable()
    ...             print(receipt.level.name)
    >>> with tempfile.TemporaryDirectory() as root, use(FullDisk(free=1_000_000)) as disk:
    ...     anyio.run(experiment, root)
    DURABLE
    """

    def __init__(self, free: int, *, code: int = errno.ENOSPC) -> None:
        if free < 0:
            raise StorageError(f"free={free!r}: a disk cannot have less than nothing left")
        super().__init__()
        self.code: int = code
        self._free = free
        self._accounts = threading.RLock()

    @property
    def free(self) -> int:
        """Bytes that may still be written."""
        return self._free

    def add_space(self, n: int) -> None:
        """Make room for `n` more bytes."""
        with self._accounts:
            self._free += n

    def fill(self) -> None:
        """Take all the room that is left."""
        with self._accounts:
            self._free = 0

    def free_bytes(self, path: Path) -> int | None:
        """Bytes that may still be written: `free`."""
        return self._around("free_bytes", lambda: self._free, path)

    def write(self, fd: int, pieces: Sequence[Buffer]) -> None:
        """Write what fits.

        Raises
        ------
        OSError
            With `code`, after the bytes that fit, if there are more.
        """
        with self._accounts:
            size, room = sum(map(len, pieces)), self._free
            self._paying(fd, lambda: super(FullDisk, self).write(fd, first_bytes(pieces, room)))
            if size > room:
                raise self._refusal(f"descriptor {fd}")

    def write_at(self, fd: int, data: Buffer, offset: int) -> None:
        """Write in place; bytes behind the end of the file must fit.

        Raises
        ------
        OSError
            With `code`, if the file would have to grow by more than there is room for.
        """
        with self._accounts:
            if offset + len(data) - os.fstat(fd).st_size > self._free:
                raise self._refusal(f"descriptor {fd}")
            self._paying(fd, lambda: super(FullDisk, self).write_at(fd, data, offset))

    def allocate(self, path: Path, nbytes: int) -> None:
        """Take room for a file, whole or not at all.

        Raises
        ------
        OSError
            With `code`, if there is not so much.
        """
        with self._accounts:
            if nbytes > self._free:
                raise self._refusal(str(path))
            super().allocate(path, nbytes)
            self._free -= nbytes

    def _around(
        self,
        kind: Kind,
        perform: Callable[[], T],
        *where: Where,
        partly: Callable[[], object] | None = None,
    ) -> T:
        with self._accounts:
            if kind in {"create", "add_folder"} and self._free <= 0:
                raise self._refusal(str(where[0]))
            # What goes away: a removed file, or one that another is renamed over.
            freed = _last_bytes(where[-1]) if kind in {"remove", "rename"} else 0
            result = super()._around(kind, perform, *where, partly=partly)
            self._free += freed
            return result

    def _paying(self, fd: int, write: Callable[[], None]) -> None:
        before = os.fstat(fd).st_size
        try:
            write()
        finally:
            self._free -= max(0, os.fstat(fd).st_size - before)

    def _refusal(self, what: str) -> OSError:
        return OSError(self.code, os.strerror(self.code), what)


def _last_bytes(where: Where) -> int:
    """Bytes that come free when this name goes: none while a file has other names."""
    if isinstance(where, int):
        return 0
    try:
        status = where.lstat()
    except OSError:
        return 0
    is_last_name = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
    return status.st_size if is_last_name else 0
