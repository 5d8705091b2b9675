"""What a recorder does when room runs out, when a disk hangs, and when somebody takes its task."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from tests.conftest import wait_until
from tests.helpers import open_task, reader_of
from trialstore import PublishFailed, Storage, WriteFailed
from trialstore._ondisk import layout, manifest
from trialstore._ondisk.disk import Disk, use
from trialstore._recording.space import SpaceWatch, in_bytes, span

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    Buffer = bytes | bytearray | memoryview

pytestmark = pytest.mark.anyio

GB = 10**9


# --- room on the disk -------------------------------------------------------------------------


def watched(*free: int | None) -> SpaceWatch:
    """Return a watch that has looked once a second."""
    space = SpaceWatch()
    for second, count in enumerate(free):
        space.note(float(second), count)
    return space


def test_a_disk_that_does_not_fill_is_not_spoken_of() -> None:
    """Without a rate nothing is foretold, and plenty of room is no news."""
    space = watched(5 * GB, 5 * GB, 5 * GB, 5 * GB, 5 * GB)
    assert (space.free_bytes, space.seconds_left) == (5 * GB, None)
    assert space.alarm() == (None, False)


def test_how_long_recording_can_go_on_is_told_early_and_again_when_it_gets_worse() -> None:
    """Ten minutes, two minutes and twenty seconds before the end, each once."""
    space = SpaceWatch()
    told = []
    for second in range(1000):
        space.note(float(second), 10 * GB - second * 10**7)
        what, is_news = space.alarm()
        if is_news:
            told.append((second, what))
    seconds = [1000 - second for second, _ in told]
    assert [round(left / 20) * 20 for left in seconds] == [600, 120, 20]
    assert told[0][1] == (
        "the data's disk has 6.0 GB left: at the present rate (10.0 MB/s) "
        "recording can go on for 10 min"
    )


def test_room_that_comes_back_ends_the_alarm() -> None:
    """After somebody has tidied up, the next alarm is news again."""
    space = watched(*(GB - second * 10**7 for second in range(10)))
    assert space.alarm()[1]
    assert not space.alarm()[1]
    for second in range(10, 60):
        space.note(float(second), 50 * GB)
    assert space.alarm() == (None, False)
    for second in range(60, 120):
        space.note(float(second), GB - (second - 60) * 10**7)
    assert space.alarm()[1]


def test_little_room_is_told_without_a_rate() -> None:
    """A disk that is nearly full is worth a word before the first trial."""
    what, is_news = watched(30 * 10**6).alarm()
    assert (what, is_news) == ("the data's disk has 30.0 MB left", True)


def test_a_system_that_does_not_say_is_not_guessed_at() -> None:
    """None is no free space of zero."""
    space = watched(None, None)
    assert (space.free_bytes, space.seconds_left, space.alarm()) == (None, None, (None, False))


def test_figures_for_people() -> None:
    """Decimal units, and durations in the unit one counts in."""
    assert [in_bytes(n) for n in (12, 1500, 2.5e6, 7e10)] == [
        "12 bytes", "1.5 kB", "2.5 MB", "70.0 GB",
    ]  # fmt: skip
    assert [span(s) for s in (4, 90, 600, 7200 * 5)] == ["4 s", "90 s", "10 min", "10 h"]


class SmallDisk(Disk):
    """Says that it has so much room, and takes no more than that."""

    def __init__(self, free: int | None = None) -> None:
        self.free = free

    def writev(self, fd: int, pieces: Sequence[Buffer]) -> int:
        size = sum(map(len, pieces))
        if self.free is None:
            return super().writev(fd, pieces)
        if self.free == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data = b"".join(pieces)[: self.free]
        self.free -= len(data)
        assert size >= len(data)
        return super().writev(fd, [data])

    def remove(self, path: Path) -> None:
        if self.free is not None and path.exists():
            self.free += path.stat().st_size
        super().remove(path)

    def free_bytes(self, path: Path) -> int | None:
        return super().free_bytes(path) if self.free is None else self.free


async def test_the_hook_is_told_early(tmp_path: Path) -> None:
    """`on_trouble` hears of a disk that fills before it is full, and statistics show it."""
    told: list[Any] = []
    with use(SmallDisk(20 * 10**6)):
        async with Storage(tmp_path / "data", on_trouble=told.append) as storage:
            storage.subject_id = "p0"
            async with storage.create_task("reach") as task:
                with anyio.fail_after(20):
                    while not told:
                        await task.write({"n": 1})
                        await anyio.sleep(0.02)
                statistics = task.statistics()
    assert "left" in told[0].what
    assert told[0].free_bytes is not None
    assert statistics.trouble == told[0].what
    assert statistics.free_bytes is not None


# --- the end on a full disk -------------------------------------------------------------------


async def test_the_reserve_lets_a_recording_end_cleanly_on_a_full_disk(tmp_path: Path) -> None:
    """What is small enough for the reserve becomes durable after all, and the end with it."""
    disk = SmallDisk()
    with use(disk):
        async with Storage(tmp_path / "data", close_timeout=1.0) as storage:
            storage.subject_id = "p0"
            async with storage.create_task("reach") as task:
                await task.write({"n": 0})
                await task.flush()
                disk.free = 0
                receipt = await task.write({"n": 1})
    await receipt.durable()
    assert await anyio.to_thread.run_sync(wait_until, lambda: is_published(tmp_path / "data"))

    def look() -> None:
        reader = reader_of(tmp_path / "data")
        assert (reader.status, reader.trials["n"].tolist()) == ("complete", [0, 1])
        assert reader.losses == ()

    await anyio.to_thread.run_sync(look)


async def test_what_does_not_fit_is_named_in_the_data(tmp_path: Path) -> None:
    """WriteFailed names the trials, and so does everybody's `losses`, years later."""
    disk = SmallDisk()
    with use(disk), pytest.raises(WriteFailed, match="trials 1 to 2") as caught:
        async with Storage(tmp_path / "data", close_timeout=0.5) as storage:
            storage.subject_id = "p0"
            async with storage.create_task("reach") as task:
                await task.write({"n": 0})
                await task.flush()
                disk.free = 0
                await task.append("emg", bytes_of(400_000))
                await task.write({"n": 1})
                await task.write({"n": 2})
    assert caught.value.trials == (1, 2)

    def look() -> None:
        reader = reader_of(tmp_path / "data")
        assert reader.trials["n"].tolist() == [0]
        (loss,) = reader.losses
        assert (loss.trials, loss.kind) == ((1, 2), "missing")
        assert "No space left" in loss.evidence

    assert await anyio.to_thread.run_sync(wait_until, lambda: is_published(tmp_path / "data"))
    await anyio.to_thread.run_sync(look)


def bytes_of(count: int) -> Any:
    """Return a chunk of so many bytes."""
    import numpy as np

    return np.zeros((1, count), "u1")


def is_published(root: Path) -> bool:
    """Whether the publisher has done its work, also after the Storage was left."""
    described = manifest.read(root / "p0/reach")
    return described is not None and described.status != "recording"


async def test_a_disk_that_hangs_for_ever_is_left_for_the_other(tmp_path: Path) -> None:
    """With `fallback_root` nothing is lost, though a call to the first disk never returns."""
    gate = threading.Event()

    class Hanging(Disk):
        hangs = False

        def sync(self, fd: int) -> None:
            if self.hangs and threading.current_thread().name == "trialstore disk":
                gate.wait()
            super().sync(fd)

    disk = Hanging()
    try:
        with use(disk), anyio.fail_after(30):
            async with Storage(
                tmp_path / "data", fallback_root=tmp_path / "second", close_timeout=0.5
            ) as storage:
                storage.subject_id = "p0"
                async with storage.create_task("reach") as task:
                    await task.write({"n": 0})
                    await task.flush()
                    disk.hangs = True
                    receipts = [await task.write({"n": number}) for number in (1, 2)]
            await receipts[-1].durable()

            def look() -> None:
                assert reader_of(tmp_path / "data").trials["n"].tolist() == [0, 1, 2]

            await anyio.to_thread.run_sync(look)
    finally:
        gate.set()


# --- whose task is it -------------------------------------------------------------------------


async def test_a_lock_deleted_by_hand_is_taken_again(tmp_path: Path) -> None:
    """Whoever 'cleans up' the lock file of a living recorder does not end the recording."""
    lock = tmp_path / "data/p0/reach/journal/lock"
    async with open_task(tmp_path / "data") as task:
        await task.write({"n": 0})
        await task.flush()
        await anyio.to_thread.run_sync(lock.unlink)
        await task.write({"n": 1})
        await task.flush()
        assert lock.exists()
        assert await anyio.to_thread.run_sync(lambda: reader_of(tmp_path / "data").status) == (
            "recording"
        )

    def look() -> None:
        assert reader_of(tmp_path / "data").trials["n"].tolist() == [0, 1]

    await anyio.to_thread.run_sync(look)


async def test_a_task_folder_deleted_under_the_recorder_is_written_again(tmp_path: Path) -> None:
    """`rm -r` of a running task costs no trial: the recorder still has the journal open."""
    folder = tmp_path / "data/p0/reach"
    async with open_task(tmp_path / "data") as task:
        for number in range(3):
            await task.write({"n": number})
        await task.flush()
        await anyio.to_thread.run_sync(lambda: shutil.rmtree(folder))
        receipt = await task.write({"n": 3})
        await receipt.durable()
    assert await anyio.to_thread.run_sync(wait_until, lambda: is_published(tmp_path / "data"))

    def look() -> None:
        reader = reader_of(tmp_path / "data")
        assert (reader.status, reader.trials["n"].tolist()) == ("complete", [0, 1, 2, 3])
        assert reader.losses == ()

    await anyio.to_thread.run_sync(look)


async def test_a_recorder_that_lost_its_task_says_so(tmp_path: Path) -> None:
    """Nothing is acknowledged that nobody would read: the trials are named in WriteFailed."""
    root = tmp_path / "data"
    async with Storage(root) as second:
        second.subject_id = "p0"
        with pytest.raises(WriteFailed, match="taken over") as caught:
            async with Storage(root, close_timeout=0.5) as first:
                first.subject_id = "p0"
                task = await first.create_task("reach")
                await task.write({"n": 0})
                await task.flush()
                await anyio.to_thread.run_sync((root / "p0/reach/journal/lock").unlink)
                async with second.resume_task("reach") as other:
                    await other.write({"n": 1})
                    await other.flush()
                    await task.write({"n": "late"})
                    await task.aclose()
        assert caught.value.trials == (1,)

    def look() -> None:
        assert reader_of(root).trials["n"].tolist() == [0, 1]

    await anyio.to_thread.run_sync(look)


# --- publishing that fails --------------------------------------------------------------------


async def test_publication_that_failed_is_tried_again(tmp_path: Path) -> None:
    """PublishFailed is told at once; when the way is free, the task is published by itself."""
    root = tmp_path / "data"
    obstacle = root / "p0/reach" / layout.TRIALS

    async with Storage(root) as storage:
        storage.subject_id = "p0"
        with pytest.raises(PublishFailed):
            async with storage.create_task("reach") as task:
                await anyio.to_thread.run_sync(obstacle.mkdir)
                await task.write({"n": 1})
        assert (root / "p0/reach/journal").exists()
        await anyio.to_thread.run_sync(obstacle.rmdir)
        assert await anyio.to_thread.run_sync(wait_until, lambda: is_published(root))

    def look() -> None:
        assert reader_of(root).trials["n"].tolist() == [1]

    await anyio.to_thread.run_sync(look)
