"""What stands in the queue, and how a batch of it becomes journal entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trialstore._ondisk.entries import ChunkRun, ChunkStamp, CleanEnd, TrialCommit, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    """One chunk of a trial's array; `data` is ours and never changes."""

    array: str
    trial: int
    ordinal: int
    layout: Layout
    data: Buffer
    stamp: ChunkStamp

    @property
    def nbytes(self) -> int:
        """Bytes of samples."""
        return len(self.data)


@dataclass(slots=True)
class TrialItem:
    """A whole trial: its chunks, if it was not streamed, and its row."""

    chunks: list[ChunkItem]
    commit: TrialCommit
    nbytes: int


@dataclass(slots=True)
class EndItem:
    """The end of a session."""

    end: CleanEnd

    @property
    def nbytes(self) -> int:
        """Bytes that the experiment handed over: none."""
        return 0


Item = ChunkItem | TrialItem | EndItem


def encode_batch(items: Sequence[Item]) -> list[Entry]:
    """Turn items into entries, in order; runs in the worker thread and copies no samples."""
    entries: list[Entry] = []
    run: list[ChunkItem] = []

    def finish_run() -> None:
        if run:
            entries.append(_encode_run(run))
            run.clear()

    size = 0

    def add(chunk: ChunkItem) -> None:
        nonlocal size
        if run and not _may_follow(run[-1], chunk, size, len(run)):
            finish_run()
        if not run:
            size = 0
        run.append(chunk)
        size += len(chunk.data)

    for item in items:
        match item:
            case ChunkItem():
                add(item)
            case TrialItem(chunks, commit):
                for chunk in chunks:
                    add(chunk)
                finish_run()
                entries.append(encode(commit))
            case EndItem(end):
                finish_run()
                entries.append(encode(end))
    finish_run()
    return entries


def _may_follow(last: ChunkItem, chunk: ChunkItem, size: int, count: int) -> bool:
    return (
        chunk.array == last.array
        and chunk.trial == last.trial
        and (chunk.layout is last.layout or chunk.layout == last.layout)
        and size + len(chunk.data) <= _FRAME_BYTES
        and count < _FRAME_CHUNKS
    )


def _encode_run(run: Sequence[ChunkItem]) -> Entry:
    first = run[0]
    stamps = tuple(chunk.stamp for chunk in run)
    record = ChunkRun(first.array, first.trial, first.ordinal, first.layout, stamps)
    return encode(record, [chunk.data for chunk in run])
