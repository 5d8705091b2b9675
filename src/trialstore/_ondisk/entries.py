"""What a frame's payload means: typed records, and the JSON that they become.

`trialstore._ondisk.decoding` is the way back.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass, field
from json.encoder import encode_basestring as _quoted
from typing import TYPE_CHECKING, Any, NamedTuple

from trialstore._ondisk.chunks import dtype_to_json
from trialstore._ondisk.journal import FrameType

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np

    from trialstore._ondisk.losses import Loss

    Buffer = bytes | bytearray | memoryview
    Row = Sequence[tuple[str, str, str]]

_dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class Entry(NamedTuple):
    """One frame to be: its type, its descriptive part and its samples (passed on, never copied)."""

    type: FrameType
    meta: bytes
    body: Sequence[Buffer] = ()


class ChunkStamp(NamedTuple):
    """One chunk within a frame: length along the growing axis, and when it came (nanoseconds)."""

    length: int
    unix_ns: int
    monotonic_ns: int


@dataclass(frozen=True, slots=True)
class Layout:
    """What all chunks of one frame share.

    Parameters
    ----------
    dtype : numpy.dtype
        Of every sample, byte order included.
    shape : tuple of int or None
        Shape of each chunk; None stands at the axis whose length each chunk tells for itself. A
        chunk that has no such axis (1-D under ``stack_axis=0``) has length 1.
    stack_axis : int
        0, 1 or 2, as AxoPy's.
    """

    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    stack_axis: int
    #: Axis whose length each chunk tells for itself. Kept: every chunk asks.
    growing: int | None = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        growing = self.shape.index(None) if None in self.shape else None
        object.__setattr__(self, "growing", growing)

    def shape_of(self, length: int) -> tuple[int, ...]:
        """Shape of a chunk of `length`."""
        return tuple(length if size is None else size for size in self.shape)

    def nbytes_of(self, length: int) -> int:
        """Bytes of a chunk of `length`."""
        return math.prod(self.shape_of(length)) * self.dtype.itemsize


def layout_of(shape: tuple[int, ...], dtype: np.dtype[Any], stack_axis: int) -> tuple[Layout, int]:
    """Return the layout that chunks like this one share, and this chunk's length in it."""
    axis = 0 if stack_axis == 1 and len(shape) == 1 else stack_axis
    if axis >= len(shape) or (stack_axis == 0 and len(shape) == 1):
        return Layout(dtype, shape, stack_axis), 1
    return Layout(dtype, (*shape[:axis], None, *shape[axis + 1 :]), stack_axis), shape[axis]


@dataclass(frozen=True, slots=True)
class Opening:
    """First record of each segment.

    Parameters
    ----------
    session : str
        The recording session's uuid, hexadecimal.
    after : int
        Every frame up to this number stands, durable, in earlier segments; later ones there do not
        count or are repeated here.
    trials : int
        Number of the first trial that this session may write.
    description : dict
        What a reader needs if the manifest is lost: subject, task, arrays, metadata, host, boot,
        start.
    """

    session: str
    after: int
    trials: int
    description: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChunkRun:
    """Chunks of one array that followed one another.

    Parameters
    ----------
    array : str
        Name of the array.
    trial : int
        Number of the trial they belong to.
    first : int
        Ordinal of the first of them within that trial's array, so that repeated ones are known.
    layout : Layout
        Their dtype and shape.
    stamps : tuple of ChunkStamp
        One for each chunk.
    """

    array: str
    trial: int
    first: int
    layout: Layout
    stamps: tuple[ChunkStamp, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all chunks together."""
        if self.layout.growing is None:
            return len(self.stamps) * self.layout.nbytes_of(1)
        return sum(stamp.length for stamp in self.stamps) * self.layout.nbytes_of(1)


@dataclass(frozen=True, slots=True)
class TrialCommit:
    """A trial's row; with it the trial counts.

    Parameters
    ----------
    trial : int
        Number of the trial within its task.
    row : tuple of (str, str, str)
        Name, kind and text of each attribute, in order.
    arrays : dict
        For each array, how many chunks and bytes belong to the trial.
    unix_ns, monotonic_ns : int
        When the trial was accepted, on both clocks, in nanoseconds.
    first_unix_ns : int or None
        When its first chunk was accepted.
    """

    trial: int
    row: tuple[tuple[str, str, str], ...]
    arrays: dict[str, tuple[int, int]]
    unix_ns: int
    monotonic_ns: int
    first_unix_ns: int | None


@dataclass(frozen=True, slots=True)
class LossNote:
    """What was refused while the queue was full."""

    losses: tuple[Loss, ...]


@dataclass(frozen=True, slots=True)
class PoisonNote:
    """Why the segment before this one was given up."""

    segment: str
    error: str


@dataclass(frozen=True, slots=True)
class SyncMark:
    """Says nothing itself: its header tells how far the journal is durable."""


@dataclass(frozen=True, slots=True)
class CleanEnd:
    """Last record of a session that was closed; only this one means that nothing is missing.

    Parameters
    ----------
    trials : int
        Number of trials of the task by now.
    status : str
        ``complete`` or ``interrupted``.
    traceback : str or None
        Of the exception that ended the experiment.
    unix_ns, monotonic_ns : int
        When.
    statistics : dict
        What the recorder counted.
    """

    trials: int
    status: str
    traceback: str | None
    unix_ns: int
    monotonic_ns: int
    statistics: dict[str, Any] = field(default_factory=dict)


_Described = Opening | LossNote | PoisonNote | SyncMark | CleanEnd
Record = _Described | ChunkRun | TrialCommit


def encode(record: Record, body: Sequence[Buffer] = ()) -> Entry:
    """Turn a record into a frame to be."""
    if isinstance(record, TrialCommit):
        told = (record.arrays, record.unix_ns, record.monotonic_ns, record.first_unix_ns)
        return encode_trial(record.trial, encode_row(record.row), *told)
    if isinstance(record, ChunkRun):
        place = (record.array, record.trial, record.first, record.layout)
        return encode_chunks(*place, record.stamps, body)
    kind, values = _describe(record)
    # A traceback may quote a file name that is not Unicode; the end of a session must not fail over
    # it.
    return Entry(kind, _dump(values).encode("utf-8", "replace"), body)


def encode_row(row: Row) -> str:
    """Return a trial's row as the JSON that `encode_trial` takes.

    A string and not the cells waits in the queue: of every row's nine tuples the garbage collector
    looked at each again and again (a fifth of the time of a row, measured).
    """
    cells = [f"{_cell_head(name, kind)}{_quoted(text)}]" for name, kind, text in row]
    return f"[{','.join(cells)}]"


@functools.lru_cache(maxsize=1024)
def _cell_head(name: str, kind: str) -> str:
    return f"[{_quoted(name)},{_quoted(kind)},"


def encode_trial(
    trial: int,
    row: str,
    arrays: dict[str, tuple[int, int]],
    unix_ns: int,
    monotonic_ns: int,
    first_unix_ns: int | None,
) -> Entry:
    """Turn what a `TrialCommit` holds, the row encoded already, into a frame to be."""
    counts = _dump(arrays) if arrays else "{}"
    first = "null" if first_unix_ns is None else first_unix_ns
    meta = (
        f'{{"trial":{trial},"row":{row},"arrays":{counts},"unix_ns":{unix_ns},'
        f'"monotonic_ns":{monotonic_ns},"first_unix_ns":{first}}}'
    )
    return Entry(FrameType.TRIAL, meta.encode("utf-8", "replace"))


def encode_chunks(
    array: str,
    trial: int,
    first: int,
    layout: Layout,
    stamps: Iterable[tuple[int, int, int]],
    body: Sequence[Buffer] = (),
) -> Entry:
    """Turn what a `ChunkRun` holds into a frame to be; written out, as every batch has some."""
    times = ",".join([f"[{length},{unix},{monotonic}]" for length, unix, monotonic in stamps])
    meta = (
        f'{{"array":{_quoted(array)},"trial":{trial},"first":{first},'
        f'{_layout_text(layout.dtype, layout.shape, layout.stack_axis)},"chunks":[{times}]}}'
    )
    return Entry(FrameType.CHUNKS, meta.encode("utf-8", "replace"), body)


@functools.lru_cache(maxsize=64)
def _layout_text(dtype: np.dtype[Any], shape: tuple[int | None, ...], stack_axis: int) -> str:
    told = {"dtype": dtype_to_json(dtype), "shape": shape, "stack_axis": stack_axis}
    return _dump(told)[1:-1]


def _describe(record: _Described) -> tuple[FrameType, dict[str, Any]]:
    match record:
        case Opening():
            values = {name: getattr(record, name) for name in Opening.__slots__}
            return FrameType.OPENING, values
        case LossNote(losses):
            return FrameType.LOSSES, {"losses": [loss.to_json() for loss in losses]}
        case PoisonNote(segment, error):
            return FrameType.POISON, {"segment": segment, "error": error}
        case SyncMark():
            return FrameType.SYNC_MARK, {}
        case CleanEnd():
            return FrameType.CLEAN_END, {name: getattr(record, name) for name in CleanEnd.__slots__}
