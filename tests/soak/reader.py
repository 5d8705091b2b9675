"""``python -m tests.soak.reader ROOT SEED``: follows and reads at random until its input closes.

One JSON line at the end: what was read, and every difference from what was recorded.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tests.soak.content import array_of, attrs_of
from trialstore import FormatError, StorageError, TaskReader

if TYPE_CHECKING:
    from trialstore import Trial

_PROBLEMS_KEPT: Final = 10


class Reading:
    """Counts what is read and keeps what is wrong."""

    def __init__(self, root: Path, seed: int) -> None:
        self._root = root
        self._dice = random.Random(seed)
        self.followed = 0
        self.reads = 0
        self.problems: list[str] = []
        self._readable: set[Path] = set()

    def run(self) -> None:
        """Read for ever; something of everything, the newest task most of all."""
        while True:
            tasks = sorted(self._root.glob("*/*/manifest.json"), key=_age)
            if not tasks:
                time.sleep(0.05)
                continue
            newest = self._dice.random() < 0.7
            folder = (tasks[0] if newest else self._dice.choice(tasks)).parent
            try:
                self._look_at(folder, follow=newest)
                self._readable.add(folder)
            except StorageError as error:
                # Where the disk refused to create a task, what was begun has been taken away again
                # since we found it; nothing was accepted there. What could be read must stay so.
                is_gone = isinstance(error, FormatError) and "has no trials.csv" in str(error)
                if not is_gone or folder in self._readable:
                    self._wrong(f"{folder}: {error!r}")

    def _look_at(self, folder: Path, *, follow: bool) -> None:
        reader = TaskReader(folder)
        if follow:
            for number, trial in enumerate(reader.follow()):
                self._compare(folder, number, trial)
                self.followed += 1
            return
        rows = reader.trials
        if reader.losses:
            self._wrong(f"{folder}: {reader.losses}")
        for _ in range(min(5, len(rows))):
            index = self._dice.randrange(len(rows))
            whole = array_of(int(rows["task"].iloc[index]), index)
            start = self._dice.randrange(whole.shape[1])
            end = self._dice.randrange(start, whole.shape[1] + 200)
            found = reader.array("emg", trial=index, window=(start, end))
            if not np.array_equal(found, whole[:, start:end]):
                self._wrong(f"{folder}: samples [{start}, {end}) of trial {index}")
            self.reads += 1

    def _compare(self, folder: Path, number: int, trial: Trial) -> None:
        task = int(trial.attrs["task"])
        if trial.attrs != attrs_of(task, number):
            self._wrong(f"{folder}: trial {number} is {trial.attrs}")
        found = trial.arrays["emg"].data
        if found is None or not np.array_equal(found, array_of(task, number)):
            self._wrong(f"{folder}: samples of trial {number}")

    def _wrong(self, what: str) -> None:
        if len(self.problems) < _PROBLEMS_KEPT:
            self.problems.append(what)

    def summary(self) -> dict[str, Any]:
        """Return what came of it."""
        return {"followed": self.followed, "reads": self.reads, "problems": self.problems}


def _age(path: Path) -> float:
    try:
        return -path.parent.stat().st_ctime
    except OSError:
        return 0.0


def main() -> None:
    """Read in a thread until standard input closes, then tell and end."""
    reading = Reading(Path(sys.argv[1]), int(sys.argv[2]))
    ended: list[str] = []

    def work() -> None:
        try:
            reading.run()
        except Exception as error:  # noqa: BLE001 - told at the end
            ended.append(f"the reader died of {error!r}")

    threading.Thread(target=work, daemon=True).start()
    sys.stdin.read()
    told = reading.summary()
    told["problems"] += ended
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    os._exit(0)  # it may be in the middle of a read, or waiting for a trial


if __name__ == "__main__":
    main()
