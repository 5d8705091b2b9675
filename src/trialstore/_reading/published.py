"""Published files as a source of trials, each sample and row checked against the manifest."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

from trialstore._errors import DamagedData, StorageError
from trialstore._ondisk import chunks, layout
from trialstore._ondisk.manifest import read_described
from trialstore._ondisk.table import check_columns, parse_timing
from trialstore._reading.frame import columns_from_csv, frame_from_csv, rows_of, without
from trialstore._reading.hdf5 import ArrayFile
from trialstore._reading.source import ArraySummary, Times, Window, attrs_of, frame_of, summary
from trialstore.design import ArrayInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from trialstore._ondisk.losses import Loss
    from trialstore._ondisk.manifest import Manifest, StoredArray
    from trialstore._ondisk.table import Columns
    from trialstore._reading.frame import Cells


class PublishedSource:
    """Reads published files and checks them against the manifest.

    Guarantee: with ``verify=True`` no sample and no row is returned that does not fit its checksum.

    Parameters
    ----------
    folder : pathlib.Path
        The task's folder, where arrays lie.
    manifest : Manifest
        What was published.
    aside : pathlib.Path, optional
        Where the published files are kept while the task is resumed. Tables are read there; arrays
        as well, until it is gone: what is in `folder` then holds the same trials, and more.
    """

    def __init__(self, folder: Path, manifest: Manifest, aside: Path | None = None) -> None:
        self._folder = folder
        self._manifest = manifest
        self._aside = aside

    @property
    def status(self) -> str:
        return self._manifest.status

    @property
    def metadata(self) -> dict[str, Any]:
        return dict(self._manifest.metadata)

    def file_record(self, name: str) -> dict[str, int] | None:
        return self._manifest.files.get(name)

    def columns(self) -> Cells:
        columns = columns_from_csv(self._checked_file(layout.TRIALS), self._described())
        return without(columns, self._manifest.lost) if self._manifest.lost else columns

    def attrs(self, trials: Sequence[int]) -> list[dict[str, Any]]:
        numbers = self.trial_numbers()
        rows = dict(zip(numbers, rows_of(self.columns(), len(numbers)), strict=True))
        return [attrs_of(rows[trial]) for trial in trials]

    def frame(self) -> pd.DataFrame:
        if self._manifest.lost:
            return frame_of(self.columns(), self.trial_numbers())
        table = self._checked_file(layout.TRIALS)
        return frame_from_csv(table, self._described(), len(self.trial_numbers()))

    def _described(self) -> Columns:
        return check_columns(self._manifest.columns, self._manifest.trials)

    def times(self) -> list[Times]:
        return list(parse_timing(self._checked_file(layout.TIMING)))

    def _checked_file(self, name: str) -> bytes:
        return read_described(self._aside or self._folder, self._manifest, name)

    def trial_numbers(self) -> list[int]:
        lost, count = set(self._manifest.lost), self._manifest.trials
        # A manifest of a kilobyte can claim any number; each trial has at least a byte in a table.
        if count - len(lost) > sum(map(self._size_of, (layout.TRIALS, layout.TIMING))):
            raise DamagedData(
                f"the manifest of {str(self._folder)!r} tells of {count} trials, for which "
                f"{layout.TRIALS} and {layout.TIMING} are too small, or gone: bring them back",
                self._folder / layout.MANIFEST,
            )
        return [trial for trial in range(count) if trial not in lost] if lost else [*range(count)]

    def _size_of(self, name: str) -> int:
        # What is kept aside is gone once the task is published again: the folder has it then.
        for folder in filter(None, (self._aside, self._folder)):
            with contextlib.suppress(OSError):
                return (folder / name).lstat().st_size
        return 0

    def array_names(self) -> list[str]:
        first = self.first_trials()
        return sorted(first, key=lambda name: first[name])

    def first_trials(self) -> dict[str, int]:
        """Return the first trial that has, or had, each array; those that none has are left out."""
        arrays = self._manifest.arrays
        trials = {name: [*record.trials, *self._lost(name)] for name, record in arrays.items()}
        return {name: min(numbers) for name, numbers in trials.items() if numbers}

    def _lost(self, name: str) -> dict[int, Loss]:
        """Return the loss of each trial that had an array and has it no more."""
        return self._losses_of.get(f"array {name!r}", {})

    @functools.cached_property
    def _losses_of(self) -> dict[str, dict[int, Loss]]:
        found: dict[str, dict[int, Loss]] = {}
        for loss in self._manifest.losses:
            found.setdefault(loss.what, {}).update(dict.fromkeys(loss.trials, loss))
        return found

    def declared(self) -> dict[str, ArrayInfo]:
        """Return what was said of each array, in the order of the manifest."""
        arrays = self._manifest.arrays
        return {name: ArrayInfo.from_json(record.info) for name, record in arrays.items()}

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
        return self._several(name, self.trial_numbers(), verify=verify)

    def some(self, name: str, trials: Sequence[int]) -> Iterator[NDArray[Any]]:
        # Each of them has one.
        found = self._several(name, trials, verify=True)
        return (array for array in found if array is not None)

    def _several(
        self, name: str, trials: Sequence[int], *, verify: bool
    ) -> Iterator[NDArray[Any] | None]:
        """Yield arrays of some trials, with the file open from the first to the last."""
        if not self._manifest.arrays[name].trials:  # all that there were are lost, and their file
            for trial in trials:
                self.require_whole(name, trial)
                yield None
            return
        with self._open(name) as file:
            if len(trials) > 1:
                # Where the list is damaged, what can be read is read, one by one.
                with contextlib.suppress(DamagedData):
                    file.expect_many()
            for trial in trials:
                if self.has(name, trial):
                    yield self._read(file, name, self._stored(name, trial), None, verify=verify)
                else:
                    self.require_whole(name, trial)
                    yield None

    def losses(self) -> list[Loss]:
        return list(self._manifest.losses)

    def require_whole(self, name: str, trial: int) -> None:
        """Make sure that an array that was lost does not look like one that never was.

        Raises
        ------
        DamagedData
            If the array was lost before it could be published.
        """
        if not self.has(name, trial) and (loss := self._lost(name).get(trial)) is not None:
            path = self._folder / loss.file
            raise DamagedData(f"array {name!r} of trial {trial}: {loss.evidence}", path, (trial,))

    def _stored(self, name: str, trial: int) -> StoredArray:
        return self._manifest.arrays[name].trials[trial]

    def _open(self, name: str) -> ArrayFile:
        if self._aside is not None:
            with contextlib.suppress(StorageError):
                return ArrayFile(layout.array_path(self._aside, name))
        path = self._path(name)
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
        if window is None and verify:
            dtype = chunks.dtype_from_json(stored.dtype)
            known = file.read_known(str(stored.trial), stored.shape, dtype)
            # What does not fit is read in the ordinary way, and told.
            if known is not None and _crcs(known, stored) == stored.blocks:
                return known
        axis = stored.axis
        first, last = _all_of(stored)
        size = last
        selection: tuple[slice, ...] | None = None
        if window is not None and stored.shape:
            # Whole blocks, because a block is what has a checksum.
            first = min(window[0], size) // stored.block * stored.block
            last = max(first, min(-(-window[1] // stored.block) * stored.block, size))
            selection = chunks.along(axis, first, last - first)
        try:
            array = file.read(str(stored.trial), selection=selection)
        except DamagedData as error:
            raise DamagedData(str(error), self._path(name), (stored.trial,)) from error
        except StorageError as error:  # not understood, or of other axes than were published
            raise DamagedData(
                f"array {name!r} of trial {stored.trial}: {error}",
                self._path(name),
                (stored.trial,),
            ) from error
        if verify:
            self._verify(array, stored, (first, last), name)
        if window is None or not stored.shape:
            return array
        return array[chunks.along(axis, window[0] - first, max(0, window[1] - window[0]))]

    def _path(self, name: str) -> Path:
        return layout.array_path(self._folder, name)

    def _verify(self, array: NDArray[Any], stored: StoredArray, span: Window, name: str) -> None:
        """Raise unless `array` is what was published as these samples of a trial, whole blocks."""
        axis, first = stored.axis, span[0] // stored.block
        shape = stored.shape and (
            *stored.shape[:axis], span[1] - span[0], *stored.shape[axis + 1 :]
        )  # fmt: skip
        fits = array.shape == shape and array.dtype == chunks.dtype_from_json(stored.dtype)
        if fits:
            found = _crcs(array, stored)
            fits = found == stored.blocks[first : first + len(found)]
        if not fits:
            path = self._path(name)
            raise DamagedData(
                f"{str(path)!r}: the samples of trial {stored.trial} do not fit their checksum: "
                "the file was changed or damaged after publication; verify=False reads it all "
                "the same",
                path,
                (stored.trial,),
            )


def _all_of(stored: StoredArray) -> Window:
    """First sample and the one after the last."""
    return 0, stored.shape[stored.axis] if stored.shape else 1


def _crcs(array: NDArray[Any], stored: StoredArray) -> tuple[int, ...]:
    """Checksums of some whole blocks of a stored array."""
    return tuple(map(chunks.crc_of, chunks.blocks(array, stored.axis, stored.block)))
