"""Lines that only a fault would miss: each of these tests was seen to fail without one of them.

`tests/campaign/mutations.py` takes the lines away again, one after another.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import h5py
import numpy as np
import pytest

from tests.helpers import open_task, reader_of
from tests.journals import six_trials
from trialstore import DamagedData, PublishFailed, QueueFull, Storage, StorageError, TaskReader
from trialstore._ondisk import layout, manifest, recovery
from trialstore._ondisk.disk import Disk, open_reading, use
from trialstore._ondisk.replay import Replay
from trialstore._publishing.service import publish_once
from trialstore._recording.publisher import MAX_DEATHS
from trialstore.testing import FailingDisk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trialstore._ondisk.disk import Buffer

pytestmark = pytest.mark.anyio

FOLDER = Path("data/p0/reach")


def spoil(path: Path, old: bytes, new: bytes) -> None:
    """Change bytes of a file that stand in it once; other names of it keep theirs."""
    data = path.read_bytes()
    assert data.count(old) == 1
    path.unlink()
    path.write_bytes(data.replace(old, new))


async def record(root: Path, count: int = 3) -> None:
    """Record a small task and publish it."""
    async with open_task(root) as task:
        for number in range(count):
            await task.append("emg", np.full((2, 50), float(number)))
            await task.write({"n": number, "text": f"trial {number}"})


async def cut_off(root: Path) -> None:
    """Leave a task as a killed recorder does: in its journal."""
    async with Storage(root) as storage:
        storage._recorder.publisher.can_start = False
        storage._recorder._publication._publish_here = lambda *_: None
        storage.subject_id = "p0"
        async with storage.create_task("reach") as task:
            for number in range(3):
                await task.append("emg", np.full((2, 50), float(number)))
                await task.write({"n": number})


# --- the door to the disk -------------------------------------------------------------------------


def test_a_sync_is_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and folders are synced by the system calls, not by good will."""
    called: list[str] = []
    for name in ("fsync", "fdatasync"):
        if hasattr(os, name):
            monkeypatch.setattr(os, name, lambda fd, name=name: called.append(name))
    disk = Disk()
    fd = disk.create(tmp_path / "file")
    disk.sync(fd)
    disk.close(fd)
    assert len(called) == 1
    disk.sync_folder(tmp_path)
    assert called[1:] == ["fsync"]


def test_links_are_not_read(tmp_path: Path) -> None:
    """A link in the place of one of our files is refused, wherever it leads."""
    (tmp_path / "secret").write_text("x")
    (tmp_path / "file").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links"):
        open_reading(tmp_path / "file")


def test_frames_tell_how_far_the_journal_was_durable(tmp_path: Path) -> None:
    """Without its witness a journal still says of all but the last batch that it was durable."""
    recording = six_trials(tmp_path / "journal")
    recording.close()
    for path in recording.folder.glob("*.witness"):
        path.unlink()
    with Replay([recording.folder]) as replay:
        replay.poll()
        durable = [trial.index for trial in replay.trials.values() if trial.seq <= replay.synced_to]
    assert durable == list(range(5))


# --- taking a task up again -----------------------------------------------------------------------


async def test_resuming_makes_durable_what_a_kill_left(tmp_path: Path) -> None:
    """What survived a kill in the page cache is synced before anything is recorded behind it."""
    await cut_off(tmp_path / "data")
    disk = FailingDisk()

    def look() -> None:
        steps = recovery.plan(tmp_path / FOLDER)
        assert len(steps.segments) == 1
        recovery.apply(disk, steps)

    await anyio.to_thread.run_sync(look)
    assert disk.calls == {"sync": 1, "sync_folder": 1}


@pytest.mark.parametrize("name", ["trials.csv", "timing.csv"])
async def test_a_changed_table_is_not_published_again(tmp_path: Path, name: str) -> None:
    """A table that was edited or damaged is not resumed: it would get a fresh checksum."""
    await record(tmp_path / "data")
    before = (tmp_path / FOLDER / name).read_bytes()
    spoil(tmp_path / FOLDER / name, before, before.replace(b"1", b"7"))
    async with Storage(tmp_path / "data") as storage:
        storage.subject_id = "p0"
        with pytest.raises(DamagedData, match=name):
            await storage.resume_task("reach")


async def test_a_table_that_changes_while_recording_is_not_published(tmp_path: Path) -> None:
    """The same for one that is damaged later: closing says so at once, the journal is whole."""
    await record(tmp_path / "data")
    async with Storage(tmp_path / "data") as storage:
        storage.subject_id = "p0"
        task = await storage.resume_task("reach")
        await task.write({"n": 3, "text": "trial 3"})
        base = tmp_path / FOLDER / "journal" / layout.BASE / "trials.csv"
        await anyio.to_thread.run_sync(spoil, base, b"trial 1", b"trial 7")
        # Whatever the publisher had read of it before: a new one will read it.
        pid = storage._recorder.publisher.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(PublishFailed, match="not as it was published"):
            await task.aclose()

    def look() -> None:
        reader = TaskReader(tmp_path / FOLDER)
        with pytest.raises(DamagedData):
            _ = reader.trials
        assert reader.array("emg", trial=1).tolist() == np.full((2, 50), 1.0).tolist()

    await anyio.to_thread.run_sync(look)


async def test_a_resumption_that_failed_can_be_tried_again(tmp_path: Path) -> None:
    """When the disk refuses in the middle of resuming, the task is let go of."""
    disk = FailingDisk()
    with use(disk):
        async with Storage(tmp_path / "data", keep_journal=True) as storage:
            storage.subject_id = "p0"
            async with storage.create_task("reach") as task:
                await task.write({"n": 0})
            disk.fail("link")
            with pytest.raises(StorageError, match="cannot be opened"):
                await storage.resume_task("reach")
            async with storage.resume_task("reach") as task:
                await task.write({"n": 1})

    def look() -> None:
        assert reader_of(tmp_path / "data").trials["n"].tolist() == [0, 1]

    await anyio.to_thread.run_sync(look)


# --- publishing -----------------------------------------------------------------------------------


class Liar(Disk):
    """A disk that stores other bytes than it was given, and says that all is well.

    Parameters
    ----------
    told, stored : bytes
        What it takes for what.
    """

    def __init__(self, told: bytes, stored: bytes) -> None:
        self._told, self._stored = told, stored

    def sync(self, fd: int) -> None:
        """Sync, and change what is there."""
        super().sync(fd)
        size = os.fstat(fd).st_size
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.suffix == ".building" and (at := path.read_bytes().find(self._told)) >= 0:
            os.pwrite(fd, self._stored, at)
            assert os.fstat(fd).st_size == size


@pytest.mark.parametrize(
    ("told", "stored"),
    [
        pytest.param(b"\n1\n", b"\n7\n", id="table"),
        pytest.param(np.full(3, 1.0).tobytes(), np.full(3, 7.0).tobytes(), id="array"),
    ],
)
async def test_what_does_not_read_back_is_not_published(
    tmp_path: Path, told: bytes, stored: bytes
) -> None:
    """A disk that stored something else is caught before the rename; the journal stays."""
    await cut_off(tmp_path / "data")

    def publish() -> None:
        with use(Liar(told, stored)), pytest.raises(PublishFailed, match="reads back differently"):
            publish_once(tmp_path / FOLDER, {})
        reader = TaskReader(tmp_path / FOLDER)
        assert reader.trials["n"].tolist() == [0, 1, 2]
        assert reader.array("emg", trial=1).tolist() == np.full((2, 50), 1.0).tolist()
        publish_once(tmp_path / FOLDER, {})
        assert TaskReader(tmp_path / FOLDER).status == "complete"

    await anyio.to_thread.run_sync(publish)


async def test_the_manifest_comes_last(tmp_path: Path) -> None:
    """As long as one file is not in place, the manifest does not say that all are."""
    await cut_off(tmp_path / "data")

    def publish() -> None:
        for nth in range(1, 20):
            disk = FailingDisk("rename", nth)
            try:
                with use(disk):
                    publish_once(tmp_path / FOLDER, {"keep_journal": True})
            except OSError:
                described = manifest.read(tmp_path / FOLDER)
                assert described is not None
                assert described.status == "recording"
                continue
            assert nth > 3  # trials.csv, timing.csv, emg.hdf5, manifest.json
            return
        pytest.fail("publication never succeeded")

    await anyio.to_thread.run_sync(publish)


async def test_a_refusal_in_the_recorders_own_thread_is_told_as_ours(tmp_path: Path) -> None:
    """Where no child can be started, closing raises PublishFailed for whatever the disk says."""
    disk = FailingDisk()
    with use(disk):
        async with Storage(tmp_path / "data") as storage:
            storage._recorder.publisher.can_start = False
            storage.subject_id = "p0"
            task = await storage.create_task("reach")
            await task.write({"n": 0})
            await task.flush()
            disk.fail("rename", only="*trials*", code=errno.ENOSPC)
            with pytest.raises(PublishFailed, match="journal is whole"):
                await task.aclose()

    def look() -> None:
        assert reader_of(tmp_path / "data").trials["n"].tolist() == [0]
        publish_once(tmp_path / FOLDER, {})

    await anyio.to_thread.run_sync(look)


@pytest.mark.slow
@pytest.mark.leaves_files
async def test_deaths_with_publications_in_between_are_forgiven(tmp_path: Path) -> None:
    """A publisher that dies now and then in a long session is started again each time."""
    async with Storage(tmp_path / "data") as storage:
        storage.subject_id = "p0"
        async with storage.create_task("reach") as task:
            for number in range(MAX_DEATHS + 1):
                await task.append("emg", np.full((2, 50), float(number)))
                await task.write({"n": number})
                pid = storage._recorder.publisher.pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                await task.publish()
            assert storage._recorder.publisher.deaths == 0

    def look() -> None:
        with h5py.File(tmp_path / FOLDER / "emg.hdf5") as file:
            assert len([name for name in file if name != "timing"]) == MAX_DEATHS + 1
        assert json.loads((tmp_path / FOLDER / "manifest.json").read_text())["status"] == "complete"

    await anyio.to_thread.run_sync(look)


@pytest.mark.slow
@pytest.mark.leaves_files
async def test_a_task_that_kills_publishers_keeps_no_other_from_being_published(
    tmp_path: Path,
) -> None:
    """PublishFailed for the one, whose journal is whole; the next of the same Storage is fine."""
    async with Storage(tmp_path / "data") as storage:
        storage.subject_id = "p0"
        publisher = storage._recorder.publisher
        sick = await storage.create_task("reach")
        await sick.write({"n": 1})

        async def kill_each() -> None:
            while True:  # a child needs a hundred times as long to start
                if (pid := publisher.pid) is not None:
                    with contextlib.suppress(ProcessLookupError):  # reaped just now
                        os.kill(pid, signal.SIGKILL)
                await anyio.sleep(0.001)

        async with anyio.create_task_group() as tasks:
            assert publisher.pid is not None
            os.kill(publisher.pid, signal.SIGSTOP)  # this one has started
            tasks.start_soon(kill_each)
            with pytest.raises(PublishFailed, match="died 3 times on task 'reach'"):
                await sick.aclose()
            tasks.cancel_scope.cancel()
        async with storage.create_task("rest") as task:
            await task.write({"n": 2})

    def look() -> None:
        assert (tmp_path / "data/p0/rest/trials.csv").read_text() == "n\n2\n"
        assert not (tmp_path / "data/p0/rest/journal").exists()
        assert reader_of(tmp_path / "data").trials["n"].tolist() == [1]

    await anyio.to_thread.run_sync(look)


# --- recording ------------------------------------------------------------------------------------


async def test_arrays_of_foreign_trials_are_copied(tmp_path: Path) -> None:
    """A trial of another library, whose arrays are the caller's own, is taken as it was."""
    buffer = np.full((2, 8), 1.0)
    async with open_task(tmp_path / "data") as task:
        task.write_nowait(SimpleNamespace(attrs={"n": 0}, arrays={"own": buffer}))
        buffer[:] = -1
        task.write_nowait(SimpleNamespace(attrs={"n": 1}, arrays={"own": buffer}))

    def look() -> None:
        reader = reader_of(tmp_path / "data")
        assert [set(array.ravel()) for array in reader.iterarray("own") if array is not None] == [
            {1.0},
            {-1.0},
        ]

    await anyio.to_thread.run_sync(look)


class Gate(Disk):
    """A disk whose syncs wait while it is shut."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.waiting = threading.Event()

    def sync(self, fd: int) -> None:
        """Sync when the gate is open."""
        if not self.open.is_set():
            self.waiting.set()
        assert self.open.wait(60)
        super().sync(fd)


async def test_what_is_not_durable_counts(tmp_path: Path) -> None:
    """While the disk does not answer, what it was given is in memory, and within the bound."""
    disk = Gate()
    with use(disk):
        async with Storage(tmp_path / "data", queue_bytes=200_000) as storage:
            storage.subject_id = "p0"
            async with storage.create_task("reach") as task:
                disk.open.clear()
                try:
                    await task.append("emg", np.zeros((1, 20_000)))
                    assert await anyio.to_thread.run_sync(disk.waiting.wait, 10.0)
                    assert storage.statistics().queue_bytes > 160_000
                    with pytest.raises(QueueFull):
                        task.append_nowait("emg", np.zeros((1, 20_000)))
                finally:
                    disk.open.set()


async def test_readers_are_not_shown_what_is_not_durable(tmp_path: Path) -> None:
    """While a sync has not returned, its trials are in the file and in no reader's hands."""
    disk = Gate()
    with use(disk):
        async with open_task(tmp_path / "data") as task:
            await task.write({"n": 0})
            await task.flush()
            disk.open.clear()
            try:
                await task.write({"n": 1, "mark": "marked"})
                assert await anyio.to_thread.run_sync(disk.waiting.wait, 10.0)

                def look() -> list[int]:
                    segment = tmp_path / FOLDER / "journal" / layout.segment_name(1)
                    assert b"marked" in segment.read_bytes()
                    numbers: list[int] = reader_of(tmp_path / "data").trials["n"].tolist()
                    return numbers

                assert await anyio.to_thread.run_sync(look) == [0]
            finally:
                disk.open.set()
            await task.flush()
            readers = lambda: reader_of(tmp_path / "data").trials["n"].tolist()  # noqa: E731
            assert await anyio.to_thread.run_sync(readers) == [0, 1]


class Attentive(FailingDisk):
    """Remembers which descriptors were synced, also after a sync of them had failed."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: set[tuple[int, int]] = set()
        self.held: list[int] = []
        self.trusted_again = 0

    def sync(self, fd: int) -> None:
        """Sync, and remember."""
        identity = self.identity(fd)
        self.trusted_again += identity in self.failed
        try:
            super().sync(fd)
        except OSError:
            self.failed.add(identity)
            self.held.append(os.dup(fd))  # or a new file may get the number of one that is gone
            raise

    def write(self, fd: int, pieces: Sequence[Buffer]) -> None:
        """Write, and see that it is not behind a failed sync."""
        self.trusted_again += self.identity(fd) in self.failed
        super().write(fd, pieces)


async def test_a_failed_sync_is_never_asked_again(tmp_path: Path) -> None:
    """After an error of a sync its file is neither synced nor written to: Linux would say well."""
    disk = Attentive()
    with use(disk):
        async with Storage(tmp_path / "data") as storage:
            storage.subject_id = "p0"
            async with storage.create_task("reach") as task:
                for number in range(6):
                    if number == 2:
                        disk.fail("sync", times=3)
                    receipt: Any = await task.write({"n": number})
                    await receipt.durable()
    for fd in disk.held:
        os.close(fd)
    assert len(disk.failed) == 3
    assert disk.trusted_again == 0
