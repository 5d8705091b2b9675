"""Memory for the chunks that wait, used again when they are durable, and given back in quiet times.

Chunks lie side by side as they came: a run of them is one piece for checksum and system call. And
what is freed is gone: malloc keeps whatever lies below anything that still lives, so that after a
disk had stood still for two seconds a recorder kept 209 of 256 MiB for good (measured).

New memory costs: the system finds a page when it is first written to (2.7 us for each 4 KiB on a
virtual machine, measured; copying them takes 0.5). So a slab is used again once nothing refers to
it (a chunk of 20 KB in a burst: 12 us instead of 31), and the first ones are made ready by the
thread that writes, while it rests.
"""

from __future__ import annotations

import contextlib
import mmap
import weakref
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trialstore._ondisk.chunks import opaque

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Two large pages of Linux on most processors; a fifth of a second of 64 channels at 40 kHz.
SLAB_BYTES: Final = 4 * 2**20
#: Larger chunks have memory of their own: of a slab that was begun at most a quarter stays empty,
#: so that a full queue takes at most a third more memory than it counts.
LARGEST_SHARED: Final = SLAB_BYTES // 4
#: Free slabs that a task has at most, and how many of them it keeps when it has been at rest.
MOST_FREE: Final = 8
KEPT_FREE: Final = 2
_ZEROS: Final = Path("/dev/zero")


class Slabs:
    """Copies chunks, one behind the other.

    Guarantee: bytes that were copied are not written again while anything refers to the memory that
    they lie in.

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
        # Filled and emptied by both threads; what is too much falls out at the other end.
        self._free: deque[mmap.mmap] = deque(maxlen=MOST_FREE)
        self._least_free = 0

    @property
    def free(self) -> int:
        """How many slabs wait to be used again."""
        return len(self._free)

    def copy(self, array: NDArray[Any]) -> tuple[memoryview, int]:
        """Copy an array's bytes in C order; return the memory they are in and where they begin.

        Raises
        ------
        MemoryError
            If there is no memory for them; what was copied before stays.
        """
        nbytes = array.nbytes
        if nbytes > LARGEST_SHARED:
            memory, start = memoryview(_new(nbytes)), 0
        else:
            if self._end + nbytes > len(self._memory):
                self._begin_slab()
            memory, start = self._memory, self._end
            self._end += nbytes
        if nbytes:
            source: Any = array
            try:
                memory[start : start + nbytes] = memoryview(source).cast("B")
            except (TypeError, ValueError, BufferError):
                # Strides, foreign byte orders, dates, structures.
                memory[start : start + nbytes] = opaque(array).tobytes()
        return memory, start

    def _begin_slab(self) -> None:
        try:
            mapped = self._free.pop()
        except IndexError:
            mapped = _new(SLAB_BYTES)
        self._least_free = min(self._least_free, len(self._free))
        # Every view of the memory, and every view of a view, holds this object: when it goes, no
        # name leads to the bytes any more. (A mapping itself does not tell whether it is looked
        # at, and a view tells nothing of the slices that were taken of it.)
        lease = np.frombuffer(mapped, np.uint8)
        weakref.finalize(lease, self._free.append, mapped).atexit = False
        self._memory, self._end = memoryview(lease), 0  # type: ignore[arg-type] # has a buffer

    def prepare(self) -> None:
        """Have the next slab ready if it will be needed; for the thread that writes, in its rests.

        Without the interpreter's lock but for an instant: what takes time is a system call.
        """
        if not self._free and self._end >= SLAB_BYTES // 4:
            # What cannot be had now is asked for again, by the call that needs it.
            with contextlib.suppress(MemoryError):
                self._free.append(_faulted_in(_new(SLAB_BYTES)))

    def give_back(self) -> None:
        """Give one slab back if more were free, ever since the last call, than are kept.

        Called once a second, not after each batch: what comes free with one is needed again before
        the next is durable, and would have to be new memory then.
        """
        if self._least_free > KEPT_FREE:
            with contextlib.suppress(IndexError):
                self._free.popleft()
        self._least_free = len(self._free)


def _faulted_in(memory: mmap.mmap) -> mmap.mmap:
    """Have the system find all pages now, in large ones if it can; does nothing where it cannot.

    Large pages cost a quarter, but each comes at once: what a loop has to find itself comes in
    small ones (a large one took it 1 ms, as p99 of its lateness showed).
    """
    with contextlib.suppress(OSError):  # a kernel may have been built without
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
    with contextlib.suppress(OSError), _ZEROS.open("rb", buffering=0) as zeros:
        zeros.readinto(memory)
    return memory


def _new(nbytes: int) -> mmap.mmap:
    # Private: what a forked child does with it is its own affair. Windows has no such flags.
    flags = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
    try:
        return mmap.mmap(-1, nbytes, **({"flags": flags} if flags else {}))
    except OSError as error:
        raise MemoryError(f"no memory for {nbytes} bytes of samples") from error
