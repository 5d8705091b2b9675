"""What people write by hand, with what Python brings along and with h5py."""

from __future__ import annotations

import csv
import json
import sqlite3
from typing import TYPE_CHECKING, Any, ClassVar

import h5py
import numpy as np

from tests.benchmarks.peers.threaded import Threaded

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.benchmarks.peers import Trials


class Hdf5Csv(Threaded):
    """One dataset per trial in a file that stays open and is flushed, and a row of a CSV file."""

    PATTERN: ClassVar[str] = (
        "file kept open, one dataset per trial, File.flush and a CSV row flushed after each; "
        "asyncio.Queue and asyncio.to_thread; never synced, as h5py never syncs"
    )

    def start(self) -> None:
        self._file = h5py.File(self.folder / "emg.hdf5", "w")
        self._rows = (self.folder / "trials.csv").open("w", newline="")
        self._writer: csv.DictWriter[str] | None = None

    def save(self, trial: int, attrs: dict[str, Any], array: NDArray[Any] | None) -> None:
        if array is not None:
            self._file.create_dataset(str(trial), data=array)
            self._file.flush()
        if self._writer is None:
            self._writer = csv.DictWriter(self._rows, list(attrs))
            self._writer.writeheader()
        self._writer.writerow(attrs)
        self._rows.flush()

    def finish(self) -> None:
        self._file.close()
        self._rows.close()

    @staticmethod
    def read(folder: Path) -> Trials:
        with (
            h5py.File(folder / "emg.hdf5") as file,
            (folder / "trials.csv").open(newline="") as rows,
        ):
            for trial, row in enumerate(csv.DictReader(rows)):
                yield row, file[str(trial)][()] if str(trial) in file else None


class Hdf5Reopened(Hdf5Csv):
    """The same with the file opened and closed for each trial, against losing all in a crash."""

    PATTERN: ClassVar[str] = (
        "file opened, one dataset, file closed for each trial, and a CSV row flushed; "
        "asyncio.Queue and asyncio.to_thread; never synced"
    )

    def start(self) -> None:
        super().start()
        self._file.close()

    def save(self, trial: int, attrs: dict[str, Any], array: NDArray[Any] | None) -> None:
        with h5py.File(self.folder / "emg.hdf5", "a") as self._file:
            super().save(trial, attrs, array)


class SqliteWal(Threaded):
    """One row per trial: attributes as JSON, the array as a blob; a synced commit for each."""

    PATTERN: ClassVar[str] = (
        "journal_mode=WAL, synchronous=FULL, one commit per trial; asyncio.Queue and "
        "asyncio.to_thread"
    )

    def start(self) -> None:
        self._base = sqlite3.connect(
            self.folder / "trials.db", check_same_thread=False, isolation_level=None
        )
        self._base.execute("PRAGMA journal_mode=WAL")
        self._base.execute("PRAGMA synchronous=FULL")
        self._base.execute("CREATE TABLE trials (trial INTEGER PRIMARY KEY, attrs, emg, rows)")

    def save(self, trial: int, attrs: dict[str, Any], array: NDArray[Any] | None) -> None:
        blob, rows = (None, 0) if array is None else (array.data, len(array))
        self._base.execute(
            "INSERT INTO trials VALUES (?, ?, ?, ?)", (trial, json.dumps(attrs), blob, rows)
        )

    def finish(self) -> None:
        self._base.close()

    @staticmethod
    def read(folder: Path) -> Trials:
        base = sqlite3.connect(folder / "trials.db")
        try:
            for attrs, blob, rows in base.execute(
                "SELECT attrs, emg, rows FROM trials ORDER BY trial"
            ):
                array = None if blob is None else np.frombuffer(blob).reshape(rows, -1)
                yield json.loads(attrs), array
        finally:
            base.close()
