"""From what an experiment hands over to items of the queue: checked, copied, all or nothing.

Pure functions over trials and chunks. Nothing here waits, touches a disk, or changes what it is
given.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trialstore._errors import InvalidName, InvalidTrial
from trialstore._ondisk.chunks import (
    opaque,
    refusal_of_chunk,
    refusal_of_dtype,
    refusal_of_shape,
)
from trialstore._ondisk.entries import encode_row, layout_of
from trialstore._ondisk.layout import check_name, folded
from trialstore._ondisk.rows import encode_attributes
from trialstore._ondisk.values import encode_attrs
from trialstore._recording.items import ITEM_OVERHEAD, ChunkItem, TrialItem
from trialstore.design import Array, ArrayInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trialstore._ondisk.entries import Layout

_DEFAULT_INFO = ArrayInfo()


@dataclass(slots=True)
class OpenArray:
    """One array of the open trial, as far as chunks were appended to it."""

    layout: Layout
    shape: tuple[int, ...]
    length: int
    chunks: int = 0
    nbytes: int = 0


@dataclass(slots=True)
class OpenTrial:
    """What has been streamed since the last commit."""

    arrays: dict[str, OpenArray] = field(default_factory=dict)
    first_unix_ns: int | None = None


class ArrayPart(NamedTuple):
    """One array of a trial: chunks that are ours, and what they came from."""

    name: str
    source: object
    chunks: list[tuple[NDArray[Any], int, int]]
    stack_axis: int


class Snapshot(NamedTuple):
    """A trial as it was at the call."""

    attrs: dict[str, Any]
    row: str
    likeness: object
    parts: Sequence[ArrayPart]
    nbytes: int
    #: Bytes that count against the queue's bound.
    size: int


class ArrayNames:
    """The array names of one task: each is checked once, not at every chunk."""

    def __init__(self, declared: Mapping[str, ArrayInfo]) -> None:
        self.declared: dict[str, ArrayInfo] = dict(declared)
        self._known: dict[str, str] = {name: name for name in declared}
        self._folded: dict[str, str] = {folded(name): name for name in declared}

    def check(self, name: object) -> str:
        """Return the normalised name; raise InvalidName for one that cannot be a file name."""
        known = self._known.get(name) if isinstance(name, str) else None
        if known is not None:
            return known
        checked = check_name(name, "array")
        other = self._folded.setdefault(folded(checked), checked)
        if other != checked:
            raise InvalidName(
                f"array name {checked!r} differs from {other!r} in case only, and macOS and Windows"
                " would mix them up; choose another"
            )
        self._known[str(name)] = checked
        return checked

    def info(self, name: str) -> ArrayInfo:
        """What was declared of an array, or the defaults."""
        return self.declared.get(name, _DEFAULT_INFO)


def take_chunk(chunk: object, name: str) -> NDArray[Any]:
    """Return `chunk` as an array, not yet copied, or raise InvalidTrial if none can be kept."""
    # numpy.ma is loaded by whoever uses it; asking numpy for it would load it here, in 50 ms on the
    # loop.
    masked = sys.modules.get("numpy.ma")
    if masked is not None and isinstance(chunk, masked.MaskedArray):
        raise InvalidTrial(f"array {name!r} is masked: fill it first, the mask would be lost")
    try:
        array = np.asarray(chunk)
    except (TypeError, ValueError) as error:
        raise InvalidTrial(f"array {name!r} is not made of numbers: {error}") from error
    _check_kept(array, name)
    return array


def check_against(info: ArrayInfo, shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> None:
    """Raise InvalidTrial if an array does not fit what was declared of it."""
    reason = info.refusal(dtype, shape)
    if reason is not None:
        raise InvalidTrial(f"array {name!r} {reason}")


def first_layout(info: ArrayInfo, array: NDArray[Any], name: str) -> Layout:
    """Return the layout of an array's first chunk; raise InvalidTrial if it is not as declared."""
    check_against(info, array.shape, array.dtype, name)
    return layout_of(array.shape, array.dtype, info.stack_axis)[0]


def check_follows(
    info: ArrayInfo, known: OpenArray, shape: tuple[int, ...], dtype: np.dtype[Any], name: str
) -> Layout:
    """Return the layout of a further chunk; raise InvalidTrial if it cannot follow the first."""
    if dtype != known.layout.dtype:
        raise InvalidTrial(
            f"array {name!r}: a chunk of dtype {dtype} after chunks of {known.layout.dtype}"
        )
    if shape == known.shape:
        return known.layout
    reason = refusal_of_chunk(known.shape, shape, info.stack_axis)
    if reason is not None:
        raise InvalidTrial(f"array {name!r}: a chunk {reason}")
    check_against(info, shape, dtype, name)
    layout, _ = layout_of(shape, dtype, info.stack_axis)
    return known.layout if layout == known.layout else layout


def length_of(layout: Layout, shape: tuple[int, ...]) -> int:
    """Length that a chunk of `shape` has in `layout`."""
    axis = layout.growing
    return 1 if axis is None else shape[axis]


def snapshot(
    trial: object, names: ArrayNames, streamed: OpenTrial, now: tuple[int, int]
) -> Snapshot:
    """Check a trial and take hold of all it contains, changing nothing.

    Parameters
    ----------
    trial : Mapping or object
        A mapping is a trial without arrays; anything else needs ``attrs`` and may have ``arrays``.
    names : ArrayNames
        The task's arrays.
    streamed : OpenTrial
        What was appended to the open trial, which this trial commits.
    now : tuple of int
        Unix and monotonic time in nanoseconds, for arrays that do not tell when their chunks came.

    Raises
    ------
    InvalidTrial
        Naming the attribute or array that cannot be recorded.
    InvalidName
        For an array whose name cannot be a file name.
    """
    if type(trial) is dict:  # as most are; asking an abstract class takes half a microsecond
        attributes = trial.copy()
        row, likeness = encode_attributes(attributes)
        nbytes = len(row)
        return Snapshot(attributes, row, likeness, (), nbytes, nbytes + ITEM_OVERHEAD)
    if isinstance(trial, Mapping):
        attrs: object = trial
        arrays: object = {}
    else:
        attrs, arrays = getattr(trial, "attrs", None), getattr(trial, "arrays", {})
    if not isinstance(attrs, Mapping) or not isinstance(arrays, Mapping):
        raise InvalidTrial(
            f"{type(trial).__name__!r} object is not a trial: give a mapping, or an object with "
            "the mappings .attrs and .arrays"
        )
    if type(attrs) is dict:
        attributes = attrs.copy()
        row, likeness = encode_attributes(attributes)
    else:
        row, likeness = encode_row(encode_attrs(attrs)), None
        attributes = dict(attrs)
    nbytes = len(row)
    parts = []
    for given, source in arrays.items():
        name = names.check(given)
        part = _take_array(name, source, names.info(name), now)
        if not part.chunks:
            continue
        parts.append(part)
        nbytes += sum(data.nbytes for data, _, _ in part.chunks)
    check_unstreamed(parts, streamed)
    pieces = sum(len(part.chunks) for part in parts)
    size = nbytes + ITEM_OVERHEAD * (1 + pieces)
    return Snapshot(attributes, row, likeness, parts, nbytes, size)


def check_unstreamed(parts: Sequence[ArrayPart], streamed: OpenTrial) -> None:
    """Raise InvalidTrial if an array was streamed as well: the order would be a guess."""
    for part in parts:
        if part.name in streamed.arrays:
            raise InvalidTrial(
                f"array {part.name!r} was streamed with append() and stands in the trial as well: "
                "use one way for one array"
            )


def _take_array(name: str, source: object, info: ArrayInfo, now: tuple[int, int]) -> ArrayPart:
    if isinstance(source, Array):
        pieces = source.pieces()
        chunks = [(piece.data, piece.unix_ns, piece.monotonic_ns) for piece in pieces]
        for data, _, _ in chunks[:1]:
            _check_kept(data, name)
        if info is not _DEFAULT_INFO:
            for data, _, _ in chunks:
                check_against(info, data.shape, data.dtype, name)
        return ArrayPart(name, source, chunks, source.stack_axis)
    plain: object = source if isinstance(source, np.ndarray) else getattr(source, "data", source)
    if plain is None:
        return ArrayPart(name, source, [], info.stack_axis)
    array = take_chunk(plain, name)
    check_against(info, array.shape, array.dtype, name)
    stack_axis = getattr(source, "stack_axis", info.stack_axis)
    copy = np.array(opaque(array), order="C", copy=True).view(array.dtype)
    return ArrayPart(name, source, [(copy, *now)], stack_axis if stack_axis in (0, 1, 2) else 1)


def _check_kept(array: NDArray[Any], name: str) -> None:
    reason = _refusal(array.dtype) or refusal_of_shape(array.shape)
    if reason is not None:
        raise InvalidTrial(f"array {name!r} of dtype {array.dtype} {reason}")


#: A stream has one dtype, and looking at a structured one takes longer than copying the chunk.
_refusal = functools.lru_cache(maxsize=64)(refusal_of_dtype)


def let_go(part: ArrayPart) -> None:
    """Clear an array of the trial as far as it was accepted; what was stacked since stays."""
    source = part.source
    if isinstance(source, Array):
        source.discard(len(part.chunks))
    elif not isinstance(source, np.ndarray) and callable(clear := getattr(source, "clear", None)):
        clear()


def item_of(taken: Snapshot, trial: int, streamed: OpenTrial, now: tuple[int, int]) -> TrialItem:
    """Turn a snapshot into the item of trial number `trial`."""
    counts: dict[str, tuple[int, int]] = {}
    if streamed.arrays:
        counts = {name: (array.chunks, array.nbytes) for name, array in streamed.arrays.items()}
    first = streamed.first_unix_ns
    if not taken.parts:
        return TrialItem((), trial, taken.row, counts, *now, first, taken.nbytes)
    chunks: list[ChunkItem] = []
    for part in taken.parts:
        shared: tuple[tuple[int, ...], Layout, int] | None = None
        nbytes = 0
        for ordinal, (data, unix_ns, monotonic_ns) in enumerate(part.chunks):
            if shared is None or shared[0] != data.shape:
                shared = (data.shape, *layout_of(data.shape, data.dtype, part.stack_axis))
            _, layout, length = shared
            place = (part.name, trial, ordinal, layout, as_bytes(data), 0, data.nbytes)
            chunks.append(ChunkItem(*place, length, unix_ns, monotonic_ns))
            nbytes += data.nbytes
        counts[part.name] = (len(part.chunks), nbytes)
        began = part.chunks[0][1]
        first = began if first is None else min(first, began)
    return TrialItem(chunks, trial, taken.row, counts, *now, first, taken.nbytes)


def as_bytes(data: NDArray[Any]) -> memoryview:
    """Return the bytes of a C-contiguous array that is ours, without a copy."""
    return data.reshape(-1).view(np.uint8).data if data.size else memoryview(b"")
