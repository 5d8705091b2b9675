"""Reading a file some sectors of which the disk cannot read."""

from __future__ import annotations

import errno
import os
from bisect import bisect_left, insort
from typing import TYPE_CHECKING, Final

from trialstore._errors import DamagedData
from trialstore._ondisk import disk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: What a disk reads, or fails to read, as one.
SECTOR: Final = 512
#: Beyond so many unreadable sectors a disk is not asked for every single one of the others: each
#: question may take it seconds.
_SECTORS_TRIED: Final = 4096
#: Some thirty rows of a table; less than a hundredth of a frame of samples.
_BLOCK_BYTES: Final = 1 << 14


class SectorFile:
    """A regular file, open for reading; what cannot be read are zeros.

    Guarantee: every byte of a sector that the disk can read is given as it is; a failed sector is
    asked for once.

    Parameters
    ----------
    path : pathlib.Path
        The file; links and devices are refused.

    Raises
    ------
    FileNotFoundError
        If it is gone.
    DamagedData
        If it cannot be opened, or is a link or no regular file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failed: list[int] = []
        self._disk = disk.current()
        self._fd = -1
        try:
            self._fd = disk.open_reading(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DamagedData(f"{str(path)!r} cannot be opened: {error}", path) from error

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()

    def size(self) -> int:
        """Bytes in the file now."""
        return os.fstat(self._fd).st_size

    def stands_at(self, path: Path) -> bool:
        """Whether the file at a path is this one: names are given again."""
        return self._is_at(path) is True

    def is_replaced_at(self, path: Path) -> bool:
        """Whether the file at a path is another one."""
        return self._is_at(path) is False

    def _is_at(self, path: Path) -> bool | None:
        try:
            here, there = os.fstat(self._fd), path.lstat()
        except OSError:
            return None
        return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)

    def read(self, offset: int, length: int) -> bytes:
        """Read at most `length` bytes from `offset`; fewer only at the end of the file.

        Raises
        ------
        DamagedData
            If the file cannot be read at all.
        """
        pieces: list[bytes] = []
        end = offset + length
        # Linux gives at most 2 GiB in one call, and fewer bytes in front of a bad sector.
        while offset < end and (piece := self._piece(offset, end - offset)):
            pieces.append(piece)
            offset += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def has_failed(self, start: int, end: int) -> bool:
        """Whether a sector among these bytes is known to be unreadable."""
        place = bisect_left(self._failed, start // SECTOR)
        return place < len(self._failed) and self._failed[place] * SECTOR < end

    def _piece(self, offset: int, length: int) -> bytes:
        if not self.has_failed(offset, offset + length):
            try:
                return self._disk.read_at(self._fd, length, offset)
            except OSError as error:
                if error.errno != errno.EIO:
                    reason = f"{str(self._path)!r} cannot be read: {error}"
                    raise DamagedData(reason, self._path) from error
        return self._around(offset, min(length, self.size() - offset))

    def _around(self, offset: int, length: int) -> bytes:
        """Read what can be read of bytes that cannot be read as one, half by half."""
        if length <= 0:
            return b""
        first, end = offset // SECTOR, -(-(offset + length) // SECTOR)
        if end - first == 1 or len(self._failed) >= _SECTORS_TRIED:
            if not self.has_failed(offset, offset + 1):
                insort(self._failed, first)
            return bytes(length)
        middle = (first + end) // 2 * SECTOR
        return self.read(offset, middle - offset) + self.read(middle, offset + length - middle)


class ReadAhead:
    """Gives bytes out of blocks, where many small pieces follow one another; for one look only.

    What the file gains or loses meanwhile is seen or not, as by any other order of reading.

    Parameters
    ----------
    read : callable
        ``read(offset, length)``, as `SectorFile.read`.
    """

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        self._read = read
        self._block = b""
        self._start = 0

    def __call__(self, offset: int, length: int) -> bytes:
        """Read at most `length` bytes from `offset`; fewer only at the end of the file."""
        at = offset - self._start
        if at < 0 or at + length > len(self._block):
            if length >= _BLOCK_BYTES:
                return self._read(offset, length)
            self._block, self._start, at = self._read(offset, _BLOCK_BYTES), offset, 0
        return self._block[at : at + length]
