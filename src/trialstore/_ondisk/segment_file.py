"""The reading end of one segment: frames as they come, each looked at once."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trialstore._errors import DamagedData
from trialstore._ondisk import journal, layout, witness
from trialstore._ondisk.disk import open_reading, read_file
from trialstore._ondisk.journal import HEADER_SIZE, Frame, Gap, Tail

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trialstore._ondisk.losses import LossKind

#: A description longer than this is not ours: 100 000 attributes would be shorter.
_META_LIMIT: Final = 1 << 28


@dataclass(frozen=True, slots=True)
class Damage:
    """Frames that should be there and are not whole.

    Parameters
    ----------
    file : str
        Name of the segment.
    first_seq, last_seq : int
        Numbers of the frames concerned; none if ``last_seq < first_seq``. ``first_seq`` is 0 where
        the segment itself does not tell it.
    byte_range : tuple of int
        Where in the segment, first byte and byte after the last.
    evidence : str
        How it is known.
    kind : {'damaged', 'missing'}
        Whether the bytes are there.
    """

    file: str
    first_seq: int
    last_seq: int
    byte_range: tuple[int, int]
    evidence: str
    kind: LossKind = "damaged"


@dataclass(frozen=True, slots=True)
class Whole:
    """A frame whose header and description fit their checksums; its samples are not looked at."""

    frame: Frame
    meta: bytes


class SegmentFile:
    """Follows one segment. Reads only; a descriptor stays open so that a rename does not matter.

    Parameters
    ----------
    path : pathlib.Path
        The segment.

    Raises
    ------
    FileNotFoundError
        If the segment is gone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.session = b""
        self.last_seq: int | None = None
        self.torn = Tail(0, 0)
        self.statement: witness.Witness | None = None
        self._salt = 0
        self._offset = HEADER_SIZE
        self._last_crc: int | None = None
        self._gap: Gap | None = None
        self._fd = open_reading(path)
        self._seeking = threading.Lock()

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()

    def read(self, offset: int, length: int) -> bytes:
        """Read at most `length` bytes from `offset`.

        Raises
        ------
        DamagedData
            If the disk cannot read them.
        """
        try:
            if hasattr(os, "pread"):
                return os.pread(self._fd, length, offset)
            with self._seeking:  # pragma: no cover - Windows only
                os.lseek(self._fd, offset, os.SEEK_SET)
                return os.read(self._fd, length)
        except OSError as error:
            raise DamagedData(f"{str(self.path)!r} cannot be read: {error}", self.path) from error

    @property
    def scanned(self) -> int:
        """Bytes that have been looked at."""
        return self._offset

    def stands(self) -> bool:
        """Whether the file at the segment's path is still this one: names are given again."""
        try:
            here, there = os.fstat(self._fd), self.path.lstat()
        except OSError:
            return False
        return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)

    def size(self) -> int:
        """Bytes in the segment now."""
        return os.fstat(self._fd).st_size

    def shortfall(self) -> Damage | None:
        """What the last poll should have found whole, by the witness, and did not."""
        statement, size = self.statement, self.torn.end
        if statement is None:
            if self.session or size <= HEADER_SIZE:
                return None
            # Frames are written only after the header was synced, so there was one.
            return self._damage(0, 0, 0, size, "neither header nor witness tells the session")
        if statement.seq <= (self.last_seq or 0):
            return None
        first = 0 if self.last_seq is None else self.last_seq + 1
        evidence = f"the witness says that it was durable up to byte {statement.offset}"
        kind: LossKind = "missing" if size < statement.offset else "damaged"
        span = (min(self.torn.offset, size, statement.offset), statement.offset)
        return Damage(self.path.name, first, statement.seq, span, evidence, kind)

    def poll(self) -> Iterator[Whole | Damage]:
        """Yield what has been appended since the last poll.

        Raises
        ------
        FormatError
            If the segment is of a newer version of the format.
        DamagedData
            If the disk cannot read it.
        """
        # The witness first: whatever it says is then in the bytes that are looked at after it.
        said = self._said()
        size = self.size()
        if not self.session and not self._identify(size, said):
            return
        self.statement = witness.newest(said, self.session) or self.statement
        for event in journal.scan(self.read, size, self._salt, self._offset):
            match event:
                case Tail():
                    self.torn = event
                    self._offset = event.offset
                case Gap():
                    self._gap = event
                case Frame():
                    yield from self._check(event)
                    self._offset = event.end

    def _said(self) -> bytes:
        try:
            return read_file(layout.witness_path(self.path), 2 * witness.SLOT_SIZE)
        except OSError:
            return b""

    def _identify(self, size: int, said: bytes) -> bool:
        """Learn the session, and so the salt, from the header or else from the witness."""
        session = journal.parse_header(self.read(0, HEADER_SIZE)) or witness.owner(said)
        if session is None:
            self.torn = Tail(0, size)
            return False
        self.session = session
        self._salt = journal.salt_of(session)
        return True

    def _check(self, frame: Frame) -> Iterator[Whole | Damage]:
        # Numbers only rise: what lies inside a damaged frame's samples cannot pass for a frame.
        if self.last_seq is not None and frame.seq <= self.last_seq:
            return
        gap, self._gap = self._gap, None
        if self.last_seq is not None and frame.seq != self.last_seq + 1:
            start = gap.offset if gap else frame.offset
            yield self._damage(
                self.last_seq + 1, frame.seq - 1, start, frame.offset, "frames missing"
            )
        elif gap is not None and self.last_seq is not None:
            yield self._damage(frame.seq, frame.seq - 1, gap.offset, gap.end, "foreign bytes")
        elif gap is not None:
            yield self._damage(0, frame.seq - 1, gap.offset, gap.end, "first frames missing")
        elif self._last_crc is not None and frame.previous != self._last_crc:
            yield self._damage(frame.seq, frame.seq - 1, frame.offset, frame.offset, "chain broken")
        self.last_seq, self._last_crc = frame.seq, frame.crc
        whole = frame.meta_length <= _META_LIMIT
        meta = journal.read_meta(self.read, frame) if whole else None
        if meta is None:
            yield self._damage(
                frame.seq, frame.seq, frame.offset, frame.end, "a description does not fit its CRC"
            )
        else:
            yield Whole(frame, meta)

    def _damage(self, first: int, last: int, start: int, end: int, evidence: str) -> Damage:
        return Damage(self.path.name, first, last, (start, end), evidence)

    def frame_at(self, offset: int) -> Whole:
        """Read one frame's header and description again.

        Raises
        ------
        DamagedData
            If they do not fit their checksums any more.
        """
        frame = journal.parse_frame(self.read(offset, journal.FRAME_SIZE), offset, self._salt)
        meta = None if frame is None else journal.read_meta(self.read, frame)
        if frame is None or meta is None:
            raise DamagedData(f"{str(self.path)!r}: damaged at byte {offset}", self.path)
        return Whole(frame, meta)

    def body_of(self, frame: Frame) -> bytes:
        """Read a frame's samples, checked.

        Raises
        ------
        DamagedData
            If they do not fit their checksum.
        """
        body = self.read(frame.body_offset, frame.body_length)
        while len(body) < frame.body_length:  # Linux gives at most 2 GiB in one call
            more = self.read(frame.body_offset + len(body), frame.body_length - len(body))
            if not more:
                break
            body += more
        if not journal.crc_fits(body, frame):
            raise DamagedData(
                f"{str(self.path)!r}: the samples in bytes {frame.body_offset} to "
                f"{frame.body_offset + frame.body_length} do not fit their checksum",
                self.path,
            )
        return body
