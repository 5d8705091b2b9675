"""The readers: any task, at any moment, in any state, and never data that was not recorded."""

from __future__ import annotations

import gc
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
import pytest

from tests.conftest import wait_until
from tests.helpers import open_lab
from trialstore import (
    ArrayInfo,
    DamagedData,
    FormatError,
    InvalidName,
    InvalidTrial,
    Level,
    StorageError,
    StorageReader,
    TaskNotFound,
    TaskReader,
    Trial,
    UntrustedPickle,
)
from trialstore._ondisk import chunks, disk
from trialstore._publishing.service import publish_once
from trialstore._publishing.task import TaskPublisher
from trialstore._reading.current import CurrentSource
from trialstore._reading.published import PublishedSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from tests.helpers import Lab, SyncTask
    from trialstore._reading.source import Source


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A Storage that is open for all tests of this module."""
    with open_lab(tmp_path_factory.mktemp("reading") / "data") as lab:
        yield lab


def emg_of(number: int, samples: int = 20) -> NDArray[Any]:
    """Samples that tell which trial they are of."""
    return np.arange(2.0 * samples).reshape(2, samples) + 1000 * number


def record(task: SyncTask, numbers: range = range(3)) -> None:
    """Record a trial of 20 samples, in chunks of 5, for each number."""
    for number in numbers:
        for start in range(0, 20, 5):
            task.append("emg", emg_of(number)[:, start : start + 5])
        task.write({"n": number, "mark": f"marked-{number}"})


def check(reader: TaskReader, count: int) -> None:
    """A reader shows exactly what `record` recorded."""
    assert reader.trials["n"].tolist() == list(range(count))
    assert reader.trials["mark"].tolist() == [f"marked-{number}" for number in range(count)]
    for number, array in enumerate(reader.iterarray("emg")):
        np.testing.assert_array_equal(array, emg_of(number))
    assert (reader.losses, len(reader.timing)) == ((), count)


def copied(folder: Path, root: Path) -> Path:
    """Copy a task as it lies on the disk; files being built are nobody's business."""
    target = root / "data" / "p0" / "reach"
    return Path(shutil.copytree(folder, target, ignore=shutil.ignore_patterns(".*")))


@pytest.fixture
def published(lab: Lab, tmp_path: Path) -> Path:
    """A copy of a published task of three trials and a pickle, to do harm to."""
    with lab.create(metadata={"rig": "A"}) as task:
        record(task)
        task.pickle({"gain": 2}, "calibration")
    return copied(task.root, tmp_path / "published")


@pytest.fixture
def cut_off(lab: Lab, tmp_path: Path) -> Path:
    """A copy of a task as it lay on the disk while it was recorded: its recorder is gone."""
    with lab.create(metadata={"rig": "A"}) as task:
        record(task)
        task.pickle({"gain": 2}, "calibration")
        task.flush()
        return copied(task.root, tmp_path / "cut_off")


@pytest.fixture(autouse=True)
def let_go_of_readers() -> Iterator[None]:
    """A reader keeps the journal open as long as it lives, and a caught exception lives on."""
    yield
    gc.collect()


def flip(path: Path, pattern: bytes) -> None:
    """Change the last byte of the one place in a file where a pattern stands."""
    data = path.read_bytes()
    assert data.count(pattern) == 1
    place = data.index(pattern) + len(pattern) - 1
    path.write_bytes(data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :])


def samples_of(number: int, sample: int = 0) -> bytes:
    """Bytes of two samples that follow one another, of the first channel of a trial."""
    return emg_of(number)[0, sample : sample + 2].tobytes()


class GatedDisk(disk.Disk):
    """A disk whose sync waits until it is let through."""

    def __init__(self) -> None:
        self._gate = threading.Event()
        self._gate.set()
        self.reached = threading.Event()

    def sync(self, fd: int) -> None:
        self.reached.set()
        assert self._gate.wait(30)
        super().sync(fd)

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Let nothing through within this block."""
        self.reached.clear()
        self._gate.clear()
        try:
            yield
        finally:
            self._gate.set()


# --- states -------------------------------------------------------------------------------------


def test_a_task_is_recording_until_it_is_complete(lab: Lab) -> None:
    """The same reader shows a task before its first trial, while it grows, and once closed."""
    with lab.create(metadata={"rig": "A"}) as task:
        reader = TaskReader(task.root)
        assert (reader.status, len(reader.trials), reader.array_names) == ("recording", 0, [])
        for count in (1, 2, 3):
            record(task, range(count - 1, count))
            task.flush()
            assert reader.status == "recording"
            check(reader, count)
    assert reader.status == "complete"
    check(reader, 3)
    assert (reader.metadata, TaskReader(task.root).metadata) == ({"rig": "A"}, {"rig": "A"})


def test_a_task_that_ends_in_an_exception_is_interrupted(lab: Lab) -> None:
    """What was recorded before the experiment failed is whole, the status says that it failed."""
    task = lab.create()
    record(task)
    with pytest.raises(ZeroDivisionError), task:
        raise ZeroDivisionError
    reader = TaskReader(task.root)
    assert reader.status == "interrupted"
    check(reader, 3)


def test_a_task_whose_recorder_is_gone_is_interrupted(cut_off: Path) -> None:
    """Without a recorder the journal is all there is, and enough; publishing changes nothing."""
    reader = TaskReader(cut_off)
    assert (reader.status, reader.metadata) == ("interrupted", {"rig": "A"})
    check(reader, 3)
    publish_once(cut_off, {})
    assert not (cut_off / "journal").exists()
    assert (reader.status, reader.metadata) == ("interrupted", {"rig": "A"})
    check(reader, 3)
    check(TaskReader(cut_off), 3)


def test_a_published_task_without_its_manifest_is_foreign(published: Path) -> None:
    """The plain files alone read as a task of another program."""
    reader = TaskReader(published)
    assert reader.status == "complete"
    (published / "manifest.json").unlink()
    with pytest.warns(UserWarning, match=r"manifest\.json.*gone"):
        assert reader.status == "foreign"
    check_foreign = reader.trials
    assert check_foreign["n"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(reader.array("emg", 2), emg_of(2))


def test_a_reader_outlives_publication_and_resuming(lab: Lab) -> None:
    """A task that is published, resumed, published in between and closed again, in one reader."""
    task = lab.create()
    reader = TaskReader(task.root)
    for session in range(3):
        if session:
            task.resume()
        with task:
            record(task, range(2 * session, 2 * session + 1))
            task.publish()
            check(reader, 2 * session + 1)
            assert reader.status == "recording"
            record(task, range(2 * session + 1, 2 * session + 2))
            task.flush()
            check(reader, 2 * session + 2)
            assert reader.info("emg").shapes == dict.fromkeys(range(2 * session + 2), (2, 20))
        assert reader.status == "complete"
        check(reader, 2 * session + 2)


@pytest.mark.slow
def test_a_reader_never_fails_while_the_task_changes(lab: Lab) -> None:
    """A task is published and resumed again and again: a reader sees whole trials, never fewer."""
    task = lab.create()
    record(task, range(1))
    task.flush()
    done = threading.Event()

    def record_on() -> None:
        for number in range(1, 13):
            if number % 3 == 0:
                task.close()
                task.resume()
            record(task, range(number, number + 1))
            if number % 3 == 1:
                task.publish()
        task.close()
        done.set()

    thread = threading.Thread(target=record_on)
    thread.start()
    try:
        reader, seen = TaskReader(task.root), 0
        while not done.is_set():
            frame = reader.trials
            assert frame["n"].tolist() == list(range(len(frame)))
            assert len(frame) >= seen
            seen = len(frame)
            np.testing.assert_array_equal(reader.array("emg", seen - 1), emg_of(seen - 1))
            np.testing.assert_array_equal(TaskReader(task.root).array("emg", 0), emg_of(0))
            assert len(reader.timing) >= seen
    finally:
        thread.join()
    check(reader, 13)


def test_a_table_that_is_replaced_while_it_is_read_is_read_again(lab: Lab) -> None:
    """What does not fit the manifest of before is no damage if there is another manifest by now."""
    task = lab.create()
    record(task)
    task.close()
    current = CurrentSource(task.root)
    asked = []

    def question(source: Source) -> int:
        asked.append(source)
        if len(asked) == 1:
            task.resume()
            record(task, range(3, 4))
            task.publish()
        return len(source.frame())

    assert current.ask(question) == 4
    assert len(asked) == 2
    task.close()


def test_a_task_that_was_published_while_it_was_looked_at_is_looked_at_again(lab: Lab) -> None:
    """Between two looks at the manifest a journal may have been replaced by an empty one."""
    task = lab.create()
    record(task)

    class Slow(CurrentSource):
        looked = 0

        def _up_to_date(self) -> Source:
            source = super()._up_to_date()
            self.looked += 1
            if self.looked == 1:
                task.close()
            return source

    current = Slow(task.root)
    assert isinstance(current.get(), PublishedSource)
    assert current.looked == 2


def test_reading_changes_nothing_on_the_disk(lab: Lab, cut_off: Path, published: Path) -> None:
    """Whatever is read, of whatever task, no file is made, changed or even touched."""

    def snapshot(folder: Path) -> dict[str, Any]:
        return {
            str(path): (
                path.stat().st_mtime_ns,
                path.stat().st_size,
                path.is_file() and path.read_bytes(),
            )
            for path in [folder, *folder.rglob("*")]
        }

    with lab.create() as task:
        record(task)
        task.flush()
        task.publish()
        for folder in (cut_off, published, task.root):
            before = snapshot(folder)
            reader = TaskReader(folder)
            check(reader, 3)
            list(itertools.islice(reader.follow(), 3))
            _ = (reader.info("emg"), reader.metadata, reader.status, reader.array("emg"))
            storage = StorageReader(folder.parent.parent)
            assert storage.subject_ids == ["p0"]
            with warnings.catch_warnings(action="ignore"):
                storage.catalogue()
            assert snapshot(folder) == before


def test_a_reader_keeps_no_lock(lab: Lab) -> None:
    """A task can be closed and resumed while readers of it are open."""
    task = lab.create()
    record(task)
    task.flush()
    readers = [TaskReader(task.root) for _ in range(3)]
    iterators = [reader.iterarray("emg") for reader in readers]
    assert all(next(iterator) is not None for iterator in iterators)
    task.close()
    task.resume()
    task.close()
    for iterator in iterators:
        np.testing.assert_array_equal(next(iterator), emg_of(1))
    assert [reader.status for reader in readers] == ["complete"] * 3


# --- windows ------------------------------------------------------------------------------------

#: Shape of a chunk, how many of them, how they are stacked; the last three are of several blocks.
ARRAYS = [
    ((7,), 1, 1), ((7,), 5, 1), ((7,), 5, 0), ((2, 7), 5, 1), ((2, 7), 1, 0), ((2, 7), 5, 2),
    ((2, 7, 3), 1, 2), ((2, 7, 3), 4, 1), ((0, 7), 3, 1), ((2, 0), 3, 1),
    ((2, 30_000), 3, 1), ((30_000, 2), 3, 0), ((3, 3, 20_000), 2, 2),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "count", "stack_axis"), ARRAYS, ids=str)
def test_a_window_is_a_slice(lab: Lab, shape: tuple[int, ...], count: int, stack_axis: int) -> None:
    """``window=`` gives what a slice of the whole array is, live and published, over any border."""
    task = lab.create(arrays={"a": ArrayInfo(stack_axis=stack_axis)})
    rng = np.random.default_rng(count)
    pieces = [rng.integers(-1000, 1000, shape) for _ in range(count)]
    for piece in pieces:
        task.append("a", piece)
        if piece is pieces[count // 2]:
            task.flush()  # so that the trial is in several frames
    task.write({})
    task.flush()
    reader = TaskReader(task.root)
    whole = pieces[0] if count == 1 else (np.vstack, np.hstack, np.dstack)[stack_axis](pieces)
    axis = min(stack_axis if whole.ndim > 1 else 0, whole.ndim - 1)
    size = whole.shape[axis]
    block = chunks.block_length(whole.shape, whole.dtype, axis)
    borders = {0, 1, 6, 7, 8, block - 1, block, block + 1, 2 * block, size - 1, size, size + 5}
    windows = list(itertools.combinations_with_replacement(sorted(b for b in borders if b >= 0), 2))
    for is_live in (True, False):
        if not is_live:
            task.close()
        assert (reader.status == "recording") == is_live
        for first, end in windows:
            part = reader.array("a", 0, window=(first, end))
            expected = whole[(slice(None),) * axis + (slice(first, end),)]
            assert part.shape == expected.shape, (first, end)
            np.testing.assert_array_equal(part, expected)
            np.testing.assert_array_equal(
                reader.array("a", 0, (first, end), verify=False), expected
            )


def test_a_live_window_reads_only_itself(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a long trial in the journal, only the frames that the window touches are read."""
    with lab.create() as task:
        for number in range(50):
            task.append("emg", np.full((8, 4000), number, "f4"))
            task.flush()
        task.write({})
        task.flush()
        reader = TaskReader(task.root)
        assert reader.array("emg", 0, (0, 1)).shape == (8, 1)
        read: list[int] = []
        pread = os.pread

        def counted(fd: int, length: int, offset: int) -> bytes:
            data = pread(fd, length, offset)
            read.append(len(data))
            return data

        monkeypatch.setattr(os, "pread", counted)
        np.testing.assert_array_equal(
            reader.array("emg", 0, (4 * 4000 - 10, 4 * 4000 + 10)),
            np.repeat([3.0, 4.0], 10)[np.newaxis].repeat(8, axis=0),
        )
        assert sum(read) < 3 * 8 * 4000 * 4
        read.clear()
        reader.array("emg", 0)
        assert sum(read) > 50 * 8 * 4000 * 4


def test_a_published_window_reads_only_its_blocks(lab: Lab, tmp_path: Path) -> None:
    """Damage outside the blocks that a window touches does not concern it; inside, it is told."""
    with lab.create() as task:
        data = np.arange(200_000.0).reshape(2, 100_000)
        task.append("emg", data)
        task.write({})
    folder = copied(task.root, tmp_path)
    block = chunks.block_length(data.shape, data.dtype, 1)
    flip(folder / "emg.hdf5", data[0, 2 * block : 2 * block + 2].tobytes())
    reader = TaskReader(folder)
    for window in ((0, 2 * block), (3 * block, 100_000), (2 * block - 1, 2 * block)):
        np.testing.assert_array_equal(reader.array("emg", 0, window), data[:, slice(*window)])
    for window in ((2 * block, 2 * block + 1), (0, 2 * block + 1), (3 * block - 1, 3 * block)):
        with pytest.raises(DamagedData, match="checksum"):
            reader.array("emg", 0, window)


def test_damage_in_the_journal_outside_the_window_does_not_concern_it(cut_off: Path) -> None:
    """The frames that a window does not touch are not even looked at."""
    flip(cut_off / "journal/000001.segment", samples_of(1, 10))
    reader = TaskReader(cut_off)
    np.testing.assert_array_equal(reader.array("emg", 0), emg_of(0))
    with pytest.raises(DamagedData):
        reader.array("emg", 1)
    with pytest.raises(DamagedData):
        reader.array("emg", 1, (10, 11))


@pytest.mark.parametrize(
    "window", [(-1, 3), (3, 2), (1,), (1, 2, 3), 5, "ab", (0.5, 2), (0, None), ("0", "1")], ids=str
)
def test_what_is_no_window_is_refused(published: Path, window: Any) -> None:
    """A window is a pair of integers in order, none below zero."""
    with pytest.raises(InvalidTrial, match="window must be"):
        TaskReader(published).array("emg", 0, window)


def test_a_window_needs_a_trial(published: Path) -> None:
    """A window over all trials would be ambiguous."""
    with pytest.raises(InvalidTrial, match="needs a trial"):
        TaskReader(published).array("emg", window=(0, 1))
    np.testing.assert_array_equal(
        TaskReader(published).array("emg", np.int64(1), (np.int32(2), np.uint8(4))),  # type: ignore[arg-type]
        emg_of(1)[:, 2:4],
    )


# --- what cannot be asked -----------------------------------------------------------------------


@pytest.fixture(params=["published", "cut_off"])
def task_folder(request: pytest.FixtureRequest) -> Path:
    """A task that is published, and one that is read from its journal."""
    return Path(request.getfixturevalue(request.param))


def test_unknown_names_are_told_with_the_known_ones(task_folder: Path) -> None:
    """An array, pickle or trial that does not exist is an error that says what there is."""
    reader = TaskReader(task_folder)
    for ask in (reader.array, reader.iterarray, reader.info):
        with pytest.raises(InvalidName, match=r"no array 'eeg'; it has \['emg'\]"):
            ask("eeg")
    with pytest.raises(InvalidName, match="no pickle 'missing'"):
        reader.pickle("missing")
    with pytest.raises(InvalidName, match="pickle name"):
        reader.pickle("../p1/reach/calibration")
    for trial in (3, -1, "1", None):
        if trial is not None:
            with pytest.raises(InvalidTrial, match="no trial"):
                reader.array("emg", trial)  # type: ignore[arg-type]


def test_trials_that_cannot_be_stacked_are_named(lab: Lab) -> None:
    """``array(name)`` says which trials do not fit the first, by shape or by type."""
    task = lab.create(arrays={"x": ArrayInfo(stack_axis=0)})
    shapes: list[Any] = [np.zeros((2, 3)), np.zeros((1, 3)), np.zeros((2, 4)), np.zeros(4), None]
    shapes.append(np.zeros((1, 3), [("a", "f4")]))
    for data in shapes:
        if data is not None:
            task.append("x", data)
        task.write({})
    task.append("mixed", np.zeros((1, 3), "M8[s]"))
    task.write({})
    task.append("mixed", np.zeros((1, 3), "f4"))
    task.write({})
    task.flush()
    reader = TaskReader(task.root)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"'x'.*trials \[2, 3, 5\] do not fit trial 0"
        ) as caught:
            reader.array("x")
        assert isinstance(caught.value, InvalidTrial)
        with pytest.raises(InvalidTrial, match=r"trials \[7\] do not fit trial 6"):
            reader.array("mixed")
        with pytest.raises(InvalidTrial, match=r"trial 4 .* no array 'x'"):
            reader.array("x", 4)
        assert [array is None for array in reader.iterarray("x")] == [
            *(False, False, False, False, True, False, True, True)
        ]
        task.close()


def test_a_task_must_be_a_folder(tmp_path: Path) -> None:
    """A reader of nothing is refused at once."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(TaskNotFound, match=path.name):
            TaskReader(path)


# --- the storage --------------------------------------------------------------------------------


def test_a_root_that_does_not_exist_holds_nothing(tmp_path: Path) -> None:
    """Nothing is listed, nothing found, and nothing made."""
    storage = StorageReader(tmp_path / "data")
    storage.subject_id = "p0"
    assert (storage.subject_ids, storage.task_ids) == ([], [])
    assert storage.catalogue().empty
    assert storage.catalogue().index.names == ["subject", "task", "number"]
    with pytest.raises(TaskNotFound, match=r"p0.*reach"):
        storage.require_task("reach")
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """A file in the root's place is named."""
    (tmp_path / "data").touch()
    storage = StorageReader(tmp_path / "data")
    storage.subject_id = "p0"
    for ask in (lambda: storage.subject_ids, lambda: storage.task_ids, storage.catalogue):
        with pytest.raises(StorageError, match="data"):
            ask()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a:b", " a", "CON", "a\n", "x" * 129, None])
def test_names_are_checked(tmp_path: Path, name: Any) -> None:
    """No name of a subject or task can lead anywhere else."""
    storage = StorageReader(tmp_path)
    with pytest.raises(InvalidName):
        storage.subject_id = name
    assert storage.subject_id is None
    with pytest.raises(InvalidName):
        storage.require_task(name)


def test_names_in_another_normal_form_are_found(tmp_path: Path) -> None:
    """A folder from macOS, whose name is decomposed on the disk, is the one that its name says."""
    composed, decomposed = "r\u00e9sum\u00e9", "re\u0301sume\u0301"
    folder = tmp_path / decomposed / decomposed
    folder.mkdir(parents=True)
    (folder / "trials.csv").write_text("a\n1\n")
    storage = StorageReader(tmp_path)
    assert storage.subject_ids == [decomposed]
    for name in (composed, decomposed):
        storage.subject_id = name
        assert storage.subject_id == composed
        assert storage.task_ids == [decomposed]
        assert storage.require_task(name).trials["a"].tolist() == [1]


def test_representations_name_the_folder(published: Path) -> None:
    """``repr`` tells where one looks."""
    assert repr(TaskReader(published)) == f"TaskReader({str(published)!r})"
    assert repr(StorageReader("data")) == "StorageReader('data')"


def test_the_catalogue_keeps_values_and_types(tmp_path: Path) -> None:
    """One row per trial of all tasks; no integer becomes a float because another task has none."""
    big = 2**60 + 1
    rows: dict[str, list[dict[str, Any]]] = {
        "a": [{"int": big, "bool": True, "float": 0.5, "both": big, "text": "007"}],
        "b": [{"int": 1, "float": float("nan"), "both": 0.5, "wide": 2**63}, {}],
        "c": [{"int": 2, "bool": False, "wide": big, "text": "a"}],
        "empty": [],
    }
    with open_lab(tmp_path / "data") as lab:
        for name, trials in rows.items():
            with lab.create(name) as task:
                for trial in trials:
                    task.write(trial)
        with lab.create("recording") as task:
            task.write({"int": 3, "bool": True})
            task.flush()
            catalogue = StorageReader(tmp_path / "data").catalogue()
    assert catalogue.index.names == ["subject", "task", "number"]
    assert catalogue.index.tolist() == [
        ("p0", "a", 0), ("p0", "b", 0), ("p0", "b", 1), ("p0", "c", 0), ("p0", "recording", 0),
    ]  # fmt: skip
    assert list(catalogue.columns) == ["int", "bool", "float", "both", "text", "wide"]
    assert catalogue.dtypes.astype(str).to_dict() == {
        "int": "Int64", "bool": "boolean", "float": "Float64", "both": "object", "text": "object",
        "wide": "UInt64",
    }  # fmt: skip
    assert catalogue["int"].tolist() == [big, 1, pd.NA, 2, 3]
    assert catalogue["both"].tolist() == [big, 0.5, None, None, None]
    assert catalogue["text"].tolist() == ["007", None, None, "a", None]
    assert catalogue["wide"].tolist() == [pd.NA, 2**63, pd.NA, big, pd.NA]
    assert catalogue["float"].isna().tolist()[2:] == [True] * 3
    assert catalogue["bool"].tolist() == [True, pd.NA, pd.NA, False, True]


def test_a_damaged_task_is_left_out_of_the_catalogue_and_named(published: Path) -> None:
    """The other tasks are there; a warning says which is not, and why."""
    good = shutil.copytree(published, published.parent / "good")
    (published / "trials.csv").write_text("n,mark\n")
    with pytest.warns(UserWarning, match=r"left out of the catalogue.*reach.*spreadsheet"):
        catalogue = StorageReader(published.parent.parent).catalogue()
    assert catalogue.index.get_level_values("task").unique().tolist() == [good.name]
    assert len(catalogue) == 3


# --- damage to published files ------------------------------------------------------------------


def test_a_flipped_byte_of_an_array_is_told(published: Path) -> None:
    """The trial is named, the others read as ever, and ``verify=False`` gives what is there."""
    flip(published / "emg.hdf5", samples_of(1))
    reader = TaskReader(published)
    with pytest.raises(DamagedData, match=r"emg\.hdf5.*trial 1") as caught:
        reader.array("emg", trial=1)
    assert (caught.value.path, caught.value.trials) == (published / "emg.hdf5", (1,))
    for number in (0, 2):
        np.testing.assert_array_equal(reader.array("emg", number), emg_of(number))
    arrays = reader.iterarray("emg")
    np.testing.assert_array_equal(next(arrays), emg_of(0))
    with pytest.raises(DamagedData):
        next(arrays)
    with pytest.raises(DamagedData):
        reader.array("emg")
    followed = reader.follow()
    assert next(followed).attrs["n"] == 0
    with pytest.raises(DamagedData):
        next(followed)
    assert len(reader.trials) == 3
    different = reader.array("emg", 1, verify=False) != emg_of(1)
    assert different.sum() == 1
    assert reader.array("emg", verify=False).shape == (6, 20)
    assert len(list(reader.iterarray("emg", verify=False))) == 3


def replaced_by_equal_bytes(file: h5py.File) -> None:
    data = file["1"][:].view("i8")
    del file["1"]
    file["1"] = data


def shortened(file: h5py.File) -> None:
    data = file["1"][:, :10]
    del file["1"]
    file["1"] = data


def reshaped(file: h5py.File) -> None:
    data = file["1"][:].reshape(4, 10)
    del file["1"]
    file["1"] = data


def deleted(file: h5py.File) -> None:
    del file["1"]


def exchanged(file: h5py.File) -> None:
    file.move("1", "x")
    file.move("2", "1")
    file.move("x", "2")


@pytest.mark.parametrize("harm", [replaced_by_equal_bytes, shortened, reshaped, deleted, exchanged])
def test_an_edited_array_is_told(published: Path, harm: Callable[[h5py.File], None]) -> None:
    """Data of another type, another length or another trial never pass for what was recorded."""
    with h5py.File(published / "emg.hdf5", "a") as file:
        harm(file)
    reader = TaskReader(published)
    np.testing.assert_array_equal(reader.array("emg", 0), emg_of(0))
    for window in (None, (0, 5), (5, 15), (15, 20)):
        with pytest.raises(DamagedData) as caught:
            reader.array("emg", 1, window)
        assert caught.value.trials == (1,)


def test_a_window_without_samples_tells_of_a_missing_dataset(published: Path) -> None:
    """Not even an empty window of something that is gone is given out."""
    with h5py.File(published / "emg.hdf5", "a") as file:
        del file["1"]
    with pytest.raises(DamagedData):
        TaskReader(published).array("emg", 1, (5, 5))


@pytest.mark.parametrize("size", [0, 100, 1000, -1, -500])
def test_a_truncated_array_file_is_told(published: Path, size: int) -> None:
    """A file that was cut short is damaged, wherever it was cut, and never a crash."""
    path = published / "emg.hdf5"
    data = path.read_bytes()
    path.write_bytes(data[:size])
    with pytest.raises(DamagedData, match=r"emg\.hdf5"):
        list(TaskReader(published).iterarray("emg"))


def test_a_missing_array_file_is_told(published: Path) -> None:
    """A file that was deleted is named, and the array is not forgotten."""
    (published / "emg.hdf5").unlink()
    reader = TaskReader(published)
    assert reader.array_names == ["emg"]
    for ask in (lambda: reader.array("emg", 0), lambda: list(reader.iterarray("emg"))):
        with pytest.raises(DamagedData, match=r"emg\.hdf5"):
            ask()


def test_a_table_saved_by_a_spreadsheet_is_told(published: Path) -> None:
    """A table that was saved again, its numbers in another format, is not taken for ours."""
    table = published / "trials.csv"
    frame = pd.read_csv(table)
    frame["n"] = frame["n"].astype(float)
    frame.to_csv(table, index=False)
    reader = TaskReader(published)
    with pytest.raises(DamagedData, match="spreadsheet") as caught:
        _ = reader.trials
    assert caught.value.path == table
    with pytest.raises(DamagedData):
        next(reader.follow())
    np.testing.assert_array_equal(reader.array("emg", 1), emg_of(1))


@pytest.mark.parametrize("name", ["trials.csv", "timing.csv"])
@pytest.mark.parametrize("harm", ["flip", "append", "delete"])
def test_a_changed_table_is_told(published: Path, name: str, harm: str) -> None:
    """One byte more, fewer or other, or no file at all."""
    path = published / name
    if harm == "delete":
        path.unlink()
    elif harm == "append":
        path.write_bytes(path.read_bytes() + b"\n")
    else:
        path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    reader = TaskReader(published)
    with pytest.raises(DamagedData, match=name):
        _ = (reader.trials, reader.timing)


def edited(text: str) -> str:
    assert '"n"' in text
    return text.replace('"rig":"A"', '"rig":"B"')


MANIFESTS: dict[str, tuple[Callable[[str], str], type[StorageError], str]] = {
    "edited": (edited, DamagedData, "edited or damaged"),
    "saved by an editor": (lambda text: json.dumps(json.loads(text)), DamagedData, "checksum"),
    "truncated": (lambda text: text[: len(text) // 2], FormatError, "cut short"),
    "empty": (lambda _: "", FormatError, "cut short"),
    "newer": (lambda text: text.replace('"version": 1', '"version": 2'), FormatError, "update"),
    "not ours": (lambda _: '{"format": "other"}', FormatError, "not a manifest of trialstore"),
    "no object": (lambda _: "[1, 2]", FormatError, "not a manifest of trialstore"),
    "deep": (lambda _: "[" * 100_000, FormatError, "not a manifest of trialstore"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_cannot_be_believed_is_told(published: Path, name: str) -> None:
    """Nothing is read with the help of a manifest that is not as we wrote it."""
    change, error, message = MANIFESTS[name]
    path = published / "manifest.json"
    changed = change(path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    reader = TaskReader(published)
    asks: list[Callable[[], object]] = [
        lambda: reader.status,
        lambda: reader.trials,
        lambda: reader.metadata,
        lambda: reader.array("emg", 0),
        lambda: reader.pickle("calibration"),
        lambda: next(reader.follow()),
    ]
    for ask in asks:
        with pytest.raises(error, match=message):
            ask()


def test_a_reader_sees_a_manifest_that_is_repaired(published: Path) -> None:
    """The reader that complained goes on when the file is back."""
    path = published / "manifest.json"
    whole = path.read_bytes()
    reader = TaskReader(published)
    path.write_bytes(whole[:-10])
    with pytest.raises(FormatError):
        _ = reader.status
    path.write_bytes(whole)
    check(reader, 3)


def test_a_journal_that_is_gone_is_told(cut_off: Path) -> None:
    """A task that is not published and has no journal is not an empty task."""
    reader = TaskReader(cut_off)
    check(reader, 3)
    shutil.move(cut_off / "journal", cut_off.parent / "elsewhere")
    with pytest.raises(DamagedData, match=r"journal .* is gone"):
        _ = reader.trials
    shutil.move(cut_off.parent / "elsewhere", cut_off / "journal")
    check(reader, 3)


# --- damage to a journal, and losses ------------------------------------------------------------


@pytest.mark.parametrize("is_published", [False, True], ids=["journal", "published"])
def test_samples_that_were_lost_are_told(cut_off: Path, is_published: bool) -> None:
    """The row of the trial is kept, its array raises, and ``losses`` says what and where."""
    flip(cut_off / "journal/000001.segment", samples_of(1, 6))
    if is_published:
        publish_once(cut_off, {})
    reader = TaskReader(cut_off)
    assert reader.status == "interrupted"
    assert reader.trials["n"].tolist() == [0, 1, 2]
    (loss,) = reader.losses
    assert (loss.trials, loss.what, loss.kind) == ((1,), "array 'emg'", "damaged")
    assert "000001.segment" in loss.file
    for trial in (1, None):
        with pytest.raises(DamagedData, match="trial 1") as caught:
            reader.array("emg", trial)
        assert caught.value.trials == (1,)
    arrays = reader.iterarray("emg")
    np.testing.assert_array_equal(next(arrays), emg_of(0))
    with pytest.raises(DamagedData, match="trial 1"):
        next(arrays)
    np.testing.assert_array_equal(reader.array("emg", 2), emg_of(2))
    assert {0, 2} <= reader.info("emg").shapes.keys()


@pytest.mark.parametrize("is_published", [False, True], ids=["journal", "published"])
def test_a_row_that_was_lost_is_told(cut_off: Path, is_published: bool) -> None:
    """The trial is left out, the others keep their numbers and types, and asking for it raises."""
    flip(cut_off / "journal/000001.segment", b"marked-1")
    if is_published:
        publish_once(cut_off, {})
    reader = TaskReader(cut_off)
    frame = reader.trials
    assert frame.index.tolist() == [0, 2]
    assert frame["n"].tolist() == [0, 2]
    assert frame["n"].dtype == np.int64
    assert reader.timing.index.tolist() == [0, 2]
    assert [loss.trials for loss in reader.losses] == [(1,)]
    assert reader.losses[0].kind == "damaged"
    with pytest.raises(DamagedData, match=r"trial 1 .* is lost") as caught:
        reader.array("emg", 1)
    assert caught.value.trials == (1,)
    for number, array in zip((0, 2), reader.iterarray("emg"), strict=True):
        np.testing.assert_array_equal(array, emg_of(number))
    np.testing.assert_array_equal(reader.array("emg"), np.vstack([emg_of(0), emg_of(2)]))
    assert [trial.attrs["n"] for trial in reader.follow()] == [0, 2]
    with pytest.raises(InvalidTrial, match="no trial 3"):
        reader.array("emg", 3)
    storage = StorageReader(cut_off.parent.parent)
    assert storage.catalogue().index.get_level_values("number").tolist() == [0, 2]


def test_what_was_refused_is_a_loss(tmp_path: Path) -> None:
    """With ``on_full="drop"`` what had no room is told by ``losses``, live and published."""
    gated = GatedDisk()
    options: dict[str, Any] = {"on_full": "drop", "queue_bytes": 100_000}
    with disk.use(gated), open_lab(tmp_path / "data", **options) as lab, lab.create() as task:
        reader = TaskReader(task.root)
        task.write({"n": 0})
        task.flush()
        with gated.closed():
            for _ in range(5):
                task.append("emg", np.zeros(4000))
            refused = task.write({"n": 1, "text": "long" * 10_000})
        assert (refused.index, refused.level) == (None, None)
        task.write({"n": 2})
        task.flush()
        live = reader.losses
        assert reader.trials["n"].tolist() == [0, 2]
    published = reader.losses
    assert live == published
    # In as many notes as there were batches meanwhile, of one chunk or more.
    said = [(loss.trials, loss.what.replace("chunks", "chunk"), loss.kind) for loss in published]
    assert {(trials, what.partition(" ")[2], kind) for trials, what, kind in said} == {
        ((1,), "chunk of 'emg'", "refused"),
        ((), "trial", "refused"),
    }
    assert reader.trials["n"].tolist() == [0, 2]
    assert 0 < reader.array("emg", 1).size < 5 * 4000


# --- pickles ------------------------------------------------------------------------------------


def test_pickles_hold_plain_data(lab: Lab) -> None:
    """Containers, NumPy and pandas objects come back, live and published, the newest of a name."""
    plain = {"gain": [1.5, (2, None)], "array": np.arange(3), "index": pd.Index(["a"])}
    with lab.create() as task:
        task.pickle(1, "thing")
        task.pickle(plain, "thing")
        live = TaskReader(task.root).pickle("thing")
    for found in (live, TaskReader(task.root).pickle("thing")):
        assert isinstance(found, dict)
        assert found["gain"] == plain["gain"]
        np.testing.assert_array_equal(found["array"], plain["array"])
        assert found["index"].equals(plain["index"])


def test_pickles_of_anything_else_must_be_trusted(lab: Lab) -> None:
    """A pickle that names a class outside the list raises and names it; trusted, it loads."""
    with lab.create() as task:
        task.pickle(Path("somewhere"), "thing")
    for reader in (TaskReader(task.root),):
        with pytest.raises(UntrustedPickle, match=r"thing\.pkl.*pathlib"):
            reader.pickle("thing")
        assert reader.pickle("thing", trusted=True) == Path("somewhere")


def test_a_hostile_pickle_is_not_run(published: Path) -> None:
    """Nothing is executed, and a pickle that was put in the place of ours is not even looked at."""
    hostile = b"cos\nsystem\n(S'touch harmed'\ntR."
    (published / "added.pkl").write_bytes(hostile)
    (published / "calibration.pkl").write_bytes(hostile)
    reader = TaskReader(published)
    with pytest.raises(UntrustedPickle, match="system"):
        reader.pickle("added")
    with pytest.raises(DamagedData, match="changed or damaged"):
        reader.pickle("calibration", trusted=True)
    assert not Path("harmed").exists()


@pytest.mark.parametrize("harm", ["flip", "cut", "delete", "folder"])
def test_a_damaged_pickle_is_told(published: Path, harm: str) -> None:
    """A pickle that was published and is not as it was raises, whatever happened to it."""
    path = published / "calibration.pkl"
    data = path.read_bytes()
    path.unlink()
    if harm == "flip":
        path.write_bytes(data.replace(b"gain", b"pain"))
    elif harm == "cut":
        path.write_bytes(data[:-1])
    elif harm == "folder":
        path.mkdir()
    with pytest.raises(DamagedData, match=r"calibration\.pkl"):
        TaskReader(published).pickle("calibration")


def test_a_pickle_that_is_being_written_is_left_alone(cut_off: Path) -> None:
    """A new publisher removes what a dead one has left, and nothing of the recorder's."""
    ours = cut_off / ".manifest.json.4711.building"
    left = cut_off / ".emg.hdf5.publisher-0123456789ab.building"
    for path in (ours, left):
        path.touch()
    publisher = TaskPublisher(cut_off)
    publisher.follow()
    assert [ours.exists(), left.exists()] == [True, False]
    publisher.finish()
    publisher.close()
    assert not ours.exists()


# --- durable and not ----------------------------------------------------------------------------


def test_a_reader_never_shows_a_trial_that_is_not_durable(tmp_path: Path) -> None:
    """Until the disk has said that a trial is safe no reader has it, though its bytes are there."""
    gated = GatedDisk()
    with disk.use(gated), open_lab(tmp_path / "data") as lab, lab.create() as task:
        record(task, range(1))
        task.flush()
        readers = [TaskReader(task.root), TaskReader(task.root)]
        check(readers[0], 1)
        with gated.closed():
            # In one piece: a batch begun with the first of several would hang at the gate alone.
            trial = Trial({"n": 1, "mark": "marked-1"})
            trial.add_array("emg", data=emg_of(1))
            receipt = task.write(trial)
            segment = task.root / "journal/000001.segment"
            assert wait_until(lambda: b"marked-1" in segment.read_bytes())
            assert gated.reached.wait(10)
            for reader in [*readers, TaskReader(task.root)]:
                check(reader, 1)
                assert next(reader.follow()).attrs["n"] == 0
            assert receipt.level is not None
            assert receipt.level < Level.DURABLE
        task.flush()
        assert receipt.level >= Level.DURABLE
        for reader in [*readers, TaskReader(task.root)]:
            check(reader, 2)


RECORDER = """
import os, signal, sys, anyio, numpy as np
from trialstore import Storage

def emg_of(number):
    return np.arange(40.0).reshape(2, 20) + 1000 * number

async def main():
    async with Storage(sys.argv[1]) as storage:
        storage.subject_id = "p0"
        async with storage.create_task("reach") as task:
            print("ready", flush=True)
            for number in range(int(sys.argv[2])):
                for start in range(0, 20, 5):
                    await task.append("emg", emg_of(number)[:, start : start + 5])
                receipt = await task.write({"n": number, "mark": f"marked-{number}"})
                if number % 10 == 9:
                    await receipt.durable()
                    print(number, flush=True)
            if sys.argv[3] == "killed":
                await task.append("emg", emg_of(number))
                await task.flush()
                print("flushed", flush=True)
                await anyio.sleep_forever()

anyio.run(main)
"""


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a recorder in a process of its own: number of trials, and how it ends."""
    started: list[subprocess.Popen[str]] = []

    def start(trials: int, end: str = "closed") -> subprocess.Popen[str]:
        arguments = [sys.executable, "-c", RECORDER, str(tmp_path / "data"), str(trials), end]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.slow
def test_following_another_process_ends_when_the_task_is_closed(
    tmp_path: Path, recorder: Callable[..., subprocess.Popen[str]]
) -> None:
    """``follow`` yields every trial, once, in order, with attributes and arrays, and then ends."""
    process = recorder(200)
    reader = TaskReader(tmp_path / "data/p0/reach")
    for number, trial in enumerate(reader.follow()):
        assert isinstance(trial, Trial)
        assert trial.attrs == {"n": number, "mark": f"marked-{number}"}
        np.testing.assert_array_equal(trial.arrays["emg"].data, emg_of(number))
    assert number == 199
    assert process.wait(10) == 0
    check(reader, 200)
    assert [trial.attrs["n"] for trial in reader.follow()] == list(range(200))


@pytest.mark.slow
@pytest.mark.leaves_files
def test_following_another_process_ends_when_it_is_killed(
    tmp_path: Path, recorder: Callable[..., subprocess.Popen[str]]
) -> None:
    """The recorder is killed with -9: all durable trials come, then ``follow`` ends."""
    process = recorder(20, "killed")
    reader = TaskReader(tmp_path / "data/p0/reach")
    followed = reader.follow()
    seen = [trial.attrs["n"] for trial in itertools.islice(followed, 20)]
    assert process.stdout is not None
    while process.stdout.readline() != "flushed\n":
        pass
    assert reader.status == "recording"
    process.send_signal(signal.SIGKILL)
    process.wait()
    seen += [trial.attrs["n"] for trial in followed]
    assert seen == list(range(20))
    assert reader.status == "interrupted"
    # Its publisher goes on alone, and the reader with it.
    assert wait_until(lambda: not (reader.root / "journal").exists())
    assert reader.status == "interrupted"
    check(reader, 20)


@pytest.mark.slow
def test_a_live_reader_sees_a_growing_prefix(
    tmp_path: Path, recorder: Callable[..., subprocess.Popen[str]]
) -> None:
    """At any moment: the first trials, whole, no fewer than before, and all that are durable."""
    process = recorder(300)
    reader = TaskReader(tmp_path / "data/p0/reach")
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        count = len(reader.trials)
        assert count > int(line), "a durable trial is missing"
        assert count >= seen
        frame = reader.trials
        assert frame["n"].tolist() == list(range(len(frame)))
        np.testing.assert_array_equal(reader.array("emg", count - 1), emg_of(count - 1))
        seen = count
    assert process.wait(10) == 0
    check(reader, 300)


def test_a_reader_process_needs_no_event_loop_and_no_recorder(published: Path) -> None:
    """A script of three lines reads a task; nothing loads a loop, and importing not even h5py."""
    script = textwrap.dedent("""
        import sys
        import trialstore
        assert not {"anyio", "h5py", "pandas", "asyncio"} & sys.modules.keys()
        storage = trialstore.StorageReader(sys.argv[1])
        assert not {"anyio", "h5py", "pandas", "asyncio"} & sys.modules.keys()
        for storage.subject_id in storage.subject_ids:
            for task in storage.task_ids:
                assert storage.require_task(task).array("emg").shape == (6, 20)
        assert not {"anyio", "asyncio"} & sys.modules.keys()
        """)
    command = [sys.executable, "-c", script, str(published.parent.parent)]
    subprocess.run(command, check=True)
