"""The bounded queue: its bound, its policies, its fairness, and cancellation while it is full."""

from __future__ import annotations

import contextlib
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import numpy as np
import pytest

from tests.helpers import reader_of
from trialstore import QueueFull, Storage, StorageError
from trialstore._ondisk.disk import Disk, use
from trialstore._recording.queue import BoundedQueue, Lane

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

KIB = 1024


class GatedDisk(Disk):
    """A disk whose syncs wait until the gate is opened."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.reached = threading.Event()

    def sync(self, fd: int) -> None:
        """Wait at the gate, for half a minute at most, then sync."""
        self.reached.set()
        assert self.gate.wait(30)
        super().sync(fd)

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Let nothing through within this block."""
        self.reached.clear()
        self.gate.clear()
        try:
            yield
        finally:
            self.gate.set()


def item(name: str = "x") -> Any:
    """Stand for an item; the queue does not look inside."""
    return name


async def test_the_bound_holds_and_the_peak_is_kept() -> None:
    """Bytes count from put to release; the peak is remembered."""
    queue = BoundedQueue(100)
    lane = queue.add_lane()
    assert queue.has_room(100)
    queue.put(lane, item(), 60)
    assert not queue.has_room(41)
    parcel = lane.take()
    assert parcel is not None
    assert (parcel.items, parcel.size, queue.used) == ([item()], 60, 60)
    queue.put(lane, item("y"), 5)
    assert lane.take() is parcel  # until they are durable, items stay, and no other joins them
    assert parcel.items == [item()]
    lane.drop()
    lane.drop()  # what was not taken is not dropped
    queue.release(parcel.size)
    parcel = lane.take()
    assert parcel is not None
    assert (parcel.items, queue.used, queue.peak) == ([item("y")], 5, 65)
    lane.drop()
    queue.release(5)
    assert (queue.used, lane.take()) == (0, None)
    with pytest.raises(QueueFull):
        queue.require_possible(101)
    assert "0 of 100" in repr(queue)


async def test_waiters_are_served_lane_by_lane_and_in_order() -> None:
    """A lane with many waiters does not starve a lane with one; nobody is passed within a lane."""
    queue = BoundedQueue(10)
    flood, calm = queue.add_lane(), queue.add_lane()
    queue.put(flood, item(), 10)
    served: list[str] = []

    async def wait(lane: Lane, name: str) -> None:
        await queue.reserve(lane, 10)
        served.append(name)
        queue.release(10)

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(wait, flood, f"flood {number}")
            await anyio.wait_all_tasks_blocked()
        tasks.start_soon(wait, calm, "calm")
        await anyio.wait_all_tasks_blocked()
        assert not queue.has_room(0)
        queue.release(10)
    assert served.index("calm") <= 1
    assert [name for name in served if name != "calm"] == [f"flood {n}" for n in range(5)]
    assert queue.used == 0


async def test_a_large_waiter_is_not_starved_by_small_ones() -> None:
    """Who comes first is served first, even if a smaller one would fit now."""
    queue = BoundedQueue(10)
    lane, other = queue.add_lane(), queue.add_lane()
    queue.put(lane, item(), 6)
    served: list[str] = []

    async def wait(where: Lane, name: str, size: int) -> None:
        await queue.reserve(where, size)
        served.append(name)
        queue.release(size)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, lane, "large", 9)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(wait, other, "small", 1)
        await anyio.wait_all_tasks_blocked()
        assert not queue.has_room(1)
        queue.release(6)
    assert sorted(served) == ["large", "small"]


async def test_cancelled_waiters_leave_nothing_counted() -> None:
    """Whether cancelled before or after being served, a waiter that raises has taken nothing."""
    queue = BoundedQueue(10)
    lane = queue.add_lane()
    queue.put(lane, item(), 10)
    with anyio.move_on_after(0.01):
        await queue.reserve(lane, 5)
    assert (queue.used, queue.is_pressed) == (10, True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(queue.reserve, lane, 5)
        await anyio.wait_all_tasks_blocked()
        queue.release(10)  # serves the waiter, who has not run yet
        tasks.cancel_scope.cancel()
    assert queue.used in (0, 5)  # 5 if the loop let it return before the cancellation came
    failure = StorageError("closed")
    queue.put(lane, item(), 10 - queue.used)
    async with anyio.create_task_group() as tasks:

        async def refused() -> None:
            with pytest.raises(StorageError, match="closed"):
                await queue.reserve(lane, 8)

        tasks.start_soon(refused)
        await anyio.wait_all_tasks_blocked()
        queue.fail_waiters(lane, failure)


async def test_wait_raise_and_drop(tmp_path: Path) -> None:
    """`wait` waits for the disk, `raise` raises, `drop` refuses the newest and records it."""
    disk = GatedDisk()
    chunk = np.zeros(4 * KIB, "uint8")
    with use(disk):
        async with Storage(tmp_path / "drop", queue_bytes=20 * KIB, on_full="drop") as storage:
            storage.subject_id = "p0"
            async with storage.create_task("reach") as task:
                disk.gate.clear()
                for number in range(10):
                    await task.append("emg", chunk + number)
                refused = await task.write({"n": 0, "text": "x" * 5000})
                assert (refused.index, refused.level) == (None, None)
                with pytest.raises(QueueFull, match="refused"):
                    await refused.durable()
                assert storage.statistics().losses == 7
                disk.gate.set()
                await task.flush()
                accepted = await task.write({"n": 1})
                assert accepted.index == 0
        async with Storage(tmp_path / "raise", queue_bytes=20 * KIB, on_full="raise") as storage:
            storage.subject_id = "p0"
            async with storage.create_task("reach") as task:
                disk.gate.clear()
                for _ in range(4):
                    await task.append("emg", chunk)
                with pytest.raises(QueueFull, match="nothing was taken"):
                    await task.append("emg", chunk)
                with pytest.raises(QueueFull):
                    task.append_nowait("emg", chunk)
                disk.gate.set()
                await task.flush()
                await task.write({"n": 1})
        async with Storage(tmp_path / "wait", queue_bytes=20 * KIB) as storage:
            storage.subject_id = "p0"
            async with storage.create_task("reach") as task:
                disk.gate.clear()
                for _ in range(4):
                    await task.append("emg", chunk)
                with pytest.raises(QueueFull):
                    task.write_nowait({"text": "x" * 5000})
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(task.append, "emg", chunk)
                    await anyio.wait_all_tasks_blocked()
                    assert task.statistics().queue_bytes <= 20 * KIB
                    disk.gate.set()
                await task.write({"n": 1})

    def look() -> None:
        dropped = reader_of(tmp_path / "drop")
        assert {loss.kind for loss in dropped.losses} == {"refused"}
        assert [loss.trials for loss in dropped.losses if loss.what == "1 trial"] == [()]
        # In as many notes as there were batches meanwhile.
        chunks = [loss for loss in dropped.losses if loss.what.endswith(" of 'emg'")]
        assert {loss.trials for loss in chunks} == {(0,)}
        assert sum(int(loss.what.split()[0]) for loss in chunks) == 6
        assert len(dropped.array("emg", trial=0)) == 4 * 4 * KIB
        assert len(reader_of(tmp_path / "raise").array("emg", trial=0)) == 4 * 4 * KIB
        assert len(reader_of(tmp_path / "wait").array("emg", trial=0)) == 5 * 4 * KIB

    await anyio.to_thread.run_sync(look)


async def test_a_refusal_is_on_disk_before_what_came_after_it(tmp_path: Path) -> None:
    """Also if both happen after their batch was begun, while the disk is busy with another task."""
    disk = GatedDisk()
    chunk = np.zeros(10 * KIB, "uint8")
    with use(disk):
        async with Storage(tmp_path, queue_bytes=18 * KIB, on_full="drop") as storage:
            storage.subject_id = "p0"
            async with (
                storage.create_task("first") as first,
                storage.create_task("second") as second,
            ):
                with disk.closed():
                    first.write_nowait({})
                    second.write_nowait({})
                    # The thread waits at the gate with one batch; the other is not encoded yet.
                    assert await anyio.to_thread.run_sync(disk.reached.wait, 30)
                    for task in (first, second):
                        for _ in range(5):
                            await task.append("emg", chunk)
                        receipt = task.write_nowait({"mark": "after the refusal"})
                        assert receipt.index == 1
                await first.flush()
                await second.flush()
                for task in (first, second):
                    segment = await anyio.Path(task.root, "journal/000001.segment").read_bytes()
                    assert 0 < segment.find(b"refused") < segment.find(b"after the refusal")


async def test_a_cancelled_write_took_nothing(tmp_path: Path) -> None:
    """A write cancelled while it waits for room leaves trial, numbering and queue alone."""
    from trialstore import Design

    disk = GatedDisk()
    with use(disk):
        async with Storage(tmp_path / "data", queue_bytes=20 * KIB) as storage:
            storage.subject_id = "p0"
            async with storage.create_task("reach") as task:
                disk.gate.clear()
                await task.append("emg", np.zeros(16 * KIB, "uint8"))
                await task.write({"n": 0})
                trial = Design().add_block().add_trial()
                trial.add_array("emg", data=np.ones(8 * KIB, "uint8"))
                with anyio.move_on_after(0.05) as scope:
                    await task.write(trial)
                assert scope.cancelled_caught
                kept = trial.arrays["emg"].data
                assert kept is not None
                assert len(kept) == 8 * KIB
                with anyio.move_on_after(0.05) as scope:
                    await task.append("emg", np.zeros(8 * KIB, "uint8"))
                assert scope.cancelled_caught
                disk.gate.set()
                receipt = await task.write(trial)
                assert receipt.index == 1

    def look() -> None:
        reader = reader_of(tmp_path / "data")
        assert len(reader.array("emg", trial=0)) == 16 * KIB
        assert reader.array("emg", trial=1).tolist() == [1] * 8 * KIB

    await anyio.to_thread.run_sync(look)


async def test_a_call_cancelled_in_its_pause_took_nothing(tmp_path: Path) -> None:
    """There is room, others have their turn first: cancelled there, nothing is taken or counted."""
    from trialstore import Design

    async with Storage(tmp_path / "data") as storage:
        storage.subject_id = "p0"
        async with storage.create_task("reach") as task:
            trial = Design().add_block().add_trial()
            trial.add_array("emg", data=np.ones(KIB, "uint8"))
            calls = partial(task.append, "x", np.zeros(KIB, "uint8")), partial(task.write, trial)
            for call in calls:
                task._channel._yielded_ns = 0
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await call()
                assert scope.cancelled_caught
                assert task.statistics().queue_bytes == 0
                assert trial.arrays["emg"].data is not None
            assert (await task.write(trial)).index == 0

    def look() -> None:
        reader = reader_of(tmp_path / "data")
        assert reader.array_names == ["emg"]
        assert reader.array("emg", trial=0).tolist() == [1] * KIB

    await anyio.to_thread.run_sync(look)


async def test_what_is_stacked_while_a_write_waits_is_kept(tmp_path: Path) -> None:
    """`write` takes the trial as it was at the call; what came since stays in the array."""
    from trialstore import Design

    disk = GatedDisk()
    with use(disk):
        async with Storage(tmp_path / "data", queue_bytes=20 * KIB) as storage:
            storage.subject_id = "p0"
            async with storage.create_task("reach") as task:
                disk.gate.clear()
                await task.append("x", np.zeros(16 * KIB, "uint8"))
                trial = Design().add_block().add_trial()
                array = trial.add_array("emg")
                array.stack(np.zeros(8 * KIB, "uint8"))
                await task.write({})
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(task.write, trial)
                    await anyio.wait_all_tasks_blocked()
                    array.stack(np.ones(5, "uint8"))
                    disk.gate.set()
                assert array.data is not None
                assert array.data.tolist() == [1] * 5
                await task.write(trial)

    def look() -> None:
        first, *rest = reader_of(tmp_path / "data").iterarray("emg")
        assert first is None
        assert [len(array) for array in rest if array is not None] == [8 * KIB, 5]

    await anyio.to_thread.run_sync(look)


async def test_a_flooding_task_does_not_starve_another(tmp_path: Path) -> None:
    """While one task fills the queue as fast as it can, another gets its few trials through."""
    async with Storage(tmp_path / "data", queue_bytes=256 * KIB) as storage:
        storage.subject_id = "p0"
        flood = await storage.create_task("flood")
        calm = await storage.create_task("calm")
        done = anyio.Event()

        async def pour() -> None:
            while not done.is_set():
                await flood.append("emg", np.zeros(32 * KIB, "uint8"))

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(pour)
            with anyio.fail_after(30):
                for number in range(20):
                    receipt = await calm.write({"n": number})
                    await receipt.durable()
            done.set()
        await flood.write({"end": True})


async def test_a_closed_task_wakes_those_who_wait(tmp_path: Path) -> None:
    """A write that waits for room while the task is closed gets an error, not a hang."""
    disk = GatedDisk()
    with use(disk):
        async with Storage(tmp_path / "data", queue_bytes=20 * KIB) as storage:
            storage.subject_id = "p0"
            task = await storage.create_task("reach")
            disk.gate.clear()
            await task.append("emg", np.zeros(16 * KIB, "uint8"))

            async def late() -> None:
                with pytest.raises(StorageError, match="closed"):
                    await task.append("emg", np.zeros(16 * KIB, "uint8"))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(late)
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(task.aclose)
                await anyio.wait_all_tasks_blocked()
                disk.gate.set()


async def test_a_loop_rests_only_if_it_never_does_and_only_for_a_batch(tmp_path: Path) -> None:
    """Nobody is made to rest while nothing is written, nor who rests by themselves."""
    disk = GatedDisk()
    with use(disk):
        async with Storage(tmp_path / "data") as storage:
            storage.subject_id = "p0"
            recorder = storage._recorder

            def never_rest(seconds: float) -> bool:
                """Work until told to rest, or for so long of the processor's time."""
                end = time.thread_time() + seconds
                while time.thread_time() < end:
                    if recorder.writer.is_starving():
                        return True
                return False

            async with storage.create_task("reach") as task:
                await task.flush()
                assert not never_rest(0.1)
                with disk.closed():
                    await task.write({"n": 0})
                    while not recorder.writer._is_thread_at_work:
                        await anyio.lowlevel.checkpoint()
                    # Long, as others may have most of the processor: 5 ms of it in one piece do.
                    assert never_rest(5.0)
                    assert not recorder.writer.is_starving()
                    await anyio.sleep(0.05)
                    assert not recorder.writer.is_starving()


async def test_a_call_takes_what_it_was_given_before_others_have_their_turn(
    tmp_path: Path,
) -> None:
    """Chunk and trial are those of the call, also if somebody else changes them meanwhile."""
    from trialstore import Design

    async with Storage(tmp_path / "data") as storage:
        storage.subject_id = "p0"
        async with storage.create_task("reach") as task:
            chunk = np.zeros(3)
            trial = Design().add_block().add_trial(attrs={"n": 0})

            def let_others_run() -> bool:
                chunk[:] = 1
                trial.attrs["n"] = 1
                return False

            # Asked before each pause that lets others run; one is long due.
            task._channel._is_starving = let_others_run
            task._channel._yielded_ns = 0
            await task.append("emg", chunk)
            assert chunk.tolist() == [1, 1, 1]
            task._channel._yielded_ns = 0
            trial.attrs["n"] = 0
            await task.write(trial)
            assert trial.attrs["n"] == 1

    def look() -> None:
        reader = reader_of(tmp_path / "data")
        assert reader.trials["n"].tolist() == [0]
        assert reader.array("emg", trial=0).tolist() == [0, 0, 0]

    await anyio.to_thread.run_sync(look)
