"""manifest.json: what a task is, in one file that a person can read and a program can check.

It is renamed into place last, so its status is the commit point of publication. Its last member is
the CRC-32 of everything before it: a manifest that was edited or damaged is told from one that is
whole.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from trialstore._errors import DamagedData, FormatError
from trialstore._ondisk.checksum import crc32
from trialstore._ondisk.disk import read_file
from trialstore._ondisk.layout import MANIFEST, is_valid_name
from trialstore._ondisk.losses import Loss

if TYPE_CHECKING:
    from pathlib import Path

FORMAT: Final = "trialstore"
VERSION: Final = 1

#: 100 000 trials of ten arrays make about 60 MB; beyond this it is not a manifest of ours.
_SIZE_LIMIT: Final = 1 << 30
_CHECKSUM: Final = re.compile(rb',\n  "checksum": "crc32:([0-9a-f]{8})"\n}\n?\Z')

Status = Literal["recording", "complete", "interrupted"]
_STATUSES: frozenset[str] = frozenset(("recording", "complete", "interrupted"))


@dataclass(frozen=True, slots=True)
class StoredArray:
    """One trial's part of a published array.

    Parameters
    ----------
    trial : int
        Number of the trial, which is the dataset's name.
    dtype : object
        NumPy's description of the dtype (see `chunks.dtype_to_json`).
    shape : tuple of int
        Shape of the dataset.
    axis : int
        The samples' axis (see `chunks.samples_axis`): trials may have been stacked differently.
    block : int
        Samples per block along `axis`.
    blocks : tuple of int
        CRC-32 of each block's bytes in C order, so that a window is verified without reading all.
    """

    trial: int
    dtype: object
    shape: tuple[int, ...]
    axis: int
    block: int
    blocks: tuple[int, ...]

    def to_json(self) -> list[object]:
        """Return the members as a list: there may be a hundred thousand of them."""
        shape, blocks = list(self.shape), list(self.blocks)
        return [self.trial, self.dtype, shape, self.axis, self.block, blocks]

    @classmethod
    def from_json(cls, value: Any) -> StoredArray:
        """Undo `to_json`; raise FormatError for anything else."""
        match value:
            case [trial, dtype, [*shape], axis, block, [*blocks]] if (
                all(_is_size(n) for n in (trial, *shape, axis, block, *blocks))
                and block > 0
                and axis < max(len(shape), 1)
            ):
                return cls(trial, dtype, tuple(shape), axis, block, tuple(blocks))
        raise FormatError(f"not the record of a stored array: {value!r:.80}")


@dataclass(slots=True)
class ArrayRecord:
    """What the manifest holds of one array: its declaration and its trials."""

    info: dict[str, Any]
    stack_axis: int
    trials: dict[int, StoredArray] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Return the record as plain JSON values."""
        stored = [self.trials[trial].to_json() for trial in sorted(self.trials)]
        return {"info": self.info, "stack_axis": self.stack_axis, "trials": stored}

    @classmethod
    def from_json(cls, value: object) -> ArrayRecord:
        """Undo `to_json`; raise FormatError for anything else."""
        match value:
            case {
                "info": dict(info),
                "stack_axis": 0 | 1 | 2 as stack_axis,
                "trials": [*trials],
            }:
                stored = [StoredArray.from_json(trial) for trial in trials]
                return cls(info, stack_axis, {trial.trial: trial for trial in stored})
        raise FormatError(f"not the record of an array: {value!r:.80}")


@dataclass(slots=True)
class Manifest:
    """Everything that is known of a task besides its data.

    Parameters
    ----------
    status : {'recording', 'complete', 'interrupted'}
        `complete` and `interrupted` mean that the published files hold everything.
    subject, task : str
        Names.
    start, end : dict or None
        ``{"utc": ISO 8601, "unix_ns": int, "monotonic_ns": int}``.
    trials : int
        Number of trials in the published files, lost ones included.
    lost : list of int
        Trials whose row could not be read; their line in ``trials.csv`` is empty.
    columns : list
        For each column of ``trials.csv`` its name and the run-length coded kinds of its cells.
    files : dict
        For each published file its size in bytes and CRC-32 (0 for files whose parts have their
        own).
    arrays : dict
        `ArrayRecord` of each array.
    losses : list of Loss
        What is missing.
    statistics, environment, metadata : dict
        What the recorder counted, where it ran, what the experimenter said.
    traceback : str or None
        Of the exception that ended the experiment.
    sessions : list of str
        Uuid of every recording session, oldest first.
    """

    status: Status
    subject: str
    task: str
    start: dict[str, Any] | None = None
    end: dict[str, Any] | None = None
    trials: int = 0
    lost: list[int] = field(default_factory=list)
    columns: list[Any] = field(default_factory=list)
    files: dict[str, dict[str, int]] = field(default_factory=dict)
    arrays: dict[str, ArrayRecord] = field(default_factory=dict)
    losses: list[Loss] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    traceback: str | None = None
    sessions: list[str] = field(default_factory=list)

    def encode(self) -> bytes:
        """Return the file's bytes: JSON, one member a line, at the end the checksum of the rest."""
        values: dict[str, Any] = {name: getattr(self, name) for name in Manifest.__slots__}
        values["arrays"] = {name: record.to_json() for name, record in self.arrays.items()}
        values["losses"] = [loss.to_json() for loss in self.losses]
        lines = [f'  "format": "{FORMAT}"', f'  "version": {VERSION}']
        lines += [f"  {json.dumps(name)}: {_member(value)}" for name, value in values.items()]
        # A traceback may quote a file name that is not Unicode; publication must not fail over it.
        body = ("{\n" + ",\n".join(lines)).encode("utf-8", "replace")
        return body + f',\n  "checksum": "crc32:{crc32(body):08x}"\n}}\n'.encode()


def decode(data: bytes, path: Path) -> Manifest:
    """Return the manifest that the bytes of a file hold.

    Raises
    ------
    FormatError
        If they are not one of ours, are cut short, or come from a newer version.
    DamagedData
        If they are one of ours but not as they were written: edited or damaged.
    """
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{str(path)!r} is not a manifest of trialstore, or is cut short: {error}"
        ) from error
    match values:
        case {"format": "trialstore", "version": int(version)}:
            pass
        case _:
            raise FormatError(
                f"{str(path)!r} is not a manifest of trialstore: "
                "move it away to read the task as foreign"
            )
    if version > VERSION:
        raise FormatError(
            f"{str(path)!r} is of format version {version}; "
            f"this trialstore knows {VERSION}: update it"
        )
    found = _CHECKSUM.search(data)
    if found is None or int(found[1], 16) != crc32(data[: found.start()]):
        raise DamagedData(
            f"{str(path)!r} does not fit its own checksum: it was edited or damaged; "
            "restore it from a copy (the data beside it may be whole)",
            path,
        )
    manifest = _checked(values)
    if manifest is None:
        raise FormatError(f"{str(path)!r} is not a manifest that this version can read")
    return manifest


def read(task: Path) -> Manifest | None:
    """Return the manifest in a task's folder, or None if there is none.

    Raises
    ------
    FormatError
        If it is no manifest, or one of a newer version.
    DamagedData
        If it cannot be read, or does not fit its checksum.
    """
    path = task / MANIFEST
    try:
        data = read_file(path, _SIZE_LIMIT + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedData(f"{str(path)!r} cannot be read: {error}", path) from error
    if len(data) > _SIZE_LIMIT:
        raise FormatError(f"{str(path)!r} is too large to be a manifest of trialstore")
    return decode(data, path)


def read_described(folder: Path, described: Manifest, name: str) -> bytes:
    """Return the bytes of a published file, checked against what the manifest says of it.

    Raises
    ------
    DamagedData
        If they are not as they were published, or cannot be read.
    """
    path = folder / name
    try:
        data = read_file(path)
    except OSError as error:
        raise DamagedData(f"{str(path)!r} cannot be read: {error}", path) from error
    said = described.files.get(name)
    if said is None or said["size"] != len(data) or said["crc32"] != crc32(data):
        raise DamagedData(
            f"{str(path)!r} is not as it was published: it was edited (perhaps saved by a "
            "spreadsheet) or damaged; restore it from a copy, or read it with pandas",
            path,
        )
    return data


def _member(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0


def _checked(values: dict[str, Any]) -> Manifest | None:
    match values:
        case {
            "status": "recording" | "complete" | "interrupted",
            "subject": str(),
            "task": str(),
            "start": dict() | None,
            "end": dict() | None,
            "trials": int(trials),
            "lost": [*lost],
            "columns": [*_],
            "files": dict(files),
            "arrays": dict(arrays),
            "losses": [*losses],
            "statistics": dict(),
            "environment": dict(),
            "metadata": dict(),
            "traceback": str() | None,
            "sessions": [*sessions],
        } if trials >= 0:
            pass
        case _:
            return None
    if not all(_is_size(index) for index in lost) or not all(type(s) is str for s in sessions):
        return None
    if not all(_is_file(value) for value in files.values()):
        return None
    if not all(is_valid_name(name) for name in arrays):  # they become file names
        return None
    members = {name: values[name] for name in Manifest.__slots__}
    members["arrays"] = {name: ArrayRecord.from_json(value) for name, value in arrays.items()}
    members["losses"] = [Loss.from_json(loss) for loss in losses]
    return Manifest(**members)


def _is_file(value: object) -> bool:
    match value:
        case {"size": int(size), "crc32": int(crc)}:
            return size >= 0 and crc >= 0
    return False
