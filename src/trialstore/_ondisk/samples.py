"""The samples of a journal: where the chunks of a trial are, and reading them, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from trialstore._errors import DamagedData
from trialstore._ondisk import chunks, entries
from trialstore._ondisk.decoding import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from trialstore._ondisk.entries import ChunkRun, ChunkStamp, TrialCommit
    from trialstore._ondisk.segment_file import SegmentFile, Whole

    Shape = tuple[int, ...]

T = TypeVar("T")


class ChunkRef(NamedTuple):
    """Where the chunks of one frame are; small, because an hour at 1 kHz has a million of them."""

    segment: SegmentFile
    offset: int
    first: int
    chunks: int
    nbytes: int


class Chunk(NamedTuple):
    """One chunk as it was handed over, and when."""

    data: NDArray[Any]
    stamp: ChunkStamp


@dataclass(slots=True)
class JournalTrial:
    """A committed trial: its row, and where its chunks are."""

    commit: TrialCommit
    seq: int
    session: bytes
    arrays: dict[str, list[ChunkRef]]

    @property
    def index(self) -> int:
        """Number of the trial within its task."""
        return self.commit.trial

    def whole_arrays(self) -> dict[str, bool]:
        """For each array, whether a frame for every chunk is there (samples not yet checked)."""
        return {
            name: _are_all(self.arrays.get(name, ()), count)
            for name, (count, _) in self.commit.arrays.items()
        }

    def layout_of(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
        """Shape, dtype and stack axis of one array, from descriptions alone.

        Raises
        ------
        DamagedData
            If chunks are missing or their descriptions damaged.
        """
        return self._layout(name, [run for run, _ in self._runs(name)])

    def _layout(
        self, name: str, runs: Sequence[ChunkRun]
    ) -> tuple[tuple[int, ...], np.dtype[Any], int]:
        shapes: list[Shape] = []
        kinds: set[tuple[np.dtype[Any], int]] = set()
        for run in runs:
            shapes += _shapes_of(run)
            kinds.add((run.layout.dtype, run.layout.stack_axis))
        if not shapes:
            raise DamagedData(*self._unreadable(name, "chunks are missing from the journal"))
        dtype, stack_axis = kinds.pop()
        odd = any(chunks.refusal_of_chunk(shapes[0], shape, stack_axis) for shape in set(shapes))
        if kinds or odd:
            raise DamagedData(*self._unreadable(name, "its chunks do not fit one another"))
        shape = chunks.joined_shape(shapes, stack_axis)
        if math.prod(max(size, 1) for size in shape) * dtype.itemsize >= 2**63:
            raise DamagedData(*self._unreadable(name, f"nothing can have the shape {shape}"))
        return shape, dtype, stack_axis

    def chunks(self, name: str) -> Iterator[Chunk]:
        """Yield the chunks of one array, oldest first, each checked.

        Raises
        ------
        DamagedData
            Naming file and trial, if a chunk is missing or does not fit its checksum.
        """
        self._require_whole(name)
        yield from read_chunks(self.arrays[name], self.index, name)

    def nbytes_of(self, name: str) -> int:
        """Bytes that reading one array takes."""
        return sum(copies[0].nbytes for copies in _copies(self.arrays.get(name, ())))

    def whole(self, name: str) -> tuple[tuple[Shape, np.dtype[Any], int], list[Chunk]]:
        """Return what `layout_of` and `chunks` do; each frame is read once.

        Raises
        ------
        DamagedData
            As they do.
        """
        self._require_whole(name)
        parts = [
            _first_whole(copies, self.index, name, _body_at)
            for copies in _copies(self.arrays.get(name, ()))
        ]
        described = self._layout(name, [run for run, _ in parts])
        return described, [chunk for run, body in parts for chunk in _chunks_in(run, body)]

    def array(self, name: str) -> NDArray[Any]:
        """Return one array; each frame of it is read once, and checked.

        Raises
        ------
        DamagedData
            As `layout_of` and `chunks`.
        """
        (_, _, stack_axis), found = self.whole(name)
        return chunks.join([chunk.data for chunk in found], stack_axis)

    def window(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return samples ``[start, stop)`` of one array; other samples are not read.

        Raises
        ------
        DamagedData
            As `chunks`, for the chunks that the window touches.
        """
        shape, dtype, stack_axis = self.layout_of(name)
        if not shape:  # a scalar has no samples to choose from
            return next(self.chunks(name)).data
        axis = chunks.samples_axis(len(shape), stack_axis)
        start, stop = min(start, shape[axis]), min(stop, shape[axis])
        count = self.commit.arrays[name][0]
        parts: list[NDArray[Any]] = []
        at = 0
        for run, copies in self._runs(name):
            lengths = [chunks.length_in(each, count, stack_axis) for each in _shapes_of(run)]
            if at < stop and at + sum(lengths) > start:
                found = read_chunks(copies, self.index, name)
                for chunk, length in zip(found, lengths, strict=True):
                    first, last = max(start - at, 0), min(stop - at, length)
                    if first < last:
                        whole = chunks.as_part(chunk.data, count, stack_axis)
                        parts.append(whole[chunks.along(axis, first, last - first)])
                    at += length
            else:
                at += sum(lengths)
        if not parts:
            return np.empty((*shape[:axis], 0, *shape[axis + 1 :]), dtype)
        joined = np.concatenate([chunks.opaque(part) for part in parts], axis)
        return chunks.restored(joined, dtype)

    def _runs(self, name: str) -> Iterator[tuple[ChunkRun, list[ChunkRef]]]:
        self._require_whole(name)
        for copies in _copies(self.arrays.get(name, ())):
            yield _first_whole(copies, self.index, name, run_at)[0], copies

    def _require_whole(self, name: str) -> None:
        if not self.whole_arrays().get(name, False):
            raise DamagedData(*self._unreadable(name, "chunks are missing from the journal"))

    def _unreadable(self, name: str, reason: str) -> tuple[str, Path | None, tuple[int, ...]]:
        path = next((ref.segment.path for refs in self.arrays.values() for ref in refs), None)
        return f"array {name!r} of trial {self.index}: {reason}", path, (self.index,)


def read_chunks(refs: Sequence[ChunkRef], trial: int, name: str) -> Iterator[Chunk]:
    """Yield chunks by their references, each checked; repeated ones once.

    Raises
    ------
    DamagedData
        If no copy of a chunk fits its checksum.
    """
    for copies in _copies(refs):
        yield from _chunks_in(*_first_whole(copies, trial, name, _body_at))


def _chunks_in(run: ChunkRun, body: bytes) -> Iterator[Chunk]:
    at = 0
    for shape, stamp in zip(_shapes_of(run), run.stamps, strict=True):
        data = np.ndarray(shape, run.layout.dtype, body, at)
        yield Chunk(data, stamp)
        at += data.nbytes


def _shapes_of(run: ChunkRun) -> list[Shape]:
    """Shape of each chunk of a run; most are of one length, and there may be thousands."""
    known = {length: run.layout.shape_of(length) for length in {s.length for s in run.stamps}}
    return [known[stamp.length] for stamp in run.stamps]


def _copies(refs: Sequence[ChunkRef]) -> list[list[ChunkRef]]:
    """References by run of chunks, in order: after a failed sync a run may stand twice."""
    by_first: dict[int, list[ChunkRef]] = {}
    for ref in refs:
        by_first.setdefault(ref.first, []).append(ref)
    return [by_first[first] for first in sorted(by_first)]


def _are_all(refs: Sequence[ChunkRef], count: int) -> bool:
    """Whether chunks ``[0, count)`` are there, without a hole."""
    at = 0
    for copies in _copies(refs):
        if copies[0].first != at:
            return False
        at += copies[0].chunks
    return at == count


def run_at(ref: ChunkRef) -> tuple[ChunkRun, Whole]:
    """Describe the chunks of one frame.

    Raises
    ------
    DamagedData
        If the description is damaged.
    """
    whole = ref.segment.frame_at(ref.offset)
    record = decode(whole.frame.type, whole.meta)
    if not isinstance(record, entries.ChunkRun) or record.nbytes > whole.frame.body_length:
        raise DamagedData(f"{str(ref.segment.path)!r} changed under us", ref.segment.path)
    return record, whole


def _body_at(ref: ChunkRef) -> tuple[ChunkRun, bytes]:
    run, whole = run_at(ref)
    return run, ref.segment.body_of(whole.frame)


def _first_whole(
    copies: Sequence[ChunkRef], trial: int, name: str, read: Callable[[ChunkRef], T]
) -> T:
    """Return what `read` gives for the first copy that is whole."""
    failure: DamagedData | None = None
    for ref in copies:
        try:
            return read(ref)
        except DamagedData as error:
            failure = error
    message = f"array {name!r} of trial {trial}: {failure}"
    raise DamagedData(message, failure.path if failure else None, (trial,)) from failure
