"""What stands in the queue, and how a batch of it becomes journal entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trialstore._ondisk.entries import CleanEnd, encode, encode_chunks, encode_trial

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trialstore._ondisk.entries import Entry, Layout

    Buffer = bytes | bytearray | memoryview

#: Counted for each item beside its samples, so that a flood of empty trials is bounded too.
ITEM_OVERHEAD: Final = 512
#: Chunks that follow one another share a frame up to this size: a live reader of an hour at 1 kHz
#: must not walk 3.6 million frames, and one damaged byte must not take more than this with it.
_FRAME_BYTES: Final = 1 << 20
_FRAME_CHUNKS: Final = 4096


@dataclass(slots=True)
class ChunkItem:
    """One chunk of a trial's array: `nbytes` of a memory that is ours, from `start` on.

    No object of its own within it: tens of thousands may wait, and the garbage collector looks at
    each again and again (a third of the time of a 4 KB chunk, before).
    """

    array: str
    trial: int
    ordinal: int
    layout: Layout
    memory: memoryview
    start: int
    nbytes: int
    length: int
    unix_ns: int
    monotonic_ns: int

    @property
    def accepted_ns(self) -> int:
        """Monotonic time at which it was accepted."""
        return self.monotonic_ns


@dataclass(slots=True)
class TrialItem:
    """A whole trial: its chunks, if it was not streamed, and its row, encoded."""

    chunks: Sequence[ChunkItem]
    trial: int
    row: str
    arrays: dict[str, tuple[int, int]]
    unix_ns: int
    monotonic_ns: int
    first_unix_ns: int | None
    nbytes: int

    @property
    def accepted_ns(self) -> int:
        """Monotonic time at which it was accepted."""
        return self.monotonic_ns

    def encode(self) -> Entry:
        """Return the frame that commits it."""
        times = (self.unix_ns, self.monotonic_ns, self.first_unix_ns)
        return encode_trial(self.trial, self.row, self.arrays, *times)


@dataclass(slots=True)
class EndItem:
    """The end of a session."""

    end: CleanEnd

    @property
    def nbytes(self) -> int:
        """Bytes that the experiment handed over: none."""
        return 0

    @property
    def accepted_ns(self) -> None:
        """Nothing was accepted."""
        return


Item = ChunkItem | TrialItem | EndItem


def encode_batch(items: Sequence[Item]) -> list[Entry]:
    """Turn items into entries, in order; runs in the worker thread and copies no samples."""
    entries: list[Entry] = []
    streamed: list[ChunkItem] = []
    for item in items:
        if isinstance(item, ChunkItem):
            streamed.append(item)
            continue
        if isinstance(item, TrialItem):
            streamed += item.chunks
        entries += map(_encode_run, _runs(streamed))
        entries.append(item.encode() if isinstance(item, TrialItem) else encode(item.end))
        streamed = []
    entries += map(_encode_run, _runs(streamed))
    return entries


def _runs(chunks: Sequence[ChunkItem]) -> Iterator[Sequence[ChunkItem]]:
    """Cut chunks into runs that share a frame."""
    begin = size = 0
    for at, chunk in enumerate(chunks):
        first = chunks[begin]
        size += chunk.nbytes
        if (
            (chunk.layout is not first.layout and chunk.layout != first.layout)
            or chunk.array != first.array
            or chunk.trial != first.trial
            or (size > _FRAME_BYTES and at > begin)
            or at - begin == _FRAME_CHUNKS
        ):
            yield chunks[begin:at]
            begin, size = at, chunk.nbytes
    if chunks:
        yield chunks[begin:]


def _encode_run(run: Sequence[ChunkItem]) -> Entry:
    first = run[0]
    stamps = [(item.length, item.unix_ns, item.monotonic_ns) for item in run]
    place = (first.array, first.trial, first.ordinal, first.layout)
    return encode_chunks(*place, stamps, _pieces(run))


def _pieces(run: Sequence[ChunkItem]) -> list[Buffer]:
    """Return the samples of a run, those that lie side by side as one."""
    pieces: list[Buffer] = []
    memory, start, end = run[0].memory, run[0].start, run[0].start
    for chunk in run:
        if chunk.memory is not memory or chunk.start != end:
            pieces.append(memory[start:end])
            memory, start = chunk.memory, chunk.start
        end = chunk.start + chunk.nbytes
    return [*pieces, memory[start:end]]
