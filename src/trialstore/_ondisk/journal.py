"""Framing: bytes to frames and back, and nothing else (no files, no JSON, no trials).

Written by `encode_header` and `encode_frame`, read by `parse_header` and `scan`. The layout, every
MUST and every reason stand in ``docs/reference/format.md``; where code and page differ, one of them
is wrong.

`scan` is given a ``read(offset, length)`` function and never more than it needs, so that the same
code serves a test that cuts at every byte, a live reader that polls, and a file of a hundred
gigabytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from trialstore._errors import FormatError
from trialstore._ondisk.checksum import crc32

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Buffer = bytes | bytearray | memoryview
    Read = Callable[[int, int], bytes]

VERSION: Final = 1
ALIGNMENT: Final = 8

#: As PNG's: a byte above 127 and both line ends, so that a transfer in text mode shows (PNG spec.
#: 5.2).
HEADER_MAGIC: Final = b"\x89TRS\r\n\x1a\n"
FRAME_MAGIC: Final = b"\xf1TrF"

_HEADER: Final = struct.Struct("<8s16sI")
_CRC: Final = struct.Struct("<I")
HEADER_COPY: Final = _HEADER.size + _CRC.size
HEADER_SIZE: Final = 2 * HEADER_COPY

_FRAME: Final = struct.Struct("<4sBBHQQQIIIII")
FRAME_SIZE: Final = _FRAME.size + _CRC.size

#: Bytes are looked through in blocks of at most so many.
_SEARCH_BYTES: Final = 1 << 20
#: The next header is mostly near: the first block is small, so that many damages stay cheap.
_FIRST_SEARCH: Final = 1 << 12
_ZEROS: Final = bytes(ALIGNMENT)


class FrameType(IntEnum):
    """What a frame says; unknown numbers are skipped by readers."""

    OPENING = 1
    CHUNKS = 2
    TRIAL = 3
    LOSSES = 4
    POISON = 5
    SYNC_MARK = 6
    CLEAN_END = 7


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame whose header is whole. The payload has not been looked at."""

    offset: int
    type: int
    seq: int
    synced_to: int
    previous: int
    meta_length: int
    meta_crc: int
    body_crc: int
    payload_length: int
    crc: int

    @property
    def meta_offset(self) -> int:
        """Where the payload begins, with its descriptive part, in bytes."""
        return self.offset + FRAME_SIZE

    @property
    def body_offset(self) -> int:
        """Where the samples begin, in bytes."""
        return self.meta_offset + padded(self.meta_length)

    @property
    def body_length(self) -> int:
        """How many bytes of samples there are, without padding."""
        return self.payload_length - padded(self.meta_length)

    @property
    def end(self) -> int:
        """Offset of the next frame, in bytes."""
        return self.meta_offset + padded(self.payload_length)


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes that are no frame, with a valid frame behind them: damage, not a torn end."""

    offset: int
    end: int


@dataclass(frozen=True, slots=True)
class Spoilt:
    """The frame before is not whole, and the next does not follow: it may reach too far."""

    frame: Frame


@dataclass(frozen=True, slots=True)
class Tail:
    """Bytes after the last frame: being written just now, or torn. Empty at an exact end."""

    offset: int
    end: int


def padded(length: int) -> int:
    """Round a length up to the frames' alignment of 8 bytes."""
    return -(-length // ALIGNMENT) * ALIGNMENT


def encode_header(session: bytes) -> bytes:
    """Return the 64 bytes that begin a segment: the same 32 bytes twice, each with its own CRC."""
    copy = _HEADER.pack(HEADER_MAGIC, session, VERSION)
    copy += _CRC.pack(crc32(copy))
    return copy + copy


def parse_header(data: Buffer) -> bytes | None:
    """Return the session's uuid (16 bytes) from either copy of a segment header, or None.

    Raises
    ------
    FormatError
        If the header is whole but of a version that this code does not know.
    """
    for start in (0, HEADER_COPY):
        copy = bytes(data[start : start + HEADER_COPY])
        if len(copy) < HEADER_COPY or not copy.startswith(HEADER_MAGIC):
            continue
        if _CRC.unpack_from(copy, _HEADER.size)[0] != crc32(copy[: _HEADER.size]):
            continue
        _, session, version = _HEADER.unpack_from(copy)
        if version != VERSION:
            raise FormatError(
                f"journal of format version {version}; this trialstore knows {VERSION}: update it"
            )
        return bytes(session)
    return None


def frames_in(read: Read, size: int, session: bytes) -> int:
    """Count the frames of a session, to tell whose segment it is."""
    events = scan(read, size, salt_of(session), 0)
    return sum(isinstance(event, Frame) for event in events)


def salt_of(session: bytes) -> int:
    """Start value of a session's header CRCs, so that frames of another journal never fit."""
    return crc32(session)


def encode_frame(
    kind: FrameType,
    meta: bytes,
    body: Sequence[Buffer] = (),
    *,
    seq: int,
    synced_to: int,
    previous: int,
    salt: int,
) -> tuple[list[Buffer], int]:
    """Frame one payload; return the pieces to write as they are, and this frame's own CRC.

    The body is passed through, not copied. The CRC returned is `previous` of the next frame.
    """
    head = meta + _ZEROS[: -len(meta) % ALIGNMENT]
    body_crc = 0
    length = len(head)
    for piece in body:
        body_crc = crc32(piece, body_crc)
        length += len(piece)
    header = _FRAME.pack(
        *(FRAME_MAGIC, kind, 0, FRAME_SIZE, length, seq, synced_to),
        *(previous, len(meta), crc32(meta), body_crc, 0),
    )
    own = crc32(header, salt)
    pieces: list[Buffer] = [header + _CRC.pack(own) + head, *body]
    if length % ALIGNMENT:
        pieces.append(_ZEROS[: -length % ALIGNMENT])
    return pieces, own


def parse_frame(data: Buffer, offset: int, salt: int) -> Frame | None:
    """Return the frame whose header `data` (at least `FRAME_SIZE` bytes) is, or None."""
    if len(data) < FRAME_SIZE or data[:4] != FRAME_MAGIC:
        return None
    (crc,) = _CRC.unpack_from(data, _FRAME.size)
    if crc32(data[: _FRAME.size], salt) != crc:
        return None
    fields = _FRAME.unpack_from(data)
    _, kind, _flags, size, length, seq, synced, previous, meta, meta_crc, body_crc, _zero = fields
    if size != FRAME_SIZE or padded(meta) > length:
        return None
    return Frame(offset, kind, seq, synced, previous, meta, meta_crc, body_crc, length, crc)


def scan(
    read: Read,
    size: int,
    salt: int,
    start: int = HEADER_SIZE,
    accepts: Callable[[Frame], bool] = lambda _: True,
    *,
    is_growing: bool = False,
) -> Iterator[Frame | Spoilt | Gap | Tail]:
    """Yield what the bytes ``[start, size)`` of a segment hold, in order, and a `Tail` at last.

    Guarantee: for every prefix of a segment, the frames yielded are those of the whole segment that
    end inside the prefix, each once, whether scanned at once or resumed from the offset of the last
    `Tail`.

    Parameters
    ----------
    read : callable
        ``read(offset, length)`` gives at most `length` bytes from `offset`.
    size : int
        Bytes there are; lengths in headers are checked against it before anything is read.
    salt : int
        See `salt_of`.
    start : int, optional
        Offset of a frame, or of the last `Tail`.
    accepts : callable, optional
        Whether a whole header is that of a frame of this segment, asked when all frames before it
        have been yielded. Bytes that it refuses are no frame.
    is_growing : bool, optional
        A frame at the end whose rest is not there yet is being written: nothing is looked for in
        it.
    """
    offset = start
    latest: Frame | None = None
    # Frames that lie may send us back over the same bytes again and again: once is enough.
    may_check = size
    while True:
        frame = _frame_at(read, offset, salt, accepts) if offset < size else None
        whole = frame if frame is not None and frame.end <= size else None
        follows = whole is not None and (latest is None or whole.seq == latest.seq + 1)
        begin = offset
        if latest is not None and not follows and offset < size:
            # Where bytes were lost, a frame's length leads over the frames behind it.
            may_check -= latest.payload_length
            if may_check >= 0 and not payload_is_whole(read, latest):
                yield Spoilt(latest)
                begin = latest.offset
        if whole is not None and begin == offset:
            yield whole
            offset, latest = whole.end, whole
            continue
        if frame is whole or not is_growing:
            found = _next_frame(read, size, salt, begin, accepts)
            if found is not None:
                yield Gap(min(offset, found), found)
                offset, latest = found, None
                continue
        yield Tail(offset, size)
        return


def _frame_at(read: Read, offset: int, salt: int, accepts: Callable[[Frame], bool]) -> Frame | None:
    frame = parse_frame(read(offset, FRAME_SIZE), offset, salt)
    return frame if frame is not None and accepts(frame) else None


def _next_frame(
    read: Read,
    size: int,
    salt: int,
    offset: int,
    accepts: Callable[[Frame], bool],
) -> int | None:
    """Offset of the next whole frame behind damage, in steps of the alignment."""
    offset += ALIGNMENT
    step = _FIRST_SEARCH
    while offset + FRAME_SIZE <= size:
        block = read(offset, min(step, size - offset))
        step = min(2 * step, _SEARCH_BYTES)
        if len(block) < FRAME_SIZE:
            return None
        at = block.find(FRAME_MAGIC)
        while at != -1:
            if at % ALIGNMENT == 0 and at + FRAME_SIZE <= len(block):
                frame = parse_frame(block[at : at + FRAME_SIZE], offset + at, salt)
                if frame is not None and frame.end <= size and accepts(frame):
                    return offset + at
            at = block.find(FRAME_MAGIC, at + 1)
        # Blocks overlap by one header, so that none is missed at a seam.
        offset += max(ALIGNMENT, (len(block) - FRAME_SIZE) // ALIGNMENT * ALIGNMENT)
    return None


def read_meta(read: Read, frame: Frame) -> bytes | None:
    """Return the descriptive part of a frame's payload, or None if it does not fit its checksum."""
    meta = read(frame.meta_offset, frame.meta_length)
    return meta if crc32(meta) == frame.meta_crc else None


def crc_fits(body: Buffer, frame: Frame) -> bool:
    """Say whether a frame's samples, read as one, are whole."""
    return len(body) == frame.body_length and crc32(body) == frame.body_crc


def body_is_whole(read: Read, frame: Frame) -> bool:
    """Say whether a frame's samples fit their checksum; reads in pieces, so memory stays small."""
    crc, at, end = 0, frame.body_offset, frame.body_offset + frame.body_length
    while at < end:
        piece = read(at, min(_SEARCH_BYTES, end - at))
        if not piece:
            return False
        crc = crc32(piece, crc)
        at += len(piece)
    return crc == frame.body_crc


def payload_is_whole(read: Read, frame: Frame) -> bool:
    """Say whether description and samples of a frame fit their checksums."""
    return read_meta(read, frame) is not None and body_is_whole(read, frame)
