"""Memory for the chunks that wait, given back to the system when they are durable.

Chunks lie side by side as they came: a run of them is one piece for checksum and system call. And
what is freed is gone: malloc keeps whatever lies below anything that still lives, so that after a
disk had stood still for two seconds a recorder kept 209 of 256 MiB for good (measured). Slabs that
are used again were not tried: a mistake there would be somebody else's samples.

New memory costs: the system finds a page when it is first written to (2.7 us for each 4 KiB on a
virtual machine, measured; copying them takes 0.5). So the next slab is made ready by the thread
that writes, while it rests.
"""

from __future__ import annotations

import contextlib
import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trialstore._ondisk.chunks import opaque

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Two chunks of a megabyte, or a tenth of a second of 64 channels at 40 kHz; a large page
#: of Linux on most processors.
SLAB_BYTES: Final = 2 * 2**20
_ZEROS: Final = Path("/dev/zero")


class Slabs:
    """Copies chunks, one behind the other.

    Guarantee: bytes that were copied are never written again; they live as long as anybody has the
    memory that they lie in.

    Examples
    --------
    >>> import numpy as np
    >>> slabs = Slabs()
    >>> memory, start = slabs.copy(np.array([1.5, 2.5]))
    >>> np.frombuffer(memory[start : start + 16])
    array([1.5, 2.5])
    """

    def __init__(self) -> None:
        self._memory = memoryview(b"")
        self._end = 0
        self._spare: memoryview | None = None

    def copy(self, array: NDArray[Any]) -> tuple[memoryview, int]:
        """Copy an array's bytes in C order; return the memory they are in and where they begin.

        Raises
        ------
        MemoryError
            If there is no memory for them; nothing has changed.
        """
        nbytes = array.nbytes
        start = self._end
        if not nbytes:
            return self._memory, start
        if start + nbytes > len(self._memory):
            self._memory, start = self._next(nbytes), 0
        source: Any = array
        try:
            self._memory[start : start + nbytes] = memoryview(source).cast("B")
        except (TypeError, ValueError, BufferError):
            # Strides, foreign byte orders, dates, structures.
            self._memory[start : start + nbytes] = opaque(array).tobytes()
        self._end = start + nbytes
        return self._memory, start

    def _next(self, nbytes: int) -> memoryview:
        spare = self._spare
        if spare is None or nbytes > SLAB_BYTES:
            return memoryview(_new(max(SLAB_BYTES, nbytes)))
        self._spare = None
        return spare

    def prepare(self) -> None:
        """Have the next slab ready if it will be needed soon; for another thread than the loop's.

        Without the interpreter's lock but for an instant: what takes time is a system call.
        """
        if self._spare is not None or self._end < SLAB_BYTES // 4:
            return
        # What cannot be had now is asked for again, by the call that needs it.
        with contextlib.suppress(MemoryError):
            memory = _new(SLAB_BYTES)
            _fault_in(memory)
            self._spare = memoryview(memory)


def _fault_in(memory: mmap.mmap) -> None:
    """Have the system find all pages now, in large ones if it can; does nothing where it cannot."""
    with contextlib.suppress(OSError, ValueError):
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
    with contextlib.suppress(OSError), _ZEROS.open("rb", buffering=0) as zeros:
        zeros.readinto(memory)


def _new(nbytes: int) -> mmap.mmap:
    # Private: what a forked child does with it is its own affair. Windows has no such flags.
    flags = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
    try:
        return mmap.mmap(-1, nbytes, **({"flags": flags} if flags else {}))
    except OSError as error:
        raise MemoryError(f"no memory for {nbytes} bytes of samples") from error
