"""Pieces of an array on their way into a file: checked, and gathered into slabs worth writing.

A chunk of 20 samples of a (channel, time) array is 64 rows of 160 bytes that lie far apart in the
file. HDF5 writes such rows one by one, seventeen times slower than the same array in blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trialstore._errors import PublishFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    Shape = tuple[int, ...]
    #: Where a piece goes, one slice of step 1 for each axis (None: it is the whole), and the piece.
    Piece = tuple[tuple[slice, ...] | None, NDArray[Any]]
    #: Index of the first item, and the items.
    Slab = tuple[Shape, NDArray[Any]]

#: Memory for gathering: rows of 64 KiB at 64 channels, past which more gains nothing.
GATHER_BYTES: Final = 4 * 2**20


def checked(
    pieces: Iterable[Piece], shape: Shape, dtype: np.dtype[Any], what: str
) -> Iterator[Slab]:
    """Yield the pieces of `what`, an array of `shape` and `dtype`, as slabs without fields.

    HDF5 reads as much memory as it is told to, so a piece must be what it is said to be. Without
    fields, because NumPy leaves out the padding of structured items when it copies them.

    Raises
    ------
    PublishFailed
        A piece is of another dtype, or not of the shape of its place.
    """
    bare = np.dtype((np.void, dtype.itemsize))
    for selection, piece in pieces:
        start, count = ((0,) * len(shape), shape) if selection is None else _place(selection, shape)
        if piece.shape != count or piece.dtype != dtype:
            raise PublishFailed(
                f"{what}, {dtype} {shape}: a piece {piece.dtype} {piece.shape} does not fit "
                f"at {selection!r}"
            )
        if piece.size:
            yield start, piece.view(bare)


def gathered(slabs: Iterable[Slab], shape: Shape) -> Iterator[Slab]:
    """Copy small slabs that follow one another along one axis into larger ones.

    Every slab is used before the next is asked for, so they may share one buffer.
    """
    block: _Block | None = None
    for start, slab in slabs:
        axes = [axis for axis, length in enumerate(shape) if slab.shape[axis] != length]
        small = len(axes) == 1 and slab.nbytes < GATHER_BYTES
        if block is not None and not (small and block.takes(start, slab)):
            yield block.slab()
            block = None
        if not small:
            yield start, slab
            continue
        if block is None:
            block = _Block(start, slab, axes[0], shape)
        block.add(slab)
    if block is not None:
        yield block.slab()


class _Block:
    """Slabs side by side along `axis`, which they alone do not fill, from `start` on."""

    def __init__(self, start: Shape, first: NDArray[Any], axis: int, shape: Shape) -> None:
        room = GATHER_BYTES * first.shape[axis] // first.nbytes
        length = min(shape[axis] - start[axis], room)
        self._array = np.empty((*shape[:axis], length, *shape[axis + 1 :]), first.dtype)
        self._axis, self._start, self._filled = axis, start, 0

    def takes(self, start: Shape, slab: NDArray[Any]) -> bool:
        """Whether a small slab comes next and has room; one along another axis never has."""
        axis = self._axis
        return (
            start[axis] == self._start[axis] + self._filled
            and self._filled + slab.shape[axis] <= self._array.shape[axis]
        )

    def add(self, slab: NDArray[Any]) -> None:
        """Append a slab that the block `takes`."""
        end = self._filled + slab.shape[self._axis]
        self._array[self._along(self._filled, end)] = slab
        self._filled = end

    def slab(self) -> Slab:
        """Return what was gathered."""
        return self._start, self._array[self._along(0, self._filled)]

    def _along(self, start: int, end: int) -> tuple[slice, ...]:
        return (*(slice(None),) * self._axis, slice(start, end))


def _place(selection: tuple[slice, ...], shape: Shape) -> tuple[Shape, Shape | None]:
    """First index and length along every axis; no length if `selection` is not one of `shape`."""
    if len(selection) != len(shape):
        return (), None
    axes = [range(*chosen.indices(length)) for chosen, length in zip(selection, shape, strict=True)]
    if any(axis.step != 1 for axis in axes):
        return (), None
    return tuple(axis.start for axis in axes), tuple(len(axis) for axis in axes)
