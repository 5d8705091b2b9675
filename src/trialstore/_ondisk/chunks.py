"""What a chunk of samples is: which dtypes can be kept, and how chunks become one array.

The rule for joining is AxoPy's (``axopy.design.Array``), which is NumPy's: a single chunk stays as
it is; several are joined by ``vstack``, ``hstack`` or ``dstack`` for ``stack_axis`` 0, 1 or 2.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trialstore._errors import FormatError
from trialstore._ondisk.checksum import crc32

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    Shape = tuple[int, ...]

#: Bytes of one verified block of a published array: small enough that a window of a long trial
#: reads little more than itself, large enough that a manifest of 100 000 blocks stays a few
#: megabytes.
BLOCK_BYTES: Final = 256 * 1024

#: HDF5's own limits: H5S_MAX_RANK, and 64 KiB for the description of a type (1000 fields fit it).
MAX_AXES: Final = 32
MAX_FIELDS: Final = 1000

_JOIN: Final[tuple[Callable[[Sequence[NDArray[Any]]], NDArray[Any]], ...]] = (
    np.vstack,
    np.hstack,
    np.dstack,
)

#: Lists in lists of a dtype's description; NumPy's own parser knows no limit but the stack's.
_MAX_NESTING: Final = 8


def refusal_of_dtype(dtype: np.dtype[Any]) -> str | None:
    """Say why arrays of `dtype` cannot be kept as plain HDF5, or None if they can."""
    if dtype.hasobject:
        return (
            "holds Python objects; use numbers, booleans, fixed-length bytes or a structured dtype"
        )
    if dtype.names is not None:
        return _refusal_of_fields(dtype)
    base = dtype.base
    if base.kind == "U":
        return "is fixed-length unicode, which HDF5 cannot hold; use numpy.char.encode(x, 'utf-8')"
    if base.kind not in "biufcSVmM":
        return f"has the unsupported kind {base.kind!r}"
    if base.itemsize == 0 or 0 in dtype.shape:
        return "has items of zero bytes"
    if base.kind == "c" and base.itemsize > 16 and not base.isnative:  # noqa: PLR2004 - complex128
        return "is a long complex of foreign byte order, which h5py stores wrongly; convert it"
    return None


def _refusal_of_fields(dtype: np.dtype[Any]) -> str | None:
    names = dtype.names or ()
    fields: Mapping[str, tuple[Any, ...]] = dtype.fields or {}
    if not names or len(names) > MAX_FIELDS:
        return f"has {len(names)} fields; HDF5 holds 1 to {MAX_FIELDS}"
    if len(fields) > len(names):
        return "has field titles, which HDF5 cannot hold"
    if names == ("r", "i") and len({dtype[name] for name in names}) == 1:
        return "has the fields 'r' and 'i', which h5py reads back as a complex number; rename them"
    end = 0
    for name in sorted(names, key=lambda field: fields[field][1]):
        start = fields[name][1]
        if start < end:
            return f"has overlapping fields ({name!r})"
        end = start + fields[name][0].itemsize
        if "\0" in name or name.encode("utf-8", "replace").decode() != name:
            return f"has a field name that HDF5 cannot hold ({name!r})"
        reason = refusal_of_dtype(fields[name][0])
        if reason is None and fields[name][0].base.kind in "mM":
            reason = "is a date inside a structured dtype, which HDF5 has no type for"
        if reason is not None:
            return f"field {name!r} {reason}"
    return None


def refusal_of_shape(shape: Shape) -> str | None:
    """Say why arrays of `shape` cannot be kept as plain HDF5, or None if they can."""
    if len(shape) > MAX_AXES:
        return f"has {len(shape)} dimensions; HDF5 holds {MAX_AXES}"
    return None


def opaque(array: NDArray[Any]) -> NDArray[Any]:
    """View structured items as bare bytes: when NumPy copies fields, padding is lost at random."""
    if array.dtype.names is None:
        return array
    return array.view(np.dtype((np.void, array.dtype.itemsize)))


def restored(joined: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Give what NumPy has joined of `opaque` arrays its dtype back, byte order included."""
    joined = np.ascontiguousarray(joined)
    return joined.astype(dtype, copy=False) if dtype.names is None else joined.view(dtype)


def dtype_to_json(dtype: np.dtype[Any]) -> object:
    """Describe a dtype as JSON: the string or list that NumPy's own ``.npy`` format uses."""
    return np.lib.format.dtype_to_descr(dtype)


def dtype_from_json(described: object) -> np.dtype[Any]:
    """Undo `dtype_to_json`; raise FormatError for anything that is not such a description."""
    # Most are one string, and the same for every trial of an array.
    return _plain_dtype(described) if isinstance(described, str) else _dtype(described)


def _dtype(described: object) -> np.dtype[Any]:
    try:
        dtype = np.lib.format.descr_to_dtype(_tuples(described))
    except (TypeError, ValueError, SyntaxError, IndexError, KeyError, RecursionError) as error:
        raise FormatError(f"not a dtype: {described!r:.80}") from error
    if refusal_of_dtype(dtype) is not None:
        raise FormatError(f"not a dtype that is kept: {described!r:.80}")
    return dtype


_plain_dtype: Final = functools.lru_cache(maxsize=64)(_dtype)


def _tuples(described: object, *, depth: int = 0) -> Any:
    """JSON has no tuples; a field of a structured dtype is one, a list of fields is a list."""
    if not isinstance(described, list) or depth > _MAX_NESTING:
        return described
    fields = []
    for field in described:
        if not isinstance(field, list) or len(field) not in (2, 3):
            raise FormatError(f"not a dtype: {described!r:.80}")
        name = tuple(field[0]) if isinstance(field[0], list) else field[0]
        shape = (tuple(field[2]),) if len(field) == 3 else ()  # noqa: PLR2004 - name, type, shape
        fields.append((name, _tuples(field[1], depth=depth + 1), *shape))
    return fields


def normalised(shape: Shape, stack_axis: int) -> Shape:
    """Shape of a chunk as NumPy's stack function for `stack_axis` sees it."""
    if stack_axis == 0:
        return shape if len(shape) > 1 else (1, *(shape or (1,)))
    if stack_axis == 1:
        return shape or (1,)
    return shape if len(shape) > 2 else (*((1,) * (2 - len(shape))), *shape, 1)  # noqa: PLR2004


def growing_axis(ndim: int, stack_axis: int) -> int:
    """Axis along which a normalised array of `ndim` dimensions grows, by the rule of ``hstack``."""
    return 0 if stack_axis == 1 and ndim == 1 else stack_axis


def samples_axis(ndim: int, stack_axis: int) -> int:
    """Axis of a *stored* array that counts samples; a single chunk was never normalised."""
    return min(growing_axis(ndim, stack_axis), max(ndim - 1, 0))


def refusal_of_chunk(first: Shape, shape: Shape, stack_axis: int) -> str | None:
    """Say why a chunk of `shape` cannot follow one of shape `first`, or None if it can."""
    a, b = normalised(first, stack_axis), normalised(shape, stack_axis)
    if len(a) != len(b):
        return f"has {len(shape)} dimensions {shape} after chunks of {len(first)} {first}"
    axis = growing_axis(len(a), stack_axis)
    if a[:axis] != b[:axis] or a[axis + 1 :] != b[axis + 1 :]:
        return f"has shape {shape}, which differs from {first} in more than axis {axis}"
    return None


def joined_shape(shapes: Sequence[Shape], stack_axis: int) -> Shape:
    """Shape of the array that chunks of `shapes` become."""
    if len(shapes) == 1:
        return shapes[0]
    rows = {shape: normalised(shape, stack_axis) for shape in set(shapes)}
    first = rows[shapes[0]]
    axis = growing_axis(len(first), stack_axis)
    total = sum(rows[shape][axis] for shape in shapes)
    return (*first[:axis], total, *first[axis + 1 :])


def join(chunks: Sequence[NDArray[Any]], stack_axis: int) -> NDArray[Any]:
    """Join chunks as AxoPy's ``Array.stack`` would have, in C order."""
    dtype = chunks[0].dtype
    if len(chunks) == 1:
        # ascontiguousarray makes one dimension out of none
        return np.ascontiguousarray(opaque(chunks[0])).view(dtype).reshape(chunks[0].shape)
    if any(chunk.dtype != dtype for chunk in chunks):
        return np.ascontiguousarray(_JOIN[stack_axis](chunks))
    return restored(_JOIN[stack_axis]([opaque(chunk) for chunk in chunks]), dtype)


def nbytes(shape: Shape, dtype: np.dtype[Any]) -> int:
    """Bytes of an array of `shape` and `dtype`."""
    return math.prod(shape) * dtype.itemsize


def block_length(shape: Shape, dtype: np.dtype[Any], axis: int) -> int:
    """Samples per verified block of an array, so that a block has about `BLOCK_BYTES`."""
    if not shape or shape[axis] == 0:
        return 1
    per_sample = max(1, nbytes(shape, dtype) // shape[axis])
    return max(1, min(shape[axis], BLOCK_BYTES // per_sample))


def block_count(shape: Shape, axis: int, length: int) -> int:
    """Number of blocks of `length` samples along `axis` that an array of `shape` has."""
    return 1 if not shape else -(-shape[axis] // length)


def blocks(array: NDArray[Any], axis: int, length: int) -> Iterator[NDArray[Any]]:
    """Yield `array` in slabs of `length` samples along `axis`."""
    if array.ndim == 0 or 0 < array.shape[axis] <= length:
        yield array
        return
    for start in range(0, array.shape[axis], length):
        yield array[along(axis, start, length)]


def crc_of(array: NDArray[Any]) -> int:
    """CRC-32 of the bytes of `array` in C order."""
    if array.flags.c_contiguous and array.dtype.kind in "iufc":
        return crc32(array.data) if array.size else 0  # a view less for each of many small ones
    flat = np.ascontiguousarray(opaque(array))
    return crc32(flat.reshape(-1).view(np.uint8).data) if flat.size else 0


def slabs(
    pieces: Iterable[NDArray[Any]],
    count: int,
    shape: Shape,
    dtype: np.dtype[Any],
    stack_axis: int,
    length: int,
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the array that `pieces` become in slabs of `length` samples, each with its first one.

    Holds one slab and one piece at a time, however long the array is. The slab is used again: copy
    it to keep.

    Parameters
    ----------
    pieces : iterable of numpy.ndarray
        The chunks, oldest first.
    count : int
        How many chunks there are: a single one is not reshaped, as in AxoPy.
    shape : tuple of int
        Shape of the whole, as `joined_shape` gives it.
    dtype : numpy.dtype
        Of the whole.
    stack_axis : int
        0, 1 or 2.
    length : int
        Samples per slab, along `samples_axis`.
    """
    if not shape:
        yield from ((0, np.asarray(piece)) for piece in pieces)
        return
    axis = samples_axis(len(shape), stack_axis)
    slab = np.empty((*shape[:axis], min(length, shape[axis]), *shape[axis + 1 :]), dtype)
    first = filled = 0
    for piece in pieces:
        whole = as_part(piece, count, stack_axis)
        taken = 0
        while taken < whole.shape[axis]:
            step = min(whole.shape[axis] - taken, slab.shape[axis] - filled)
            opaque(slab)[along(axis, filled, step)] = opaque(whole)[along(axis, taken, step)]
            filled, taken = filled + step, taken + step
            if filled == slab.shape[axis]:
                yield first, slab
                first, filled = first + filled, 0
    if filled:
        yield first, slab[along(axis, 0, filled)]


def along(axis: int, start: int, count: int) -> tuple[slice, ...]:
    """Index of `count` samples from `start` along `axis`, everything along the axes before it."""
    return (slice(None),) * axis + (slice(start, start + count),)


def as_part(chunk: NDArray[Any], count: int, stack_axis: int) -> NDArray[Any]:
    """Return a chunk in the shape it has within an array of `count` chunks."""
    return chunk if count == 1 else chunk.reshape(normalised(chunk.shape, stack_axis))


def length_in(shape: Shape, count: int, stack_axis: int) -> int:
    """Samples that a chunk of `shape` contributes to an array of `count` chunks."""
    part = shape if count == 1 else normalised(shape, stack_axis)
    return part[samples_axis(len(part), stack_axis)] if part else 1
