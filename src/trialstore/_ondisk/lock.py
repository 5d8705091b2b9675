"""One writer per task: a lock that the kernel takes back when its holder dies.

``flock``, because POSIX ``lockf`` is lost as soon as any code of the process opens and closes the
file. The text inside (host, process, since when) is for the message only; the kernel's lock
decides.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import stat
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

from trialstore._errors import TaskLocked
from trialstore._ondisk.disk import Identity, open_reading, read_file

if TYPE_CHECKING:
    from pathlib import Path

if sys.platform == "win32":  # pragma: no cover - Windows only
    import msvcrt
else:
    import fcntl

#: A reader that asks whether a task is being recorded holds the lock for microseconds.
_PATIENCE: Final = 0.25
#: Not to wait for the other end where somebody has put a pipe in the lock's place.
_FLAGS: Final = (
    getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_NONBLOCK", 0)
)
#: More than any text of ours.
_TEXT_BYTES: Final = 4096
#: Windows locks bytes, and locked bytes cannot be read: so lock one far behind the text.
_FAR: Final = 1 << 30

Role = Literal["recorder", "publisher"]


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a lock, as far as the text in it says."""

    host: str
    pid: int
    since: str
    role: str

    def __str__(self) -> str:
        return f"the {self.role} on host {self.host!r}, process {self.pid}, since {self.since}"


class Lock:
    """An exclusive lock that is held until `release`, or until this process ends."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd: int | None = fd
        self._identity = _identity(fd)
        self._pid = os.getpid()

    @property
    def held(self) -> bool:
        """Whether this object still holds the lock, and the file at its path is the locked one."""
        return self._fd is not None and _same_file(self._fd, self.path)

    def become(self, fresh: Lock) -> None:
        """Go on with a lock that was taken again at the same path."""
        self.release()
        self._fd, fresh._fd = fresh._fd, None
        self._identity = fresh._identity

    def release(self) -> None:
        """Give the lock back; the file stays, so that nobody locks a file that is just going.

        A descriptor that stray code has closed, and that may be another file's by now, is left
        alone.
        """
        fd, self._fd = self._fd, None
        if fd is not None and _identity(fd) == self._identity:
            os.close(fd)

    def forget_after_fork(self) -> None:
        """In a forked child: close the descriptor, or the child would keep the lock alive."""
        if os.getpid() != self._pid:
            self.release()


def acquire(path: Path, role: Role, patience: float = _PATIENCE) -> Lock:
    """Take the lock at `path`, creating the file if need be.

    Guarantee: at most one living process on this machine holds the lock of the file that stands at
    `path`, and no file that has another name too is written to.

    Raises
    ------
    TaskLocked
        If another process holds it after `patience` seconds; the message names host, process and
        since when.
    OSError
        If the file cannot be opened, or is a link or no regular file.
    """
    end = time.monotonic() + patience
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "the lock is not a regular file", str(path))
            # A publisher may move the whole journal away between our open and our lock.
            if _try_lock(fd, exclusive=True) and _same_file(fd, path):
                if not _has_other_name(fd):
                    _sign(fd, role)
                    return Lock(path, fd)
                # Signing would overwrite a file that somebody has linked here. As we have its lock,
                # nobody else can believe to have the lock of this path while we take it away.
                path.unlink()
                end = time.monotonic() + max(patience, _PATIENCE)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        if time.monotonic() > end:
            user = _read_holder(path) or "another process"
            raise TaskLocked(f"{str(path.parent.parent)!r} is in use by {user}")
        time.sleep(0.005)


def holder(path: Path) -> Holder | None:
    """Say who holds the lock at `path`, or None if nobody does. Writes nothing, never waits."""
    try:
        fd = open_reading(path)
    except OSError:
        return None
    try:
        if _try_lock(fd, exclusive=False):
            return None
        return _read_holder(path) or Holder("unknown", 0, "unknown", "recorder")
    finally:
        os.close(fd)


def _try_lock(fd: int, *, exclusive: bool) -> bool:
    try:
        if sys.platform == "win32":  # pragma: no cover - Windows only
            os.lseek(fd, _FAR, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            return False
        raise
    return True


def _identity(fd: int) -> Identity | None:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return Identity(status.st_dev, status.st_ino)


def _same_file(fd: int, path: Path) -> bool:
    try:
        there = os.lstat(path)
    except OSError:
        return False
    return _identity(fd) == Identity(there.st_dev, there.st_ino)


def _has_other_name(fd: int) -> bool:
    # Windows refuses to take away a file that is open, and links need rights there.
    return os.name != "nt" and os.fstat(fd).st_nlink > 1


def _sign(fd: int, role: Role) -> None:
    text = json.dumps(
        {
            "host": platform.node(),
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "role": role,
        }
    ).encode()
    os.lseek(fd, 0, os.SEEK_SET)
    os.ftruncate(fd, 0)
    os.write(fd, text)


def _read_holder(path: Path) -> Holder | None:
    try:
        found = json.loads(read_file(path, _TEXT_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    match found:
        case {
            "host": str(host),
            "pid": int(pid),
            "since": str(since),
            "role": "recorder" | "publisher" as role,
        } if since.isprintable():
            return Holder(host, pid, since, role)
    return None
