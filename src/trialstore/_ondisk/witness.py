"""The witness: how far the journal was durable, told from outside the journal.

A journal cut exactly between two frames looks whole. Two slots of one sector each, written in turn
after each commit and never synced, tell that more was there: 40 of 5 824 cuts were silent without
it, none with it (reliability.md, section 0). Layout and reasons: ``docs/reference/format.md``.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    Buffer = bytes | bytearray | memoryview

SLOT_SIZE: Final = 512
_MAGIC: Final = b"TRSW\x01\x00\x00\x00"
_SLOT: Final = struct.Struct("<8sQ16s16sQQQIQ")
_CRC: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Witness:
    """One statement: at this moment the segment was durable up to here.

    Parameters
    ----------
    count : int
        How many statements there were; the higher of two slots is the newer, and its parity is its
        slot.
    session : bytes
        The recording session's uuid, 16 bytes.
    boot : bytes
        Which start of the computer wrote it, 16 bytes.
    seq : int
        Sequence number of the last durable frame.
    offset : int
        Durable size of the segment in bytes.
    trials : int
        Number of durable trials, so that missing ones can be named.
    chain : int
        CRC of the last durable frame.
    monotonic_ns : int
        When, on this boot's monotonic clock, in nanoseconds.
    """

    count: int
    session: bytes
    boot: bytes
    seq: int
    offset: int
    trials: int
    chain: int
    monotonic_ns: int

    @property
    def position(self) -> int:
        """Byte offset of this statement's slot."""
        return self.count % 2 * SLOT_SIZE

    def encode(self) -> bytes:
        """Return the 512 bytes of the slot."""
        data = _SLOT.pack(
            _MAGIC,
            self.count,
            self.session,
            self.boot,
            self.seq,
            self.offset,
            self.trials,
            self.chain,
            self.monotonic_ns,
        )
        return (data + _CRC.pack(zlib.crc32(data))).ljust(SLOT_SIZE, b"\0")


def newest(data: Buffer, session: bytes) -> Witness | None:
    """Return the newest whole statement about `session` in the bytes of a witness file, or None."""
    statements = (statement for statement in _statements(data) if statement.session == session)
    return max(statements, key=lambda statement: statement.count, default=None)


def owner(data: Buffer) -> bytes | None:
    """Return the session that a witness file speaks of: the third copy of a segment's identity."""
    return next((statement.session for statement in _statements(data)), None)


def _statements(data: Buffer) -> Iterator[Witness]:
    for start in (0, SLOT_SIZE):
        slot = bytes(data[start : start + _SLOT.size + _CRC.size])
        if len(slot) < _SLOT.size + _CRC.size or not slot.startswith(_MAGIC):
            continue
        if zlib.crc32(slot[: _SLOT.size]) != _CRC.unpack_from(slot, _SLOT.size)[0]:
            continue
        yield Witness(*_SLOT.unpack_from(slot)[1:])
