"""The reading end of one segment: frames as they come, each looked at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from trialstore._errors import DamagedData
from trialstore._ondisk import journal, layout, witness
from trialstore._ondisk.disk import read_file
from trialstore._ondisk.journal import HEADER_SIZE, Frame, FrameType, Gap, Spoilt, Tail
from trialstore._ondisk.numbers import MOST, Numbers
from trialstore._ondisk.sectors import ReadAhead, SectorFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from trialstore._ondisk.losses import LossKind

    Read = Callable[[int, int], bytes]

#: A description longer than this is not ours: 100 000 attributes would be shorter.
_META_LIMIT: Final = 1 << 28

_UNREADABLE: Final = "the disk cannot read it"


@dataclass(frozen=True, slots=True)
class Damage:
    """Frames that should be there and are not whole, or bytes that are no frame.

    Parameters
    ----------
    file : str
        Name of the file.
    first_seq, last_seq : int
        Numbers of the frames concerned; none if ``last_seq < first_seq``.
    byte_range : tuple of int or None
        Where in the file, first byte and byte after the last; None if the file is not there.
    evidence : str
        How it is known.
    kind : {'damaged', 'missing'}
        Whether the bytes are there.
    """

    file: str
    first_seq: int
    last_seq: int
    byte_range: tuple[int, int] | None
    evidence: str
    kind: LossKind = "damaged"


@dataclass(frozen=True, slots=True)
class Whole:
    """A frame whose header and description fit their checksums; its samples are not looked at."""

    frame: Frame
    meta: bytes


class _Break(NamedTuple):
    """Where one frame does not follow the one before it in the file."""

    start: int
    end: int
    after: int
    before: int


class SegmentFile:
    """Follows one segment. Reads only; a descriptor stays open so that a rename does not matter.

    Guarantee: every byte that was looked at belongs to the header, to a frame that was given out,
    to one of `damages`, to what `shortfall` names, or to the torn end (`tail`).

    Parameters
    ----------
    path : pathlib.Path
        The segment.

    Attributes
    ----------
    session : bytes
        Uuid of the session that wrote it, as far as it is known.
    seen : Numbers
        Numbers of the frames whose header is whole.
    size_seen : int
        Bytes there were at the last poll.
    statement : Witness or None
        The newest thing that the witness says.
    claims_too_much : bool
        The witness says what cannot be.
    read : callable
        ``read(offset, length)``; unreadable sectors are zeros, which fit no checksum but that of
        zeros: they cost the frames that they are part of.

    Raises
    ------
    FileNotFoundError
        If the segment is gone.
    DamagedData
        If it cannot be opened, or is a link or no regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.session = b""
        self.seen = Numbers()
        self.statement: witness.Witness | None = None
        self.claims_too_much = False
        self._tail = Tail(0, 0)
        self.size_seen = 0
        self._salt = 0
        self._offset = HEADER_SIZE
        self._opening_seq = 0
        self._latest: Frame | None = None
        self._gap: Gap | None = None
        self._breaks: list[_Break] = []
        self._spoilt: dict[int, Damage | None] = {}
        self._copies: list[Damage] = []
        self._file = SectorFile(path)
        self.read = self._file.read

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def stands(self) -> bool:
        """Whether the file at the segment's path is still this one."""
        return self._file.stands_at(self.path)

    def is_replaced(self) -> bool:
        """Whether another file is at the segment's path; not if there is none, or none to see."""
        return self._file.is_replaced_at(self.path)

    @property
    def scanned(self) -> int:
        """Bytes that have been looked at."""
        return self._offset

    # --- following --------------------------------------------------------------------------------

    def poll(self) -> Iterator[Whole]:
        """Yield what has been appended since the last poll.

        Raises
        ------
        FormatError
            If the segment is of a newer version of the format.
        DamagedData
            If the file cannot be read at all.
        """
        # The witness first: whatever it says is then in the bytes that are looked at after it.
        said = self._said()
        size = self._file.size()
        is_growing = 0 < self.size_seen < size
        self.size_seen = size
        if not self.session and not self._identify(size, said):
            return
        self.statement = witness.newest(said, self.session) or self.statement
        self.claims_too_much = witness.claims_too_much(said, self.session)
        read = ReadAhead(self.read)
        events = journal.scan(
            *(read, size, self._salt, self._offset),
            accepts=self._is_news,
            is_growing=is_growing,
        )
        for event in events:
            match event:
                case Tail():
                    self._tail = event
                    self._offset = event.offset
                case Gap():
                    self._gap = event
                case Spoilt(frame):
                    self._spoilt.setdefault(frame.seq)
                case Frame():
                    yield from self._take(event, read)
                    self._offset = event.end

    def _said(self) -> bytes:
        try:
            return read_file(layout.witness_path(self.path), 2 * witness.SLOT_SIZE)
        except OSError:
            return b""

    def _identify(self, size: int, said: bytes) -> bool:
        """Learn the session, and so the salt, from the header or else from the witness."""
        header, owner = self.read(0, HEADER_SIZE), witness.owner(said)
        is_there = len(header) == HEADER_SIZE
        told = journal.parse_header(header) if is_there else None
        session = told or owner
        if session is None:
            self._tail = Tail(0, size)
            return False
        if told is not None and owner not in {None, told} and self._is_of(owner, told, size):
            session = owner
        if header != journal.encode_header(session):
            # Damaged or stale: what stands there may be anything, even a frame.
            self._offset = 0
        self.session = session
        self._salt = journal.salt_of(session)
        return True

    def _is_of(self, owner: bytes, told: bytes, size: int) -> bool:
        """Whether the frames side with the witness, which contradicts the header."""
        by_header, by_witness = (journal.frames_in(self.read, size, s) for s in (told, owner))
        return by_witness > by_header

    def _is_news(self, frame: Frame) -> bool:
        """Whether a frame may be one of this segment's.

        A whole frame's number is given once: what lies inside a frame's samples, or was copied by a
        confused disk, cannot pass for a frame.
        """
        is_known = frame.seq in self.seen and frame.seq not in self._spoilt
        return frame.synced_to < frame.seq <= MOST and not is_known

    def _take(self, frame: Frame, read: Read) -> Iterator[Whole]:
        gap, self._gap = self._gap, None
        after = 0 if self._latest is None else self._latest.seq
        if gap is not None or (self._latest is not None and frame.seq != after + 1):
            start, end = (frame.offset, frame.offset) if gap is None else (gap.offset, gap.end)
            self._breaks.append(_Break(start, end, after, frame.seq))
        if self._latest is not None and frame.offset < self._latest.end:
            self._end_at(frame.offset, self._latest)
        self._latest = frame
        if frame.seq not in self.seen:
            self.seen.add(frame.seq)
        elif (worse := self._spoilt.pop(frame.seq)) is not None:  # a second copy, perhaps whole
            self._copies.append(replace(worse, last_seq=frame.seq - 1))
        if frame.type == FrameType.OPENING:
            self._opening_seq = frame.seq
        whole = frame.meta_length <= _META_LIMIT
        meta = journal.read_meta(read, frame) if whole else None
        if meta is None:
            evidence = "a description does not fit its CRC"
            span = (frame.offset, frame.end)
            self._spoilt[frame.seq] = self._damage(frame.seq, frame.seq, span, evidence)
        else:
            yield Whole(frame, meta)

    def _end_at(self, offset: int, frame: Frame) -> None:
        """Note that a frame whose description is damaged reached over the one behind it."""
        damage = self._spoilt.get(frame.seq)
        if damage is not None:
            self._spoilt[frame.seq] = replace(damage, byte_range=(frame.offset, offset))

    # --- what is not there ------------------------------------------------------------------------

    @property
    def begins_late(self) -> bool:
        """Whether the opening, with which every segment begins, is not there."""
        return self.seen.first > max(self._opening_seq, 1)

    def damages(self, previous: int) -> list[Damage]:
        """Everything before the last whole frame that is no whole frame.

        Parameters
        ----------
        previous : int
            Number of the last frame of the segments before this one.
        """
        found: list[Damage] = []
        named: set[_Break] = set()
        for first, last, place in self._holes(previous):
            named.add(place)
            span = (place.start, place.end)
            if place.start < place.end:
                found.append(self._damage(first, last, span, "bytes that are no frame"))
            else:
                gone = Damage(self.path.name, first, last, span, "frames are gone", "missing")
                found.append(gone)
        for place in self._breaks:
            if place.start < place.end and place not in named:
                span = (place.start, place.end)
                found.append(self._damage(place.before, place.before - 1, span, "foreign bytes"))
        found += [damage for damage in self._spoilt.values() if damage is not None]
        return found + self._copies

    def _holes(self, previous: int) -> Iterator[tuple[int, int, _Break]]:
        """Yield the numbers that are missing, first and last, and where they should be."""
        places = {found.after: found for found in reversed(self._breaks)}
        if self.begins_late:
            # At least the opening is gone; of what was before it, earlier segments may have all.
            last = self.seen.first - 1
            start = _Break(HEADER_SIZE, HEADER_SIZE, 0, self.seen.first)
            yield min(previous + 1, last), last, places.get(0, start)
        end = self._tail.offset
        for first, last in self.seen.holes():
            # Where sectors were mixed up, the frame before the hole may stand at the end.
            yield first, last, places.get(first - 1, _Break(end, end, first - 1, 0))

    def shortfall(self, durable: int) -> Damage | None:
        """What the last poll should have found whole at the end, by the witness, and did not.

        Parameters
        ----------
        durable : int
            Later segments tell that this one was durable no further than to this frame: a witness
            that says more is not its own.
        """
        said, size = self.statement, self._tail.end
        if said is None:
            if self.session or size <= HEADER_SIZE:
                return None
            # Frames are written only after the header was synced, so there was one.
            return self._damage(1, MOST, (0, size), "neither header nor witness tells the session")
        last = min(said.seq, durable)
        if last <= self.seen.last:
            return None
        evidence = f"the witness says that it was durable up to byte {said.offset}"
        span = (min(self._tail.offset, size, said.offset), said.offset)
        if size < said.offset:
            return Damage(self.path.name, self.seen.last + 1, last, span, evidence, "missing")
        return self._damage(self.seen.last + 1, last, span, evidence)

    def _damage(self, first: int, last: int, span: tuple[int, int], evidence: str) -> Damage:
        reason = _UNREADABLE if self._file.has_failed(*span) else evidence
        return Damage(self.path.name, first, last, span, reason)

    @property
    def tail(self) -> tuple[int, int]:
        """Bytes behind the last whole frame, and behind what the witness says was durable."""
        start, end = self._tail.offset, self._tail.end
        if self.statement is not None and self.statement.seq > self.seen.last:
            start = max(start, min(self.statement.offset, end))
        return start, end

    # --- looking again ----------------------------------------------------------------------------

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
        if journal.crc_fits(body, frame):
            return body
        start, end = frame.body_offset, frame.body_offset + frame.body_length
        reason = "do not fit their checksum"
        if self._file.has_failed(start, end):
            reason = f"are lost: {_UNREADABLE}"
        raise DamagedData(
            f"{str(self.path)!r}: the samples in bytes {start} to {end} {reason}", self.path
        )
