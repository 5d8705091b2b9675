"""What a frame's payload means: typed records to JSON and back, checked strictly on the way in.

A journal may come from a stranger. `decode` lets out only FormatError, and nothing it returns is
larger than the bytes it was given.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import sys
from dataclasses import dataclass, field
from json.encoder import encode_basestring as _quoted
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from trialstore._errors import FormatError
from trialstore._ondisk.chunks import MAX_AXES, dtype_from_json, dtype_to_json
from trialstore._ondisk.journal import FrameType
from trialstore._ondisk.layout import is_valid_name
from trialstore._ondisk.losses import Loss
from trialstore._ondisk.numbers import MOST

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np

    Buffer = bytes | bytearray | memoryview
    Row = Sequence[tuple[str, str, str]]

_dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
#: Counts, numbers and nanoseconds fit what NumPy and other languages call int64.
_INT64: Final = 2**63
_is_name = functools.lru_cache(maxsize=1024)(is_valid_name)


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


def decode(kind: int, meta: Buffer) -> Record | None:
    """Return the record that a frame's descriptive part holds; None for a type from the future.

    Raises
    ------
    FormatError
        If the bytes are not what `encode` gives.
    """
    try:
        known = FrameType(kind)
    except ValueError:
        return None
    try:
        values = json.loads(bytes(meta).decode())
        if b"\\u" in meta:
            _dump(
                values
            ).encode()  # refuses half characters (lone surrogates), which no file can hold
    except (ValueError, RecursionError) as error:
        raise FormatError("a frame's description is not JSON") from error
    record = _record(known, values)
    if record is None:
        raise FormatError(f"a {known.name} frame's description is not what it should be")
    return record


def _record(kind: FrameType, values: object) -> Record | None:
    match kind, values:
        case FrameType.OPENING, {
            "session": str(session),
            "after": int(after),
            "trials": int(trials),
            "description": dict(description),
        } if _are_numbers(after, trials) and _is_description(description):
            return Opening(session, after, trials, description)
        case FrameType.CHUNKS, dict():
            return _chunk_run(values)
        case FrameType.TRIAL, dict():
            return _trial_commit(values)
        case FrameType.LOSSES, {"losses": [*losses]}:
            return LossNote(tuple(Loss.from_json(loss) for loss in losses))
        case FrameType.POISON, {"segment": str(segment), "error": str(error)}:
            return PoisonNote(segment, error)
        case FrameType.SYNC_MARK, dict():
            return SyncMark()
        case FrameType.CLEAN_END, {
            "trials": int(trials),
            "status": "complete" | "interrupted" as status,
            "traceback": (str() | None) as traceback,
            "unix_ns": int(unix_ns),
            "monotonic_ns": int(monotonic_ns),
            "statistics": dict(statistics),
        } if _are_numbers(trials) and _are_counts(unix_ns, monotonic_ns):
            return CleanEnd(trials, status, traceback, unix_ns, monotonic_ns, statistics)
    return None


def _are_counts(*values: object) -> bool:
    return all(type(value) is int and 0 <= value < _INT64 for value in values)


def _are_numbers(*values: object) -> bool:
    """Whether these may number frames or trials."""
    return all(type(value) is int and 0 <= value <= MOST for value in values)


def _is_description(values: dict[str, Any]) -> bool:
    return all(isinstance(values.get(name, {}), dict) for name in ("arrays", "metadata"))


def _chunk_run(values: dict[str, Any]) -> ChunkRun | None:
    match values:
        case {
            "array": str(array),
            "trial": int(trial),
            "first": int(first),
            "dtype": dtype,
            "shape": [*shape],
            "stack_axis": 0 | 1 | 2 as stack_axis,
            "chunks": [*chunks],
        } if _is_name(array) and _are_numbers(trial) and _are_counts(first):
            pass
        case _:
            return None
    sizes_fit = all(size is None or (type(size) is int and size >= 0) for size in shape)
    if not sizes_fit or shape.count(None) > 1 or len(shape) > MAX_AXES:
        return None
    stamps = _stamps(chunks)
    if stamps is None:
        return None
    layout = Layout(dtype_from_json(dtype), tuple(shape), stack_axis)
    # An array without samples may still claim axes that NumPy has no index for.
    longest = max((stamp.length for stamp in stamps), default=0)
    if (
        math.prod(max(size, 1) for size in layout.shape_of(longest)) * layout.dtype.itemsize
        >= _INT64
    ):
        return None
    return ChunkRun(array, trial, first, layout, stamps)


def _stamps(chunks: list[Any]) -> tuple[ChunkStamp, ...] | None:
    """Check all at once: a frame has up to thousands, and is decoded by every reader."""
    if not all(type(chunk) is list and len(chunk) == len(ChunkStamp._fields) for chunk in chunks):
        return None
    numbers = list(itertools.chain.from_iterable(chunks))
    if numbers and not (
        set(map(type, numbers)) == {int} and _are_counts(min(numbers), max(numbers))
    ):
        return None
    return tuple(map(ChunkStamp._make, chunks))


def _trial_commit(values: dict[str, Any]) -> TrialCommit | None:
    match values:
        case {
            "trial": int(trial),
            "row": [*row],
            "arrays": dict(arrays),
            "unix_ns": int(unix_ns),
            "monotonic_ns": int(monotonic_ns),
            "first_unix_ns": (int() | None) as first_unix_ns,
        } if _are_numbers(trial) and _are_counts(unix_ns, monotonic_ns, first_unix_ns or 0):
            if trial == MOST:
                return None
        case _:
            return None
    cells = []
    for cell in row:
        match cell:
            case [str(name), str(kind), str(text)]:
                # A long session has a hundred thousand rows of the same names.
                cells.append((sys.intern(name), sys.intern(kind), text))
            case _:
                return None
    counts = {}
    for name, count in arrays.items():
        match count:
            case [chunks, nbytes] if _is_name(name) and _are_counts(chunks, nbytes):
                counts[name] = (chunks, nbytes)
            case _:
                return None
    return TrialCommit(trial, tuple(cells), counts, unix_ns, monotonic_ns, first_unix_ns)
