"""Where a task's trials come from: published files, the journal, or another program's files.

Three classes with the same methods; `TaskReader` asks for the right one each time it is asked something.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from trialstore._errors import DamagedData, FormatError, StorageError
from trialstore._ondisk import chunks, layout
from trialstore._ondisk.disk import read_file
from trialstore._ondisk.table import check_columns, parse_csv, parse_timing
from trialstore.design import ArrayInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from trialstore._ondisk.losses import Loss
    from trialstore._ondisk.manifest import Manifest, StoredArray
    from trialstore._reading.hdf5 import ArrayFile

Window = tuple[int, int]
Times = tuple[int, int, int, int | None]


@dataclass(frozen=True, slots=True)
class ArraySummary:
    """What is known of one array of a task.

    Parameters
    ----------
    dtype : numpy.dtype or None
        Of every trial, or None if trials differ.
    shapes : dict
        Shape for each trial number that has the array.
    rate : float or None
        Sampling rate in hertz.
    unit : str or None
        Unit of the samples.
    channels : tuple of str or None
        Names of the channels.
    dims : tuple of str or None
        Name of each axis.
    stack_axis : int
        Axis along which chunks were stacked, as AxoPy's.
    """

    dtype: np.dtype[Any] | None
    shapes: dict[int, tuple[int, ...]]
    rate: float | None
    unit: str | None
    channels: tuple[str, ...] | None
    dims: tuple[str, ...] | None
    stack_axis: int


def summary(
    info: ArrayInfo, dtypes: list[np.dtype[Any]], shapes: dict[int, tuple[int, ...]], stack_axis: int
) -> ArraySummary:
    """Put a declaration and what was found together."""
    dtype = dtypes[0] if dtypes and all(found == dtypes[0] for found in dtypes) else None
    return ArraySummary(
        dtype, shapes, info.rate, info.unit, info.channels, info.dims, stack_axis
    )


def numbered(frame: pd.DataFrame, numbers: list[int]) -> pd.DataFrame:
    """Give each row its trial's number; a frame without gaps keeps its plain index."""
    if numbers != list(range(len(numbers))):
        import pandas as pd

        frame.index = pd.Index(numbers, dtype="int64")
    return frame


class Source(Protocol):
    """One place that trials come from."""

    def frame(self) -> pd.DataFrame:
        """Return one row per trial, indexed by trial number."""
        ...

    def times(self) -> list[Times]:
        """Return trial number, acceptance (unix, monotonic) and first chunk (unix), in nanoseconds."""
        ...

    def trial_numbers(self) -> list[int]:
        """Return the numbers of the trials whose rows are whole."""
        ...

    def array_names(self) -> list[str]:
        """Return names of arrays that some trial has."""
        ...

    def info(self, name: str) -> ArraySummary:
        """Describe one array."""
        ...

    def has(self, name: str, trial: int) -> bool:
        """Whether a trial has an array."""
        ...

    def read(self, name: str, trial: int, window: Window | None, *, verify: bool) -> NDArray[Any]:
        """Return one trial's array or a part of it."""
        ...

    def each(self, name: str, *, verify: bool) -> Iterator[NDArray[Any] | None]:
        """Yield the array of each trial in `trial_numbers`, None where a trial has none."""
        ...

    def losses(self) -> list[Loss]:
        """Return what is missing."""
        ...


class PublishedSource:
    """Reads published files and checks them against the manifest.

    Guarantee: with ``verify=True`` no sample and no row is returned that does not fit its checksum.

    Parameters
    ----------
    folder : pathlib.Path
        The task's folder, where arrays lie.
    manifest : Manifest
        What was published.
    tables : pathlib.Path, optional
        Folder of ``trials.csv`` and ``timing.csv``, if it is not `folder`.
    """

    def __init__(self, folder: Path, manifest: Manifest, tables: Path | None = None) -> None:
        self._folder = folder
        self._manifest = manifest
        self._tables = folder if tables is None else tables

    def frame(self) -> pd.DataFrame:
        from trialstore._reading.frame import frame_from_csv

        columns = check_columns(self._manifest.columns, self._manifest.trials)
        data = self._checked_file(layout.TRIALS)
        frame = frame_from_csv(data, columns, self._manifest.trials)
        return frame.drop(index=self._manifest.lost) if self._manifest.lost else frame

    def rows(self) -> list[Sequence[tuple[str, str, str]]]:
        """Return each row as name, kind and text of its cells, without lost ones and missing cells."""
        columns = check_columns(self._manifest.columns, self._manifest.trials)
        _, texts = parse_csv(self._checked_file(layout.TRIALS))
        kinds = [
            (name, [kind for kind, count in runs for _ in range(count)]) for name, runs in columns
        ]
        return [
            [
                (name, column[trial], text)
                for (name, column), text in zip(kinds, texts[trial], strict=True)
                if column[trial] != "missing"
            ]
            if columns
            else []
            for trial in self.trial_numbers()
        ]

    def times(self) -> list[Times]:
        return [tuple(row) for row in parse_timing(self._checked_file(layout.TIMING))]

    def _checked_file(self, name: str) -> bytes:
        path = self._tables / name
        try:
            data = read_file(path)
        except OSError as error:
            raise DamagedData(f"{str(path)!r} cannot be read: {error}", path) from error
        said = self._manifest.files.get(name)
        if said is None or said["size"] != len(data) or said["crc32"] != zlib.crc32(data):
            raise DamagedData(
                f"{str(path)!r} is not as it was published: it was edited (perhaps saved by a "
                "spreadsheet) or damaged; restore it from a copy, or read it with pandas",
                path,
            )
        return data

    def trial_numbers(self) -> list[int]:
        lost = set(self._manifest.lost)
        return [trial for trial in range(self._manifest.trials) if trial not in lost]

    def array_names(self) -> list[str]:
        return [name for name, record in self._manifest.arrays.items() if record.trials]

    def info(self, name: str) -> ArraySummary:
        record = self._manifest.arrays[name]
        stored = record.trials
        dtypes = [chunks.dtype_from_json(array.dtype) for array in stored.values()]
        shapes = {trial: array.shape for trial, array in stored.items()}
        return summary(ArrayInfo.from_json(record.info), dtypes, shapes, record.stack_axis)

    def has(self, name: str, trial: int) -> bool:
        record = self._manifest.arrays.get(name)
        return record is not None and trial in record.trials

    def read(self, name: str, trial: int, window: Window | None, *, verify: bool) -> NDArray[Any]:
        self.require_whole(name, trial)
        with self._open(name) as file:
            return self._read(file, name, self._stored(name, trial), window, verify=verify)

    def each(self, name: str, *, verify: bool) -> Iterator[NDArray[Any] | None]:
        with self._open(name) as file:
            for trial in self.trial_numbers():
                self.require_whole(name, trial)
                if not self.has(name, trial):
                    yield None
                else:
                    yield self._read(file, name, self._stored(name, trial), None, verify=verify)

    def losses(self) -> list[Loss]:
        return list(self._manifest.losses)

    def require_whole(self, name: str, trial: int) -> None:
        """Raise DamagedData for an array that was lost.

        An array that was lost before it could be published must not look like one that never was.
        """
        if self.has(name, trial):
            return
        for loss in self._manifest.losses:
            if trial in loss.trials and loss.kind != "refused" and repr(name) in loss.what:
                path = self._folder / loss.file
                raise DamagedData(f"array {name!r} of trial {trial}: {loss.evidence}", path, (trial,))

    def _stored(self, name: str, trial: int) -> StoredArray:
        return self._manifest.arrays[name].trials[trial]

    def _open(self, name: str) -> ArrayFile:
        from trialstore._reading.hdf5 import ArrayFile

        path = layout.array_path(self._folder, name)
        try:
            return ArrayFile(path)
        except DamagedData:
            raise
        except StorageError as error:
            raise DamagedData(str(error), path) from error

    def _read(
        self,
        file: ArrayFile,
        name: str,
        stored: StoredArray,
        window: Window | None,
        *,
        verify: bool,
    ) -> NDArray[Any]:
        path = layout.array_path(self._folder, name)
        axis = chunks.samples_axis(len(stored.shape), self._manifest.arrays[name].stack_axis)
        first, last = 0, stored.shape[axis] if stored.shape else 1
        selection: tuple[slice, ...] | None = None
        if window is not None and stored.shape:
            # Whole blocks, because a block is what has a checksum.
            first = min(window[0], last) // stored.block * stored.block
            last = min(-(-min(window[1], last) // stored.block) * stored.block, last)
            selection = chunks.along(axis, first, max(0, last - first))
        try:
            array = file.read(str(stored.trial), selection=selection)
        except FormatError as error:
            raise DamagedData(
                f"array {name!r} of trial {stored.trial}: {error}", path, (stored.trial,)
            ) from error
        except DamagedData as error:
            raise DamagedData(str(error), path, (stored.trial,)) from error
        if verify:
            self._verify(array, stored, axis, first // stored.block, path, whole=window is None)
        if window is None or not stored.shape:
            return array
        return array[chunks.along(axis, window[0] - first, max(0, window[1] - window[0]))]

    def _verify(
        self,
        array: NDArray[Any],
        stored: StoredArray,
        axis: int,
        first_block: int,
        path: Path,
        *,
        whole: bool,
    ) -> None:
        fits = not whole or array.shape == stored.shape
        for number, block in enumerate(chunks.blocks(array, axis, stored.block), first_block):
            fits = fits and number < len(stored.blocks)
            fits = fits and chunks.crc_of(block) == stored.blocks[number]
        if not fits:
            raise DamagedData(
                f"{str(path)!r}: the samples of trial {stored.trial} do not fit their checksum: the "
                "file was changed or damaged after publication; verify=False reads it all the same",
                path,
                (stored.trial,),
            )


class ForeignSource:
    """Reads a task without our manifest, such as AxoPy's: as it is, with nothing to check against."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def frame(self) -> pd.DataFrame:
        from trialstore._reading.frame import frame_from_foreign_csv

        path = self._folder / layout.TRIALS
        try:
            data = read_file(path)
        except FileNotFoundError as error:
            raise FormatError(f"task folder {str(self._folder)!r} has no {layout.TRIALS}") from error
        except OSError as error:
            raise DamagedData(f"{str(path)!r} cannot be read: {error}", path) from error
        return frame_from_foreign_csv(data, str(path))

    def times(self) -> list[Times]:
        return []

    def trial_numbers(self) -> list[int]:
        return list(range(len(self.frame())))

    def array_names(self) -> list[str]:
        return layout.array_names_in(self._folder)

    def info(self, name: str) -> ArraySummary:
        with self._open(name) as file:
            trials = sorted(int(key) for key in file.names() if key.isascii() and key.isdigit())
            shapes = {trial: file.shape(str(trial)) for trial in trials}
            dtypes = [file.dtype(str(trial)) for trial in trials]
        return summary(ArrayInfo(), dtypes, shapes, 1)

    def has(self, name: str, trial: int) -> bool:
        with self._open(name) as file:
            return str(trial) in file.names()

    def read(self, name: str, trial: int, window: Window | None, *, verify: bool) -> NDArray[Any]:
        del verify  # there is nothing to check against
        with self._open(name) as file:
            key = str(trial)
            selection = None
            shape = file.shape(key)
            if window is not None and shape:
                axis = chunks.samples_axis(len(shape), 1)
                selection = chunks.along(axis, window[0], max(0, window[1] - window[0]))
            return file.read(key, selection=selection)

    def each(self, name: str, *, verify: bool) -> Iterator[NDArray[Any] | None]:
        del verify
        with self._open(name) as file:
            found = set(file.names())
            for trial in self.trial_numbers():
                yield file.read(str(trial)) if str(trial) in found else None

    def losses(self) -> list[Loss]:
        return []

    def _open(self, name: str) -> ArrayFile:
        from trialstore._reading.hdf5 import ArrayFile

        return ArrayFile(layout.array_path(self._folder, name))
