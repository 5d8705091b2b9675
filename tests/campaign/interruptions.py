"""Row 2: killed before and after each call of the port while recording."""

from __future__ import annotations

import functools
import random
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import anyio

from tests.campaign.content import Promise, reader_of, verify
from tests.campaign.examine import (
    folder_of,
    leftovers,
    overwritten,
    published_breaches,
)
from tests.campaign.failpoints import CALLS, KillingDisk, live, over, whole_life
from tests.campaign.frame import Effort, Outcome, Row
from tests.campaign.lanes import Child, Lane, in_lanes
from tests.campaign.recorder import heard, record
from trialstore import StorageError, TaskReader
from trialstore._ondisk import layout
from trialstore._publishing.service import publish_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from typing import Any


KILLED: Final = -9
#: A number that no recording reaches.
NEVER: Final = 10**9


@dataclass(frozen=True, slots=True)
class Point:
    """One failpoint."""

    at: int
    is_after: bool

    def disk(self) -> KillingDisk:
        """Return the disk that kills there."""
        return KillingDisk(self.at, is_after=self.is_after)

    def __str__(self) -> str:
        return f"{'after' if self.is_after else 'before'} call {self.at}"


def points(calls: int) -> list[Point]:
    """Return every failpoint of something that makes so many calls."""
    return [Point(at, is_after) for at in range(calls) for is_after in (False, True)]


def calls_of(body: Callable[[KillingDisk], Callable[[], None]], folder: Path) -> int:
    """Run something to its end, once; return how many calls it made.

    Raises
    ------
    RuntimeError
        If it fails.
    """
    with Child(body(KillingDisk(NEVER, is_after=False)), folder) as child:
        if child.wait() != 0:
            raise RuntimeError(f"without any fault: {child.errors}")
        return next(int(line.split()[1]) for line in child.lines() if line.startswith("N"))


def note_point(child: Child, outcome: Outcome, coverage: dict[str, int]) -> None:
    for line in child.lines():
        if line.startswith("K "):
            outcome.tried += 1
            coverage[line[2:]] = coverage.get(line[2:], 0) + 1


def tell_coverage(outcome: Outcome, coverage: dict[str, int]) -> None:
    for name, count in sorted(coverage.items()):
        outcome.figures[f"at {name}"] = count


# --- row 2: while recording -----------------------------------------------------------------------


@dataclass(slots=True)
class History:
    """What a recording said, for each time the task was created."""

    promises: dict[int, Promise] = field(default_factory=dict)
    pickles: set[int] = field(default_factory=set)
    #: A segment was deleted by hand and not yet written again: the only copy, until then.
    is_deleted: bool = False

    @classmethod
    def of(cls, lines: Iterable[str]) -> History:
        history, epochs = cls(), dict[int, list[bytes]]()
        for line in lines:
            kind, _, number = line.partition(" ")
            if kind == "E":
                epochs[int(number)] = []
            elif kind == "Y":
                history.pickles = {int(number)}
            elif kind == "y":
                history.pickles |= {int(number)}
            elif kind == "U":
                history.is_deleted = True
            elif epochs and kind != "K":
                history.is_deleted &= kind != "D"
                epochs[max(epochs)].append(line.encode())
        history.promises = {epoch: heard(said) for epoch, said in epochs.items()}
        return history


def kill_while_recording(lane: Lane) -> Outcome:
    """Kill a recording before and after each call of the port, and go on with what it left."""
    outcome, coverage = Outcome("kills"), dict[str, int]()
    with lane.effort.workspace(memory=True) as space:
        calls = calls_of(lambda disk: live(whole_life, space / "clean" / "data", disk), space)
        outcome.figures["calls of one recording"] = calls if lane.number == 0 else 0
        for attempt, point in enumerate(share(points(calls), lane)):
            where = f"row 2, {point}"
            root = space / str(attempt) / "data"
            root.parent.mkdir()
            with Child(live(whole_life, root, point.disk()), space) as child:
                code = child.wait()
                note_point(child, outcome, coverage)
                if code not in (0, KILLED):
                    outcome.breach("broken", f"{where}: ended with {code}: {child.errors}")
                    continue
                examine(root, History.of(child.lines()), outcome, where, attempt)
            shutil.rmtree(root.parent)
    tell_coverage(outcome, coverage)
    return outcome


def share(tries: list[Any], lane: Lane) -> list[Any]:
    """Return what this lane tries of all there is: its part of it, or a sample."""
    if not lane.is_full:
        tries = random.Random(lane.seed).sample(tries, min(len(tries), lane.count * lane.lanes))
    return tries[lane.number :: lane.lanes]


def examine(root: Path, history: History, outcome: Outcome, where: str, attempt: int) -> None:
    promises = dict(history.promises)
    trash = overwritten(root)
    epoch = 1 if trash else 0
    for folder in trash:
        first = promises[0]
        reader = TaskReader(folder)
        verify(root, first.durable, first.submitted, outcome, f"{where}, trash", reader=reader)
    now = promises.get(epoch, Promise())
    found = _look(root, now, epoch, outcome, where, may_lose=history.is_deleted)
    folder = folder_of(root)
    if found is not None and epoch == 0 and history.pickles:
        _look_at_pickle(root, history.pickles, outcome, where)
    if found is None:
        outcome.count("not begun yet, begun anew")
        found, keywords = 0, {"overwrite": True}
    elif attempt % 2 and (folder / layout.JOURNAL).is_dir() and not history.is_deleted:
        publish_once(folder, {})
        verify(root, now.durable, now.submitted, outcome, where, epoch_of=lambda _: epoch)
        keywords = {"resume": True}
    else:
        keywords = {"resume": True}
    if not history.is_deleted:
        _go_on(root, found, epoch, keywords, outcome, where)


def _look(
    root: Path, now: Promise, epoch: int, outcome: Outcome, where: str, *, may_lose: bool
) -> int | None:
    """Hold the task against the model; None if there is none, and none was promised."""
    try:
        reader = reader_of(root)
        found = verify(root, now.durable, now.submitted, outcome, where, epoch_of=lambda _: epoch)
        if reader.losses and not may_lose:
            outcome.breach("broken", f"{where}: losses {reader.losses}")
    except StorageError as error:
        if now.is_open or now.durable:
            outcome.breach("broken", f"{where}: {error!r}")
        return None
    return found if found or now.is_open else None


def _look_at_pickle(root: Path, expected: set[int], outcome: Outcome, where: str) -> None:
    try:
        pickle: Any = reader_of(root).pickle("calibration")
        found = pickle["n"]
    except StorageError:
        found = 0
    # One that was only begun may be there or not; the first may be missing then.
    if found not in (expected if expected != {1} or found else {0, 1}):
        outcome.breach("silent", f"{where}: the pickle is {found}, not one of {expected}")


def _go_on(
    root: Path, found: int, epoch: int, keywords: dict[str, Any], outcome: Outcome, where: str
) -> None:
    body = functools.partial(record, root, first=found, count=1, epoch=epoch, **keywords)
    disk = KillingDisk(NEVER, is_after=False)
    root.parent.mkdir(exist_ok=True)
    with Child(over(disk, lambda: anyio.run(body)), root.parent) as child:
        if child.wait() != 0:
            outcome.breach("broken", f"{where}: going on failed: {child.errors}")
            return
    acknowledged = set(range(found + 1))
    verify(root, acknowledged, found + 1, outcome, where, epoch_of=lambda _: epoch)
    for message in published_breaches(folder_of(root), lambda _: epoch):
        outcome.breach("broken", f"{where}: {message}")
    if rest := leftovers(folder_of(root)):
        outcome.breach("broken", f"{where}: left behind: {rest}")


# --- the rows -------------------------------------------------------------------------------------


def _row_2(effort: Effort) -> Outcome:
    outcome = in_lanes(kill_while_recording, effort, effort.of(60, len(CALLS) * 60))
    if effort.is_full:
        outcome.figures["calls of the port never made"] = (
            ", ".join(name for name in CALLS if f"at {name}" not in outcome.figures) or "none"
        )
    return outcome


ROWS: Final = (
    Row(
        2,
        "kill -9 before and after each call of the disk port while recording",
        "what was durable is there; recording goes on in the same task, or anew if none had begun",
        _row_2,
    ),
)
