"""Row 32: a reader that watches a recorder, and never sees anything but whole, durable trials.

The recorder commits as fast as it can, in bursts, is killed at a random moment and taken up again;
the reader polls the same journal all the time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tests.campaign.content import arrays_of, attrs_of, joined
from tests.campaign.frame import Effort, Outcome, Row
from tests.campaign.lanes import Child, Lane, has_ended, in_lanes
from tests.campaign.recorder import say
from tests.journals import Recording
from trialstore._ondisk import layout, recovery
from trialstore._ondisk.lock import acquire
from trialstore._reading.live import JournalSource

if TYPE_CHECKING:
    import random
    from pathlib import Path

#: Trials of one journal: `losses` walks them all at every poll.
_TRIALS: Final = 300
_SESSIONS: Final = 4
_PATIENCE: Final = 60.0
_INSTANT: Final = 1e-4
_REST: Final = 0.01


def _record(task: Path) -> None:
    """Take a journal up and commit trials, in batches of several sizes, until killed."""
    folder = task / layout.JOURNAL
    lock = acquire(folder / layout.LOCK, "recorder", patience=5.0)
    steps = recovery.plan(task)
    recording = Recording(folder, after=steps.last_seq, trials=steps.trials)
    for number in range(steps.trials, _TRIALS):
        for name, chunks in arrays_of(number).items():
            for chunk in chunks:
                recording.append(name, chunk)
                if number % 3 == 0:
                    recording.commit()
        recording.trial(**attrs_of(number))
        if number % 5:
            recording.commit()
            say("D", number)
        if number % 40 < 10:
            # Rest among bursts: most polls should find nothing new, as those of a live plot do.
            time.sleep(_REST)
    lock.release()


class _Watch:
    """A reader, and what it knows by now."""

    def __init__(self, task: Path, outcome: Outcome, where: str) -> None:
        self._source = JournalSource(task)
        self._outcome = outcome
        self._where = where
        self._seen = 0
        self._state: tuple[object, ...] = ()

    def look(self, durable: int) -> str:
        """Poll once, hold everything against what must be so, and return the status.

        What is shown follows from what was read: it is looked through again when a byte has come.

        Parameters
        ----------
        durable : int
            How many trials had been acknowledged before this look.
        """
        self._source.poll()
        self._outcome.tried += 1
        source, replay = self._source, self._source._replay
        state = (replay.scanned, replay.synced_to, replay.torn, source.is_recording)
        if state != self._state:
            self._state = state
            self._look_through()
            self._outcome.count("polls that found something new")
        if self._seen < durable:
            self._breach("silent", f"{self._seen} trials are shown of {durable}")
        return source.status

    def _look_through(self) -> None:
        numbers = self._source.trial_numbers()
        if numbers != list(range(len(numbers))):
            self._breach("wrong", f"trials {numbers} are no prefix")
        if len(numbers) < self._seen:
            self._breach("silent", f"{len(numbers)} trials are shown, there were {self._seen}")
        if losses := self._source.losses():
            self._breach("broken", f"a false loss: {losses}")
        if damages := self._source._replay.damages:
            self._breach("broken", f"a false damage: {damages}")
        for number in numbers[self._seen :]:
            self._compare(number)
        self._outcome.acknowledged += len(numbers) - self._seen
        self._seen = max(self._seen, len(numbers))

    def _compare(self, number: int) -> None:
        (attrs,) = self._source.attrs([number])
        if attrs != attrs_of(number):
            self._breach("wrong", f"row {number} is {attrs}")
        known: dict[str, Any] = joined(number)
        for name in ("emg", "key"):
            if self._source.has(name, number) != (name in known):
                self._breach("wrong", f"trial {number} has {name!r}, or has it not")
            elif name in known:
                found = self._source.read(name, number, None, verify=True)
                if not np.array_equal(found, known[name]) or found.dtype != known[name].dtype:
                    self._breach("wrong", f"array {name!r} of trial {number} differs")

    def _breach(self, kind: str, what: str) -> None:
        self._outcome.breach(kind, f"{self._where}: {what}")

    def close(self) -> None:
        self._source.close()


def watch(lane: Lane) -> Outcome:
    """Watch recorders for this lane's share of the polls; one half on the disk, one in memory."""
    outcome = Outcome("polls")
    attempt = 0
    while outcome.tried < lane.count or attempt < 2:
        memory = attempt % 2 == 0
        with lane.effort.workspace(memory=memory) as folder:
            task = folder / "reach"
            (task / layout.JOURNAL).mkdir(parents=True)
            _watch_one(task, outcome, lane.name(attempt), lane.random(attempt))
        outcome.count("journals in memory" if memory else "journals on the disk")
        attempt += 1
    return outcome


def _watch_one(task: Path, outcome: Outcome, where: str, dice: random.Random) -> None:
    """Watch one journal through several recorders; all but the last are killed."""
    view = _Watch(task, outcome, where)
    durable = 0
    try:
        for session in range(_SESSIONS):
            is_last = session == _SESSIONS - 1
            with Child(lambda: _record(task), task.parent) as child:
                fresh = 0
                end = time.monotonic() + (_PATIENCE if is_last else dice.uniform(0.02, 0.4))
                while durable < _TRIALS and time.monotonic() < end:
                    if child.has_news():
                        fresh = _acknowledged(child.lines_so_far())
                        durable = max(durable, fresh)
                    status = view.look(durable)
                    # It holds the lock since before its first trial, until after its last one.
                    if status != "recording" and 0 < fresh < _TRIALS and _is_alive(child):
                        child.listen(_INSTANT)
                        if _acknowledged(child.lines_so_far()) < _TRIALS:
                            outcome.breach("broken", f"{where}: status {status} beside a recorder")
                child.kill()
                child.wait()
                durable = max(durable, _acknowledged(child.lines()))
            outcome.count("recorders")
            view.look(durable)
        if durable < _TRIALS:
            outcome.breach("broken", f"{where}: only {durable} trials were recorded")
    finally:
        view.close()


def _is_alive(child: Child) -> bool:
    return child.code is None and not has_ended(child.pid, 0)


def _acknowledged(lines: list[str]) -> int:
    return max((int(line[2:]) + 1 for line in lines if line.startswith("D ")), default=0)


def row_32(effort: Effort) -> Outcome:
    """Poll a journal that is being written, over and over."""
    return in_lanes(watch, effort, effort.of(20_000, 2_000_000))


ROWS: Final = (
    Row(
        32,
        "a live reader beside the recorder, which is killed and taken up",
        "a prefix of whole trials at every poll, no false loss, no false damage",
        row_32,
    ),
)
