"""What must be true of every crash state: recorded lives, remembered, and looked for again."""

from __future__ import annotations

import contextlib
import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
import pytest

from trialstore import ArrayInfo, InvalidTrial, Storage, StorageError, TaskReader
from trialstore._ondisk import pickles

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from numpy.typing import NDArray

    from trialstore import TaskWriter
    from trialstore.testing import PowerCutDisk, State


@dataclass(slots=True)
class Life:
    """One task from its creation on: what it was given, and when that was acknowledged."""

    disk: PowerCutDisk
    number: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    arrays: dict[tuple[int, str], NDArray[Any]] = field(default_factory=dict)
    #: Position of the log at which each trial was durable, and each pickle (by its value) stored.
    durable: dict[int, int] = field(default_factory=dict)
    pickles: dict[int, int] = field(default_factory=dict)

    async def trial(self, task: TaskWriter, samples: int = 0, *, wait: bool = True) -> None:
        """Record one trial, with an array in two chunks if it has samples."""
        index = len(self.rows)
        if samples:
            whole = np.arange(2.0 * samples).reshape(2, samples) + 1000 * index
            self.arrays[index, "emg"] = whole
            await task.append("emg", whole[:, : samples // 2])
            await task.append("emg", whole[:, samples // 2 :])
        if index % 3 == 2:
            self.arrays[index, "key"] = np.array([index], "u1")
            await task.append("key", self.arrays[index, "key"])
        self.rows.append({"n": index, "code": f"00{index}"})
        receipt = await task.write(self.rows[-1])
        if wait:
            await receipt.durable()
            self.acknowledge()

    def acknowledge(self) -> None:
        """Everything that was recorded is durable now."""
        position = self.disk.position
        for index in range(len(self.rows)):
            self.durable.setdefault(index, position)

    async def pickle(self, task: TaskWriter, value: int) -> None:
        """Store a pickle, replacing the last one."""
        await task.pickle({"life": self.number, "value": value}, "calibration")
        self.pickles[value] = self.disk.position

    def acknowledged(self, position: int) -> set[int]:
        """Trials that were durable when `position` operations had been done."""
        return {index for index, since in self.durable.items() if since <= position}


@contextlib.asynccontextmanager
async def recording(root: Path, life: Life, how: str) -> AsyncIterator[TaskWriter]:
    """Open the task ``p0/reach`` in a Storage of its own: ``create``, ``resume``, ``replace``."""
    second = root.parent / "second"
    async with Storage(root, allow_overwrite=how == "replace", fallback_root=second) as storage:
        storage.subject_id = "p0"
        if how == "resume":
            opening = storage.resume_task("reach")
        else:
            info = {"emg": ArrayInfo(rate=100.0, unit="mV")}
            opening = storage.create_task("reach", metadata={"life": life.number}, arrays=info)
        async with opening as task:
            yield task


async def two_lives(root: Path, disk: PowerCutDisk) -> list[Life]:
    """Record, fail over twice, publish, resume, publish, overwrite, publish."""
    first, second = Life(disk, 1), Life(disk, 2)
    async with recording(root, first, "create") as task:
        await first.trial(task)
        await first.trial(task, 40)
        await first.trial(task, 700)
        await first.pickle(task, 1)
        disk.fail("sync", only="*.segment")
        await first.trial(task, 20)
        disk.fail("write", only="*.segment", moment="halfway", code=errno.ENOSPC)
        await first.trial(task, 30, wait=False)
        await first.trial(task, wait=False)
        await task.flush()
        first.acknowledge()
        await first.pickle(task, 2)
        await task.append("emg", np.zeros((2, 3)))  # of a trial that never comes
    async with recording(root, first, "resume") as task:
        await first.trial(task, 50)
        await first.trial(task)
    async with recording(root, second, "replace") as task:
        await second.trial(task, 10)
        await second.pickle(task, 1)
        await second.trial(task)
    return [first, second]


def check(state: State, folder: Path, lives: list[Life]) -> None:
    """Hold one materialised state against what was recorded (I1, I2, I3, I6)."""
    tasks = [path for path in (folder / "data/p0/reach",) if path.is_dir()]
    tasks += sorted((folder / "data.trash/p0").glob("reach.2*"))
    found: dict[int, set[int]] = {life.number: set() for life in lives}
    for task in tasks:
        if not any(task.iterdir()):  # its name was all that there was of it yet
            continue
        reader = TaskReader(task)
        try:
            number = reader.metadata.get("life")
        except StorageError:
            # A task that could not be opened, cut off while it was taken back: nothing is in it.
            assert not any(life.acknowledged(state.position) for life in lives), state
            continue
        life = next((life for life in lives if life.number == number), None)
        if life is None:
            assert reader.trials.empty, state
        else:
            found[life.number] |= check_task(state, reader, life)
        check_published(state, task, lives)
    for life in lives:
        missing = life.acknowledged(state.position) - found[life.number]
        assert not missing, f"{state}: life {life.number} has lost {missing}"
        check_pickles(state, folder, life)


def check_task(state: State, reader: TaskReader, life: Life) -> set[int]:
    """Everything that one reader gives out is what was recorded; return which trials it has."""
    hurt = {trial for loss in reader.losses for trial in loss.trials}
    assert not hurt & life.acknowledged(state.position), f"{state}: {reader.losses}"
    assert {loss.kind for loss in reader.losses} <= {"torn"}, f"{state}: {reader.losses}"
    if "emg" in reader.array_names:
        assert (reader.info("emg").rate, reader.info("emg").unit) == (100.0, "mV"), state
    rows = reader.trials
    for index, row in zip(rows.index, rows.to_dict("records"), strict=True):
        assert row == life.rows[index], state
        names = {name for number, name in life.arrays if number == index}
        for name in names | set(reader.array_names):
            if index not in hurt:  # a commit may be whole whose chunks never were: it is named
                check_array(state, reader, life, index, name)
    return set(rows.index)


def check_array(state: State, reader: TaskReader, life: Life, index: int, name: str) -> None:
    """An array is there exactly where one was recorded, and equal."""
    recorded = life.arrays.get((index, name))
    if recorded is None:
        with pytest.raises(InvalidTrial):
            reader.array(name, trial=index)
        return
    found = reader.array(name, trial=index)
    assert (found.dtype, found.shape) == (recorded.dtype, recorded.shape), state
    assert found.tobytes() == recorded.tobytes(), f"{state}: {name} of {index}"


def check_published(state: State, task: Path, lives: list[Life]) -> None:
    """Whatever stands under a published name is whole, by programs that know nothing of us."""
    table = task / "trials.csv"
    if table.exists():
        # A task without trials has no columns, and its table not a byte.
        size = table.stat().st_size
        rows = pd.read_csv(table, dtype={"code": "str"}).to_dict("records") if size else []
        assert any(rows == life.rows[: len(rows)] for life in lives), state
    for path in task.glob("*.hdf5"):
        with h5py.File(path) as file:
            arrays = {int(key): file[key][()] for key in file if key != "timing"}
        assert any(
            all(
                (index, path.stem) in life.arrays
                and array.tobytes() == life.arrays[index, path.stem].tobytes()
                for index, array in arrays.items()
            )
            for life in lives
        ), f"{state}: {path.name}"


def check_pickles(state: State, folder: Path, life: Life) -> None:
    """The last pickle that was stored is there or in the trash; what is there is whole."""
    stored = [value for value, since in life.pickles.items() if since <= state.position]
    places = [folder / "data/p0/reach/calibration.pkl"]
    places += sorted((folder / "data.trash/p0").glob("reach.2*/calibration.pkl"))
    found = [read_pickle(place) for place in places if place.exists()]
    thrown = sorted((folder / "data.trash/p0").glob("reach.calibration.pkl.*"))
    found += [read_pickle(place) for place in thrown]
    values = [value["value"] for value in found if value["life"] == life.number]
    assert not stored or max(stored) in values, state


def read_pickle(path: Path) -> dict[str, int]:
    """Load one of our pickles."""
    loaded = pickles.loads(path.read_bytes(), trusted=False, path=path)
    assert isinstance(loaded, dict)
    return loaded
