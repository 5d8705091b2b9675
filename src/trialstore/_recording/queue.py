"""The bounded queue between the experiment and the writer task.

Bounded in bytes, because trials differ a thousandfold in size. What was taken for writing still
counts until it is durable: frames stay in memory until then, and memory is what the bound is for.

One lane per task. Whoever waits for room is served lane by lane, so that a task which floods the
queue cannot starve another; within a lane first come is first served.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from trialstore._errors import QueueFull

if TYPE_CHECKING:
    from trialstore._recording.items import Item

#: Most that one lane gives to one batch, unless one item is larger: bounds how long other tasks
#: wait for their turn on the disk.
BATCH_BYTES = 32 * 2**20


@dataclass(slots=True)
class _Waiter:
    size: int
    ready: anyio.Event
    failure: Exception | None = None
    served: bool = False


@dataclass(slots=True)
class Parcel:
    """Items that become durable together, and the bytes counted for them.

    Packed while they come, because taking a batch apart from a queue of single items held the loop
    for milliseconds.
    """

    items: list[Item] = field(default_factory=list)
    size: int = 0
    is_taken: bool = False


class Lane:
    """One task's part of the queue; filled on the loop, emptied by the thread that writes."""

    def __init__(self) -> None:
        self.parcels: deque[Parcel] = deque()
        self.waiters: deque[_Waiter] = deque()
        self._taking = threading.Lock()

    def add(self, item: Item, size: int) -> None:
        """Add an item to the last parcel, or to a new one if that is full or was taken."""
        with self._taking:
            parcel = self.parcels[-1] if self.parcels else None
            if parcel is None or parcel.is_taken or parcel.size + size > BATCH_BYTES:
                parcel = Parcel()
                self.parcels.append(parcel)
            parcel.items.append(item)
            parcel.size += size

    def take(self) -> Parcel | None:
        """Return the next batch, to which nothing is added any more; it stays here until `drop`.

        A KeyboardInterrupt may come between any two steps of ours: what is not durable is never
        held by a local variable alone.
        """
        with self._taking:
            if not self.parcels:
                return None
            self.parcels[0].is_taken = True
            return self.parcels[0]

    def drop(self) -> None:
        """Forget the batch that was taken: it is durable."""
        if self.parcels and self.parcels[0].is_taken:
            self.parcels.popleft()


class BoundedQueue:
    """A queue of at most `capacity` bytes, over all lanes.

    Guarantee: the bytes of everything put, from `put` until `release`, never exceed `capacity` (end
    records, a few hundred bytes for each task, excepted).
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used: int = 0
        self.peak: int = 0
        self._lanes: deque[Lane] = deque()
        self._waiting = 0

    def __repr__(self) -> str:
        return f"<BoundedQueue {self.used} of {self.capacity} bytes, {self._waiting} waiting>"

    @property
    def is_pressed(self) -> bool:
        """Whether the writer should skip its pause."""
        return self._waiting > 0 or self.used > min(self.capacity // 4, BATCH_BYTES)

    def add_lane(self) -> Lane:
        """Open a lane for a task."""
        lane = Lane()
        self._lanes.append(lane)
        return lane

    def remove_lane(self, lane: Lane) -> None:
        """Close a lane; nobody waits in it any more and nothing is in it."""
        self._lanes.remove(lane)

    def require_possible(self, size: int) -> None:
        """Raise QueueFull if `size` bytes could never fit."""
        if size > self.capacity:
            raise QueueFull(
                f"{size} bytes can never fit a queue of {self.capacity} bytes: "
                "raise queue_bytes, or stream the arrays with append()"
            )

    def has_room(self, size: int) -> bool:
        """Whether `size` bytes may be put now; those who wait come first."""
        return self._waiting == 0 and self.used + size <= self.capacity

    def put(self, lane: Lane, item: Item, size: int) -> None:
        """Add an item for which there is room (or an end record, which always goes in)."""
        self.used = used = self.used + size  # as `count`, without the call
        if used > self.peak:
            self.peak = used
        lane.add(item, size)

    def put_reserved(self, lane: Lane, item: Item, size: int) -> None:
        """Add an item whose bytes were counted already, by `count` or `reserve`."""
        lane.add(item, size)

    def count(self, size: int) -> None:
        """Count bytes for which there is room, until `release`."""
        self.used = used = self.used + size
        if used > self.peak:
            self.peak = used

    async def reserve(self, lane: Lane, size: int) -> None:
        """Wait until `size` bytes are counted for the caller, who then puts without waiting.

        Guarantee: if this raises, also by cancellation, nothing is counted.

        Raises
        ------
        StorageError
            What `fail_waiters` was given, if the task is closed meanwhile.
        """
        waiter = _Waiter(size, anyio.Event())
        lane.waiters.append(waiter)
        self._waiting += 1
        try:
            await waiter.ready.wait()
        except BaseException:
            if waiter.served:
                self.release(size)
            else:
                self._withdraw(lane, waiter)
            raise
        if waiter.failure is not None:
            raise waiter.failure

    def release(self, size: int) -> None:
        """Give back bytes that are durable (or given up), and serve those who wait."""
        self.used -= size
        self._serve()

    def fail_waiters(self, lane: Lane, failure: Exception) -> None:
        """Wake everybody who waits in a lane with an exception."""
        while lane.waiters:
            waiter = lane.waiters.popleft()
            self._waiting -= 1
            waiter.failure = failure
            waiter.ready.set()
        self._serve()

    def _withdraw(self, lane: Lane, waiter: _Waiter) -> None:
        if waiter in lane.waiters:
            lane.waiters.remove(waiter)
            self._waiting -= 1
            self._serve()

    def _serve(self) -> None:
        while self._waiting:
            turns = next(turn for turn, lane in enumerate(self._lanes) if lane.waiters)
            self._lanes.rotate(-turns)
            # The next in turn may be large: serving smaller ones past it would starve it.
            waiter = self._lanes[0].waiters[0]
            if self.used + waiter.size > self.capacity:
                return
            self._lanes[0].waiters.popleft()
            self._lanes.rotate(-1)
            self._waiting -= 1
            self.count(waiter.size)
            waiter.served = True
            waiter.ready.set()
