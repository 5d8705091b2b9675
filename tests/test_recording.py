"""The road of a trial, on every event loop."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import numpy as np
import pytest

from tests.helpers import open_task, reader_of
from trialstore import (
    ArrayInfo,
    DamagedData,
    Design,
    InvalidName,
    InvalidTrial,
    Level,
    QueueFull,
    Storage,
    StorageError,
    TaskExists,
    TaskLocked,
    TaskNotFound,
)

if TYPE_CHECKING:
    from pathlib import Path

    from trialstore import TaskReader

pytestmark = pytest.mark.anyio


async def read(path: Path, task: str = "reach") -> TaskReader:
    """Return a reader, looked up in a thread as an async program would."""
    return await anyio.to_thread.run_sync(reader_of, path, task)


async def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """Every row and sample that was accepted is in the published files, equal."""
    rng = np.random.default_rng(1)
    chunks = [rng.standard_normal((4, 25)) for _ in range(40)]
    receipts = []
    async with open_task(tmp_path / "data") as task:
        for number in range(10):
            for chunk in chunks[4 * number : 4 * number + 4]:
                await task.append("emg", chunk)
            receipts.append(await task.write({"target": number, "code": "007"}))
        await receipts[-1].durable()
    assert [receipt.index for receipt in receipts] == list(range(10))
    reader = await read(tmp_path / "data")
    assert reader.status == "complete"
    assert reader.trials["target"].tolist() == list(range(10))
    assert reader.trials["code"].tolist() == ["007"] * 10
    for number, array in enumerate(reader.iterarray("emg")):
        np.testing.assert_array_equal(array, np.hstack(chunks[4 * number : 4 * number + 4]))
    assert reader.losses == ()
    assert {path.name for path in (tmp_path / "data/p0/reach").iterdir()} == {
        *("trials.csv", "timing.csv", "emg.hdf5", "manifest.json")
    }


async def test_plain_await_works_as_well_as_async_with(tmp_path: Path) -> None:
    """`await create_task(...)` gives the same writer, closed with `aclose`, twice without harm."""
    async with Storage(tmp_path / "data") as storage:
        storage.subject_id = "p0"
        task = await storage.create_task("reach")
        await task.trials.write({"target": 1})
        await task.trials.write({"hit": True})
        assert task.trials.data == {"target": [1, None], "hit": [None, True]}
        await task.aclose()
        await task.aclose()
        assert (await read(tmp_path / "data")).status == "complete"


async def test_a_trial_of_the_design_is_taken_whole_and_cleared(tmp_path: Path) -> None:
    """`write(trial)` takes attributes and arrays, and clears the arrays, as AxoPy does."""
    design = Design()
    block = design.add_block()
    async with open_task(tmp_path / "data") as task:
        for number in range(3):
            trial = block.add_trial(attrs={"target": number})
            trial.add_array("pos")
            for _ in range(5):
                trial.arrays["pos"].stack(np.full((2, 4), number))
            await task.write(trial)
            assert trial.arrays["pos"].data is None
    reader = await read(tmp_path / "data")
    assert list(reader.trials.columns) == ["target", "block", "trial"]
    assert reader.array("pos", trial=2).tolist() == np.full((2, 20), 2).tolist()
    assert reader.array("pos").shape == (6, 20)


async def test_the_caller_may_reuse_its_buffers_at_once(tmp_path: Path) -> None:
    """What was accepted does not change when the caller's buffer does."""
    buffer = np.zeros((2, 8))
    async with open_task(tmp_path / "data") as task:
        for number in range(50):
            buffer[:] = number
            await task.append("emg", buffer)
        buffer[:] = -1
        await task.write({"n": 1})
        trial = Design().add_block().add_trial()
        array = trial.add_array("own", data=buffer)
        await task.write(trial)
        buffer[:] = -2
        assert array.data is None
    reader = await read(tmp_path / "data")
    expected = np.repeat(np.arange(50.0), 8)
    assert reader.array("emg", trial=0)[1].tolist() == expected.tolist()
    assert set(reader.array("own", trial=1).ravel()) == {-1.0}


async def test_levels_rise_in_order_and_publish_reaches_the_last(tmp_path: Path) -> None:
    """accepted, written, durable, published: a receipt tells the truth at each."""
    async with open_task(tmp_path / "data") as task:
        receipt = await task.write({"n": 1})
        assert receipt.level is not None
        assert receipt.level >= Level.ACCEPTED
        await receipt.written()
        assert receipt.level >= Level.WRITTEN
        await receipt.durable()
        durable = receipt.level
        await task.publish()
        assert (durable, receipt.level) == (Level.DURABLE, Level.PUBLISHED)
        second = await task.write({"n": 2})
        await task.flush()
        flushed = second.level
        statistics = task.statistics()
        assert statistics.trials == (2, 2, 2, 1)
    assert (flushed, second.level) == (Level.DURABLE, Level.PUBLISHED)
    assert Level.ACCEPTED < Level.WRITTEN < Level.DURABLE < Level.PUBLISHED


async def test_publish_between_blocks_is_for_foreign_tools(tmp_path: Path) -> None:
    """After `publish`, pandas and h5py alone read everything durable; recording goes on."""
    import h5py
    import pandas as pd

    async with open_task(tmp_path / "data") as task:
        for block in range(3):
            await task.append("emg", np.full((2, 3), block))
            await task.write({"block": block})
            await task.publish()

            def look(block: int = block) -> None:
                folder = tmp_path / "data/p0/reach"
                frame = pd.read_csv(folder / "trials.csv")
                assert frame["block"].tolist() == list(range(block + 1))
                with h5py.File(folder / "emg.hdf5", "r", locking=False) as file:
                    assert file[str(block)][:].tolist() == np.full((2, 3), block).tolist()

            await anyio.to_thread.run_sync(look)
    assert (await read(tmp_path / "data")).status == "complete"


async def test_arrays_are_described_in_files_and_reader(tmp_path: Path) -> None:
    """Rate, unit, channels and dims stand in the HDF5 file and in `info`."""
    import h5py

    info = ArrayInfo(rate=2000.0, unit="mV", channels=["FCR", "ECR"], dims=("channel", "time"))
    async with open_task(tmp_path / "data", arrays={"emg": info}, metadata={"rig": "A"}) as task:
        await task.append("emg", np.zeros((2, 5), "float32"))
        await task.write({"n": 1})
    reader = await read(tmp_path / "data")
    found = reader.info("emg")
    assert (found.rate, found.unit, found.channels) == (2000.0, "mV", ("FCR", "ECR"))
    assert (found.dims, found.shapes) == (("channel", "time"), {0: (2, 5)})
    assert found.dtype == np.float32
    assert reader.metadata == {"rig": "A"}
    with h5py.File(tmp_path / "data/p0/reach/emg.hdf5") as file:
        assert file.attrs["rate"] == 2000.0
        assert list(file.attrs["channels"]) == ["FCR", "ECR"]


async def test_chunk_arrival_times_are_kept(tmp_path: Path) -> None:
    """Each chunk's length and arrival stand in the file's `timing`, the first in timing.csv."""
    import h5py

    before = time.time_ns()
    async with open_task(tmp_path / "data") as task:
        for length in (3, 4, 5):
            await task.append("emg", np.zeros((2, length)))
        await task.write({"n": 1})
    after = time.time_ns()
    with h5py.File(tmp_path / "data/p0/reach/emg.hdf5") as file:
        times = file["timing/0"][:]
    assert times[:, 0].tolist() == [3, 4, 5]
    assert before <= times[0, 1] <= times[2, 1] <= after
    assert (np.diff(times[:, 2]) >= 0).all()
    timing = (await read(tmp_path / "data")).timing
    assert timing.loc[0, "first_unix_ns"] == times[0, 1]
    assert timing.loc[0, "unix_ns"] >= times[2, 1]


async def test_pickles_are_durable_at_return(tmp_path: Path) -> None:
    """`pickle` stores an object; the one it replaces goes to the trash."""
    async with open_task(tmp_path / "data") as task:
        await task.pickle({"gain": np.arange(3)}, "calibration")
        await task.pickle({"gain": np.arange(4)}, "calibration")
        with pytest.raises(InvalidTrial):
            await task.pickle(lambda: None, "function")
    loaded: Any = (await read(tmp_path / "data")).pickle("calibration")
    assert loaded["gain"].tolist() == [0, 1, 2, 3]
    assert len(list((tmp_path / "data.trash").rglob("*calibration*"))) == 1


async def test_several_tasks_and_subjects_at_once(tmp_path: Path) -> None:
    """Open tasks do not mix."""
    async with Storage(tmp_path / "data") as storage:
        storage.subject_id = "p0"
        first = await storage.create_task("a")
        storage.subject_id = "p1"
        second = await storage.create_task("a")
        for number in range(20):
            await first.write({"n": number})
            await second.append("x", np.arange(number))
            await second.write({"n": -number})
        await storage.flush()
        assert storage.statistics().trials.durable == 40
    reader = await anyio.to_thread.run_sync(reader_of, tmp_path / "data", "a", "p1")
    assert reader.trials["n"].tolist() == [-number for number in range(20)]
    assert [len(array) for array in reader.iterarray("x") if array is not None] == list(range(20))


async def test_an_existing_task_is_refused_repeated_or_replaced(tmp_path: Path) -> None:
    """`TaskExists` by default; `repeat=True` takes the next name; overwriting uses the trash."""
    root = tmp_path / "data"
    async with open_task(root) as task:
        await task.write({"n": 1})
    async with Storage(root) as storage:
        storage.subject_id = "p0"
        with pytest.raises(TaskExists, match="reach"):
            await storage.create_task("reach")
        for name in ("reach_run-02", "reach_run-03"):
            async with storage.create_task("reach", repeat=True) as task:
                assert task.task_id == name
    async with Storage(root, allow_overwrite=True) as storage:
        storage.subject_id = "p0"
        async with storage.create_task("reach") as task:
            await task.write({"n": 2})
    assert (await read(root)).trials["n"].tolist() == [2]
    (old,) = (tmp_path / "data.trash/p0").iterdir()
    assert (old / "trials.csv").read_text() == "n\n1\n"


@pytest.mark.parametrize(
    "left",
    [
        ("journal/",),
        ("journal/", "journal/lock"),
        ("journal/", "journal/lock", ".manifest.json.1.building"),
    ],
)
async def test_a_task_that_never_began_is_begun(tmp_path: Path, left: tuple[str, ...]) -> None:
    """A recorder killed while it made a task, before there was anything to keep, blocks no name."""
    folder = tmp_path / "data/p0/reach"
    folder.mkdir(parents=True)
    for name in left:
        (folder / name).mkdir() if name.endswith("/") else (folder / name).touch()
    async with open_task(tmp_path / "data") as task:
        assert task.task_id == "reach"
        await task.write({"n": 1})
    assert (await read(tmp_path / "data")).trials["n"].tolist() == [1]
    assert sorted(path.name for path in folder.iterdir()) == [
        *("manifest.json", "timing.csv", "trials.csv")
    ]


@pytest.mark.parametrize("left", ["notes.txt", "journal/x", "journal"])
async def test_a_folder_with_anything_in_it_is_a_task(tmp_path: Path, left: str) -> None:
    """Only what a killed recorder leaves is taken: a stranger's file stays where it is."""
    path = tmp_path / "data/p0/reach" / left
    path.parent.mkdir(parents=True)
    path.write_bytes(b"precious")
    async with Storage(tmp_path / "data") as storage:
        storage.subject_id = "p0"
        with pytest.raises(TaskExists):
            await storage.create_task("reach")
    assert path.read_bytes() == b"precious"
    assert [path.name for path in (tmp_path / "data/p0/reach").rglob("*") if path.is_file()] == [
        path.name
    ]


async def test_a_task_refused_for_want_of_descriptors_leaves_nothing(tmp_path: Path) -> None:
    """However few are left: the refusal is ours, and the name is free when there are more."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    refused = 0
    async with Storage(tmp_path / "data") as storage:
        storage.subject_id = "p0"
        for spare in range(1, 20):
            resource.setrlimit(resource.RLIMIT_NOFILE, (100, limits[1]))
            taken: list[int] = []
            try:
                with contextlib.suppress(OSError):
                    while True:
                        taken.append(os.open(os.devnull, os.O_RDONLY))
                for fd in taken[:spare]:
                    os.close(fd)
                task = await storage.create_task("reach")
            except StorageError:
                refused += 1
            else:
                break
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                for fd in taken[spare:]:
                    os.close(fd)
            assert storage.task_ids == []
        else:
            pytest.fail("however many descriptors there were, none of the calls went well")
        assert refused > 1
        await task.write({"n": 1})
        await task.aclose()
    assert (await read(tmp_path / "data")).trials["n"].tolist() == [1]


async def test_a_refused_resume_leaves_the_task_as_it_was(tmp_path: Path) -> None:
    """What was edited by hand is not resumed; nothing new stands in its folder."""
    async with open_task(tmp_path / "data") as task:
        await task.write({"n": 1})
    folder = tmp_path / "data/p0/reach"
    (folder / "trials.csv").write_text("n\n2\n")
    before = sorted(folder.iterdir())
    async with Storage(tmp_path / "data") as storage:
        storage.subject_id = "p0"
        with pytest.raises(DamagedData, match=r"trials\.csv"):
            await storage.resume_task("reach")
    assert sorted(folder.iterdir()) == before


async def test_two_recorders_on_one_task(tmp_path: Path) -> None:
    """The second is told host, process and since when; the first is not disturbed."""
    import os
    import platform

    async with open_task(tmp_path / "data") as task:
        async with Storage(tmp_path / "data", allow_overwrite=True) as other:
            other.subject_id = "p0"
            with pytest.raises(TaskLocked) as caught:
                await other.resume_task("reach")
            assert platform.node() in str(caught.value)
            assert str(os.getpid()) in str(caught.value)
            with pytest.raises(TaskLocked):
                await other.create_task("reach")
        await task.write({"n": 1})
    assert len((await read(tmp_path / "data")).trials) == 1


@pytest.mark.parametrize(
    ("attrs", "culprit"),
    [
        ({"ok": 1, "sock": object()}, "sock"),
        ({"path": range}, "path"),
        ({"bad": "\ud800"}, "bad"),
        ({1: 2}, "1"),
    ],
)
async def test_attributes_that_are_not_data_are_refused(
    tmp_path: Path, attrs: Any, culprit: str
) -> None:
    """One error at the call names the attribute; the trial is left as it was."""
    async with open_task(tmp_path / "data") as task:
        trial = Design().add_block().add_trial()
        trial.attrs = dict(attrs)
        trial.add_array("emg").stack(np.arange(3))
        with pytest.raises(InvalidTrial, match=culprit):
            await task.write(trial)
        assert trial.arrays["emg"].data is not None
        trial.attrs = {"fine": 1}
        receipt = await task.write(trial)
        assert receipt.index == 0
    assert (await read(tmp_path / "data")).array("emg", trial=0).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "chunk",
    [
        np.zeros((2, 3), "int16"),
        np.zeros((3, 3)),
        np.zeros((2, 3, 1)),
        np.zeros(3),
        np.array([[None]]),
        np.array([["text"]]),
        np.ma.masked_array(np.zeros((2, 3)), True),
        [[1, 2], [3]],
    ],
)
async def test_a_chunk_that_does_not_fit_is_refused(tmp_path: Path, chunk: Any) -> None:
    """Dtype, rank and shape are checked at the call; the trial goes on without the chunk."""
    async with open_task(tmp_path / "data") as task:
        await task.append("emg", np.zeros((2, 3)))
        with pytest.raises(InvalidTrial, match="emg"):
            await task.append("emg", chunk)
        with pytest.raises(InvalidTrial, match="emg"):
            task.append_nowait("emg", chunk)
        await task.append("emg", np.ones((2, 1)))
        await task.write({"n": 1})
    assert (await read(tmp_path / "data")).array("emg", trial=0).shape == (2, 4)


async def test_declared_arrays_are_held_to_their_declaration(tmp_path: Path) -> None:
    """A chunk with another number of channels, or of another dtype, is refused, streamed or not."""
    info = ArrayInfo(channels=["a", "b"], dims=("channel", "time"), dtype="float32")
    async with open_task(tmp_path / "data", arrays={"emg": info}) as task:
        for chunk in (np.zeros((3, 5), "float32"), np.zeros((2, 5)), np.zeros(5, "float32")):
            with pytest.raises(InvalidTrial, match="emg"):
                await task.append("emg", chunk)
            trial = Design().add_block().add_trial()
            trial.add_array("emg", data=chunk)
            with pytest.raises(InvalidTrial, match="emg"):
                await task.write(trial)
        await task.append("emg", np.zeros((2, 5), "float32"))
        await task.write({})


async def test_one_array_cannot_be_streamed_and_written(tmp_path: Path) -> None:
    """Their order would be a guess."""
    async with open_task(tmp_path / "data") as task:
        await task.append("emg", np.zeros(3))
        trial = Design().add_block().add_trial()
        trial.add_array("emg", data=np.zeros(3))
        with pytest.raises(InvalidTrial, match="append"):
            await task.write(trial)
        await task.write({"n": 1})


@pytest.mark.parametrize("name", ["", "a/b", "..", "con", "a\nb", "x" * 200, 5, "emg "])
async def test_bad_names_are_refused_at_the_call(tmp_path: Path, name: Any) -> None:
    """Subjects, tasks, arrays and pickles go through one rule; the error is a ValueError too."""
    async with open_task(tmp_path / "data") as task:
        with pytest.raises(InvalidName):
            await task.append(name, np.zeros(3))
        with pytest.raises(InvalidName):
            await task.pickle({}, name)
        await task.write({"n": 1})
    async with Storage(tmp_path / "data") as storage:
        with pytest.raises(ValueError, match="name"):
            storage.subject_id = name
        storage.subject_id = "p0"
        with pytest.raises(InvalidName):
            _ = storage.create_task(name)
        with pytest.raises(InvalidName):
            _ = storage.create_task("other", arrays={name: ArrayInfo()})
        with pytest.raises(InvalidName):
            _ = storage.resume_task(name)


async def test_names_that_differ_only_in_case_are_refused(tmp_path: Path) -> None:
    """On macOS and Windows they would be one folder or file."""
    async with open_task(tmp_path / "data") as task:
        await task.append("emg", np.zeros(3))
        with pytest.raises(InvalidName, match="case"):
            await task.append("EMG", np.zeros(3))
        await task.write({"n": 1})
    async with Storage(tmp_path / "data") as storage:
        storage.subject_id = "P0"
        with pytest.raises(InvalidName, match="p0"):
            await storage.create_task("reach")
        storage.subject_id = "p0"
        with pytest.raises(InvalidName, match="reach"):
            await storage.create_task("REACH")


async def test_misuse_is_told_at_the_call(tmp_path: Path) -> None:
    """Closed tasks, Storages not entered or without subject, wrong parameters, unfit roots."""
    storage = Storage(tmp_path / "data")
    storage.subject_id = "p0"
    with pytest.raises(StorageError, match="async with"):
        _ = storage.create_task("reach")
    async with storage:
        storage._subject_id = None
        with pytest.raises(StorageError, match="subject"):
            _ = storage.create_task("reach")
        storage.subject_id = "p0"
        with pytest.raises(TaskNotFound, match="create_task"):
            await storage.resume_task("reach")
        with pytest.raises(InvalidTrial, match="metadata"):
            _ = storage.create_task("reach", metadata={"x": object()})
        with pytest.raises(InvalidTrial, match="ArrayInfo"):
            _ = storage.create_task("reach", arrays={"x": 3})  # type: ignore[dict-item]
        opening = storage.create_task("reach")
        task = await opening
        with pytest.raises(StorageError, match="opened already"):
            await opening
        await task.aclose()
        for call in (task.write({}), task.append("x", [1]), task.flush(), task.publish()):
            with pytest.raises(StorageError, match="closed"):
                await call
        with pytest.raises(StorageError, match="closed"):
            task.write_nowait({})
        with pytest.raises(StorageError):
            await storage.__aenter__()
    with pytest.raises(StorageError, match="closed"):
        _ = storage.create_task("again")
    for parameters in ({"on_full": "maybe"}, {"queue_bytes": 0}, {"close_timeout": 0}):
        with pytest.raises(StorageError):
            Storage(tmp_path / "data", **parameters)
    file = tmp_path / "file"
    file.write_text("x")
    for root in (file, file / "below"):
        with pytest.raises(StorageError, match="file"):
            await Storage(root).__aenter__()


async def test_something_that_is_no_trial_is_refused(tmp_path: Path) -> None:
    """A list, a number or an object without attributes is not a trial."""
    async with open_task(tmp_path / "data") as task:
        for thing in ([1, 2], 3, object(), None, "text"):
            with pytest.raises(InvalidTrial):
                await task.write(thing)
        with pytest.raises(TypeError):
            task.write_nowait(3)


async def test_a_trial_larger_than_the_queue_is_refused_at_once(tmp_path: Path) -> None:
    """Waiting for room that can never come would hang."""
    async with Storage(tmp_path / "data", queue_bytes=10_000) as storage:
        storage.subject_id = "p0"
        async with storage.create_task("reach") as task:
            with pytest.raises(QueueFull, match="queue_bytes"):
                await task.append("emg", np.zeros(5000))
            await task.append("emg", np.zeros(500))
            await task.write({"n": 1})
    assert (await read(tmp_path / "data")).array("emg", trial=0).shape == (500,)


async def test_an_hour_of_small_chunks_is_few_frames(tmp_path: Path) -> None:
    """Neighbouring chunks share a frame, and the array is the same."""
    from trialstore._ondisk.replay import Replay

    async with open_task(tmp_path / "data") as task:
        for number in range(5000):
            task.append_nowait("emg", np.full((2, 1), number))
        await task.flush()

        def frames() -> int:
            with Replay([tmp_path / "data/p0/reach/journal"]) as replay:
                replay.poll()
                return replay.last_seq

        assert await anyio.to_thread.run_sync(frames) < 50
        await task.write({"n": 1})
    found = (await read(tmp_path / "data")).array("emg", trial=0)
    assert found[1].tolist() == list(range(5000))
