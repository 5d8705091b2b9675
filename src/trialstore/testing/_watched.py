"""What all test disks share: every call of the port goes through one method."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from typing import TYPE_CHECKING, Final, Literal, TypeVar, get_args

from trialstore._ondisk import disk as port
from trialstore._ondisk.disk import Disk, Identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import TypeAlias

    from trialstore._ondisk.disk import Buffer

    #: A path, or the descriptor of an open file.
    Where: TypeAlias = Path | int

#: What a recorder asks of a disk. Calls that consist of others count as those: ``replace`` is a
#: ``rename`` and one or two ``sync_folder``, ``make_folder`` an ``add_folder`` and a
#: ``sync_folder``, ``write_file`` a ``create``, ``write``, ``sync`` and ``replace``.
Kind = Literal[
    "add_folder",
    "create",
    "write",
    "write_at",
    "read_at",
    "allocate",
    "sync",
    "sync_folder",
    "rename",
    "link",
    "remove",
    "remove_folder",
    "identity",
    "names_of",
    "size",
    "identity_at",
    "free_bytes",
]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

T = TypeVar("T")
D = TypeVar("D", bound=Disk)


class WatchedDisk(Disk):
    """The real disk, counting what is asked of it; the base of all test disks.

    Guarantee: every call of a `Kind` passes `_around`, in the order in which it takes effect.

    Attributes
    ----------
    calls : collections.Counter
        How many calls of each `Kind` were begun.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> disk = WatchedDisk()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     disk.write_file(Path(folder) / "note.txt", b"hello")
    >>> disk.calls["sync"], disk.calls["rename"], disk.calls["sync_folder"]
    (1, 1, 1)
    """

    def __init__(self) -> None:
        self.calls: Counter[Kind] = Counter()
        self._counting = threading.Lock()

    def release(self) -> None:
        """Let every call return that this disk holds up, now and from now on."""

    def _around(
        self,
        kind: Kind,
        perform: Callable[[], T],
        *where: Where,
        partly: Callable[[], object] | None = None,
    ) -> T:
        """Do one call; `partly` does a part of it, where that is possible."""
        with self._counting:
            self.calls[kind] += 1
        return perform()

    def add_folder(self, path: Path) -> bool:
        """As `Disk.add_folder`."""
        return self._around("add_folder", lambda: super(WatchedDisk, self).add_folder(path), path)

    def create(self, path: Path) -> int:
        """As `Disk.create`."""
        return self._around("create", lambda: super(WatchedDisk, self).create(path), path)

    def write(self, fd: int, pieces: Sequence[Buffer]) -> None:
        """As `Disk.write`: the whole of it is one call."""
        real = super().write
        half = sum(map(len, pieces)) // 2
        self._around(
            "write",
            lambda: real(fd, pieces),
            fd,
            partly=lambda: real(fd, first_bytes(pieces, half)),
        )

    def write_at(self, fd: int, data: Buffer, offset: int) -> None:
        """As `Disk.write_at`."""
        real = super().write_at
        self._around(
            "write_at",
            lambda: real(fd, data, offset),
            fd,
            partly=lambda: real(fd, data[: len(data) // 2], offset),
        )

    def read_at(self, fd: int, length: int, offset: int) -> bytes:
        """As `Disk.read_at`."""
        return self._around(
            "read_at", lambda: super(WatchedDisk, self).read_at(fd, length, offset), fd
        )

    def allocate(self, path: Path, nbytes: int) -> None:
        """As `Disk.allocate`, which creates a file."""
        self._around("allocate", lambda: super(WatchedDisk, self).allocate(path, nbytes), path)

    def sync(self, fd: int) -> None:
        """As `Disk.sync`."""
        self._around("sync", lambda: super(WatchedDisk, self).sync(fd), fd)

    def sync_folder(self, path: Path) -> None:
        """As `Disk.sync_folder`."""
        self._around("sync_folder", lambda: super(WatchedDisk, self).sync_folder(path), path)

    def rename(self, source: Path, target: Path) -> None:
        """As `Disk.rename`."""
        real = super().rename
        self._around("rename", lambda: real(source, target), source, target)

    def link(self, source: Path, target: Path) -> None:
        """As `Disk.link`."""
        self._around("link", lambda: super(WatchedDisk, self).link(source, target), source, target)

    def remove(self, path: Path) -> None:
        """As `Disk.remove`."""
        self._around("remove", lambda: super(WatchedDisk, self).remove(path), path)

    def remove_folder(self, path: Path) -> None:
        """As `Disk.remove_folder`."""
        self._around("remove_folder", lambda: super(WatchedDisk, self).remove_folder(path), path)

    def identity(self, fd: int) -> Identity:
        """As `Disk.identity`."""
        return self._around("identity", lambda: super(WatchedDisk, self).identity(fd), fd)

    def size(self, fd: int) -> int:
        """As `Disk.size`."""
        return self._around("size", lambda: super(WatchedDisk, self).size(fd), fd)

    def names_of(self, fd: int) -> int:
        """As `Disk.names_of`."""
        return self._around("names_of", lambda: super(WatchedDisk, self).names_of(fd), fd)

    def identity_at(self, path: Path) -> Identity | None:
        """As `Disk.identity_at`."""
        return self._around("identity_at", lambda: super(WatchedDisk, self).identity_at(path), path)

    def free_bytes(self, path: Path) -> int | None:
        """As `Disk.free_bytes`."""
        return self._around("free_bytes", lambda: super(WatchedDisk, self).free_bytes(path), path)


@contextlib.contextmanager
def use(disk: D) -> Iterator[D]:
    """Let every `Storage` entered inside the block write through `disk`.

    Guarantee: leaving the block releases whatever the disk holds up, so that a test has an end.

    Parameters
    ----------
    disk : Disk
        Any disk of this package, or one of your own.

    Yields
    ------
    Disk
        `disk` itself.

    Examples
    --------
    >>> import tempfile, anyio
    >>> from trialstore import Storage
    >>> async def experiment(root):
    ...     async with Storage(root) as storage:
    ...         storage.subject_id = "p0"
    ...         async with storage.create_task("reach") as task:
    ...             await (await task.write({"target": 3})).durable()
    >>> with tempfile.TemporaryDirectory() as root, use(WatchedDisk()) as disk:
    ...     anyio.run(experiment, root)
    >>> disk.calls["sync"] > 0
    True
    """
    with port.use(disk):
        try:
            yield disk
        finally:
            if isinstance(disk, WatchedDisk):
                disk.release()


def first_bytes(pieces: Sequence[Buffer], count: int) -> list[Buffer]:
    """Return the first `count` bytes of `pieces`, as pieces."""
    kept: list[Buffer] = []
    for piece in pieces:
        part = memoryview(piece).cast("B")[:count]
        kept.append(part)
        count -= len(part)
    return kept
