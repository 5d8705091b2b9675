"""The witness: how far the journal was durable, told from outside the journal.

A journal cut exactly between two frames looks whole. Two slots of one sector each, written in turn
after each commit and never synced, tell that more was there: 40 of 5 824 cuts were silent without
it, none with it (reliability.md, section 0). Layout and reasons: ``docs/reference/format.md``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trialstore._ondisk.checksum import crc32
from trialstore._ondisk.numbers import MOST

if TYPE_CHECKING:
    from collections.abc import Iterator

    Buffer = bytes | bytearray | memoryview

SLOT_SIZE: Final = 512
_MAGIC: Final = b"TRSW\x01\x00\x00\x00"
_SLOT: Final = struct.Struct("<8sQ16s16sQQQIQ")
_CRC: Final = struct.Struct("<I")
_MOST_BYTES: Final = 2**63


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
        return (data + _CRC.pack(crc32(data))).ljust(SLOT_SIZE, b"\0")


def newest(data: Buffer, session: bytes) -> Witness | None:
    """Return the newest credible statement about `session` in the bytes of a witness file."""
    statements = (said for said in _of(data, session) if _is_credible(said))
    return max(statements, key=lambda statement: statement.count, default=None)


def latest(data: Buffer) -> Witness | None:
    """Return the newest credible statement in the bytes of a witness file, whoever made it."""
    session = owner(data)
    return None if session is None else newest(data, session)


def claims_too_much(data: Buffer, session: bytes) -> bool:
    """Whether a whole statement about `session` cannot be true, so that nothing of it counts."""
    return not all(map(_is_credible, _of(data, session)))


def owner(data: Buffer) -> bytes | None:
    """Return the session that a witness file speaks of: the third copy of a segment's identity."""
    return next((statement.session for statement in _statements(data)), None)


def _is_credible(said: Witness) -> bool:
    """Whether there can be so many frames, and bytes for each of them; a trial has its frame."""
    return said.trials <= MOST and said.seq <= MOST and said.offset < _MOST_BYTES


def _of(data: Buffer, session: bytes) -> Iterator[Witness]:
    return (statement for statement in _statements(data) if statement.session == session)


def _statements(data: Buffer) -> Iterator[Witness]:
    for start in (0, SLOT_SIZE):
        slot = bytes(data[start : start + _SLOT.size + _CRC.size])
        if len(slot) < _SLOT.size + _CRC.size or not slot.startswith(_MAGIC):
            continue
        if crc32(slot[: _SLOT.size]) != _CRC.unpack_from(slot, _SLOT.size)[0]:
            continue
        yield Witness(*_SLOT.unpack_from(slot)[1:])
