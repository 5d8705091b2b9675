"""An array that grows by chunks, in amortised constant time per sample."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trialstore._errors import InvalidTrial
from trialstore._ondisk import chunks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray


class Piece(NamedTuple):
    """One chunk of an array, and when it was stacked.

    Attributes
    ----------
    data : ndarray
        C-contiguous, never written to again, and in nobody else's reach.
    unix_ns : int
        Arrival, in nanoseconds since 1970 by the wall clock.
    monotonic_ns : int
        Arrival, in nanoseconds by `time.monotonic_ns`.
    """

    data: NDArray[Any]
    unix_ns: int
    monotonic_ns: int


class _Stamp(NamedTuple):
    """What is kept of a chunk that has been folded into the whole."""

    shape: tuple[int, ...]
    unix_ns: int
    monotonic_ns: int


class Array:
    """An array that grows by chunks.

    Stacking takes amortised constant time per sample, also when `data` is read after every chunk.
    The result is at all times what ``numpy.vstack``, ``hstack`` or ``dstack`` would make of the
    chunks, one after the other.

    Parameters
    ----------
    data : array_like, optional
        Data to begin with; an ndarray is not copied before something is stacked onto it.
    stack_axis : {0, 1, 2}, default 1
        Stack like ``vstack``, ``hstack`` or ``dstack``.

    Raises
    ------
    InvalidTrial
        If `data` is no array of plain values or `stack_axis` is none of the three.

    Examples
    --------
    >>> array = Array(stack_axis=1)
    >>> array.stack([[0.0], [1.0]])
    >>> array.stack([[2.0, 3.0], [4.0, 5.0]])
    >>> array.data
    array([[0., 2., 3.],
           [1., 4., 5.]])
    """

    # The chunks lie in two places, oldest first: those already folded into `_data`, of which only
    # shape and arrival are kept, and copies of those stacked since. `_data` is the filled part of
    # `_memory`, which has room to grow, or, without `_memory`, an array of the caller's.

    _data: NDArray[Any] | None
    _memory: NDArray[Any] | None
    _folded: list[_Stamp]
    _pending: list[Piece]
    _dtype: np.dtype[Any] | None

    def __init__(self, data: ArrayLike | None = None, stack_axis: int = 1) -> None:
        self._stack_axis = checked_stack_axis(stack_axis)
        self._restore([])
        self.data = data

    @property
    def stack_axis(self) -> int:
        """Axis to stack along, 0, 1 or 2; a new one holds for what is stacked from then on.

        Raises
        ------
        InvalidTrial
            If it is set to anything else.
        """
        return self._stack_axis

    @stack_axis.setter
    def stack_axis(self, value: int) -> None:
        value = checked_stack_axis(value)
        if value != self._stack_axis:
            data = self.data
            self.clear()
            self.data = data
            self._stack_axis = value

    @property
    def data(self) -> NDArray[Any] | None:
        """Everything stacked so far, or None; anything array_like may be set.

        An array that was read earlier never changes by itself, but may share memory with later
        ones: write in place to the newest only.

        Raises
        ------
        InvalidTrial
            If it is set to something that is no array of plain values.
        """
        if self._pending:
            self._fold()
        return self._data

    @data.setter
    def data(self, value: ArrayLike | None) -> None:
        array = None if value is None else _as_array(value)
        if array is not None and array is self._data:
            return  # ``array.data *= 2`` ends here; the chunks stay what they are
        self._restore([])
        if array is not None:
            self._data = array
            self._dtype = array.dtype
            self._folded.append(_Stamp(array.shape, time.time_ns(), time.monotonic_ns()))

    def stack(self, data: ArrayLike) -> None:
        """Append a copy of a chunk; the caller may reuse its buffer.

        Parameters
        ----------
        data : array_like
            The chunk. Its shape is that of the first one but for the length along the stack axis.

        Raises
        ------
        InvalidTrial
            If the chunk is no array of plain values or does not fit; the array is left as it was.
        """
        unix_ns, monotonic_ns = time.time_ns(), time.monotonic_ns()
        chunk = _as_array(data)
        dtype = self._dtype_with(chunk)
        copy = chunk.astype(dtype, order="C")
        if self._dtype is None:
            self._dtype = dtype
        elif dtype != self._dtype or (self._memory is None and self._data is not None):
            # What is there is converted now, as NumPy would before it looked at any later chunk,
            # and taken out of the reach of the caller, who may go on to change an array of its own.
            self._fold()
        self._pending.append(Piece(copy, unix_ns, monotonic_ns))
        self._dtype = dtype

    def clear(self) -> None:
        """Forget everything stacked so far."""
        self._restore([])

    def pieces(self) -> list[Piece]:
        """Return the chunks that the array is made of, oldest first, all of one dtype.

        Joined by ``vstack``, ``hstack`` or ``dstack`` they equal `data`; changes that the caller
        made to `data` in place are in them. Data that was set as a whole is one piece. They may be
        kept without copying.
        """
        self._taken = len(self._folded) + len(self._pending)
        return self._all_pieces()

    def discard(self, count: int) -> None:
        """Forget the first `count` of the pieces that `pieces` returned last.

        What was stacked since is kept, and so is what took their place if the array was cleared or
        set.
        """
        count = min(count, self._taken)
        if count > 0:
            taken = self._taken - count
            everything = count == len(self._folded) + len(self._pending)
            self._restore([] if everything else self._all_pieces()[count:])
            self._taken = taken

    def __getstate__(self) -> dict[str, Any]:
        # Copies must not share memory that either of the two may still write to.
        return {"stack_axis": self._stack_axis, "pieces": self._all_pieces()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._stack_axis = state["stack_axis"]
        self._restore(state["pieces"])

    def _restore(self, pieces: Sequence[Piece]) -> None:
        """Be an array onto which `pieces` have been stacked, and nothing else."""
        self._data = None
        self._memory = None
        self._folded = []
        self._pending = list(pieces)
        self._dtype = pieces[0].data.dtype if pieces else None
        self._fitting: tuple[int, ...] | None = None
        self._taken = 0

    def _dtype_with(self, chunk: NDArray[Any]) -> np.dtype[Any]:
        """Return the dtype that the array has with `chunk`, or raise if that does not fit."""
        if self._dtype is None:
            return chunk.dtype
        if chunk.shape != self._fitting:
            first = self._folded[0].shape if self._folded else self._pending[0].data.shape
            reason = chunks.refusal_of_chunk(first, chunk.shape, self._stack_axis)
            if reason is not None:
                raise InvalidTrial(f"a chunk {reason}; chunks stack along axis {self._stack_axis}")
            self._fitting = chunk.shape
        if chunk.dtype == self._dtype and len(self._folded) + len(self._pending) > 1:
            return self._dtype
        # The second chunk is looked at even so: NumPy makes dtypes that it joins native and packed.
        try:
            return np.promote_types(self._dtype, chunk.dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidTrial(
                f"a chunk of dtype {chunk.dtype} cannot follow one of dtype {self._dtype}"
            ) from error

    def _fold(self) -> None:
        """Bring `_data` up to date, in memory of our own unless it is one single chunk."""
        pending = [piece.data for piece in self._pending]
        if self._data is None and len(pending) == 1:
            data, memory = pending[0].copy(), None
        else:
            data, memory = self._extended(pending)
        stamps = [_Stamp(piece.data.shape, *piece[1:]) for piece in self._pending]
        self._data, self._memory, self._pending = data, memory, []
        self._folded += stamps

    def _extended(self, new: list[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return `_data` with `new` behind it, and the memory, larger if need be, of both."""
        old = [] if self._data is None else [self._data]
        rows = [row.reshape(chunks.normalised(row.shape, self._stack_axis)) for row in old + new]
        shape = chunks.joined_shape([row.shape for row in rows], self._stack_axis)
        axis = chunks.growing_axis(len(shape), self._stack_axis)
        memory, start = self._memory, rows[0].shape[axis] if old else 0
        if memory is None or memory.shape[axis] < shape[axis] or memory.dtype != self._dtype:
            # The first look at an array is often the only one, and gets no room to grow.
            room = max(shape[axis], 2 * start)
            memory = np.empty((*shape[:axis], room, *shape[axis + 1 :]), self._dtype)
            start = 0
        else:
            rows = rows[1:]
        if rows:
            out = memory[_between(axis, start, shape[axis])]
            np.concatenate(rows, axis=axis, out=out, casting="unsafe")
        return memory[_between(axis, 0, shape[axis])], memory

    def _all_pieces(self) -> list[Piece]:
        return [*self._folded_pieces(), *self._pending]

    def _folded_pieces(self) -> Iterator[Piece]:
        """Cut `_data` into copies of the chunks that it was made of."""
        if self._data is None:
            return
        axis = chunks.growing_axis(self._data.ndim, self._stack_axis)
        start = 0
        for shape, run in itertools.groupby(self._folded, key=lambda stamp: stamp.shape):
            stamps = list(run)
            if len(self._folded) == 1:
                rows = self._data[np.newaxis]
            else:
                stop = start + len(stamps) * chunks.normalised(shape, self._stack_axis)[axis]
                rows = _rows(self._data[_between(axis, start, stop)], axis, len(stamps))
                start = stop
            # One copy for a run of equal chunks: a copy of each would hold the loop five times as
            # long.
            copies = rows.astype(self._dtype, order="C").reshape(len(stamps), *shape)
            for number, stamp in enumerate(stamps):
                yield Piece(copies[number, ...], stamp.unix_ns, stamp.monotonic_ns)


def _rows(array: NDArray[Any], axis: int, count: int) -> NDArray[Any]:
    """Cut `array` into `count` equal parts along `axis`, and count them along a new first axis."""
    shape = array.shape
    parts = array.reshape(*shape[:axis], count, shape[axis] // count, *shape[axis + 1 :])
    return np.moveaxis(parts, axis, 0)


def _between(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(start, stop),)


def _as_array(data: ArrayLike) -> NDArray[Any]:
    try:
        array = np.asarray(data)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InvalidTrial(f"no array can be made of {type(data).__qualname__}: {error}") from error
    if array.dtype.hasobject:
        raise InvalidTrial(
            f"a {type(data).__qualname__} became an array of {array.dtype}, which"
            " holds Python objects; use numbers, booleans or fixed-length bytes"
        )
    return array


def checked_stack_axis(value: object) -> int:
    """Return `value` as an int, or raise InvalidTrial if it is none of 0, 1 and 2."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value in (0, 1, 2):
        return int(value)
    raise InvalidTrial(f"stack_axis must be 0, 1 or 2, not {value!r:.80}")
