"""The only door to fsync, rename and exclusive creation.

Everything the recording process does to a disk goes through a `Disk`, so that tests and
`trialstore.testing` can put a slow, full, failing or cut one in its place (`use`). Every method
blocks and is called from the one worker thread; none touches the event loop.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
import time
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    Buffer = bytes | bytearray | memoryview

if sys.platform != "win32":
    import fcntl

#: POSIX promises at least 16, Linux and macOS take 1024 (limits.h, IOV_MAX).
_PIECES_PER_CALL: Final = 1024

#: For reading as well: a journal that was deleted under its writer is read back through this.
_CREATE: Final = (
    os.O_RDWR
    | os.O_CREAT
    | os.O_EXCL
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_BINARY", 0)
)
_READ: Final = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_BINARY", 0)
)

#: A spreadsheet or a sync client may hold a file for a moment; Windows then refuses to replace it.
_REPLACE_PATIENCE: Final = 2.0


_COPY_BYTES: Final = 1 << 20
#: Where descriptors of ours begin. Linux lets a process have 1024 unless told otherwise, macOS 256.
_HIGH_NUMBERS: Final = (600, 150)


class Identity(NamedTuple):
    """Which file this really is, whatever it is called by now."""

    device: int
    inode: int


class Disk:
    """The real disk. Subclasses put faults in; each method says what it promises.

    Every method raises OSError as the operating system gave it.
    """

    #: Whether a child process sees the same disk. Where it would not, tasks are published in this
    #: process, at their end.
    reaches_children: bool = True

    def make_folder(self, path: Path) -> bool:
        """Create one folder and make its entry durable; return False if it was there."""
        is_new = self.add_folder(path)
        try:
            # Of one that was there, too: who made it may have been killed before this.
            self.sync_folder(path.parent)
        except OSError as error:
            if is_new:
                # Found there by the next attempt, it would look like one that is safe.
                with contextlib.suppress(OSError):
                    self.remove_folder(path)
            elif isinstance(error, PermissionError):
                return False  # a parent that we may not read is none that we have written to
            raise
        return is_new

    def add_folder(self, path: Path) -> bool:
        """Create one folder, its entry not yet durable; return False if it was there."""
        try:
            path.mkdir()
        except FileExistsError:
            if not path.is_dir():
                raise
            return False
        return True

    def make_folders(self, path: Path) -> None:
        """Create a folder and its parents, each entry durable before the next is made."""
        if not path.parent.is_dir():
            self.make_folders(path.parent)
        self.make_folder(path)

    def create(self, path: Path) -> int:
        """Create a new file for writing; never opens one that exists, never follows a link."""
        return _out_of_the_way(os.open(path, _CREATE, 0o666))

    def write(self, fd: int, pieces: Sequence[Buffer]) -> None:
        """Append every byte of `pieces`; goes on after a short write.

        A short write comes before ENOSPC, so the next turn meets the error itself. The pieces go to
        the kernel as they are: joining them first would hold the interpreter lock.
        """
        if not hasattr(os, "writev"):  # pragma: no cover - Windows only
            for piece in pieces:
                self._write_all(fd, memoryview(piece).cast("B"))
            return
        queue = [piece for piece in pieces if len(piece)]
        start = 0
        while start < len(queue):
            batch = queue[start : start + _PIECES_PER_CALL]
            written = self.writev(fd, batch)
            for piece in batch:
                if written < len(piece):
                    queue[start] = memoryview(piece).cast("B")[written:]
                    break
                written -= len(piece)
                start += 1

    def writev(self, fd: int, pieces: Sequence[Buffer]) -> int:
        """One system call; returns how many bytes it took."""
        return os.writev(fd, pieces)

    def _write_all(self, fd: int, data: memoryview) -> None:  # pragma: no cover - Windows only
        while data:
            data = data[os.write(fd, data) :]

    def write_at(self, fd: int, data: Buffer, offset: int) -> None:
        """Overwrite a few bytes in place (the witness); atomic enough for one sector."""
        if hasattr(os, "pwrite"):
            os.pwrite(fd, data, offset)
            return
        os.lseek(fd, offset, os.SEEK_SET)  # pragma: no cover - Windows only
        os.write(fd, data)  # pragma: no cover - Windows only

    def read_at(self, fd: int, length: int, offset: int) -> bytes:
        """Read at most `length` bytes from `offset`; fewer only at the end of the file."""
        if hasattr(os, "pread"):
            return os.pread(fd, length, offset)
        os.lseek(fd, offset, os.SEEK_SET)  # pragma: no cover - Windows only
        return os.read(fd, length)  # pragma: no cover - Windows only

    def allocate(self, path: Path, nbytes: int) -> None:
        """Create a file that takes up `nbytes` of the disk's free space; its bytes say nothing."""
        fd = self.create(path)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, nbytes)
            else:  # pragma: no cover - macOS and Windows only
                self.write(fd, [bytes(nbytes)])
        except OSError:
            self.remove(path)
            raise
        finally:
            self.close(fd)

    def sync(self, fd: int) -> None:
        """Make the file's bytes durable; after an error nothing may be believed about them."""
        if sys.platform == "darwin":  # pragma: no cover - macOS only
            # fsync on macOS leaves the bytes in the drive's cache; F_FULLFSYNC is refused by some
            # network file systems, where plain fsync is all there is.
            try:
                fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            except OSError:
                os.fsync(fd)
            return
        getattr(os, "fdatasync", os.fsync)(fd)

    def sync_folder(self, path: Path) -> None:
        """Make the entries of a folder durable; Windows has no such call and needs none."""
        if sys.platform == "win32":  # pragma: no cover - Windows only
            return
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(fd)
        except OSError as error:
            # Some network and FUSE file systems have no fsync for folders.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(fd)

    def replace(self, source: Path, target: Path) -> None:
        """Rename `source` over `target` and make it durable; nobody ever sees half of either."""
        self.rename(source, target)
        self.sync_folder(target.parent)
        if source.parent != target.parent:
            self.sync_folder(source.parent)

    def rename(self, source: Path, target: Path) -> None:
        """Rename `source` over `target`, not yet durably."""
        end = time.monotonic() + _REPLACE_PATIENCE
        while True:
            try:
                source.replace(target)
                break
            except PermissionError:
                if os.name != "nt" or time.monotonic() > end:
                    raise
                time.sleep(0.05)  # pragma: no cover - Windows only

    def link(self, source: Path, target: Path) -> None:
        """Let `target` keep the present bytes of `source`, which is only ever replaced by rename.

        A hard link costs nothing; where the file system has none (exFAT), or the system cannot make
        one without following links, the bytes are copied.
        """
        self.remove(target)
        try:
            os.link(source, target, follow_symlinks=False)
        except (OSError, NotImplementedError):
            shutil.copyfile(source, target, follow_symlinks=False)

    def remove(self, path: Path) -> None:
        """Remove one file of ours; its being gone already is fine."""
        path.unlink(missing_ok=True)

    def remove_folder(self, path: Path) -> None:
        """Remove one empty folder of ours."""
        path.rmdir()

    def identity(self, fd: int) -> Identity:
        """Which file a descriptor really is: stray code may have closed it and opened another."""
        status = os.fstat(fd)
        return Identity(status.st_dev, status.st_ino)

    def size(self, fd: int) -> int:
        """Bytes in an open file."""
        return os.fstat(fd).st_size

    def names_of(self, fd: int) -> int:
        """How many names lead to an open file; 0 after it was deleted."""
        return os.fstat(fd).st_nlink

    def identity_at(self, path: Path) -> Identity | None:
        """Which file stands at a path, or None."""
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return None
        return Identity(status.st_dev, status.st_ino)

    def free_bytes(self, path: Path) -> int | None:
        """Bytes this user may still write at `path`; None where the system does not say."""
        if not hasattr(os, "statvfs"):  # pragma: no cover - Windows only
            return None
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize

    def close(self, fd: int) -> None:
        """Close a descriptor; errors at close say nothing that sync did not."""
        with contextlib.suppress(OSError):
            os.close(fd)

    def write_file(self, path: Path, data: Buffer, *, beside: Path | None = None) -> None:
        """Put a whole new file at `path`: written beside, synced, renamed, folder synced."""
        temporary = beside or path.with_name(f".{path.name}.{os.getpid()}.building")
        self.remove(temporary)
        fd = self.create(temporary)
        try:
            try:
                self.write(fd, [data])
                self.sync(fd)
            finally:
                self.close(fd)
            self.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                self.remove(temporary)
            raise


def _out_of_the_way(fd: int) -> int:
    """Give a descriptor a high number, where there are such.

    Stray code that closes a number of ours by mistake then opens files on the lowest that are free
    (POSIX, open), never on ours: our next write fails, and harms nobody.
    """
    if sys.platform != "win32":
        for least in _HIGH_NUMBERS:
            try:
                high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)
            except OSError:  # more than this process may have
                continue
            os.close(fd)
            return high
    return fd


def open_reading(path: Path) -> int:
    """Open a regular file for reading; links and devices are refused.

    Raises
    ------
    OSError
        If it is not there, is a link (ELOOP) or is no regular file (EINVAL).
    """
    fd = os.open(path, _READ | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


def read_file(path: Path, limit: int | None = None) -> bytes:
    """Read a whole regular file, at most `limit` bytes; links and devices are refused."""
    with open(open_reading(path), "rb") as file:
        return file.read() if limit is None else file.read(limit)


def copy_file(port: Disk, source: Path, target: Path) -> None:
    """Copy a regular file to a new one; what is a link or a device, or is there, is refused.

    Not `shutil.copyfile`: it would either follow a link, or make one that HDF5 would then follow
    and write to.

    Raises
    ------
    OSError
        As `open_reading` and `Disk.create`.
    """
    with (
        os.fdopen(open_reading(source), "rb") as reader,
        os.fdopen(port.create(target), "wb") as writer,
    ):
        shutil.copyfileobj(reader, writer, _COPY_BYTES)


_current = Disk()


def current() -> Disk:
    """Return the disk that a `Storage` entered now would use."""
    return _current


@contextlib.contextmanager
def use(disk: Disk) -> Iterator[Disk]:
    """Let every `Storage` entered inside the block write through `disk`, as tests do."""
    global _current
    before, _current = _current, disk
    try:
        yield disk
    finally:
        _current = before
