"""Row 37: published files that are damaged later.

A bit is flipped, everything is read by a process of its own (HDF5 might take it down), and what
comes back is held against what was published: it is the same, or it is refused with an error of
ours that names the file, and the trial.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import anyio

from tests.campaign.content import SUBJECT, TASK, arrays_of, reader_of
from tests.campaign.frame import Effort, Outcome, Row
from tests.campaign.lanes import Child, Hung, Lane, in_lanes
from tests.campaign.recorder import hand_over
from trialstore import ArrayInfo, DamagedData, FormatError, Storage
from trialstore._ondisk import layout
from trialstore._upkeep.checking import check_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np

    from trialstore import TaskReader

_TRIALS: Final = 4
#: A flip after which reading does not end is a finding, too.
_PATIENCE: Final = 120.0
_PICKLE: Final = f"calibration{layout.PICKLE_SUFFIX}"


class Flip(NamedTuple):
    """One bit of one published file."""

    file: str
    at: int
    bit: int

    def __str__(self) -> str:
        return f"bit {self.bit} of byte {self.at} of {self.file}"


class Question(NamedTuple):
    """Something that can be asked of a task, and the file and trial that the answer comes from."""

    what: str
    file: str
    trial: int | None
    ask: Callable[[], Any]


class Breach(Exception):
    """A promise was broken: the kind of breach, and what happened."""


async def _publish(root: Path) -> None:
    """Record and publish the model, with everything that a task can have."""
    rig = {"rig": "A", "gains": [1, 2.5, None]}
    declared = {"emg": ArrayInfo(rate=2000.0, unit="mV", channels=["a", "b", "c", "d"])}
    async with Storage(root) as storage:
        storage.subject_id = SUBJECT
        async with storage.create_task(TASK, metadata=rig, arrays=declared) as task:
            for number in range(_TRIALS):
                await hand_over(task, number)
            await task.pickle({"offsets": list(range(6))}, "calibration")


def _questions(reader: TaskReader) -> Iterator[Question]:
    yield Question("rows", layout.TRIALS, None, lambda: reader.trials.to_dict("list"))
    yield Question("times", layout.TIMING, None, lambda: reader.timing.to_dict("list"))
    yield Question("pickle", _PICKLE, None, lambda: reader.pickle("calibration"))
    for what in ("metadata", "status", "losses", "array_names"):
        yield Question(what, layout.MANIFEST, None, functools.partial(getattr, reader, what))
    for name in ("emg", "key"):
        file = f"{name}{layout.ARRAY_SUFFIX}"
        yield Question(f"info {name}", layout.MANIFEST, None, functools.partial(reader.info, name))
        yield Question(f"all of {name}", file, None, functools.partial(_each, reader, name))
        for trial in (number for number in range(_TRIALS) if name in arrays_of(number)):
            for window in (None, (1, 3)):
                what = f"{name} of trial {trial}, window {window}"
                ask = functools.partial(_one, reader, name, trial, window)
                yield Question(what, file, trial, ask)


def _each(reader: TaskReader, name: str) -> list[object]:
    return [None if array is None else _plain(array) for array in reader.iterarray(name)]


def _one(reader: TaskReader, name: str, trial: int, window: tuple[int, int] | None) -> object:
    return _plain(reader.array(name, trial, window))


def _plain(array: np.ndarray[Any, Any]) -> tuple[str, tuple[int, ...], bytes]:
    return array.dtype.str, array.shape, array.tobytes()


def _answers(root: Path) -> dict[str, str]:
    return {question.what: repr(question.ask()) for question in _questions(reader_of(root))}


def _read_after(root: Path, flip: Flip, known: dict[str, str]) -> bool:
    """Ask everything; return whether something was refused. Raises `Breach`."""
    refused = False
    for question in _questions(reader_of(root)):
        try:
            answer = repr(question.ask())
        except (DamagedData, FormatError) as error:
            refused = True
            _judge_refusal(flip, question, error)
        else:
            if answer != known[question.what]:
                raise Breach("wrong", f"{question.what} is {answer:.200}")
    if refused:
        report = check_task(root / SUBJECT / TASK)
        named = {told.file for told in report.findings} | {told.file for told in report.doubts}
        if report.exit_code == 0 or not any(flip.file in file for file in named):
            raise Breach("silent", f"check does not name the file: {report}")
    return refused


def _judge_refusal(flip: Flip, question: Question, error: DamagedData | FormatError) -> None:
    """Raise unless a refusal names the file that was hit, and the trial that was asked for."""
    path = error.path if isinstance(error, DamagedData) else None
    what = f"{question.what}: {error!r}"
    if flip.file not in {question.file, layout.MANIFEST}:
        raise Breach("broken", f"{what}, and the flip is elsewhere")
    if flip.file not in str(error) and (path is None or path.name != flip.file):
        raise Breach("broken", f"{what} does not name the file")
    is_samples = question.trial is not None and isinstance(error, DamagedData)
    if is_samples and error.trials and question.trial not in error.trials:  # type: ignore[union-attr]
        raise Breach("broken", f"{what} names another trial")


def _read_all(root: Path, flips: list[Flip], known: dict[str, str]) -> None:
    """In a child: flip, read, put right again, and say what came of each."""
    task = root / SUBJECT / TASK
    for number, flip in enumerate(flips):
        os.write(1, f"? {number}\n".encode())
        with (task / flip.file).open("r+b") as file:
            file.seek(flip.at)
            before = file.read(1)
            try:
                _put(task / flip.file, flip.at, bytes([before[0] ^ 1 << flip.bit]))
                said = "refused" if _read_after(root, flip, known) else "same"
            except Breach as breach:
                kind, what = breach.args
                said = f"{kind} {what}".replace("\n", " ")
            except Exception as error:  # noqa: BLE001 - any other error is what the row looks for
                said = f"broken {error!r}".replace("\n", " ")
            finally:
                _put(task / flip.file, flip.at, before)
        os.write(1, f"! {said}\n".encode())


def _put(path: Path, at: int, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, data, at)
    finally:
        os.close(fd)


def flip_published(lane: Lane) -> Outcome:
    """Flip this lane's share of the bits, in children that may be taken down."""
    outcome = Outcome("flips")
    with lane.effort.workspace(memory=True) as folder:
        root = folder / "data"
        anyio.run(_publish, root)
        known = _answers(root)
        flips = _chosen(root / SUBJECT / TASK, lane)
        pristine = {path: path.read_bytes() for path in (root / SUBJECT / TASK).iterdir()}
        while flips:
            with Child(lambda: _read_all(root, flips, known), folder) as child:  # noqa: B023
                end = _end_of(child, len(flips))
                done = _count(outcome, child.lines(), flips)
            if done < len(flips):
                where = f"{lane.name(done)}: {flips[done]}"
                outcome.tried += 1
                outcome.breach("broken", f"{where}: the reader ended with {end}\n{child.errors}")
                done += 1
                for path, data in pristine.items():
                    path.write_bytes(data)
            flips = flips[done:]
    return outcome


def _end_of(child: Child, flips: int) -> int:
    with contextlib.suppress(Hung):
        # Reading the pipe keeps the child from waiting for us.
        child.listen(_PATIENCE + flips, until=f"? {flips}".encode())
        return child.wait(_PATIENCE)
    return -1


def _chosen(task: Path, lane: Lane) -> list[Flip]:
    """One bit of every n-th byte, of all files together."""
    dice = random.Random(lane.seed)
    places = [
        (path.name, at)
        for path in sorted(task.iterdir())
        if path.is_file()
        for at in range(path.stat().st_size)
    ]
    step = max(1, len(places) // (lane.count * lane.lanes))
    start = dice.randrange(step)
    flips = [Flip(file, at, dice.randrange(8)) for file, at in places[start::step]]
    return flips[lane.number :: lane.lanes]


def _count(outcome: Outcome, lines: list[str], flips: list[Flip]) -> int:
    """Count what a child said; return how many flips it got done."""
    verdicts = [line[2:] for line in lines if line.startswith("! ")]
    for flip, said in zip(flips, verdicts, strict=False):
        outcome.tried += 1
        outcome.acknowledged += _TRIALS
        kind, _, what = said.partition(" ")
        if kind == "refused":
            outcome.named += 1
            outcome.count(f"refused, {flip.file}")
        elif kind == "same":
            outcome.count(f"no effect, {flip.file}")
        else:
            outcome.breach(kind, f"{flip}: {what}")
    return len(verdicts)


def row_37(effort: Effort) -> Outcome:
    """Flip bits of published files, and read everything."""
    return in_lanes(flip_published, effort, effort.of(200, 6000))


ROWS: Final = (
    Row(
        37,
        "damage to published files later",
        "what was published comes back, or an error names file and trial; `check` does, too",
        row_37,
    ),
)
