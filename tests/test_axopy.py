"""AxoPy both ways: it reads our tasks, we read its, and what it does with data is done here too.

What stands in ``LABS`` runs the same test against both; ours is awaited.
"""

from __future__ import annotations

import inspect
import pickle
import shutil
import sys
import zipfile
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import h5py
import numpy as np
import pandas as pd
import pytest

import trialstore
from tests import axopy_source
from tests.helpers import open_task, reader_of
from trialstore import (
    DamagedData,
    InvalidName,
    InvalidTrial,
    StorageError,
    StorageReader,
    TaskExists,
    TaskNotFound,
    UntrustedPickle,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

AXOPY = SimpleNamespace(**{**vars(axopy_source.design), **vars(axopy_source.storage)})
LABS = [pytest.param(AXOPY, id="axopy"), pytest.param(trialstore, id="trialstore")]
both = pytest.mark.parametrize("lab", LABS)


@pytest.fixture
def anyio_backend() -> str:
    """One event loop is enough: what lies on the disk does not depend on it."""
    return "asyncio"


@asynccontextmanager
async def opened(lab: Any, root: Any, **options: Any) -> AsyncIterator[Any]:
    """Open a Storage of either kind, with a subject."""
    storage = lab.Storage(root, **options)
    if lab is AXOPY:
        storage.subject_id = "p0"
        yield storage
        return
    async with storage:
        storage.subject_id = "p0"
        yield storage


async def done(result: Any) -> Any:
    """Wait for what ours returns; AxoPy's has happened already."""
    return await result if inspect.isawaitable(result) else result


def tasks_of(storage: Any) -> dict[str, list[str]]:
    """What a Storage of either kind lists."""
    found = {}
    for subject in storage.subject_ids:
        storage.subject_id = subject
        found[subject] = list(storage.task_ids)
    return found


async def close(task: Any) -> None:
    """Close our task; AxoPy's has nothing to close."""
    if hasattr(task, "aclose"):
        await task.aclose()


def trials_of(lab: Any, count: int = 3) -> list[Any]:
    """Trials with a row and two arrays each, as a design gives them."""
    block = lab.Design().add_block()
    for number in range(count):
        trial = block.add_trial(attrs={"target": 0.5 * number, "hand": "left"})
        trial.add_array("emg", stack_axis=1)
        trial.add_array("cursor", stack_axis=0)
        for chunk in range(4):
            trial.arrays["emg"].stack(np.arange(6.0).reshape(2, 3) + 10 * number + chunk)
            trial.arrays["cursor"].stack(np.full((1, 2), number * 4 + chunk))
    return list(block)


def emg_of(number: int) -> np.ndarray[Any, Any]:
    return np.hstack([np.arange(6.0).reshape(2, 3) + 10 * number + chunk for chunk in range(4)])


async def record(lab: Any, root: Any, task: str = "reach", count: int = 3) -> None:
    """Record a task of either kind, with trials, arrays and a pickle."""
    async with opened(lab, root) as storage:
        writer = await done(storage.create_task(task))
        for trial in trials_of(lab, count):
            await done(writer.write(trial))
        await done(writer.pickle({"gain": [1.5, 2.0]}, "calibration"))
        await close(writer)


# --- AxoPy reads ours ---------------------------------------------------------------------------


async def test_axopy_reads_our_task(tmp_path: Path) -> None:
    """AxoPy's own TaskReader finds our trials, arrays and pickles as it would find its own."""
    await record(trialstore, tmp_path / "data")
    storage = AXOPY.Storage(str(tmp_path / "data"))
    storage.subject_id = "p0"
    reader = storage.require_task("reach")
    assert reader.trials.to_dict("list") == {
        "target": [0.0, 0.5, 1.0],
        "hand": ["left"] * 3,
        "block": [0, 0, 0],
        "trial": [0, 1, 2],
    }
    for number, emg in enumerate(reader.iterarray("emg")):
        np.testing.assert_array_equal(emg, emg_of(number))
    assert reader.pickle("calibration") == {"gain": [1.5, 2.0]}


@both
async def test_axopys_array_is_broken_by_numpy_2(lab: Any, tmp_path: Path) -> None:
    """AxoPy's ``array`` hands a generator to vstack, which NumPy 2 refuses, whoever recorded it."""
    await record(lab, tmp_path / "data")
    reader = AXOPY.TaskReader(str(tmp_path / "data/p0/reach"))
    with pytest.raises(TypeError, match="sequence"):
        reader.array("cursor")
    assert np.vstack(list(reader.iterarray("cursor"))).shape == (12, 2)


async def test_axopy_lists_our_subjects_and_tasks_and_nothing_else(tmp_path: Path) -> None:
    """Whatever we put on the disk, AxoPy lists subjects and tasks alone, also while recording."""
    root = tmp_path / "data"
    axopy = AXOPY.Storage(str(root))

    async with trialstore.Storage(root, allow_overwrite=True) as storage:
        for storage.subject_id in ("p1", "p0"):
            for name in ("reach", "grasp", "reach"):
                task = await storage.create_task(name)
                for trial in trials_of(trialstore):
                    await task.write(trial)
                await task.append("emg", [1.0])
                await task.publish()
                assert name in tasks_of(axopy)[storage.subject_id or ""]
                await task.aclose()
        await storage.to_zip(tmp_path / "elsewhere.zip")
    expected = {"p0": ["grasp", "reach"], "p1": ["grasp", "reach"]}
    assert tasks_of(axopy) == expected
    assert sorted(path.name for path in root.iterdir()) == ["p0", "p1"]


async def test_pandas_and_h5py_alone_read_our_files(tmp_path: Path) -> None:
    """A script that has never heard of trialstore reads what was published."""
    await record(trialstore, tmp_path / "data")
    script = """if True:
        import sys, pickle, h5py, pandas
        trials = pandas.read_csv("trials.csv")
        assert trials.target.tolist() == [0.0, 0.5, 1.0], trials
        assert trials.hand.tolist() == ["left"] * 3, trials
        timing = pandas.read_csv("timing.csv")
        assert timing.trial.tolist() == [0, 1, 2] and timing.unix_ns.is_monotonic_increasing
        with h5py.File("emg.hdf5", "r") as file:
            assert sorted(file) == ["0", "1", "2", "timing"]
            assert file["2"].shape == (2, 12) and file["2"][0, 0] == 20.0
            assert file["2"].dtype == "<f8" and file["2"].compression is None
            assert file["timing"]["2"].shape == (4, 3)
        assert pickle.load(open("calibration.pkl", "rb")) == {"gain": [1.5, 2.0]}
        assert not [name for name in sys.modules if "trialstore" in name]
        """
    command = [sys.executable, "-I", "-W", "ignore", "-c", script]
    await anyio.run_process(command, cwd=tmp_path / "data/p0/reach")


# --- we read AxoPy's ----------------------------------------------------------------------------


async def test_we_read_axopys_task(tmp_path: Path) -> None:
    """A task that AxoPy wrote reads as one of ours, with the status foreign."""
    await record(AXOPY, tmp_path / "data")
    reader = reader_of(tmp_path / "data")
    assert reader.status == "foreign"
    pd.testing.assert_frame_equal(reader.trials, AXOPY.TaskReader(str(reader.root)).trials)
    assert reader.array_names == ["cursor", "emg"]
    for number, emg in enumerate(reader.iterarray("emg")):
        assert emg is not None
        np.testing.assert_array_equal(emg, emg_of(number))
        np.testing.assert_array_equal(reader.array("emg", trial=number), emg_of(number))
    np.testing.assert_array_equal(
        reader.array("cursor"), np.repeat(np.arange(12), 2).reshape(12, 2)
    )
    np.testing.assert_array_equal(reader.array("emg", 2, window=(3, 7)), emg_of(2)[:, 3:7])
    assert reader.pickle("calibration") == {"gain": [1.5, 2.0]}
    assert (reader.metadata, reader.losses, len(reader.timing)) == ({}, (), 0)
    info = reader.info("emg")
    assert (info.dtype, info.rate) == (np.dtype("f8"), None)
    assert info.shapes == dict.fromkeys(range(3), (2, 12))


async def test_following_axopys_task_yields_its_trials(tmp_path: Path) -> None:
    """``follow`` gives the trials of a foreign task, and ends."""
    await record(AXOPY, tmp_path / "data")
    followed = list(reader_of(tmp_path / "data").follow())
    assert [trial.attrs for trial in followed] == [
        {"target": 0.5 * number, "hand": "left", "block": 0, "trial": number} for number in range(3)
    ]
    np.testing.assert_array_equal(followed[1].arrays["emg"].data, emg_of(1))


async def test_catalogue_holds_axopys_tasks_and_ours(tmp_path: Path) -> None:
    """One table over tasks that AxoPy and trialstore wrote under the same root."""
    root = tmp_path / "data"
    await record(AXOPY, root, "theirs", count=2)
    await record(trialstore, root, "ours", count=3)
    catalogue = StorageReader(root).catalogue()
    assert catalogue.index.tolist() == [
        *[("p0", "ours", number) for number in range(3)],
        *[("p0", "theirs", number) for number in range(2)],
    ]
    assert catalogue["trial"].dtype == np.int64
    assert catalogue["target"].tolist() == [0.0, 0.5, 1.0, 0.0, 0.5]


def test_a_foreign_text_that_is_missing_is_none_in_the_catalogue(tmp_path: Path) -> None:
    """An empty cell of a foreign table is missing; its integers stay integers beside nothing."""
    for task, table in (("a", "hand,count\nleft,1\n,2\n"), ("b", 'rate\n0.5\n""\n'), ("c", "x\n")):
        folder = tmp_path / "data" / "p0" / task
        folder.mkdir(parents=True)
        (folder / "trials.csv").write_text(table)
    catalogue = StorageReader(tmp_path / "data").catalogue()
    assert catalogue["hand"].tolist() == ["left", None, None, None]
    assert catalogue["count"].dtype == "Int64"
    assert catalogue["count"].tolist() == [1, 2, pd.NA, pd.NA]
    assert list(catalogue.columns) == ["hand", "count", "rate"]


def test_a_folder_without_a_table_is_named(tmp_path: Path) -> None:
    """A task that AxoPy created and never wrote to says that there is no table yet."""
    storage = AXOPY.Storage(str(tmp_path / "data"))
    storage.subject_id = "p0"
    storage.create_task("reach")
    reader = reader_of(tmp_path / "data")
    assert (reader.status, reader.array_names) == ("foreign", [])
    with pytest.raises(trialstore.FormatError, match=r"no trials\.csv"):
        _ = reader.trials
    with pytest.warns(UserWarning, match=r"no trials\.csv"):
        assert len(StorageReader(tmp_path / "data").catalogue()) == 0


async def test_a_foreign_trial_without_the_array_is_none(tmp_path: Path) -> None:
    """Rows without a dataset give None in ``iterarray`` and are left out of ``array``."""
    await record(AXOPY, tmp_path / "data")
    with h5py.File(tmp_path / "data/p0/reach/cursor.hdf5", "a") as file:
        del file["1"]
        file["007"] = file["notes"] = [1]
    reader = reader_of(tmp_path / "data")
    assert [array is None for array in reader.iterarray("cursor")] == [False, True, False]
    assert reader.array("cursor").shape == (8, 2)
    assert list(reader.info("cursor").shapes) == [0, 2]
    with pytest.raises(InvalidTrial, match=r"trial 1 .* no array 'cursor'"):
        reader.array("cursor", trial=1)


# --- listing ------------------------------------------------------------------------------------


@pytest.fixture
def directories(tmp_path: Path) -> Path:
    """Folders of three subjects, as AxoPy's own tests have them, and files in between."""
    root = tmp_path / "data"
    for folder in ("p0/task1", "p0/task2", "p1/task1", "p2"):
        (root / folder).mkdir(parents=True)
    (root / "notes.txt").touch()
    (root / "p0" / "notes.txt").touch()
    return root


@both
def test_subjects_and_tasks_are_listed_in_order(lab: Any, directories: Path) -> None:
    """Folders are listed, sorted; files are not."""
    storage = lab.Storage(str(directories))
    assert list(storage.subject_ids) == ["p0", "p1", "p2"]
    assert tasks_of(storage) == {"p0": ["task1", "task2"], "p1": ["task1"], "p2": []}


@both
def test_no_subject_has_no_tasks(lab: Any, directories: Path) -> None:
    """Without a subject there are no tasks, and none can be required."""
    storage = lab.Storage(str(directories))
    assert storage.subject_id is None
    assert list(storage.task_ids) == []
    with pytest.raises(ValueError, match=r"(?i)subject"):
        storage.require_task("task1")


@both
def test_a_new_subject_has_no_tasks(lab: Any, directories: Path) -> None:
    """A subject that nobody has recorded yet can be set, and has no tasks."""
    storage = lab.Storage(str(directories))
    storage.subject_id = "p9"
    assert storage.subject_id == "p9"
    assert list(storage.task_ids) == []
    # AxoPy makes the folder at once; ours is made with the first task.
    assert (directories / "p9").is_dir() == (lab is AXOPY)


@both
@pytest.mark.parametrize("form", [str, Path], ids=["str", "Path"])
async def test_a_root_is_made_and_kept_as_given(lab: Any, form: Any, tmp_path: Path) -> None:
    """The root may be a str or a Path, and exists as soon as recording can start."""
    root = form(tmp_path / "lab" / "data")
    async with opened(lab, root) as storage:
        assert storage.root == (root if lab is AXOPY else Path(root))
        assert list(storage.subject_ids) == (["p0"] if lab is AXOPY else [])
        assert (tmp_path / "lab" / "data").is_dir()


async def test_any_path_like_root_is_taken(tmp_path: Path) -> None:
    """What has ``__fspath__``, such as a ``py.path.local``, is a root."""

    class LocalPath:
        def __fspath__(self) -> str:
            return str(tmp_path / "data")

    async with opened(trialstore, LocalPath()) as storage:
        task = await storage.create_task("reach")
        await task.aclose()
    assert StorageReader(LocalPath()).subject_ids == ["p0"]


@both
def test_the_default_root_is_data(lab: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Without a root, ``data`` in the current folder is meant."""
    monkeypatch.chdir(tmp_path)
    assert str(lab.Storage().root) == "data"


# --- creating and requiring tasks ---------------------------------------------------------------


@both
async def test_a_task_can_be_created_once(lab: Any, directories: Path) -> None:
    """A task is listed once it is created; creating it again is a ValueError, every time."""
    async with opened(lab, str(directories)) as storage:
        for subject, before in (("p0", ["task1", "task2"]), ("p9", [])):
            storage.subject_id = subject
            task = await done(storage.create_task("new"))
            assert list(storage.task_ids) == ["new", *before]
            await close(task)
            for _ in range(2):
                with pytest.raises(ValueError, match=f"{subject}.*new"):
                    await done(storage.create_task("new"))
            assert list(storage.task_ids) == ["new", *before]


@both
async def test_a_folder_of_that_name_is_a_task(lab: Any, directories: Path) -> None:
    """A folder that is there already, whatever is in it, is not written into."""
    async with opened(lab, str(directories)) as storage:
        with pytest.raises(ValueError, match="task1"):
            await done(storage.create_task("task1"))
        assert list((directories / "p0" / "task1").iterdir()) == []


@both
async def test_a_task_that_does_not_exist_cannot_be_required(lab: Any, directories: Path) -> None:
    """Requiring what was never started is a ValueError that names it, and creates nothing."""
    async with opened(lab, str(directories)) as storage:
        with pytest.raises(ValueError, match=r"p0.*missing"):
            storage.require_task("missing")
        assert list(storage.task_ids) == ["task1", "task2"]


async def test_our_errors_are_also_axopys(directories: Path) -> None:
    """Each ValueError of AxoPy's has a name here."""
    async with opened(trialstore, directories) as storage:
        with pytest.raises(TaskExists):
            await storage.create_task("task1")
        with pytest.raises(TaskNotFound):
            storage.require_task("missing")
        with pytest.raises(InvalidName):
            storage.create_task("../p1/task1")


@both
async def test_a_required_task_reads_what_was_written(lab: Any, tmp_path: Path) -> None:
    """Trials, arrays and pickles come back from ``require_task`` of the same Storage."""
    await record(lab, tmp_path / "data")
    async with opened(lab, str(tmp_path / "data")) as storage:
        reader = storage.require_task("reach")
        assert str(reader.root) == str(tmp_path / "data/p0/reach")
        assert reader.trials["target"].tolist() == [0.0, 0.5, 1.0]
        assert list(reader.trials.columns) == ["target", "hand", "block", "trial"]
        for number, emg in enumerate(reader.iterarray("emg")):
            np.testing.assert_array_equal(emg, emg_of(number))
        assert reader.pickle("calibration") == {"gain": [1.5, 2.0]}


@both
async def test_a_task_may_be_overwritten_if_allowed(lab: Any, tmp_path: Path) -> None:
    """With ``allow_overwrite`` the new task is all there is; AxoPy deletes the old, we keep it."""
    root = tmp_path / "data"
    await record(lab, root, count=3)
    async with opened(lab, str(root), allow_overwrite=True) as storage:
        task = await done(storage.create_task("reach"))
        await done(task.write(trials_of(lab)[0]))
        await close(task)
        reader = storage.require_task("reach")
        assert len(reader.trials) == 1
        assert not (root / "p0/reach/calibration.pkl").exists()
    trash = list((tmp_path / "data.trash").glob("p0/reach.*"))
    if lab is AXOPY:
        assert trash == []
        return
    (old,) = trash
    assert trialstore.TaskReader(old).trials["target"].tolist() == [0.0, 0.5, 1.0]
    assert trialstore.TaskReader(old).pickle("calibration") == {"gain": [1.5, 2.0]}


async def test_a_task_of_axopys_is_kept_when_it_is_overwritten(tmp_path: Path) -> None:
    """What AxoPy recorded goes to the trash as well, and nothing of it is lost."""
    await record(AXOPY, tmp_path / "data")
    async with opened(trialstore, tmp_path / "data", allow_overwrite=True) as storage:
        await (await storage.create_task("reach")).aclose()
    (old,) = (tmp_path / "data.trash").glob("p0/reach.*")
    assert len(AXOPY.TaskReader(str(old)).trials) == 3


async def test_a_task_of_axopys_is_not_resumed(tmp_path: Path) -> None:
    """Nothing is ever written into a task of AxoPy's."""
    await record(AXOPY, tmp_path / "data")
    before = sorted((tmp_path / "data/p0/reach").iterdir())
    async with opened(trialstore, tmp_path / "data") as storage:
        with pytest.raises(trialstore.FormatError, match="another name"):
            await storage.resume_task("reach")
    assert sorted((tmp_path / "data/p0/reach").iterdir()) == before


# --- writing ------------------------------------------------------------------------------------


@both
async def test_arrays_are_cleared_after_writing(lab: Any, tmp_path: Path) -> None:
    """A trial's arrays are empty after it was written, and can be filled again."""
    async with opened(lab, tmp_path / "data") as storage:
        task = await done(storage.create_task("reach"))
        trial = trials_of(lab, 1)[0]
        await done(task.write(trial))
        assert [array.data for array in trial.arrays.values()] == [None, None]
        trial.arrays["emg"].stack(np.ones((2, 1)))
        trial.arrays["cursor"].stack(np.ones((1, 2)))
        await done(task.write(trial))
        await close(task)
        shapes = [np.shape(array) for array in storage.require_task("reach").iterarray("emg")]
        assert shapes == [(2, 12), (2, 1)]


async def test_axopys_own_trials_are_taken(tmp_path: Path) -> None:
    """An experiment that still uses AxoPy's design writes its trials, and they are cleared."""
    trials = trials_of(AXOPY)
    async with open_task(tmp_path / "data") as task:
        for trial in trials:
            await task.write(trial)
            assert all(array.data is None for array in trial.arrays.values())
    reader = reader_of(tmp_path / "data")
    assert reader.trials["trial"].tolist() == [0, 1, 2]
    for number, emg in enumerate(reader.iterarray("emg")):
        assert emg is not None
        np.testing.assert_array_equal(emg, emg_of(number))
    assert reader.array("cursor", trial=1, window=(1, 3)).tolist() == [[5, 5], [6, 6]]


async def test_axopys_trial_is_left_as_it_was_when_it_is_refused(tmp_path: Path) -> None:
    """A trial with one array that cannot be kept keeps all of them."""
    trial = trials_of(AXOPY, 1)[0]
    trial.add_array("bad", data=np.array([object()]))
    async with open_task(tmp_path / "data") as task:
        with pytest.raises(InvalidTrial, match="'bad'"):
            await task.write(trial)
        np.testing.assert_array_equal(trial.arrays["emg"].data, emg_of(0))


async def test_an_array_without_data_is_no_array(tmp_path: Path) -> None:
    """An array that was never filled is left out, where AxoPy fails and leaves half a trial."""
    trial = trials_of(AXOPY, 1)[0]
    trial.add_array("unused")
    async with open_task(tmp_path / "data") as task:
        await task.write(trial)
    assert reader_of(tmp_path / "data").array_names == ["emg", "cursor"]


@both
async def test_rows_alone_are_written_by_trials(lab: Any, tmp_path: Path) -> None:
    """``trials.write`` adds a row, and ``trials.data`` holds every column written so far."""
    async with opened(lab, tmp_path / "data") as storage:
        task = await done(storage.create_task("reach"))
        assert task.trials.data == {}
        for number in range(3):
            await done(task.trials.write({"target": number, "hand": "right"}))
        assert task.trials.data == {"target": [0, 1, 2], "hand": ["right"] * 3}
        await close(task)
        assert storage.require_task("reach").trials.to_dict("list") == task.trials.data


async def test_data_of_rows_with_different_columns(tmp_path: Path) -> None:
    """Where AxoPy fails for columns of different lengths, a gap is None and the row is written."""
    async with open_task(tmp_path / "data") as task:
        await task.trials.write({"a": 1})
        await task.trials.write({"b": 2})
        assert task.trials.data == {"a": [1, None], "b": [None, 2]}
    trials = reader_of(tmp_path / "data").trials
    assert (trials["a"].tolist(), trials["b"].tolist()) == ([1, pd.NA], [pd.NA, 2])
    writer = AXOPY.TrialWriter(str(tmp_path / "trials.csv"))
    writer.write({"a": 1})
    with pytest.raises(ValueError, match="same length"):
        writer.write({"a": 1, "b": 2})


@both
async def test_a_pickle_is_replaced(lab: Any, tmp_path: Path) -> None:
    """A second pickle of a name takes the place of the first, and any object can be one."""
    async with opened(lab, tmp_path / "data") as storage:
        task = await done(storage.create_task("reach"))
        await done(task.pickle([1, 2], "thing"))
        await done(task.pickle(Path("somewhere"), "thing"))
        await close(task)
        reader = storage.require_task("reach")
        if lab is trialstore:
            with pytest.raises(UntrustedPickle, match="pathlib"):
                reader.pickle("thing")
            assert reader.pickle("thing", trusted=True) == Path("somewhere")
        else:
            assert reader.pickle("thing") == Path("somewhere")


@both
async def test_files_are_where_axopy_puts_them(lab: Any, tmp_path: Path) -> None:
    """``trials.csv``, ``NAME.hdf5`` with one dataset for each row, ``NAME.pkl``."""
    await record(lab, tmp_path / "data")
    folder = tmp_path / "data/p0/reach"
    assert {"trials.csv", "emg.hdf5", "cursor.hdf5", "calibration.pkl"} <= {
        path.name for path in folder.iterdir()
    }
    assert (folder / "trials.csv").read_text() == (
        "target,hand,block,trial\n0.0,left,0,0\n0.5,left,0,1\n1.0,left,0,2\n"
    )
    with h5py.File(folder / "emg.hdf5", "r") as file:
        assert {name for name in file if name.isdigit()} == {"0", "1", "2"}
    with (folder / "calibration.pkl").open("rb") as file:
        assert pickle.load(file) == {"gain": [1.5, 2.0]}


# --- designs ------------------------------------------------------------------------------------


@both
def test_a_design_numbers_blocks_and_trials(lab: Any) -> None:
    """Blocks and trials are lists, and every trial knows its block and its place."""
    design = lab.Design()
    blocks: list[Any] = [design.add_block() for _ in range(2)]
    trials = [block.add_trial(attrs={"x": 1}) for block in blocks for _ in range(3)]
    assert design == blocks
    assert all(isinstance(part, list) for part in (design, *blocks))
    assert [block.index for block in blocks] == [0, 1]
    assert [(t.attrs["block"], t.attrs["trial"]) for t in trials] == [
        (block, trial) for block in range(2) for trial in range(3)
    ]
    assert blocks[0].add_trial().attrs == {"block": 0, "trial": 3}
    assert lab.Block(5).index == 5
    assert list(lab.Block(5, [trials[0]])) == [trials[0]]


@both
@pytest.mark.parametrize("reset_index", [True, False])
def test_shuffling_numbers_anew_unless_told_not_to(lab: Any, reset_index: bool) -> None:
    """The same trials in another order, numbered in the new order or as they were."""
    block = lab.Design().add_block()
    for number in range(50):
        block.add_trial(attrs={"target": number})
    block.shuffle(reset_index=reset_index)
    targets = [trial.attrs["target"] for trial in block]
    assert targets != list(range(50))
    assert sorted(targets) == list(range(50))
    numbers = [trial.attrs["trial"] for trial in block]
    assert numbers == (list(range(50)) if reset_index else targets)


@both
def test_a_trial_holds_attributes_and_arrays(lab: Any) -> None:
    """``attrs`` is the dictionary given, ``add_array`` adds, ``str`` shows the attributes."""
    attrs = {"target": 3}
    trial = lab.Trial(attrs=attrs)
    assert trial.attrs is attrs
    assert trial.arrays == {}
    trial.add_array("emg", data=np.zeros(3), stack_axis=0)
    assert trial.arrays["emg"].stack_axis == 0
    assert trial.arrays["emg"].data.tolist() == [0, 0, 0]
    assert str(trial) == "{'target': 3}"


@both
@pytest.mark.parametrize(
    ("stack_axis", "shape"),
    [(0, (4,)), (0, (1, 4)), (0, (2, 3, 4)), (1, (4,)), (1, (4, 1)), (1, (2, 3, 4)), (2, (4,)),
     (2, (3, 4)), (2, (2, 3, 4))],
)  # fmt: skip
def test_arrays_grow_as_numpy_stacks(lab: Any, stack_axis: int, shape: tuple[int, ...]) -> None:
    """A chunk alone stays as it is; several are what vstack, hstack and dstack make of them."""
    chunks = [np.arange(np.prod(shape)).reshape(shape) + 100 * number for number in range(3)]
    array = lab.Array(stack_axis=stack_axis)
    assert array.data is None
    array.stack(chunks[0])
    np.testing.assert_array_equal(array.data, chunks[0])
    for chunk in chunks[1:]:
        array.stack(chunk)
    stack = (np.vstack, np.hstack, np.dstack)[stack_axis]
    np.testing.assert_array_equal(array.data, stack([stack(chunks[:2]), chunks[2]]))
    array.clear()
    assert array.data is None


@both
def test_arrays_are_stacked_along_axis_1_by_default(lab: Any) -> None:
    """A row of channels and a column of time, as AxoPy has it."""
    assert lab.Array().stack_axis == 1
    assert lab.Array(data=np.eye(2)).data.tolist() == [[1, 0], [0, 1]]


# --- HDF5 files ---------------------------------------------------------------------------------


@both
def test_hdf5_datasets_go_in_and_out(lab: Any, tmp_path: Path) -> None:
    """The dataset is called ``data`` unless another name is given; several share a file."""
    path = str(tmp_path / "file.hdf5")
    arrays = {"data": np.random.default_rng(0).random((5, 4)), "other": np.arange(3)}
    lab.write_hdf5(path, arrays["data"])
    lab.write_hdf5(path, arrays["other"], dataset="other")
    np.testing.assert_array_equal(lab.read_hdf5(path), arrays["data"])
    np.testing.assert_array_equal(lab.read_hdf5(path, dataset="other"), arrays["other"])
    assert lab.read_hdf5(path, dataset="other").dtype == arrays["other"].dtype


@pytest.mark.parametrize("writer", LABS)
@pytest.mark.parametrize("reader", LABS)
def test_hdf5_files_of_one_are_read_by_the_other(writer: Any, reader: Any, tmp_path: Path) -> None:
    """``write_hdf5`` and ``read_hdf5`` of both fit together."""
    data = np.random.default_rng(0).random((5, 4)).astype(">f4")
    writer.write_hdf5(str(tmp_path / "file.hdf5"), data)
    found = reader.read_hdf5(str(tmp_path / "file.hdf5"))
    assert found.dtype == data.dtype
    np.testing.assert_array_equal(found, data)


@both
def test_hdf5_misuse_is_an_error(lab: Any, tmp_path: Path) -> None:
    """A name that is taken, a dataset or file that is not there: an error, and nothing changes."""
    path = tmp_path / "file.hdf5"
    lab.write_hdf5(str(path), [1, 2])
    family = (ValueError, TypeError, OSError) if lab is AXOPY else StorageError
    with pytest.raises(family):
        lab.write_hdf5(str(path), [3])
    assert lab.read_hdf5(str(path)).tolist() == [1, 2]
    with pytest.raises(family):
        lab.read_hdf5(str(path), dataset="missing")
    with pytest.raises(family):
        lab.read_hdf5(str(tmp_path / "missing.hdf5"))
    path.write_bytes(b"no HDF5")
    with pytest.raises(OSError if lab is AXOPY else DamagedData):
        lab.read_hdf5(str(path))


# --- archives -----------------------------------------------------------------------------------


@both
def test_the_archive_is_named_after_the_root(lab: Any, directories: Path) -> None:
    """The default name is the root's with ``.zip``, beside it; the name is returned."""
    (directories / "notes.txt").unlink()  # AxoPy warns of two files of one name
    outfile = str(directories) + ".zip"
    assert lab.storage_to_zip(str(directories)) == outfile
    assert zipfile.is_zipfile(outfile)


@both
async def test_a_storage_archives_itself(lab: Any, directories: Path, tmp_path: Path) -> None:
    """``Storage.to_zip`` writes the file that was asked for."""
    (directories / "p0/notes.txt").unlink()  # AxoPy warns of two files of one name
    outfile = str(tmp_path / "archive.zip")
    async with opened(lab, str(directories)) as storage:
        assert await done(storage.to_zip(outfile)) in {None, outfile}  # AxoPy returns nothing
    with zipfile.ZipFile(outfile) as archive:
        assert "data/notes.txt" in archive.namelist()


def test_a_reader_archives_too(directories: Path) -> None:
    """``StorageReader.to_zip`` needs no event loop."""
    assert StorageReader(directories).to_zip() == f"{directories}.zip"


@both
async def test_names_in_the_archive_begin_with_the_root(lab: Any, tmp_path: Path) -> None:
    """Ours unpacks to the tree that was archived; AxoPy 0.2.3 puts every file into one folder."""
    await record(lab, tmp_path / "data")
    outfile = str(tmp_path / "archive.zip")
    to_zip = partial(lab.storage_to_zip, str(tmp_path / "data"), outfile)
    assert await anyio.to_thread.run_sync(to_zip) == outfile
    with zipfile.ZipFile(outfile) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "unpacked")
    if lab is AXOPY:
        assert "data/trials.csv" in names
        return
    assert "data/p0/reach/trials.csv" in names
    reader = reader_of(tmp_path / "unpacked/data")
    assert (reader.status, reader.losses) == ("complete", ())
    assert reader.pickle("calibration") == {"gain": [1.5, 2.0]}
    np.testing.assert_array_equal(reader.array("emg", trial=2), emg_of(2))


# --- moving folders -----------------------------------------------------------------------------


async def test_sessions_are_merged_by_moving_folders(tmp_path: Path) -> None:
    """Tasks moved from one root to another, by hand, read there as before, in both programs."""
    await record(trialstore, tmp_path / "monday", "reach")
    await record(trialstore, tmp_path / "data", "grasp")
    shutil.move(tmp_path / "monday/p0/reach", tmp_path / "data/p0/reach")
    reader = reader_of(tmp_path / "data", "reach")
    assert (reader.status, len(reader.trials), reader.losses) == ("complete", 3, ())
    np.testing.assert_array_equal(reader.array("emg", trial=0), emg_of(0))
    axopy = AXOPY.Storage(str(tmp_path / "data"))
    axopy.subject_id = "p0"
    assert list(axopy.task_ids) == ["grasp", "reach"]
