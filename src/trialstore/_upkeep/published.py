"""Plain files against the manifest: every byte that has a checksum is read."""

from __future__ import annotations

import contextlib
import math
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from trialstore._errors import DamagedData, FormatError, StorageError
from trialstore._ondisk import chunks, layout
from trialstore._ondisk.checksum import crc32
from trialstore._ondisk.disk import open_reading, read_file
from trialstore._reading.hdf5 import ArrayFile
from trialstore._upkeep.tables import how_it_differs

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy as np

    from trialstore._ondisk.manifest import ArrayRecord, Manifest, StoredArray
    from trialstore._upkeep.gathering import Gathering
    from trialstore._upkeep.report import FindingKind

_PIECE: Final = 1 << 20
#: Samples are read in slabs of about this size, so that a trial of an hour needs no more memory.
_SLAB_BYTES: Final = 32 * 2**20
#: (chunks, 3): length and two clocks of each chunk.
_AXES_OF_TIMES: Final = 2
_TABLES: Final = {layout.TRIALS: "rows", layout.TIMING: "times"}


class Fault(NamedTuple):
    """What is wrong with one dataset."""

    kind: FindingKind
    span: tuple[int, int] | None
    evidence: str


class PublishedSet:
    """A published set: the task's own, or what was set aside when the task was resumed.

    Parameters
    ----------
    task : pathlib.Path
        The task's folder.
    described : Manifest
        What was published.
    found : Gathering
        Where findings go.
    aside : str, optional
        Where the set lies, relative to `task`, if not there.
    """

    def __init__(
        self, task: Path, described: Manifest, found: Gathering, aside: str | None = None
    ) -> None:
        self._task = task
        self._described = described
        self._found = found
        self._aside = aside

    def check(self) -> None:
        """Read everything, and name what does not fit."""
        lost = set(self._described.lost)
        numbers = [trial for trial in range(self._described.trials) if trial not in lost]
        for name in self._described.files:
            if name in _TABLES:
                self._check_file(name, numbers, f"{_TABLES[name]} of all trials")
            elif name.endswith(layout.PICKLE_SUFFIX) and self._aside is None:
                pickle = name.removesuffix(layout.PICKLE_SUFFIX)
                self._check_file(name, (), f"pickle {pickle!r}")
        for name, record in self._described.arrays.items():
            if record.trials:
                self._check_array(name, record)

    def _place(self, name: str) -> str:
        """Where a file lies, relative to the task: arrays may be in the task's folder only."""
        if self._aside is None:
            return name
        aside = f"{self._aside}/{name}"
        is_array = name.endswith(layout.ARRAY_SUFFIX)
        return name if is_array and not (self._task / aside).exists() else aside

    def _check_file(self, name: str, trials: Iterable[int], what: str) -> None:
        said, place = self._described.files[name], self._place(name)
        path, trials = self._task / place, tuple(trials)
        try:
            size, crc = self._checksum(path)
        except OSError as error:
            self._refused(place, error, trials, what)
            return
        if (size, crc) == (said["size"], said["crc32"]):
            self._found.keep(place, len(trials) if name in _TABLES else None)
            return
        evidence = "it does not fit the checksum in the manifest"
        if name in _TABLES:
            with contextlib.suppress(OSError):
                columns = self._described.columns if name == layout.TRIALS else None
                difference = how_it_differs(read_file(path), said, columns, len(trials))
                evidence = f"{evidence}: {difference}"
        self._found.lose("damaged", trials, what, place, (0, size), evidence)

    def _checksum(self, path: Path) -> tuple[int, int]:
        size = crc = 0
        with os.fdopen(open_reading(path), "rb") as file:
            while piece := file.read(_PIECE):
                size, crc = size + len(piece), crc32(piece, crc)
                self._found.tick(len(piece))
        return size, crc

    def _refused(self, place: str, error: OSError, trials: tuple[int, ...], what: str) -> None:
        if isinstance(error, PermissionError):
            self._found.doubt(place, f"may not be read ({error.strerror}): ask its owner")
        elif isinstance(error, FileNotFoundError):
            evidence = "the manifest names it, and it is not there: deleted, moved or not copied"
            self._found.lose("missing", trials, what, place, None, evidence)
        else:
            self._found.lose("damaged", trials, what, place, None, f"it cannot be read: {error}")

    # --- arrays -----------------------------------------------------------------------------------

    def _check_array(self, name: str, record: ArrayRecord) -> None:
        place = self._place(name + layout.ARRAY_SUFFIX)
        trials, what = tuple(sorted(record.trials)), f"array {name!r}"
        try:
            file = ArrayFile(self._task / place)
        except DamagedData as error:
            self._found.lose("damaged", trials, what, place, None, str(error))
            return
        except StorageError as error:
            cause = error.__cause__
            failure = cause if isinstance(cause, OSError) else OSError(str(error))
            self._refused(place, failure, trials, what)
            return
        with file:
            self._check_datasets(file, record, what, place)

    def _check_datasets(self, file: ArrayFile, record: ArrayRecord, what: str, place: str) -> None:
        try:
            names = set(file.names())
        except DamagedData as error:
            self._found.lose("damaged", record.trials, what, place, None, str(error))
            return
        whole = 0
        for trial in sorted(record.trials):
            fault = self._fault_of(file, record.trials[trial], names)
            if fault is not None:
                self._found.lose(fault.kind, (trial,), what, place, fault.span, fault.evidence)
                continue
            whole += 1
            if not _has_times(file, trial):
                evidence = f"there is no dataset 'timing/{trial}'"
                arrivals = f"arrival times of the chunks of {what}"
                self._found.lose("missing", (trial,), arrivals, place, None, evidence)
        if whole:
            self._found.keep(place, whole)
        if self._aside is None and (odd := sorted(names - {str(trial) for trial in record.trials})):
            self._found.remark(
                place, f"holds datasets that were not recorded, put there later: {odd!r:.200}"
            )

    def _fault_of(self, file: ArrayFile, stored: StoredArray, names: set[str]) -> Fault | None:
        key = str(stored.trial)
        if key not in names:
            return Fault("missing", None, f"there is no dataset {key!r}")
        try:
            shape, dtype = file.shape(key), file.dtype(key)
            expected = chunks.dtype_from_json(stored.dtype)
            if (shape, dtype) != (stored.shape, expected):
                text = f"dataset {key!r} is {dtype} of shape {shape}"
                return Fault("damaged", None, f"{text}, not {expected} of shape {stored.shape}")
            return self._fault_of_blocks(file, stored, dtype)
        except (DamagedData, FormatError) as error:
            return Fault("damaged", None, str(error))

    def _fault_of_blocks(
        self, file: ArrayFile, stored: StoredArray, dtype: np.dtype[Any]
    ) -> Fault | None:
        """Compare block by block; name the damaged ones."""
        shape, axis = stored.shape, stored.axis
        size = shape[axis] if shape else 1
        per_sample = max(1, chunks.nbytes(shape, dtype) // max(1, size))
        step = max(1, _SLAB_BYTES // (per_sample * stored.block)) * stored.block
        bad: list[int] = []
        count = 0
        for first in range(0, size, step):
            selection = chunks.along(axis, first, min(step, size - first)) if shape else None
            slab = file.read(str(stored.trial), selection=selection)
            for crc in map(chunks.crc_of, chunks.blocks(slab, axis, stored.block)):
                if count >= len(stored.blocks) or crc != stored.blocks[count]:
                    bad.append(count)
                count += 1
            self._found.tick(slab.nbytes)
        if not bad:
            return None
        start, end = bad[0] * stored.block, min(size, (bad[-1] + 1) * stored.block)
        span = _bytes_of(file, stored, dtype, start, end)
        evidence = f"{len(bad)} of {count} blocks do not fit their checksums"
        return Fault("damaged", span, f"{evidence} (samples {start} to {end - 1})")


def _bytes_of(
    file: ArrayFile, stored: StoredArray, dtype: np.dtype[Any], start: int, end: int
) -> tuple[int, int] | None:
    """Bytes of the file in which samples ``[start, end)`` lie, if they lie in one piece."""
    offset = file.offset(str(stored.trial))
    if offset is None:
        return None
    nbytes = chunks.nbytes(stored.shape, dtype)
    if not stored.shape or math.prod(stored.shape[: stored.axis]) > 1:
        return offset, offset + nbytes
    per_sample = nbytes // stored.shape[stored.axis]
    return offset + start * per_sample, offset + end * per_sample


def _has_times(file: ArrayFile, trial: int) -> bool:
    try:
        return len(file.shape(f"timing/{trial}")) == _AXES_OF_TIMES
    except StorageError:
        return False


def check_interrupted(task: Path, found: Gathering) -> None:
    """Look at the chunks of trials that were never committed; they have no checksums."""
    folder = task / layout.INTERRUPTED
    if not layout.is_folder(folder):
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix != layout.ARRAY_SUFFIX:
            continue
        place, name = f"{layout.INTERRUPTED}/{path.name}", path.stem
        try:
            with ArrayFile(path) as file:
                for key in sorted(file.names()):
                    found.tick(file.read(key).nbytes)
                    _name_unfinished(key, name, place, found)
        except StorageError as error:
            found.remark(place, f"chunks of unfinished trials cannot be read: {error}")


def _name_unfinished(key: str, name: str, place: str, found: Gathering) -> None:
    trial = key.partition("_")[0]
    numbers = (int(trial),) if trial.isascii() and trial.isdigit() else ()
    if numbers and numbers[0] < found.acknowledged:
        found.remark(place, f"dataset {key!r} holds chunks of trial {trial}, whose row is lost")
        return
    what = f"chunks of array {name!r} of a trial that was never finished"
    found.lose("torn", numbers, what, place, None, f"kept as dataset {key!r}")
