"""Row 1: kill -9 at random times, of recorder and publisher, and on with what they left."""

from __future__ import annotations

import functools
import shutil
import signal
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import anyio

from tests.campaign.content import SUBJECT, TASK, Promise, verify
from tests.campaign.examine import folder_of, overwritten, published_breaches
from tests.campaign.frame import Outcome, Row
from tests.campaign.lanes import Child, Lane, end_process, has_ended, in_lanes
from tests.campaign.recorder import record
from trialstore import StorageError, TaskReader
from trialstore._ondisk import layout
from trialstore._publishing.service import publish_once

if TYPE_CHECKING:
    import random
    from pathlib import Path

_KILLED: Final = -signal.SIGKILL
#: One try in so many has a real publisher; starting one takes as long as ten kills.
_REAL_EVERY: Final = 20
_GENERATIONS: Final = 12
_BACKENDS: Final = (
    {"backend": "asyncio"},
    {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    {"backend": "trio"},
)


@dataclass(slots=True)
class _Task:
    """The model of one task over its generations: which epoch each trial is of."""

    name: str = TASK
    epochs: list[int] = field(default_factory=list)

    def epoch_of(self, trial: int) -> int:
        """Return the epoch of a trial; the newest for one that nobody has seen yet."""
        return self.epochs[trial] if trial < len(self.epochs) else -1


class _Chain:
    """Generations of recorders in one folder: each goes on with what a kill has left."""

    def __init__(self, root: Path, dice: random.Random, outcome: Outcome) -> None:
        self.root = root
        self._dice = dice
        self._outcome = outcome
        self._task = _Task()
        self._is_begun = False
        self._epoch = 0
        self._publishers: list[int] = []

    def close(self) -> None:
        """See the publishers of killed recorders off.

        Counts one that does not end as a breach.
        """
        for pid in self._publishers:
            if not has_ended(pid, 60):
                self._outcome.breach("broken", f"publisher {pid} does not end")
                end_process(pid)

    def kill_one(self, where: str, *, is_real: bool) -> None:
        """Record one generation, kill it, hold everything against the model."""
        self._epoch += 1
        way = self._way()
        trashed = set(overwritten(self.root, self._task.name))
        known = {path.name for path in (self.root / SUBJECT).glob("*")}
        promise = self._record(way, where, is_real=is_real)
        self._outcome.tried += 1
        self._outcome.count(f"{way} generations")
        where = f"{where}, {way}"
        if way == "resume":
            self._check(promise, where)
            return
        if way == "overwrite":
            gone = set(overwritten(self.root, self._task.name)) - trashed
            if not gone and self._is_begun:
                self._check(promise, f"{where}, not begun")  # the old one is still in its place
                return
            for folder in gone:
                self._check_overwritten(folder, where)
        if way == "repeat":
            new = {path.name for path in (self.root / SUBJECT).glob("*")} - known
            if not new:
                return
            self._task.name = new.pop()
        self._task = _Task(self._task.name)
        self._is_begun = promise.is_open
        self._check(promise, where)

    def _way(self) -> str:
        if not self._is_begun:
            return "overwrite" if self._epoch > 1 else "create"
        return self._dice.choices(("resume", "overwrite", "repeat"), (8, 1, 1))[0]

    def _record(self, way: str, where: str, *, is_real: bool) -> Promise:
        dice, backend = self._dice, self._dice.choice(_BACKENDS)
        body = functools.partial(
            record,
            self.root,
            task=self._task.name if way != "repeat" else TASK,
            resume=way == "resume",
            overwrite=way == "overwrite",
            repeat=way == "repeat",
            first=len(self._task.epochs) if way == "resume" else 0,
            epoch=self._epoch,
            publish_every=dice.choice((0, 20)) if is_real else 0,
        )

        def live() -> None:
            if not is_real:
                sys.frozen = True  # type: ignore[attr-defined] # what PyInstaller and its like set
            anyio.run(body, **backend)

        with Child(live, self.root.parent) as child:
            if dice.random() < 0.9:
                child.listen(30, until=b"O")
            child.listen(dice.uniform(0.0, 0.6 if is_real else 0.06))
            if is_real and dice.random() < 0.5:
                self._kill_publisher(child)
            child.kill()
            code = child.wait()
            if code != _KILLED:
                self._outcome.breach("broken", f"{where}: ended with {code}: {child.errors}")
            promise = child.promise()
        if promise.publisher is not None:
            self._publishers.append(promise.publisher)
            if dice.random() < 0.5:
                has_ended(promise.publisher, 60)  # otherwise it works on while we go on
        return promise

    def _kill_publisher(self, child: Child) -> None:
        """Kill the publisher first; let the recorder live on for a while, or not."""
        for line in child.lines_so_far():
            if line.startswith("B "):
                end_process(int(line[2:]))
                self._outcome.count("publishers killed")
        child.listen(self._dice.choice((0.0, 0.3)))

    def _check(self, promise: Promise, where: str) -> None:
        """Hold the task against the model, before and perhaps after publication."""
        task, outcome = self._task, self._outcome
        acknowledged = set(range(len(task.epochs))) | promise.durable
        submitted = max(promise.submitted, len(task.epochs))

        def epoch_of(trial: int) -> int:
            return task.epochs[trial] if trial < len(task.epochs) else self._epoch

        def look(when: str) -> int:
            found = verify(
                self.root,
                acknowledged,
                submitted,
                outcome,
                f"{where}, {when}",
                task=task.name,
                epoch_of=epoch_of,
            )
            for message in published_breaches(folder_of(self.root, task.name), epoch_of):
                outcome.breach("broken", f"{where}, {when}: {message}")
            return found

        try:
            found = look("from the journal")
            if self._dice.random() < 0.3 and self._publish(task.name):
                again = look("published")
                if again != found:
                    outcome.breach("broken", f"{where}: {found} trials, {again} when published")
        except StorageError as error:
            if self._is_begun or acknowledged:
                outcome.breach("broken", f"{where}: {error!r}")
            return
        self._is_begun |= found > 0
        task.epochs += [self._epoch] * (found - len(task.epochs))
        reader = TaskReader(folder_of(self.root, task.name))
        if reader.losses:
            outcome.breach("broken", f"{where}: losses {reader.losses}")

    def _publish(self, task: str) -> bool:
        folder = folder_of(self.root, task)
        if any(not has_ended(pid, 0) for pid in self._publishers):
            return False  # a killed recorder's own publisher is at it
        if not self._is_begun or not (folder / layout.JOURNAL).is_dir():
            return False
        try:
            publish_once(folder, {})
        except FileNotFoundError:
            # The dead recorder's own publisher was quicker: it is not one that this test started.
            return not (folder / layout.JOURNAL).is_dir()
        self._outcome.count("publications")
        return True

    def _check_overwritten(self, folder: Path, where: str) -> None:
        count = len(self._task.epochs)
        if count == 0:
            return  # killed before anything was recorded, and begun anew
        verify(
            self.root,
            set(range(count)),
            count,
            self._outcome,
            f"{where}, overwritten",
            epoch_of=self._task.epoch_of,
            reader=TaskReader(folder),
        )


def kill_at_random(lane: Lane) -> Outcome:
    """Kill recorders at random times, generation after generation."""
    outcome = Outcome("kills")
    with lane.effort.workspace(memory=True) as space:
        attempt = 0
        while attempt < lane.count:
            dice = lane.random(attempt)
            chain = _Chain(space / str(attempt) / "data", dice, outcome)
            chain.root.parent.mkdir()
            for _ in range(min(_GENERATIONS, lane.count - attempt)):
                is_real = attempt % _REAL_EVERY == _REAL_EVERY - 1
                chain.kill_one(f"row 1, {lane.name(attempt)}", is_real=is_real)
                attempt += 1
            chain.close()
            shutil.rmtree(chain.root.parent)
    return outcome


ROWS: Final = (
    Row(
        1,
        "kill -9 at random times, of recorder, publisher, or both",
        "durable-acknowledged <= recovered <= handed over; the next recorder goes on where the "
        "last one was killed",
        lambda effort: in_lanes(kill_at_random, effort, effort.of(60, 4000)),
    ),
)
