"""What an experiment fills: a `Design` of `Block`s of `Trial`s with attributes and `Array`s.

The containers are AxoPy's (``axopy.design``) in names and behaviour. They know no disk and no event
loop; `trialstore.TaskWriter.write` takes a `Trial` as it is.
"""

from __future__ import annotations

import itertools
import math
import numbers
import pprint
import random
import time
import unicodedata
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trialstore._errors import FormatError, InvalidTrial
from trialstore._ondisk import chunks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, DTypeLike, NDArray


class Design(list["Block"]):
    """A list of blocks.

    Examples
    --------
    >>> design = Design()
    >>> block = design.add_block()
    >>> for target in (1, 2, 3):
    ...     trial = block.add_trial(attrs={"target": target})
    >>> block.shuffle(seed=7)
    >>> [trial.attrs["trial"] for trial in block]
    [0, 1, 2]
    """

    def add_block(self) -> Block:
        """Append an empty block, whose index is its place in the design, and return it."""
        block = Block(len(self))
        self.append(block)
        return block


class Block(list["Trial"]):
    """A list of trials that belong together; made by `Design.add_block`.

    Parameters
    ----------
    index : int
        Place of the block in its design; every trial carries it as the attribute ``block``.
    *args : iterable of Trial, optional
        Trials to begin with.
    """

    #: AxoPy's attribute; it hides the method of `list`, here as there.
    index: int  # type: ignore[assignment]

    def __init__(self, index: int, *args: Iterable[Trial]) -> None:
        super().__init__(*args)
        self.index = index

    def add_trial(self, attrs: Mapping[str, Any] | None = None) -> Trial:
        """Append a trial, numbered by the attributes ``block`` and ``trial``, and return it.

        Parameters
        ----------
        attrs : mapping, optional
            Attributes of the trial. They are copied: AxoPy wrote the numbers into the caller's own
            dictionary, so that one used twice gave two trials the same number.

        Raises
        ------
        InvalidTrial
            If `attrs` is not a mapping.
        """
        try:
            numbered = dict(attrs or {})
        except (TypeError, ValueError) as error:
            raise InvalidTrial(
                f"attrs must be a mapping of names to values, not {type(attrs).__qualname__}"
            ) from error
        numbered.update(block=self.index, trial=len(self))
        trial = Trial(numbered)
        self.append(trial)
        return trial

    def shuffle(
        self,
        reset_index: bool = True,  # noqa: FBT001, FBT002 - AxoPy's signature
        seed: float | str | bytes | None = None,
    ) -> None:
        """Put the trials in random order.

        Parameters
        ----------
        reset_index : bool, default True
            Number the attribute ``trial`` anew, in the new order.
        seed : int, float, str or bytes, optional
            Gives the same order every time and leaves the generator of `random` alone. Without it
            the order comes from that generator, as in AxoPy.
        """
        shuffle = random.shuffle if seed is None else random.Random(seed).shuffle
        shuffle(self)
        if reset_index:
            for number, trial in enumerate(self):
                trial.attrs["trial"] = number


class Trial:
    """Attributes and arrays of one trial; made by `Block.add_trial`.

    Parameters
    ----------
    attrs : dict
        Attributes by name; kept, not copied.

    Attributes
    ----------
    attrs : dict
        Scalars, strings and the like; one row of the trials table.
    arrays : dict of Array
        Arrays by name.

    Examples
    --------
    >>> trial = Trial({"target": 3})
    >>> emg = trial.add_array("emg")
    >>> emg.stack([[1.0, 2.0], [3.0, 4.0]])
    >>> trial.arrays["emg"].data.shape
    (2, 2)
    """

    def __init__(self, attrs: dict[str, Any]) -> None:
        self.attrs = attrs
        self.arrays: dict[str, Array] = {}

    def add_array(self, name: str, *, data: ArrayLike | None = None, stack_axis: int = 1) -> Array:
        """Add an array, in place of one of the same name, and return it.

        Parameters
        ----------
        name : str
            Name of the array.
        data, stack_axis
            As for `Array`.

        Raises
        ------
        InvalidTrial
            If `Array` refuses `data` or `stack_axis`.
        """
        array = Array(data, stack_axis)
        self.arrays[name] = array
        return array

    def __str__(self) -> str:
        return pprint.pformat(self.attrs)


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
        self._stack_axis = _checked_stack_axis(stack_axis)
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
        value = _checked_stack_axis(value)
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


def _checked_stack_axis(value: object) -> int:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value in (0, 1, 2):
        return int(value)
    raise InvalidTrial(f"stack_axis must be 0, 1 or 2, not {value!r:.80}")


@dataclass(frozen=True, init=False)
class ArrayInfo:
    """What is known about an array before its first sample.

    Parameters
    ----------
    rate : float, optional
        Sampling rate in Hz.
    unit : str, optional
        Unit of a sample, such as ``"mV"``.
    channels : sequence of str, optional
        Names along the dimension ``"channel"``.
    dims : sequence of str, optional
        Name of each dimension of a chunk, such as ``("channel", "time")``.
    stack_axis : {0, 1, 2}, default 1
        Stack chunks like ``vstack``, ``hstack`` or ``dstack``.
    dtype : dtype_like, optional
        Only chunks of exactly this dtype are taken.

    Raises
    ------
    InvalidTrial
        If one of them is not what is said here; the message names it.

    Examples
    --------
    >>> info = ArrayInfo(rate=2000.0, unit="mV", channels=["FCR", "ECR"], dims=("channel", "time"))
    >>> info.refusal(np.dtype("f8"), (3, 10))
    "has 3 channels where ('FCR', 'ECR') are declared"
    """

    rate: float | None
    unit: str | None
    channels: tuple[str, ...] | None
    dims: tuple[str, ...] | None
    stack_axis: int
    dtype: np.dtype[Any] | None

    def __init__(
        self,
        rate: float | None = None,
        unit: str | None = None,
        channels: Sequence[str] | None = None,
        dims: Sequence[str] | None = None,
        stack_axis: int = 1,
        dtype: DTypeLike | None = None,
    ) -> None:
        fields = {
            "rate": None if rate is None else _checked_rate(rate),
            "unit": None if unit is None else _checked_label(unit, "unit"),
            "channels": None if channels is None else _checked_labels(channels, "channels"),
            "dims": None if dims is None else _checked_labels(dims, "dims"),
            "stack_axis": _checked_stack_axis(stack_axis),
            "dtype": None if dtype is None else _checked_dtype(dtype),
        }
        names = fields["dims"]
        if isinstance(names, tuple) and len(set(names)) < len(names):
            raise InvalidTrial(f"dims must differ from one another: {names!r:.80}")
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def refusal(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> str | None:
        """Say why a chunk of `dtype` and `shape` is not what was declared, or None if it is."""
        if self.dtype is not None and dtype != self.dtype:
            return f"has dtype {dtype} where {self.dtype} is declared"
        if self.dims is None:
            return None
        if len(shape) != len(self.dims):
            return f"has {len(shape)} dimensions where {self.dims} are declared"
        if self.channels is not None and "channel" in self.dims:
            size = shape[self.dims.index("channel")]
            if size != len(self.channels):
                return f"has {size} channels where {self.channels} are declared"
        return None

    def to_json(self) -> dict[str, Any]:
        """Describe it by what JSON can hold."""
        return {
            "rate": self.rate,
            "unit": self.unit,
            "channels": None if self.channels is None else list(self.channels),
            "dims": None if self.dims is None else list(self.dims),
            "stack_axis": self.stack_axis,
            "dtype": None if self.dtype is None else chunks.dtype_to_json(self.dtype),
        }

    @classmethod
    def from_json(cls, described: object) -> ArrayInfo:
        """Undo `to_json`; what is missing is undeclared, and keys of newer versions are left alone.

        Raises
        ------
        FormatError
            If `described` is no such description.
        """
        if not isinstance(described, dict):
            raise FormatError(f"not the description of an array: {described!r:.80}")
        dtype = described.get("dtype")
        try:
            return cls(
                rate=described.get("rate"),
                unit=described.get("unit"),
                channels=described.get("channels"),
                dims=described.get("dims"),
                stack_axis=described.get("stack_axis", 1),
                dtype=None if dtype is None else chunks.dtype_from_json(dtype),
            )
        except InvalidTrial as error:
            raise FormatError(f"not the description of an array: {error}") from error


def _checked_rate(rate: object) -> float:
    if not isinstance(rate, bool) and isinstance(rate, numbers.Real):
        try:
            hertz = float(rate)
        except OverflowError:
            hertz = math.inf
        if 0 < hertz < math.inf:
            return hertz
    raise InvalidTrial(f"rate must be a positive number in Hz, not {rate!r:.80}")


def _checked_label(label: object, what: str) -> str:
    """Text that both JSON and an HDF5 attribute can hold and a terminal can show."""
    if not isinstance(label, str) or any(unicodedata.category(c) in ("Cc", "Cs") for c in label):
        raise InvalidTrial(f"{what} must be text without control characters, not {label!r:.80}")
    return str(label)


def _checked_labels(labels: object, what: str) -> tuple[str, ...]:
    if isinstance(labels, (str, bytes, Mapping, AbstractSet)) or not isinstance(labels, Iterable):
        raise InvalidTrial(f"{what} must be a sequence of names, not {labels!r:.80}")
    return tuple(_checked_label(label, what) for label in labels)


def _checked_dtype(described: Any) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = np.dtype(described)
    except (TypeError, ValueError, SyntaxError) as error:
        raise InvalidTrial(f"dtype must be a NumPy dtype, not {described!r:.80}") from error
    if (reason := chunks.refusal_of_dtype(dtype)) is not None:
        raise InvalidTrial(f"dtype {dtype} {reason}")
    return dtype
