"""A FUSE file system that shows a folder, and whose disk stops answering when it is told to.

``python -m tests.campaign.hungfuse FOLDER MOUNTPOINT GATE``: while the file GATE is there, writing
calls do not return.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path
from typing import Any

import mfusepy


class HungFolder(mfusepy.Operations):  # type: ignore[misc] # the library is not typed
    """Passes everything on to a folder; writing calls wait while the gate is there."""

    use_ns = True

    def __init__(self, folder: str, gate: str) -> None:
        self._folder = folder
        self._gate = Path(gate)

    def _real(self, path: str) -> str:
        return self._folder + path

    def _wait(self) -> None:
        while self._gate.exists():
            time.sleep(0.01)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        status = os.lstat(self._real(path))
        names = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid")
        times = {name: getattr(status, f"{name}_ns") for name in ("st_atime", "st_mtime")}
        return {**{name: getattr(status, name) for name in names}, **times}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self._real(path))]  # noqa: PTH208 - bare names

    def open(self, path: str, flags: int) -> int:
        return os.open(self._real(path), flags)

    def create(self, path: str, mode: int, fi: object = None) -> int:
        self._wait()
        return os.open(self._real(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._wait()
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        self._wait()
        os.truncate(self._real(path), length)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._wait()
        os.fsync(fh)
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        self._wait()
        return 0

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def mkdir(self, path: str, mode: int) -> None:
        self._wait()
        os.mkdir(self._real(path), mode)  # noqa: PTH102 - as the kernel gives it

    def rmdir(self, path: str) -> None:
        os.rmdir(self._real(path))  # noqa: PTH106 - as the kernel gives it

    def unlink(self, path: str) -> None:
        os.unlink(self._real(path))  # noqa: PTH108 - as the kernel gives it

    def rename(self, old: str, new: str) -> None:
        self._wait()
        os.replace(self._real(old), self._real(new))  # noqa: PTH105 - as the kernel gives it

    def statfs(self, path: str) -> dict[str, int]:
        status = os.statvfs(self._real(path))
        names = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_files", "f_ffree", "f_frsize")
        return {name: getattr(status, name) for name in names}

    def link(self, target: str, source: str) -> None:
        raise mfusepy.FuseOSError(errno.EPERM)


def main() -> None:
    """Mount, in the foreground."""
    folder, mountpoint, gate = sys.argv[1:]
    mfusepy.FUSE(HungFolder(folder, gate), mountpoint, foreground=True, nothreads=False)


if __name__ == "__main__":
    main()
