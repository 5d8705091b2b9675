"""Records from a frame's payload: the way back from `trialstore._ondisk.entries`, checked strictly.

A journal may come from a stranger. `decode` lets out only FormatError, and nothing it returns is
larger than the bytes it was given.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import sys
from typing import TYPE_CHECKING, Any, Final

from trialstore._errors import FormatError
from trialstore._ondisk.chunks import MAX_AXES, dtype_from_json
from trialstore._ondisk.entries import (
    ChunkRun,
    ChunkStamp,
    CleanEnd,
    Layout,
    LossNote,
    Opening,
    PoisonNote,
    SyncMark,
    TrialCommit,
)
from trialstore._ondisk.journal import FrameType
from trialstore._ondisk.layout import is_valid_name
from trialstore._ondisk.losses import Loss
from trialstore._ondisk.numbers import MOST

if TYPE_CHECKING:
    from trialstore._ondisk.entries import Record

    Buffer = bytes | bytearray | memoryview

#: Counts, numbers and nanoseconds fit what NumPy and other languages call int64.
_INT64: Final = 2**63
_is_name = functools.lru_cache(maxsize=1024)(is_valid_name)


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
            # Refuses half characters (lone surrogates), which no file can hold.
            json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
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
    cells = _cells(row)
    if cells is None:
        return None
    counts = {}
    for name, count in arrays.items():
        match count:
            case [chunks, nbytes] if _is_name(name) and _are_counts(chunks, nbytes):
                counts[name] = (chunks, nbytes)
            case _:
                return None
    return TrialCommit(trial, cells, counts, unix_ns, monotonic_ns, first_unix_ns)


def _cells(row: list[Any]) -> tuple[tuple[str, str, str], ...] | None:
    """Check all at once, as `_stamps`: a match for each cell took most of the time of a row."""
    if not all(type(cell) is list and len(cell) == 3 for cell in row):  # noqa: PLR2004
        return None
    if not {str}.issuperset(map(type, itertools.chain.from_iterable(row))):
        return None
    # A long session has a hundred thousand rows of the same names.
    intern = sys.intern
    return tuple([(intern(name), intern(kind), text) for name, kind, text in row])
