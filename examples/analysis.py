"""Reading what ``reaching.py`` recorded: ordinary synchronous calls, no event loop.

Run it with ``python examples/analysis.py [FOLDER]``, also while something is being recorded there.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from trialstore import StorageReader

if TYPE_CHECKING:
    from trialstore import TaskReader

MOVING = 20.0  # cm/s; a hand that is faster has begun to move


def reaction_time(reader: TaskReader, trial: int, rate: float) -> float:
    """Return the time, in s, until the hand of one trial begins to move."""
    hand = reader.array("hand", trial=trial)  # shape (2, samples), checked against its checksum
    speed = np.linalg.norm(np.diff(hand, axis=1), axis=0) * rate
    moving = speed > MOVING
    return float(np.argmax(moving) / rate) if moving.any() else float("nan")


def report(reader: TaskReader) -> None:
    """Print the trials of one task and the means for each target."""
    info = reader.info("hand")
    print(f"\n{reader.root.name}: {reader.status}, hand in {info.unit} at {info.rate:g} Hz")
    for loss in reader.losses:
        print(f"  missing: {loss.what} of trials {loss.trials}: {loss.evidence}")
    trials = reader.trials  # a pandas.DataFrame; its index is the number of the trial
    trials["reaction_s"] = [reaction_time(reader, n, info.rate or 1.0) for n in trials.index]
    print(trials.to_string())
    print(trials.groupby("target")[["hit", "miss_cm", "reaction_s"]].mean())


def main(root: str) -> None:
    """Report every reaching task of every subject."""
    storage = StorageReader(root)
    for subject in storage.subject_ids:
        storage.subject_id = subject
        for task in storage.task_ids:
            if task.startswith("reach"):
                report(storage.require_task(task))
    print("\nAll trials of all subjects and tasks, one row each:")
    print(storage.catalogue().to_string())


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "data")
