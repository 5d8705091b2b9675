"""The publisher while recording goes on: what a person sees in the folder, and never sees."""

from __future__ import annotations

import json
import os
from pathlib import Path

import anyio
import anyio.to_thread
import h5py
import numpy as np
import pandas as pd
import pytest

from tests.conftest import wait_until
from tests.helpers import open_task, reader_of
from trialstore import PublishFailed, Storage
from trialstore._ondisk import layout
from trialstore._ondisk.lock import acquire

pytestmark = pytest.mark.anyio


async def test_the_table_is_refreshed_while_recording(tmp_path: Path) -> None:
    """`trials.csv` follows by itself, by rename: whoever opens it sees whole rows in order."""
    table = tmp_path / "data/p0/reach/trials.csv"
    async with open_task(tmp_path / "data") as task:
        for number in range(3):
            await task.write({"n": number, "text": "a,b"})

        def shows(count: int) -> bool:
            return table.exists() and len(pd.read_csv(table)) == count

        assert await anyio.to_thread.run_sync(wait_until, lambda: shows(3))
        inode = table.stat().st_ino
        await task.write({"n": 3, "late": True})
        assert await anyio.to_thread.run_sync(wait_until, lambda: shows(4))
        assert table.stat().st_ino != inode
        assert list(pd.read_csv(table).columns) == ["n", "text", "late"]


async def test_no_half_file_is_ever_seen(tmp_path: Path) -> None:
    """However often it is looked at, the folder shows no half row and no unreadable HDF5."""
    folder = tmp_path / "data/p0/reach"
    seen = []

    def poll() -> None:
        if (folder / "trials.csv").exists():
            text = (folder / "trials.csv").read_text()
            assert text.endswith("\n")
            seen.append(len(text))
        if (folder / "emg.hdf5").exists():
            with h5py.File(folder / "emg.hdf5", "r", locking=False) as file:
                for name in file:
                    if name != "timing":
                        assert file[name][:].tolist() == np.full((2, 50), int(name)).tolist()

    async with open_task(tmp_path / "data") as task:
        for number in range(40):
            await task.append("emg", np.full((2, 50), number))
            await task.write({"n": number})
            if number % 10 == 9:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(task.publish)
                    for _ in range(20):
                        await anyio.to_thread.run_sync(poll)
    await anyio.to_thread.run_sync(poll)
    assert seen == sorted(seen)
    assert seen


async def test_the_manifest_says_what_a_reader_asks_years_later(tmp_path: Path) -> None:
    """Start, end, host, versions, columns, arrays, statistics and sessions are in manifest.json."""
    async with open_task(tmp_path / "data", metadata={"rig": "A", "n": [1, 2]}) as task:
        await task.append("emg", np.zeros((2, 50)))
        await task.write({"n": 1})
    manifest = json.loads((tmp_path / "data/p0/reach/manifest.json").read_text())
    assert manifest["format"] == "trialstore"
    assert (manifest["status"], manifest["trials"]) == ("complete", 1)
    assert (manifest["subject"], manifest["task"]) == ("p0", "reach")
    assert manifest["metadata"] == {"rig": "A", "n": [1, 2]}
    assert manifest["start"]["unix_ns"] < manifest["end"]["unix_ns"]
    assert manifest["start"]["monotonic_ns"] < manifest["end"]["monotonic_ns"]
    assert {"host", "platform", "python", "packages", "git_commit"} <= manifest[
        "environment"
    ].keys()
    assert manifest["columns"] == [["n", [["int", 1]]]]
    assert manifest["statistics"]["trials"]["durable"] == 1
    assert len(manifest["sessions"]) == 1
    assert manifest["traceback"] is None


async def test_a_request_that_cannot_be_met_is_answered(tmp_path: Path) -> None:
    """Where the publisher cannot write, `publish` and closing say why; the journal is whole."""
    folder = tmp_path / "data/p0/reach"
    async with Storage(tmp_path / "data", close_timeout=20) as storage:
        storage.subject_id = "p0"
        task = await storage.create_task("reach")
        await task.append("emg", np.zeros((2, 50)))
        await task.write({"n": 1})
        # A folder stands where the file must go: as good as a full disk, and root cannot pass it.
        (folder / "emg.hdf5").mkdir()
        (folder / "emg.hdf5" / "x").touch()
        with pytest.raises(PublishFailed, match="journal is whole"):
            await task.publish()
        await task.write({"n": 2})
        with pytest.raises(PublishFailed, match="journal is whole"):
            await task.aclose()

        def look() -> None:
            reader = reader_of(tmp_path / "data")
            assert (reader.status, reader.trials["n"].tolist()) == ("complete", [1, 2])
            assert reader.array("emg", trial=0).shape == (2, 50)
            (folder / "emg.hdf5" / "x").unlink()
            (folder / "emg.hdf5").rmdir()

        await anyio.to_thread.run_sync(look)
        async with storage.resume_task("reach") as task:
            await task.write({"n": 3})

    def whole() -> None:
        assert reader_of(tmp_path / "data").trials["n"].tolist() == [1, 2, 3]
        assert not (folder / "journal").exists()

    await anyio.to_thread.run_sync(whole)


async def test_a_task_without_trials(tmp_path: Path) -> None:
    """Opened and closed: complete, empty, and readable."""
    async with open_task(tmp_path / "data"):
        pass

    def look() -> None:
        reader = reader_of(tmp_path / "data")
        assert (reader.status, len(reader.trials), reader.array_names) == ("complete", 0, [])

    await anyio.to_thread.run_sync(look)


async def test_a_fast_recorder_is_left_alone_and_caught_up_with(tmp_path: Path) -> None:
    """Building waits while the journal grows fast, and is done soon after it does not any more."""
    from trialstore._publishing.service import LOAD_LIMIT, Service

    async with open_task(tmp_path / "data") as task:
        await task.write({"n": 1})
        await task.flush()

        def decide() -> tuple[bool, bool, bool]:
            reading, writing = os.pipe()
            with os.fdopen(reading, "rb") as pipe:
                os.close(writing)
                service = Service(pipe)
                folder = tmp_path / "data/p0/reach"
                first = service._growth_of(folder, 10**6)
                loaded = service._growth_of(folder, 10**8)
                return (
                    first > LOAD_LIMIT,
                    loaded > LOAD_LIMIT,
                    service._growth_of(folder, 10**8) > LOAD_LIMIT,
                )

        assert await anyio.to_thread.run_sync(decide) == (False, True, False)


async def test_hidden_files_of_a_dead_publisher_are_cleared(tmp_path: Path) -> None:
    """What a killed publisher was building is taken away by the next, links not followed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    folder = tmp_path / "data/p0/reach"
    async with Storage(tmp_path / "data") as storage:
        storage.subject_id = "p0"
        async with storage.create_task("reach") as task:
            await task.write({"n": 1})
        (folder / layout.building_name("emg.hdf5", "dead")).write_text("half")
        doomed = folder / layout.building_name("journal", "dead")
        doomed.mkdir()
        (doomed / "000001.segment").write_text("old")
        (doomed / "link").symlink_to(outside)
        async with storage.resume_task("reach") as task:
            await task.write({"n": 2})
    assert (outside / "precious").read_text() == "x"


async def test_a_new_recording_in_the_place_of_a_failed_one_is_published(tmp_path: Path) -> None:
    """Also by a child that was about to try the one before again: it begins anew."""
    from trialstore._publishing.service import Service

    folder = tmp_path / "data/p0/reach"
    session = ""

    def publish() -> None:
        with Path(os.devnull).open("rb") as pipe:
            service = Service(pipe)
        try:
            before = {"do": "follow", "task": str(folder), "session": "00" * 16}
            service._obey(before)
            service._obey({**before, "session": session})
            service._obey({**before, "do": "close", "request": 1, "session": session})
            assert not (folder / "journal").exists()
        finally:
            for task in list(service._tasks):
                service._forget(task)

    async with Storage(tmp_path / "data", keep_journal=True) as storage:
        storage.subject_id = "p0"
        async with storage.create_task("reach") as task:
            await task.write({"n": 0})
            session = task._channel.journal.session
    # As its recorder left it, and no child has seen it.
    (folder / "manifest.json").unlink()
    await anyio.to_thread.run_sync(publish)
    reader = reader_of(tmp_path / "data")
    assert reader.trials["n"].tolist() == [0]


async def test_a_task_that_is_just_being_published_is_overwritten_after_that(
    tmp_path: Path,
) -> None:
    """A publisher has the task for moments, also one that tries again: it is waited for."""
    folder = tmp_path / "data/p0/reach"
    async with Storage(tmp_path / "data", keep_journal=True, allow_overwrite=True) as storage:
        storage.subject_id = "p0"
        async with storage.create_task("reach") as task:
            await task.write({"n": 0})
        path = folder / layout.JOURNAL / layout.LOCK
        lock = await anyio.to_thread.run_sync(acquire, path, "publisher")
        worker = storage._recorder._worker

        async def overwrite() -> None:
            async with storage.create_task("reach") as task:
                await task.write({"n": 1})

        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(overwrite)
                assert await anyio.to_thread.run_sync(wait_until, lambda: worker.busy_for > 0.1)
                await anyio.to_thread.run_sync(lock.release)
        finally:
            await anyio.to_thread.run_sync(lock.release)
    reader = await anyio.to_thread.run_sync(reader_of, tmp_path / "data")
    assert reader.trials["n"].tolist() == [1]


async def test_a_late_publisher_does_not_touch_a_newer_journal(tmp_path: Path) -> None:
    """A publisher that slept through publication and resuming gives up: it knows too little."""
    from trialstore._publishing.task import TaskPublisher

    folder = tmp_path / "data/p0/reach"
    async with Storage(tmp_path / "data") as storage:
        storage.subject_id = "p0"
        task = await storage.create_task("reach")
        await task.write({"n": 0})
        await task.flush()

        def follow() -> TaskPublisher:
            late = TaskPublisher(folder)
            late.follow()
            return late

        late = await anyio.to_thread.run_sync(follow)
        await task.aclose()
        task = await storage.resume_task("reach")
        await task.write({"n": 1})
        await task.flush()
        await anyio.to_thread.run_sync(task._channel.lock.release)

        def finish() -> None:
            with pytest.raises(FileNotFoundError):
                late.finish()
            late.close()
            assert reader_of(tmp_path / "data").trials["n"].tolist() == [0, 1]

        await anyio.to_thread.run_sync(finish)
        await task.write({"n": 2})
        await task.aclose()

        def look() -> None:
            assert reader_of(tmp_path / "data").trials["n"].tolist() == [0, 1, 2]

        await anyio.to_thread.run_sync(look)


async def test_a_late_publisher_does_not_publish_into_a_journal_that_was_just_made(
    tmp_path: Path,
) -> None:
    """It slept through publication, and whoever resumed was killed before its first segment."""
    from trialstore._publishing.task import TaskPublisher

    folder = tmp_path / "data/p0/reach"

    def follow() -> TaskPublisher:
        late = TaskPublisher(folder)
        late.follow()
        return late

    def finish() -> None:
        (folder / "journal").mkdir()
        before = {path: path.stat().st_ino for path in folder.iterdir()}
        with pytest.raises(FileNotFoundError, match="replaced"):
            late.finish()
        late.close()
        assert {path: path.stat().st_ino for path in folder.iterdir()} == before

    async with open_task(tmp_path / "data") as task:
        await task.write({"n": 0})
        await task.flush()
        late = await anyio.to_thread.run_sync(follow)
    await anyio.to_thread.run_sync(finish)


async def test_a_journal_that_was_just_made_publishes_nothing(tmp_path: Path) -> None:
    """A recorder was killed while it resumed: what was published before stays as it is."""
    from trialstore._publishing.service import publish_once

    folder = tmp_path / "data/p0/reach"
    async with open_task(tmp_path / "data") as task:
        await task.append("emg", np.ones((2, 5)))
        await task.write({"n": 1})

    def resume_a_little_and_publish() -> None:
        (folder / layout.JOURNAL).mkdir()
        (folder / layout.building_name(layout.MANIFEST, "4711")).write_text("half")
        publish_once(folder, {})
        assert not [path for path in folder.iterdir() if layout.is_building(path.name)]
        reader = reader_of(tmp_path / "data")
        assert (reader.status, reader.trials["n"].tolist()) == ("complete", [1])
        assert reader.array("emg", trial=0).tolist() == np.ones((2, 5)).tolist()
        assert not (folder / layout.JOURNAL).exists()

    await anyio.to_thread.run_sync(resume_a_little_and_publish)
