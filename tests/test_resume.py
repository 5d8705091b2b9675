"""Going on with a task: after a close, a kill, on another day; and what stays as it was."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio.to_thread
import h5py
import numpy as np
import pandas as pd
import pytest

from tests.conftest import wait_until
from tests.helpers import open_task, reader_of
from trialstore import ArrayInfo, DamagedData, FormatError, InvalidTrial, Storage, TaskLocked
from trialstore._ondisk.disk import Disk, use

pytestmark = pytest.mark.anyio


async def record(root: Path, first: int, count: int, *, resume: bool, **options: object) -> None:
    """Record `count` trials whose samples tell their number."""
    async with Storage(root, **options) as storage:  # type: ignore[arg-type]
        storage.subject_id = "p0"
        info = {"emg": ArrayInfo(rate=100.0, unit="mV")}
        opening = (
            storage.resume_task("reach") if resume else storage.create_task("reach", arrays=info)
        )
        async with opening as task:
            for number in range(first, first + count):
                await task.append("emg", np.full((2, 4), number))
                receipt = await task.write({"n": number})
                assert receipt.index == number


def check(root: Path, count: int, status: str = "complete") -> None:
    """Compare everything with what `record` wrote, with our reader and without."""
    reader = reader_of(root)
    assert reader.status == status
    assert reader.trials["n"].tolist() == list(range(count))
    assert reader.losses == ()
    assert reader.timing.index.tolist() == list(range(count))
    for number, array in enumerate(reader.iterarray("emg")):
        assert array is not None
        assert array.tolist() == np.full((2, 4), number).tolist()
    assert reader.info("emg").rate == 100.0
    if status == "complete":
        folder = root / "p0/reach"
        assert pd.read_csv(folder / "trials.csv")["n"].tolist() == list(range(count))
        with h5py.File(folder / "emg.hdf5") as file:
            assert sorted(int(name) for name in file if name != "timing") == list(range(count))
            assert file.attrs["unit"] == "mV"


async def test_resume_after_a_clean_close(tmp_path: Path) -> None:
    """Numbers continue; readers see old and new trials, while recording and after, each time."""
    root = tmp_path / "data"
    await record(root, 0, 5, resume=False)
    for session in range(1, 4):
        await record(root, 5 * session, 5, resume=True)
        await anyio.to_thread.run_sync(check, root, 5 * session + 5)
    async with Storage(root) as storage:
        storage.subject_id = "p0"
        async with storage.resume_task("reach") as task:
            await anyio.to_thread.run_sync(check, root, 20, "recording")
            await task.append("emg", np.full((2, 4), 20))
            receipt = await task.write({"n": 20})
            await receipt.durable()
            await anyio.to_thread.run_sync(check, root, 21, "recording")
            await task.publish()
            await anyio.to_thread.run_sync(check, root, 21, "recording")
    await anyio.to_thread.run_sync(check, root, 21)


async def test_resume_with_new_columns_and_arrays(tmp_path: Path) -> None:
    """What appears later is missing before; what is there already keeps its place and type."""
    root = tmp_path / "data"
    async with open_task(root) as task:
        await task.append("emg", np.zeros((2, 4)))
        await task.write({"n": 1, "code": "007"})
    async with Storage(root) as storage:
        storage.subject_id = "p0"
        async with storage.resume_task("reach") as task:
            await task.append("eeg", np.ones(3))
            await task.write({"hit": True, "code": ""})

            def look() -> None:
                frame = reader_of(root).trials
                assert list(frame.columns) == ["n", "code", "hit"]
                assert frame["code"].tolist() == ["007", ""]

            await task.flush()
            await anyio.to_thread.run_sync(look)
    await anyio.to_thread.run_sync(look)

    def arrays() -> None:
        reader = reader_of(root)
        assert [a is None for a in reader.iterarray("emg")] == [False, True]
        assert [a is None for a in reader.iterarray("eeg")] == [True, False]

    await anyio.to_thread.run_sync(arrays)


async def test_nothing_recorded_before_is_changed_in_place(tmp_path: Path) -> None:
    """Files of the first session keep their bytes until the next publication renames over them."""
    root = tmp_path / "data"
    await record(root, 0, 5, resume=False)

    def digests() -> dict[str, str]:
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (root / "p0/reach").iterdir()
            if path.suffix in {".hdf5", ".pkl"}
        }

    before = await anyio.to_thread.run_sync(digests)
    inode = (root / "p0/reach/emg.hdf5").stat().st_ino
    async with Storage(root) as storage:
        storage.subject_id = "p0"
        async with storage.resume_task("reach") as task:
            await task.append("emg", np.full((2, 4), 5))
            await task.write({"n": 5})
            await task.flush()
            assert await anyio.to_thread.run_sync(digests) == before
    assert (root / "p0/reach/emg.hdf5").stat().st_ino != inode


RECORDER = """
import sys, anyio, numpy as np
from trialstore import ArrayInfo, Storage

async def main():
    root, first = sys.argv[1], int(sys.argv[2])
    async with Storage(root) as storage:
        storage.subject_id = "p0"
        info = {"emg": ArrayInfo(rate=100.0, unit="mV")}
        if first:
            opening = storage.resume_task("reach")
        else:
            opening = storage.create_task("reach", arrays=info)
        async with opening as task:
            for number in range(first, 1_000_000):
                await task.append("emg", np.full((2, 4), number))
                receipt = await task.write({"n": number})
                await receipt.durable()
                print(number, flush=True)

anyio.run(main)
"""


def killed(root: Path, first: int, lines: int) -> None:
    """Record in another process and kill it, and its publisher, after some trials."""
    with subprocess.Popen(
        [sys.executable, "-c", RECORDER, str(root), str(first)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for _ in range(lines):
            assert process.stdout.readline()
        publishers = [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and _parent(entry) == process.pid
        ]
        for pid in publishers:
            os.kill(pid, signal.SIGKILL)
        process.kill()


def _parent(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@pytest.mark.leaves_files
async def test_resume_after_kills_without_a_publisher(tmp_path: Path) -> None:
    """However often recorder and publisher die, each session goes on at the last durable trial."""
    root = tmp_path / "data"
    count = 0
    for _ in range(3):
        await anyio.to_thread.run_sync(killed, root, count, 5)

        def look() -> int:
            reader = reader_of(root)
            assert reader.status == "interrupted"
            return len(reader.trials)

        found = await anyio.to_thread.run_sync(look)
        assert found >= count + 5
        await anyio.to_thread.run_sync(check, root, found, "interrupted")
        count = found
    await record(root, count, 3, resume=True)
    await anyio.to_thread.run_sync(check, root, count + 3)


async def test_resume_while_the_dead_recorders_publisher_works(tmp_path: Path) -> None:
    """A task killed a moment ago can be resumed at once; its publisher gives way."""
    root = tmp_path / "data"

    def kill_recorder_only() -> None:
        with subprocess.Popen(
            [sys.executable, "-c", RECORDER, str(root), "0"],
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline()
            process.kill()

    await anyio.to_thread.run_sync(kill_recorder_only)

    async with Storage(root) as storage:
        storage.subject_id = "p0"
        async with storage.resume_task("reach") as task:
            receipt = await task.write({"n": "resumed"})
            assert receipt.index is not None
            assert receipt.index >= 1

    def look() -> bool:
        reader = reader_of(root)
        return reader.status == "complete" and reader.trials["n"].tolist()[-1] == "resumed"

    assert await anyio.to_thread.run_sync(look)
    hidden = lambda: not list(root.rglob(".*"))  # noqa: E731
    assert await anyio.to_thread.run_sync(wait_until, hidden)


async def test_uncommitted_chunks_are_kept_aside(tmp_path: Path) -> None:
    """Uncommitted chunks lie in `interrupted/`, and are no part of the resumed trial."""
    root = tmp_path / "data"
    async with open_task(root) as task:
        await task.append("emg", np.zeros((2, 4)))
        await task.write({"n": 0})
        await task.append("emg", np.full((2, 9), 7))
    async with Storage(root) as storage:
        storage.subject_id = "p0"
        async with storage.resume_task("reach") as task:
            await task.append("emg", np.ones((2, 4)))
            await task.write({"n": 1})
            await task.append("emg", np.full((2, 3), 8))

    def look() -> None:
        assert reader_of(root).array("emg").tolist() == [[0.0] * 4] * 2 + [[1.0] * 4] * 2
        with h5py.File(root / "p0/reach/interrupted/emg.hdf5") as file:
            loose = {name[0]: file[name][:].tolist() for name in file if name != "timing"}
            assert loose == {"1": [[7.0] * 9] * 2, "2": [[8.0] * 3] * 2}

    await anyio.to_thread.run_sync(look)


async def test_a_journal_that_is_kept_stays(tmp_path: Path) -> None:
    """`keep_journal=True` leaves it in place; resuming moves it to the trash, not away."""
    root = tmp_path / "data"
    await record(root, 0, 3, resume=False, keep_journal=True)
    assert list((root / "p0/reach/journal").glob("*.segment"))
    await anyio.to_thread.run_sync(check, root, 3)
    await record(root, 3, 3, resume=True)
    await anyio.to_thread.run_sync(check, root, 6)
    assert list((tmp_path / "data.trash").rglob("*.segment"))


async def test_what_cannot_be_resumed(tmp_path: Path) -> None:
    """Foreign tasks, damaged manifests and tasks in use are told apart, and left as they are."""
    root = tmp_path / "data"
    await record(root, 0, 3, resume=False)
    foreign = root / "p0/foreign"
    foreign.mkdir()
    (foreign / "trials.csv").write_text("n\n1\n")
    manifest = root / "p0/reach/manifest.json"
    whole = manifest.read_bytes()
    async with Storage(root) as storage:
        storage.subject_id = "p0"
        with pytest.raises(FormatError, match="foreign"):
            await storage.resume_task("foreign")
        assert not list(foreign.glob("journal/*.segment"))
        manifest.write_bytes(whole.replace(b'"trials": 3', b'"trials": 4'))
        with pytest.raises(DamagedData, match="manifest"):
            await storage.resume_task("reach")
        manifest.write_bytes(whole[:100])
        with pytest.raises(FormatError, match="manifest"):
            await storage.resume_task("reach")
        manifest.write_bytes(whole)
        async with storage.resume_task("reach"), Storage(root) as other:
            other.subject_id = "p0"
            with pytest.raises(TaskLocked):
                await other.resume_task("reach")
    await anyio.to_thread.run_sync(check, root, 3)


class FailingDisk(Disk):
    """Refuses to sync after `failing` is set."""

    failing = False

    def sync(self, fd: int) -> None:
        """Sync or fail."""
        if self.failing:
            raise OSError(5, "Input/output error")
        super().sync(fd)


async def test_a_task_that_cannot_be_created_leaves_nothing(tmp_path: Path) -> None:
    """A disk that fails while a task is created gives one error of ours and no folder."""
    from trialstore import StorageError

    root = tmp_path / "data"
    disk = FailingDisk()
    with use(disk):
        async with Storage(root) as storage:
            storage.subject_id = "p0"
            disk.failing = True
            with pytest.raises(StorageError, match="reach"):
                await storage.create_task("reach")
            assert list((root / "p0").iterdir()) == []
            disk.failing = False
            async with storage.create_task("reach") as task:
                await task.write({"n": 1})


async def test_declarations_are_kept_over_sessions(tmp_path: Path) -> None:
    """A resumed task holds arrays to what was declared in the first session."""
    root = tmp_path / "data"
    info = {"emg": ArrayInfo(channels=["a", "b"], dims=("channel", "time"))}
    async with open_task(root, arrays=info) as task:
        await task.append("emg", np.zeros((2, 4)))
        await task.write({})
    async with Storage(root) as storage:
        storage.subject_id = "p0"
        async with storage.resume_task("reach") as task:
            with pytest.raises(InvalidTrial, match="emg"):
                await task.append("emg", np.zeros((3, 4)))
            await task.append("emg", np.zeros((2, 4)))
            await task.write({})
