"""A task without a manifest: rows against datasets, and whether everything can be read at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trialstore._errors import DamagedData, StorageError
from trialstore._ondisk import chunks, layout
from trialstore._reading.foreign import ForeignSource
from trialstore._reading.hdf5 import ArrayFile

if TYPE_CHECKING:
    from pathlib import Path

    from trialstore._upkeep.gathering import Gathering

_SLAB_BYTES: Final = 32 * 2**20
_ORPHAN: Final = (
    "is gone: without it nothing tells the types of the columns, the checksums and the losses; "
    "restore it from a copy (the rows and arrays beside it are read as they are)"
)


def check_foreign(task: Path, found: Gathering) -> None:
    """Look at a task that another program wrote, or whose manifest is gone."""
    if (task / layout.TIMING).exists():
        found.doubt(layout.MANIFEST, _ORPHAN)
    else:
        found.remark(".", "has no manifest of trialstore (AxoPy's have none): no checksums to hold "
                     "it against, but rows, datasets and their samples were read")  # fmt: skip
    rows = _rows(task, found)
    for name in layout.array_names_in(task):
        _check_array(task, name, rows, found)


def _rows(task: Path, found: Gathering) -> int | None:
    try:
        rows = len(ForeignSource(task).trial_numbers())
    except DamagedData as error:
        found.lose("damaged", (), "rows of all trials", layout.TRIALS, None, str(error))
        return None
    except StorageError as error:
        found.doubt(layout.TRIALS, str(error))
        return None
    found.acknowledged = rows
    found.tick((task / layout.TRIALS).stat().st_size)
    found.keep(layout.TRIALS, rows)
    return rows


def _check_array(task: Path, name: str, rows: int | None, found: Gathering) -> None:
    place = name + layout.ARRAY_SUFFIX
    try:
        with ArrayFile(task / place) as file:
            keys = [key for key in file.names() if key.isascii() and key.isdigit()]
            whole = {int(key) for key in keys if _is_read(file, key, name, place, found)}
            trials = {int(key) for key in keys}
    except StorageError as error:
        found.lose("damaged", (), f"array {name!r}", place, None, str(error))
        return
    if whole:
        found.keep(place, len(whole))
    if rows is None:
        return
    if lacking := sorted(set(range(rows)) - trials):
        found.doubt(place, f"has no dataset for the trials {_listed(lacking)}, which have a row")
    if orphans := sorted(trial for trial in trials if trial >= rows):
        found.doubt(place, f"has datasets {_listed(orphans)}, for which there is no row")


def _is_read(file: ArrayFile, key: str, name: str, place: str, found: Gathering) -> bool:
    """Read one dataset; name it where that fails."""
    try:
        shape = file.shape(key)
        per_item = max(1, chunks.nbytes(shape[1:], file.dtype(key)))
        step = max(1, _SLAB_BYTES // per_item)
        for first in range(0, shape[0] if shape else 1, step):
            selection = (slice(first, first + step),) if shape else None
            found.tick(file.read(key, selection=selection).nbytes)
    except StorageError as error:
        found.lose("damaged", (int(key),), f"array {name!r}", place, None, str(error))
        return False
    return True


def _listed(numbers: list[int]) -> str:
    return f"{numbers!r:.120}"
