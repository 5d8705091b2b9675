"""One open task on the loop's side: numbering, the open trial, and its lane of the queue."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Literal

import anyio
import anyio.lowlevel
import numpy as np

from trialstore._errors import QueueFull, StorageError
from trialstore._ondisk.chunks import opaque
from trialstore._ondisk.losses import Loss
from trialstore._recording import intake
from trialstore._recording.columns import Columns
from trialstore._recording.items import ITEM_OVERHEAD, ChunkItem, EndItem
from trialstore._recording.lifecycle import Lifecycle, State
from trialstore._recording.progress import Levels, Progress
from trialstore._recording.receipt import Receipt
from trialstore._recording.slabs import Slabs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from trialstore._ondisk.entries import CleanEnd, Layout
    from trialstore._ondisk.lock import Lock
    from trialstore._ondisk.segments import JournalWriter
    from trialstore._recording.queue import BoundedQueue, Lane
    from trialstore._recording.statistics import Statistics, Tally
    from trialstore.design import ArrayInfo

OnFull = Literal["wait", "raise", "drop"]

#: A loop that only ever appends must let others run; a yield at every call would cost more than the
#: call.
_YIELD_AFTER_NS = 1_000_000
#: Seconds that let the disk's thread have the interpreter; event loops make a millisecond of it.
_BREATH = 0.0005


class Channel:
    """Takes trials and chunks of one task.

    Parameters
    ----------
    folder : pathlib.Path
        The task's folder.
    task : str
        The task's name.
    first : int
        Number of the first trial.
    arrays : Mapping
        Declared arrays.
    queue : BoundedQueue
        Shared by all tasks of a Storage.
    on_full : {'wait', 'raise', 'drop'}
        What to do when the queue has no room.
    tally : Tally
        The Storage's counters.
    notify : callable
        Tells the writer that there is work.
    is_starving : callable
        Says whether the writer's thread gets no turn while this loop is so busy.
    """

    def __init__(
        self,
        folder: Path,
        task: str,
        first: int,
        arrays: Mapping[str, ArrayInfo],
        journal: JournalWriter,
        lock: Lock,
        fallbacks: Sequence[Path] = (),
        *,
        queue: BoundedQueue,
        on_full: OnFull,
        tally: Tally,
        notify: Callable[[], None],
        is_starving: Callable[[], bool],
    ) -> None:
        _hold_interrupts_back(self._accept, self._accept_chunk)
        self.folder = folder
        self.task = task
        self.journal = journal
        self.lock = lock
        self.fallbacks = fallbacks
        self.lifecycle: Lifecycle = Lifecycle(f"task {task!r}", State.OPEN)
        self.closed: anyio.Event = anyio.Event()
        self.progress: Progress = Progress(first)
        self.names: intake.ArrayNames = intake.ArrayNames(arrays)
        self.lane: Lane = queue.add_lane()
        self.columns: Columns = Columns()
        self.refused: dict[tuple[int | None, str, str], int] = {}
        self._refusing = threading.Lock()
        self.losses: int = 0
        self.has_end: bool = False
        self.next_trial: int = first
        self.last_activity_ns: int = time.monotonic_ns()
        self._open = intake.OpenTrial()
        self._queue = queue
        self._on_full = on_full
        self._tally = tally
        self._notify = notify
        self._is_starving = is_starving
        self._yielded_ns = 0
        self.slabs: Slabs = Slabs()

    # --- trials -----------------------------------------------------------------------------------

    async def write(self, trial: object) -> Receipt:
        """Accept a trial, waiting for room if the policy says so."""
        began = time.perf_counter_ns()
        now = (time.time_ns(), time.monotonic_ns())
        taken = self._snapshot(trial, now)
        size = taken.size
        if self._queue.has_room(size):
            if now[1] - self._yielded_ns <= _YIELD_AFTER_NS:
                return self._accept(taken, size, now, began)
        else:
            self._queue.require_possible(size)
            if self._on_full != "wait":
                await self._breathe_before_refusing()
                return self._refuse_trial(size)
        self._tally.note_hold(time.perf_counter_ns() - began)
        await self._reserve(size, lambda: intake.check_unstreamed(taken.parts, self._open))
        began = time.perf_counter_ns()
        now = (time.time_ns(), time.monotonic_ns())
        return self._accept(taken, size, now, began, reserved=True)

    def write_nowait(self, trial: object) -> Receipt:
        """Accept a trial now or raise QueueFull."""
        began = time.perf_counter_ns()
        now = (time.time_ns(), time.monotonic_ns())
        taken = self._snapshot(trial, now)
        size = taken.size
        if not self._queue.has_room(size):
            self._queue.require_possible(size)
            raise self._full(size)
        return self._accept(taken, size, now, began)

    def _snapshot(self, trial: object, now: tuple[int, int]) -> intake.Snapshot:
        self.lifecycle.require_open()
        return intake.snapshot(trial, self.names, self._open, now)

    def _accept(
        self,
        taken: intake.Snapshot,
        size: int,
        now: tuple[int, int],
        began: int,
        *,
        reserved: bool = False,
    ) -> Receipt:
        """Take the trial: from here to the end nothing waits and nothing can fail."""
        index = self.next_trial
        item = intake.item_of(taken, index, self._open, now)
        put = self._queue.put_reserved if reserved else self._queue.put
        # The number first: a KeyboardInterrupt right here must not let it be given twice.
        self.next_trial = index + 1
        if self._open.arrays:
            self._open = intake.OpenTrial()
        put(self.lane, item, size)
        self.columns.add(taken.attrs, taken.likeness)
        for part in taken.parts:
            intake.let_go(part)
        self.progress.accept(index + 1, taken.nbytes)
        self.last_activity_ns = now[1]
        self._notify()
        self._tally.note_hold(time.perf_counter_ns() - began)
        return Receipt(self.progress, index)

    # --- chunks -----------------------------------------------------------------------------------

    async def append(self, name: str, chunk: object) -> None:
        """Accept a chunk of the open trial, waiting for room if the policy says so."""
        began = time.perf_counter_ns()
        name, array, layout, ordinal, length = self._check(name, chunk)
        size = array.nbytes + ITEM_OVERHEAD
        if self._queue.has_room(size):
            # Cancelled in its pause, it leaves a hole there until its neighbours are durable.
            where = self.slabs.copy(array)
            item = self._item(name, ordinal, layout, where, array.nbytes, length)
            if item.monotonic_ns - self._yielded_ns <= _YIELD_AFTER_NS:
                self._accept_chunk(item, size, began)
                return
        else:
            self._queue.require_possible(size)
            if self._on_full != "wait":
                await self._breathe_before_refusing()
                self._refuse_chunk(name, size)
                return
            # Not into a slab: what is cancelled while it waits would take up room there.
            where = memoryview(opaque(array).tobytes()), 0
            item = self._item(name, ordinal, layout, where, array.nbytes, length)
        self._tally.note_hold(time.perf_counter_ns() - began)
        await self._reserve(size, lambda: self._renumber(item))
        self._accept_chunk(item, size, time.perf_counter_ns(), reserved=True)

    def append_nowait(self, name: str, chunk: object) -> None:
        """Accept a chunk of the open trial now or raise QueueFull."""
        began = time.perf_counter_ns()
        name, array, layout, ordinal, length = self._check(name, chunk)
        size = array.nbytes + ITEM_OVERHEAD
        if not self._queue.has_room(size):
            self._queue.require_possible(size)
            raise self._full(size)
        where = self.slabs.copy(array)
        item = self._item(name, ordinal, layout, where, array.nbytes, length)
        self._accept_chunk(item, size, began)

    def _check(self, name: Any, chunk: object) -> tuple[str, NDArray[Any], Layout, int, int]:
        """Check a chunk against the open trial; return its name, itself, and its place there."""
        self.lifecycle.require_open()
        known = self._open.arrays.get(name) if isinstance(name, str) else None
        if (
            known is not None
            and type(chunk) is np.ndarray
            and chunk.shape == known.shape
            and chunk.dtype == known.layout.dtype
        ):
            # As the chunk before it, which is what a device gives all day: nothing left to check.
            return name, chunk, known.layout, known.chunks, known.length
        name = self.names.check(name)
        array = intake.take_chunk(chunk, name)
        layout, ordinal = self._place(name, array)
        return name, array, layout, ordinal, intake.length_of(layout, array.shape)

    def _item(
        self,
        name: str,
        ordinal: int,
        layout: Layout,
        where: tuple[memoryview, int],
        nbytes: int,
        length: int,
    ) -> ChunkItem:
        """Make the item of a chunk that was copied; accepting it changes the open trial."""
        # One by one: a tuple put together and taken apart again is 0.1 us of 2.4 for 4 KB.
        trial, (memory, start) = self.next_trial, where
        unix_ns, monotonic_ns = time.time_ns(), time.monotonic_ns()
        return ChunkItem(
            name, trial, ordinal, layout, memory, start, nbytes, length, unix_ns, monotonic_ns
        )

    def _place(self, name: str, array: NDArray[Any]) -> tuple[Layout, int]:
        """Layout of a chunk, and how many chunks of its array are before it in the open trial."""
        known, info = self._open.arrays.get(name), self.names.info(name)
        if known is None:
            return intake.first_layout(info, array, name), 0
        return intake.check_follows(info, known, array.shape, array.dtype, name), known.chunks

    def _renumber(self, item: ChunkItem) -> None:
        """After a wait: other calls may have been served in between."""
        known = self._open.arrays.get(item.array)
        if known is not None:
            shape = item.layout.shape_of(item.length)
            intake.check_follows(
                self.names.info(item.array), known, shape, item.layout.dtype, item.array
            )
        item.trial = self.next_trial
        item.ordinal = 0 if known is None else known.chunks

    def _accept_chunk(
        self, item: ChunkItem, size: int, began: int, *, reserved: bool = False
    ) -> None:
        put = self._queue.put_reserved if reserved else self._queue.put
        put(self.lane, item, size)
        streamed, nbytes = self._open, size - ITEM_OVERHEAD
        known = streamed.arrays.get(item.array)
        if known is None:
            shape = item.layout.shape_of(item.length)
            known = intake.OpenArray(item.layout, shape, item.length)
            streamed.arrays[item.array] = known
            if streamed.first_unix_ns is None:
                streamed.first_unix_ns = item.unix_ns
        known.chunks += 1
        known.nbytes += nbytes
        self.progress.accept(self.next_trial, nbytes)
        self.last_activity_ns = item.monotonic_ns
        self._notify()
        self._tally.note_hold(time.perf_counter_ns() - began)

    # --- room -------------------------------------------------------------------------------------

    async def _breathe(self) -> None:
        """Be a checkpoint; what the call is about was taken before, and is not accepted yet."""
        if self._is_starving():
            await anyio.sleep(_BREATH)
        else:
            await anyio.lowlevel.checkpoint()
        self._yielded_ns = time.monotonic_ns()

    async def _breathe_before_refusing(self) -> None:
        """Let others run who make room, now and then; a task closed meanwhile refuses nothing."""
        if time.monotonic_ns() - self._yielded_ns > _YIELD_AFTER_NS:
            await self._breathe()
            self.lifecycle.require_open()

    async def _reserve(self, size: int, check_again: Callable[[], None]) -> None:
        """Count room at once or wait for it, then check again what was true before.

        Guarantee: if this raises, also by cancellation, nothing is counted.

        Raises
        ------
        StorageError
            If the task was closed meanwhile, or what is to be taken does not fit it any more.
        """
        if self._queue.has_room(size):
            self._queue.count(size)
            try:
                await self._breathe()
            except BaseException:
                self._queue.release(size)
                raise
        else:
            self._notify()
            await self._queue.reserve(self.lane, size)
        try:
            self.lifecycle.require_open()
            check_again()
        except StorageError:
            self._queue.release(size)
            raise

    def _full(self, size: int) -> QueueFull:
        return QueueFull(
            f"task {self.task!r}: no room for {size} bytes, {self._queue.used} of "
            f"{self._queue.capacity} are in use; nothing was taken"
        )

    def _refuse_trial(self, size: int) -> Receipt:
        if self._on_full == "raise":
            raise self._full(size)
        self._count_loss(None, "trial", "")
        return Receipt(None, None)

    def _refuse_chunk(self, name: str, size: int) -> None:
        if self._on_full == "raise":
            raise self._full(size)
        self._count_loss(self.next_trial, "chunk", f" of {name!r}")

    def _count_loss(self, trial: int | None, noun: str, of: str) -> None:
        key = (trial, noun, of)
        with self._refusing:
            self.refused[key] = self.refused.get(key, 0) + 1
        self.losses += 1
        self._tally.losses += 1
        self._notify()

    def take_losses(self) -> tuple[Loss, ...]:
        """Return what was refused since the last call, for the journal; in any thread."""
        evidence = "the queue was full (on_full='drop')"
        with self._refusing:
            losses = tuple(
                Loss(
                    () if trial is None else (trial,),
                    f"{count} {noun}{'s' if count > 1 else ''}{of}",
                    "refused",
                    evidence=evidence,
                )
                for (trial, noun, of), count in self.refused.items()
            )
            self.refused = {}
        return losses

    # --- the end ----------------------------------------------------------------------------------

    def put_end(self, end: CleanEnd) -> None:
        """Queue the end record, for which there is room; without a loop nobody need be told."""
        self._queue.put(self.lane, EndItem(end), ITEM_OVERHEAD)
        self.progress.accepted_items += 1
        self.has_end = True

    def let_go(self) -> None:
        """Close the journal and give the task's lock back; blocks."""
        self.journal.close()
        self.lock.release()

    def leave(self) -> None:
        """Give back everything this task still has in the queue."""
        size = sum(parcel.size for parcel in self.lane.parcels)
        self.lane.parcels.clear()
        self._queue.release(size)
        self._queue.remove_lane(self.lane)

    def statistics(self) -> Statistics:
        """Return this task's part of the figures; queue and commits are the whole Storage's."""
        progress = self.progress
        return self._tally.statistics(
            Levels(*(count - progress.first for count in progress.trials)),
            Levels(*progress.bytes),
            self._queue.used,
            self._queue.peak,
            self.losses,
        )


def _hold_interrupts_back(*functions: Callable[..., object]) -> None:
    """Let trio's Ctrl-C come after a trial or chunk was taken, not in the middle of that.

    trio raises KeyboardInterrupt between any two steps of an experiment's task. Found by ending
    recordings with Ctrl-C: a trial that had its number, and was not in the queue yet, was later
    reported as missing. asyncio cancels the task instead, at an `await`.
    """
    trio = sys.modules.get("trio")
    if trio is not None:
        for function in functions:
            trio.lowlevel.enable_ki_protection(function)
