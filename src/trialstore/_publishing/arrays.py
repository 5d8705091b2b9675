"""One array's published file: built hidden beside the old one, checked, then renamed into place."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trialstore._errors import PublishFailed
from trialstore._ondisk import chunks, layout
from trialstore._ondisk.disk import copy_file, open_reading
from trialstore._ondisk.manifest import ArrayRecord, StoredArray
from trialstore._publishing.hdf5 import ArrayFileWriter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from numpy.typing import NDArray

    from trialstore._ondisk.disk import Disk
    from trialstore._ondisk.entries import ChunkStamp
    from trialstore._ondisk.samples import Chunk, JournalTrial

#: Samples are moved in slabs of about this size, so that a trial of an hour needs no more memory.
_SLAB_BYTES: Final = 32 * 2**20
#: Written bytes are synced and read back in portions of about this size while recording goes on, so
#: that closing a task costs its last seconds and not its length. A thread does that for a portion
#: while the next one is written: the disk and the processor take about the same time for one.
PORTION_BYTES: Final = 32 * 2**20
_TIMING_DTYPE: Final = np.dtype(np.int64)


@dataclass(slots=True)
class _Written:
    """A dataset that was written and not yet read back."""

    stored: StoredArray
    dtype: np.dtype[Any]
    axis: int
    offset: int | None

    @property
    def nbytes(self) -> int:
        return chunks.nbytes(self.stored.shape, self.dtype)


@dataclass(slots=True)
class _Portion:
    """Datasets that are being synced and read back beside."""

    written: list[_Written]
    proof: Future[None]


@dataclass(slots=True)
class ArrayBuilder:
    """Builds ``NAME.hdf5`` trial by trial.

    Guarantee: `finish` returns only after every dataset's bytes were synced, read back from the
    file and found equal to the journal's.

    Parameters
    ----------
    disk : Disk
        Where renames and syncs go.
    folder : pathlib.Path
        The task's folder.
    name : str
        Name of the array.
    record : ArrayRecord
        What the manifest says of it; grows with each trial.
    token : str
        Part of the hidden file's name that is this publisher's own.
    portion : int, optional
        Bytes that are synced and read back together.
    """

    disk: Disk
    folder: Path
    name: str
    record: ArrayRecord
    token: str
    portion: int = PORTION_BYTES
    _file: ArrayFileWriter | None = None
    _unchecked: list[_Written] = field(default_factory=list)
    _unchecked_bytes: int = 0
    _proving: _Portion | None = None
    _beside: ThreadPoolExecutor | None = None
    _changed: bool = False
    _is_published: bool = False
    _buffer: bytearray = field(default_factory=bytearray)
    _offsets: dict[int, int | None] = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        """Whether a hidden file is being built."""
        return self._file is not None

    @property
    def hidden(self) -> Path:
        """The file being built."""
        target = layout.array_path(self.folder, self.name)
        return self.folder / layout.building_name(target.name, self.token)

    def add(self, trial: JournalTrial) -> None:
        """Write one trial's array.

        Raises
        ------
        DamagedData
            If the journal's samples do not fit their checksums; nothing of the trial is kept then.
        PublishFailed
            If the file cannot be written.
        """
        is_short = trial.nbytes_of(self.name) <= _SLAB_BYTES
        found: list[Chunk] = []
        if is_short:
            (shape, dtype, stack_axis), found = trial.whole(self.name)
        else:
            shape, dtype, stack_axis = trial.layout_of(self.name)
        axis = chunks.samples_axis(len(shape), stack_axis)
        block = chunks.block_length(shape, dtype, axis)
        crcs: list[int] = []
        stamps: list[ChunkStamp] = []
        nbytes = chunks.nbytes(shape, dtype)
        # Everything is checked before anything is written: a damaged trial leaves no dataset.
        if is_short:
            stamps += [chunk.stamp for chunk in found]
            whole = chunks.join([chunk.data for chunk in found], stack_axis)
            crcs += [chunks.crc_of(part) for part in chunks.blocks(whole, axis, block)]
            pieces: Iterator[Any] = iter([(None, whole)])
        else:
            for _ in trial.chunks(self.name):
                pass
            pieces = self._long_pieces(trial, (shape, dtype, stack_axis), block, crcs, stamps)
        writer = self._open()
        key = str(trial.index)
        offset = writer.write(key, shape, dtype, pieces)
        writer.write_group("timing", key, np.array(stamps, _TIMING_DTYPE).reshape(-1, 3))
        described = chunks.dtype_to_json(dtype)
        stored = StoredArray(trial.index, described, shape, axis, block, tuple(crcs))
        self.record.trials[trial.index] = stored
        self.record.stack_axis = stack_axis
        self._unchecked.append(_Written(stored, dtype, axis, offset))
        self._unchecked_bytes += nbytes
        self._changed = True
        if self._unchecked_bytes >= self.portion:
            self._prove_beside()

    def _long_pieces(
        self,
        trial: JournalTrial,
        described: tuple[tuple[int, ...], np.dtype[Any], int],
        block: int,
        crcs: list[int],
        stamps: list[ChunkStamp],
    ) -> Iterator[tuple[tuple[slice, ...], NDArray[Any]]]:
        shape, dtype, stack_axis = described
        axis = chunks.samples_axis(len(shape), stack_axis)
        per_sample = max(1, chunks.nbytes(shape, dtype) // max(1, shape[axis]))
        length = max(block, _SLAB_BYTES // per_sample // block * block)

        def data() -> Iterator[NDArray[Any]]:
            for chunk in trial.chunks(self.name):
                stamps.append(chunk.stamp)
                yield chunk.data

        count = trial.commit.arrays[self.name][0]
        for first, slab in chunks.slabs(data(), count, shape, dtype, stack_axis, length):
            crcs.extend(chunks.crc_of(part) for part in chunks.blocks(slab, axis, block))
            end = first + slab.shape[axis]
            yield (
                (slice(None),) * axis
                + (slice(first, end),)
                + (slice(None),) * (len(shape) - axis - 1),
                slab,
            )

    def _open(self) -> ArrayFileWriter:
        if self._file is None:
            if self.record.trials and not self.hidden.exists():
                # What was published by now, in this session or before the task was resumed, is what
                # the new file begins with.
                folder = self.folder
                if not self._is_published:
                    folder = folder / layout.JOURNAL / layout.BASE
                copy_file(self.disk, layout.array_path(folder, self.name), self.hidden)
            self._file = ArrayFileWriter(self.hidden, mode="r+" if self.hidden.exists() else "x")
        return self._file

    def check(self) -> None:
        """Sync what was written and read it back.

        Raises
        ------
        PublishFailed
            If bytes differ from what was written, or the disk fails.
        """
        if self._file is None:
            return
        self._await_proof()
        if self._unchecked:
            self._file.flush()
            written = self._take_unchecked()
            self._prove(written)
            self._note_proven(written)

    def _prove_beside(self) -> None:
        """Have what was written synced and read back by a thread while more is written."""
        self._await_proof()
        if self._file is not None:
            self._file.flush()
        if self._beside is None:
            self._beside = ThreadPoolExecutor(1, "prove")
        written = self._take_unchecked()
        self._proving = _Portion(written, self._beside.submit(self._prove, written))

    def _await_proof(self) -> None:
        """Wait for the portion that is being proven."""
        if self._proving is not None:
            portion, self._proving = self._proving, None
            portion.proof.result()
            self._note_proven(portion.written)

    def _take_unchecked(self) -> list[_Written]:
        written, self._unchecked, self._unchecked_bytes = self._unchecked, [], 0
        return written

    def _prove(self, written: list[_Written]) -> None:
        """Sync the file, then compare datasets with what was to be written."""
        self._translated_sync()
        try:
            fd = open_reading(self.hidden)
            try:
                for dataset in written:
                    self._compare(fd, dataset)
            finally:
                os.close(fd)
        except OSError as error:
            raise self._failed(error) from error

    def _note_proven(self, written: list[_Written]) -> None:
        self._offsets.update((dataset.stored.trial, dataset.offset) for dataset in written)

    def _failed(self, error: OSError) -> PublishFailed:
        return PublishFailed(f"{str(self.hidden)!r}: {error}")

    def _translated_sync(self) -> None:
        try:
            self._sync()
        except OSError as error:
            raise self._failed(error) from error

    def _sync(self) -> None:
        fd = os.open(self.hidden, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        try:
            self.disk.sync(fd)
        finally:
            self.disk.close(fd)

    def _compare(self, fd: int, written: _Written) -> None:
        stored = written.stored
        if written.nbytes == 0:
            return
        if written.offset is None:
            raise PublishFailed(f"{str(self.hidden)!r}: dataset {stored.trial} has no place in it")
        if hasattr(os, "preadv") and written.nbytes <= _SLAB_BYTES:
            # Into one buffer: the system takes longer to find new memory than to fill it.
            if len(self._buffer) < written.nbytes:
                self._buffer = bytearray(written.nbytes)
            part = memoryview(self._buffer)[: written.nbytes]
            if os.preadv(fd, [part], written.offset) < written.nbytes:
                raise PublishFailed(f"{str(self.hidden)!r}: dataset {stored.trial} is cut short")
            whole = np.ndarray(stored.shape, written.dtype, self._buffer)
        else:
            with self.hidden.open("rb") as file:
                whole = np.memmap(file, written.dtype, "r", written.offset, stored.shape)
        found = chunks.blocks(whole, written.axis, stored.block)
        if tuple(chunks.crc_of(part) for part in found) != stored.blocks:
            raise PublishFailed(
                f"{str(self.hidden)!r}: dataset {stored.trial} reads back differently"
            )

    def finish(self) -> bool:
        """Complete the hidden file, check it whole; return whether there is something to rename.

        Raises
        ------
        PublishFailed
            If it cannot be completed or is not what was written.
        """
        if self._file is None:
            return self._changed and self.hidden.exists()
        self._file.set_attributes(_attributes(self.record.info))
        self.check()
        self.close()
        self._sync_closed()
        return self._changed

    def _sync_closed(self) -> None:
        """Sync what was written at close, and see that it still leads to the same bytes."""
        self._translated_sync()
        offsets = {str(trial): offset for trial, offset in self._offsets.items()}
        # In the order of HDF5's own index, where each is found near the last: a quarter less time.
        names = sorted(offsets)
        with ArrayFileWriter(self.hidden, mode="r+") as file:
            for name, offset in zip(names, file.offsets(names), strict=True):
                if offset != offsets[name]:
                    raise PublishFailed(f"{str(self.hidden)!r}: dataset {name} has moved")
        self._offsets.clear()

    def publish(self) -> None:
        """Rename the finished file into place; what comes later begins with a copy of it."""
        self.disk.replace(self.hidden, layout.array_path(self.folder, self.name))
        self._changed, self._is_published = False, True

    def close(self) -> None:
        """Close the hidden file."""
        self._proving = None
        if self._beside is not None:
            beside, self._beside = self._beside, None
            beside.shutdown()
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def discard(self) -> None:
        """Close and take away the hidden file."""
        try:
            self.close()
        finally:
            self.disk.remove(self.hidden)


def _attributes(info: dict[str, Any]) -> dict[str, Any]:
    """What stands in the file itself, so that it explains itself without a manifest."""
    return {name: info.get(name) for name in ("rate", "unit", "channels", "dims")}
