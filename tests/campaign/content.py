"""The model: what trial number n of a recording holds, so that any process can tell it again."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trialstore import StorageReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.campaign.frame import Outcome
    from trialstore import TaskReader

SUBJECT: Final = "p0"
TASK: Final = "reach"


def attrs_of(trial: int, epoch: int = 0) -> dict[str, Any]:
    """Return the attributes of a trial: types and columns that change with its number.

    `epoch` tells recordings apart that give the same number again, after a kill or an overwrite.
    """
    attrs: dict[str, Any] = {"n": trial, "code": f"{trial:03d}", "ratio": trial / 7}
    if epoch:
        attrs["epoch"] = epoch
    if trial % 3 == 0:
        attrs["note"] = f"line one\nline two, {trial}"
    if trial % 5 == 0:
        attrs["hit"] = trial % 2 == 0
    return attrs


def arrays_of(trial: int, epoch: int = 0) -> dict[str, list[NDArray[Any]]]:
    """Return the chunks of each array of a trial; every fourth trial has none."""
    if trial % 4 == 3:
        return {}
    noise = np.random.default_rng((trial, epoch))
    emg = [noise.standard_normal((4, 5 + trial % 6)) for _ in range(1 + trial % 4)]
    arrays: dict[str, list[NDArray[Any]]] = {"emg": emg}
    if trial % 2 == 0:
        arrays["key"] = [np.array([trial, trial + 1 + epoch], dtype="<u4")]
    return arrays


@functools.lru_cache(maxsize=4096)
def joined(trial: int, epoch: int = 0) -> dict[str, NDArray[Any]]:
    """Return the arrays of a trial as a reader must give them."""
    return {name: np.hstack(chunks) for name, chunks in arrays_of(trial, epoch).items()}


def first_epoch(_trial: int) -> int:
    """Say that everything was recorded at once: what `verify` assumes unless it is told."""
    return 0


@dataclass(slots=True)
class Promise:
    """What a recorder had said about one task before the fault.

    Parameters
    ----------
    submitted : int
        Trials that may exist: numbers below this were handed over, or were about to be.
    accepted, written, durable, published : set of int
        Trials acknowledged at each level.
    is_open : bool
        The task had been opened.
    publisher : int or None
        The publisher's process.
    """

    submitted: int = 0
    accepted: set[int] = field(default_factory=set)
    written: set[int] = field(default_factory=set)
    durable: set[int] = field(default_factory=set)
    published: set[int] = field(default_factory=set)
    is_open: bool = False
    publisher: int | None = None


def reader_of(root: Path, task: str = TASK) -> TaskReader:
    """Return the reader of the model's task."""
    storage = StorageReader(root)
    storage.subject_id = SUBJECT
    return storage.require_task(task)


def verify(
    root: Path,
    acknowledged: set[int],
    submitted: int,
    outcome: Outcome,
    where: str,
    *,
    task: str = TASK,
    epoch_of: Callable[[int], int] = first_epoch,
    reader: TaskReader | None = None,
) -> int:
    """Hold a task against the model and count breaches; return how many trials it has.

    Parameters
    ----------
    root : pathlib.Path
        The data's root.
    acknowledged : set of int
        Trials that must be there, or be named (I1, I3).
    submitted : int
        No trial may have this number or a higher one (I2).
    outcome : Outcome
        Counts are added here.
    where : str
        What is needed to repeat this try.
    task : str, optional
        The task's name.
    epoch_of : callable, optional
        Which epoch a trial must be of.
    reader : TaskReader, optional
        A task that is not in its usual place.
    """
    outcome.acknowledged += len(acknowledged)
    reader = reader or reader_of(root, task)
    named = {trial for loss in reader.losses for trial in loss.trials}
    frame = reader.trials
    rows = dict(zip(map(int, frame.index), frame.to_dict("records"), strict=True))
    found = rows.keys()
    for trial in sorted(acknowledged - found):
        if trial in named:
            outcome.named += 1
        else:
            outcome.breach("silent", f"{where}: acknowledged trial {trial} is missing")
    for trial in sorted(found):
        if trial >= submitted:
            outcome.breach("wrong", f"{where}: trial {trial} was never handed over")
        elif trial not in named:
            _compare_row(trial, rows[trial], epoch_of(trial), outcome, where)
    expected = {trial: joined(trial, epoch_of(trial)) for trial in sorted(found)}
    _compare_arrays(reader, expected, named, outcome, where)
    return len(found)


def _compare_row(trial: int, row: dict[Any, Any], epoch: int, outcome: Outcome, where: str) -> None:
    import pandas as pd

    found = {str(name): value for name, value in row.items() if not pd.isna(value)}
    if found != attrs_of(trial, epoch):
        outcome.breach("wrong", f"{where}: row {trial} is {found!r}")


def _compare_arrays(
    reader: TaskReader,
    model: dict[int, dict[str, NDArray[Any]]],
    named: set[int],
    outcome: Outcome,
    where: str,
) -> None:
    for name in ("emg", "key"):
        for trial, array in zip(model, _each(reader, name, len(model)), strict=True):
            if trial in named:
                continue
            expected = model[trial].get(name)
            same = (array is None) == (expected is None)
            if same and array is not None and expected is not None:
                same = array.dtype == expected.dtype and np.array_equal(array, expected)
            if not same:
                outcome.breach("wrong", f"{where}: array {name!r} of trial {trial} differs")


def _each(reader: TaskReader, name: str, count: int) -> Iterator[NDArray[Any] | None]:
    if name in reader.array_names:
        yield from reader.iterarray(name)
    else:
        yield from [None] * count
