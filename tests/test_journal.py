"""Framing is pure: it is cut at every byte, flipped at every bit, and fed byte by byte."""

from __future__ import annotations

import itertools
import zlib
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trialstore import FormatError
from trialstore._ondisk import journal
from trialstore._ondisk.journal import (
    FRAME_MAGIC,
    FRAME_SIZE,
    HEADER_COPY,
    HEADER_SIZE,
    Frame,
    FrameType,
    Gap,
    Spoilt,
    Tail,
)
from trialstore._ondisk.segment_file import SegmentFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    Event = Frame | Gap | Tail

SESSION = bytes(range(16))
OTHER = bytes(range(16, 32))
SECTOR = 512


class Content(NamedTuple):
    """What a frame says, apart from where it stands."""

    seq: int
    type: int
    meta: bytes
    body: bytes


#: Metas and bodies of all lengths modulo eight, empty ones among them.
GOLDEN = [
    Content(1, FrameType.OPENING, b'{"session":"00"}', b""),
    Content(2, FrameType.CHUNKS, b'{"array":"emg"}', bytes(range(64))),
    Content(3, FrameType.CHUNKS, b"{}", b"\xff" * 13),
    Content(4, FrameType.TRIAL, b'{"trial":0}', b""),
    Content(5, FrameType.SYNC_MARK, b"", b""),
    Content(6, 99, b"from the future", b"?"),
    Content(7, FrameType.CLEAN_END, b'{"trials":1}', b""),
]


def frames_of(contents: Iterable[Content], session: bytes = SESSION, previous: int = 0) -> bytes:
    """Frame `contents` one after the other."""
    salt = journal.salt_of(session)
    data = b""
    for seq, kind, meta, body in contents:
        pieces, previous = journal.encode_frame(
            kind,  # type: ignore[arg-type]  # numbers from the future are written here on purpose
            meta,
            [body[:5], body[5:]] if body else [],
            seq=seq,
            synced_to=seq - 1,
            previous=previous,
            salt=salt,
        )
        data += b"".join(pieces)
    return data


def segment_of(contents: Iterable[Content], session: bytes = SESSION) -> bytes:
    """Return a whole segment."""
    return journal.encode_header(session) + frames_of(contents, session)


def reading(data: bytes) -> Callable[[int, int], bytes]:
    """Return the read function over bytes that `scan` wants."""
    return lambda offset, length: data[offset : offset + length]


def events_in(data: bytes, start: int = HEADER_SIZE, session: bytes = SESSION) -> list[Event]:
    """Scan bytes whose header need not be whole."""
    events = journal.scan(reading(data), len(data), journal.salt_of(session), start)
    return [event for event in events if not isinstance(event, Spoilt)]


def frames_in(data: bytes) -> list[Frame]:
    """Return the frames of a segment."""
    return [event for event in events_in(data) if isinstance(event, Frame)]


def accepted(data: bytes, session: bytes | None = None) -> list[Content]:
    """Return what a reader believes: contents whose checksums fit, by the salt of the header."""
    session = session or journal.parse_header(data[:HEADER_SIZE])
    if session is None:
        return []
    read = reading(data)
    found = []
    for event in events_in(data, session=session):
        if not isinstance(event, Frame):
            continue
        meta, body = journal.read_meta(read, event), read(event.body_offset, event.body_length)
        is_whole = journal.crc_fits(body, event)
        assert journal.body_is_whole(read, event) == is_whole
        if meta is not None and is_whole:
            found.append(Content(event.seq, event.type, meta, body))
    return found


# --- round trips ------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.integers(0, 255), st.binary(max_size=40), st.binary(max_size=300)), max_size=6
    ),
    st.binary(min_size=16, max_size=16),
)
def test_frames_come_back_as_they_were_written(
    given_frames: list[tuple[int, bytes, bytes]], session: bytes
) -> None:
    """Any payload comes back equal, chained, on eight-byte boundaries, with nothing left over."""
    contents = [Content(seq, *parts) for seq, parts in enumerate(given_frames, 1)]
    data = segment_of(contents, session)
    assert accepted(data) == contents
    *frames, tail = events_in(data, session=session)
    assert tail == Tail(len(data), len(data))
    assert all(event.offset % 8 == 0 for event in frames)
    chain = [0]
    for frame in frames:
        assert isinstance(frame, Frame)
        assert frame.previous == chain[-1]
        assert frame.synced_to == frame.seq - 1
        chain.append(frame.crc)


def test_samples_are_passed_through_without_a_copy() -> None:
    """The pieces to write hold the very objects that were given."""
    body: list[bytearray | memoryview] = [bytearray(100), memoryview(bytes(7))]
    pieces, _ = journal.encode_frame(
        FrameType.CHUNKS, b"{}", body, seq=1, synced_to=0, previous=0, salt=0
    )
    assert all(any(piece is given_piece for piece in pieces) for given_piece in body)


def test_a_frame_without_samples_is_one_piece() -> None:
    """A row costs one buffer: header, description and padding together."""
    pieces, _ = journal.encode_frame(
        FrameType.TRIAL, b"12345", seq=1, synced_to=0, previous=0, salt=0
    )
    assert [len(piece) for piece in pieces] == [FRAME_SIZE + 8]


# --- the segment's header ---------------------------------------------------------------------


@pytest.mark.parametrize("damaged", range(HEADER_SIZE))
def test_either_copy_of_the_header_is_enough(damaged: int) -> None:
    """Whichever byte of the header is destroyed, the session is known."""
    data = bytearray(journal.encode_header(SESSION))
    data[damaged] ^= 0xFF
    assert journal.parse_header(data) == SESSION


@pytest.mark.parametrize("size", range(HEADER_SIZE + 1))
def test_a_header_cut_short_gives_a_session_or_nothing(size: int) -> None:
    """A header that is just being written is no error."""
    found = journal.parse_header(journal.encode_header(SESSION)[:size])
    assert found == (SESSION if size >= HEADER_COPY else None)


def test_a_newer_version_is_refused_by_name() -> None:
    """A journal of a later format is not guessed at."""
    copy = journal.HEADER_MAGIC + SESSION + (2).to_bytes(4, "little")
    copy += zlib.crc32(copy).to_bytes(4, "little")
    with pytest.raises(FormatError, match="version 2"):
        journal.parse_header(copy * 2)


# --- cut and grown ----------------------------------------------------------------------------


def test_every_prefix_holds_the_frames_that_end_in_it() -> None:
    """Cut at any byte: the frames before the cut, each once, then a tail; never a gap."""
    data = segment_of(GOLDEN)
    frames = frames_in(data)
    for size in range(HEADER_SIZE, len(data) + 1):
        whole = [frame for frame in frames if frame.end <= size]
        end = whole[-1].end if whole else HEADER_SIZE
        assert events_in(data[:size]) == [*whole, Tail(end, size)]


def test_fed_byte_by_byte_it_yields_each_frame_once() -> None:
    """A reader that polls a growing file sees what one sees who comes at the end."""
    data = segment_of(GOLDEN)
    found, at = [], HEADER_SIZE
    for size in range(HEADER_SIZE, len(data) + 1):
        *events, tail = events_in(data[:size], at)
        found += events
        assert isinstance(tail, Tail)
        at = tail.offset
    assert found == frames_in(data)
    assert at == len(data)


@given(st.data())
def test_damaged_bytes_grow_into_the_same_frames(data: st.DataObject) -> None:
    """With garbage in the middle, too, a reader that polls finds each frame, once."""
    garbage = data.draw(st.binary(max_size=80).map(lambda b: b.ljust(-(-len(b) // 8) * 8, b"\0")))
    whole = segment_of(GOLDEN[:3]) + garbage + frames_of(GOLDEN[3:])
    sizes = data.draw(st.lists(st.integers(HEADER_SIZE, len(whole)), max_size=8))
    found, at = [], HEADER_SIZE
    for size in [*sorted(sizes), len(whole)]:
        *events, tail = events_in(whole[:size], at)
        found += [event for event in events if isinstance(event, Frame)]
        at = tail.offset
    assert found == frames_in(whole)
    assert [frame.seq for frame in found] == [content.seq for content in GOLDEN]


# --- damaged ----------------------------------------------------------------------------------


def test_every_flipped_bit_costs_one_frame_at_most() -> None:
    """No bit can make a reader believe something that was not written, or lose a second frame."""
    data = segment_of(GOLDEN)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        found = accepted(bytes(flipped))
        assert [content for content in GOLDEN if content in found] == found, f"bit {bit}"
        assert len(found) >= len(GOLDEN) - 1, f"bit {bit}"


def test_a_zeroed_sector_costs_only_the_frames_it_touches() -> None:
    """Wherever 512 bytes turn to zeros, every frame outside of them is found, and nothing else."""
    contents = [
        Content(seq, FrameType.CHUNKS, b"{}", bytes([seq]) * (37 * seq)) for seq in range(1, 12)
    ]
    data = segment_of(contents)
    frames = dict(zip(contents, frames_in(data), strict=True))
    for start in range(len(data)):
        end = min(start + SECTOR, len(data))
        found = accepted(data[:start] + bytes(end - start) + data[end:], SESSION)
        spared = [c for c, frame in frames.items() if frame.end <= start or frame.offset >= end]
        assert set(spared) <= set(found) <= set(contents), f"zeros from byte {start}"


@pytest.mark.parametrize("length", [*range((1 << 20) - 80, (1 << 20) + 80, 8), 3 << 20])
def test_a_frame_behind_long_damage_is_found(length: int) -> None:
    """Damage of any length is stepped over, also where the search goes on in another block."""
    damaged = b"\xf1" * length
    data = segment_of(GOLDEN[:1]) + damaged + frames_of(GOLDEN[1:2])
    first, gap, second, _ = events_in(data)
    assert isinstance(first, Frame)
    assert isinstance(second, Frame)
    assert gap == Gap(first.end, first.end + length)
    assert second.seq == 2


@given(st.binary(max_size=400), st.integers(0, 6), st.binary(max_size=70))
def test_any_bytes_are_accounted_for(before: bytes, which: int, behind: bytes) -> None:
    """Frames, gaps and the tail follow one another without hole or overlap, whatever there is."""
    data = b"\0" * HEADER_SIZE + before + frames_of(GOLDEN[which : which + 1]) + behind
    at = HEADER_SIZE
    for event in events_in(data):
        assert event.offset == at
        at = event.end
    assert at == len(data)


# --- what is not ours -------------------------------------------------------------------------


def test_frames_of_another_session_are_a_torn_tail() -> None:
    """An older journal in blocks that the file system gives again is not read as ours."""
    data = segment_of(GOLDEN) + frames_of(GOLDEN, OTHER)
    assert accepted(data) == GOLDEN
    end = len(segment_of(GOLDEN))
    assert events_in(data)[-1] == Tail(end, len(data))


def test_a_journal_stored_as_samples_does_not_surface() -> None:
    """Another session's frames inside samples stay samples, also when the frame around is hurt."""
    inside = segment_of(GOLDEN, OTHER)
    around = [GOLDEN[0], Content(2, FrameType.CHUNKS, b"{}", inside), *GOLDEN[2:]]
    data = bytearray(segment_of(around))
    assert accepted(bytes(data)) == around
    outer = frames_in(bytes(data))[1]
    data[outer.offset + 8] ^= 1
    assert accepted(bytes(data)) == [around[0], *around[2:]]


def test_frames_of_the_same_session_inside_samples_do_not_surface(tmp_path: Path) -> None:
    """Somebody who records our own journal as samples gets no frame twice: a number counts once."""
    early = GOLDEN[:3]
    around = [*early, Content(4, FrameType.CHUNKS, b"{}", segment_of(early)), *GOLDEN[4:]]
    data = bytearray(segment_of(around))
    outer = frames_in(bytes(data))[3]
    data[outer.offset + 8] ^= 1
    assert len(frames_in(bytes(data))) > len(around) - 1  # framing alone would be fooled
    path = tmp_path / "000001.segment"
    path.write_bytes(data)
    file = SegmentFile(path)
    assert [whole.frame.seq for whole in file.poll()] == [1, 2, 3, 5, 6, 7]
    file.close()
    (damage,) = file.damages(previous=0)
    assert (damage.first_seq, damage.last_seq) == (4, 4)
    assert damage.byte_range == (outer.offset, outer.end)


@pytest.mark.parametrize(
    ("payload", "meta"), list(itertools.product([0, 8, 1 << 40, 2**64 - 8], [0, 9, 2**32 - 1]))
)
def test_lengths_beyond_the_file_are_never_read(payload: int, meta: int) -> None:
    """A header may claim exabytes; nothing larger than a page of headers is asked for."""
    header = journal._FRAME.pack(
        *(FRAME_MAGIC, FrameType.CHUNKS, 0, FRAME_SIZE, payload, 1, 0),
        *(0, meta, 0, 0, 0),
    )
    header += zlib.crc32(header, journal.salt_of(SESSION)).to_bytes(4, "little")
    data = journal.encode_header(SESSION) + header
    asked = []

    def read(offset: int, length: int) -> bytes:
        asked.append(length)
        return data[offset : offset + length]

    *frames, tail = journal.scan(read, len(data), journal.salt_of(SESSION))
    assert max(asked) <= FRAME_SIZE
    whole = payload == 0 and meta == 0
    assert len(frames) == whole
    assert tail == Tail(len(data) if whole else HEADER_SIZE, len(data))
