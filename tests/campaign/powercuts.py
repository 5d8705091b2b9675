"""Rows 6 and 33: power cuts on a real ext4."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Final

import anyio

from tests.campaign import blocklog
from tests.campaign.content import SUBJECT, TASK, arrays_of, reader_of, verify
from tests.campaign.frame import Outcome, Row
from tests.campaign.interruptions import History, examine
from tests.campaign.lanes import Child, Lane, in_lanes
from tests.campaign.recorder import hand_over, record, say
from trialstore import Storage, StorageError
from trialstore._ondisk.disk import Disk, use

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

    from trialstore import TaskWriter

_SIZE: Final = 24 * 2**20
_CUTS_PER_RECORDING: Final = 25
#: With each: the default, and those that take ext4's help for careless programs away.
OPTIONS: Final = ("", "noauto_da_alloc", "noauto_da_alloc,data=writeback")


class HonestDisk(Disk):
    """The real disk, for a recorder that publishes by itself: the mutants are its subclasses."""

    reaches_children = False


# --- what is recorded -----------------------------------------------------------------------------


async def _record_some(task: TaskWriter, first: int, last: int, epoch: int) -> None:
    for number in range(first, last):
        await hand_over(task, number, epoch)
    await task.flush()
    say("D", last - 1)


async def _pickle(task: TaskWriter, number: int) -> None:
    say("y", number)
    await task.pickle({"n": number}, "calibration")
    say("Y", number)


async def session(root: Path) -> None:
    """Create, pickle, publish, resume, overwrite; the last task stays open."""
    async with Storage(root) as storage:
        storage.subject_id = SUBJECT
        say("E", 0)
        async with storage.create_task(TASK) as task:
            say("O", 0)
            await _record_some(task, 0, 15, 0)
            await _pickle(task, 1)
            await task.append("emg", arrays_of(15)["emg"][0] if arrays_of(15) else [[1.0]])
        say("C", 15)
        async with storage.resume_task(TASK) as task:
            await _pickle(task, 2)
            await _record_some(task, 15, 25, 0)
        say("C", 25)
    async with Storage(root, allow_overwrite=True) as storage:
        storage.subject_id = SUBJECT
        say("E", 1)
        async with storage.create_task(TASK) as task:
            await _record_some(task, 0, 15, 1)


def watch(root: Path) -> None:
    """Be a reader that tells which trials it was shown, until it is killed."""
    shown = 0
    while True:
        try:
            count = len(reader_of(root).trials)
        except StorageError:
            continue  # not there yet, or between two looks
        if count > shown:
            shown = count
            say("V", count - 1)


def _record_and_watch(root: Path) -> None:
    say("E", 0)
    anyio.run(functools.partial(record, root, count=40, pause=0.01))


def run_session(root: Path) -> None:
    anyio.run(session, root)


# --- the cuts -------------------------------------------------------------------------------------


class _Ground:
    """An ext4 whose device is logged, and what becomes of it when the power fails."""

    def __init__(self, space: Path) -> None:
        self.space = space
        (space / blocklog.OWNER).write_text(str(os.getpid()))
        self._base = space / "base"
        blocklog.make_ext4(self._base, _SIZE)

    def log(
        self, body: Callable[[Path], None], disk: Disk, options: str, *, watched: bool = False
    ) -> list[blocklog.Event]:
        """Record on the logged device; return what happened, in order, until the end."""
        log = self.space / "log"
        log.unlink(missing_ok=True)

        def live() -> None:
            with use(disk):
                body(root)

        with (
            blocklog.logged_device(self._base, log, self.space) as device,
            blocklog.mounted(device, self.space / "disk", options) as disk_folder,
        ):
            root = disk_folder / "lab" / "data"
            telling = os.open(log, os.O_WRONLY | os.O_APPEND)
            try:
                with Child(live, self.space, telling) as recorder:
                    if watched:
                        errors = self.space / "reader"
                        errors.mkdir(exist_ok=True)
                        with Child(lambda: watch(root), errors, telling) as reader:
                            code = recorder.wait(120)
                            reader.kill()
                            reader.wait()
                    else:
                        code = recorder.wait(120)
                    if code != 0:
                        raise RuntimeError(f"the recorder ended with {code}: {recorder.errors}")
                os.write(telling, b"X 0\n")
            finally:
                os.close(telling)
        found = blocklog.events(log)
        return found[: found.index("X 0")]

    def cut(
        self,
        log: list[blocklog.Event],
        at: int,
        dice: random.Random,
        options: str,
        look: Callable[[Path, History], None],
        outcome: Outcome,
        where: str,
    ) -> None:
        """Cut the power at event `at`, mount what is left, and look at it."""
        image = self.space / "cut"
        blocklog.write_image(image, self._base, log, at, dice)
        history = History.of(event for event in log[:at] if isinstance(event, str))
        outcome.tried += 1
        with blocklog.mounted(image, self.space / "after", options) as folder:
            try:
                look(folder / "lab" / "data", history)
            except (StorageError, OSError) as error:
                outcome.breach("broken", f"{where}: {error!r}")


def cut_many(
    lane: Lane,
    body: Callable[[Path], None],
    make_disk: Callable[[], Disk],
    choices: tuple[str, ...],
    *,
    watched: bool = False,
    behind: str = "",
) -> Outcome:
    """Record again and again, cut the power of each recording at many places.

    Parameters
    ----------
    lane : Lane
        Its count is the number of cuts.
    body : callable
        Records below the folder it is given.
    make_disk : callable
        Gives the disk port of each recording.
    choices : tuple of str
        Mount options, in turn.
    watched : bool, optional
        A reader looks on, and only what it was shown is looked at.
    behind : str, optional
        Cut only just behind words of this kind; anywhere unless given.

    Raises
    ------
    CannotRun
        If power cuts cannot be made here.
    """
    blocklog.require()
    blocklog.sweep()
    outcome = Outcome("power cuts")
    options, first = "", 0
    log: list[blocklog.Event] = []
    with lane.effort.workspace(memory=True) as space:
        ground = _Ground(space)
        for attempt in range(lane.count):
            dice = lane.random(attempt)
            if attempt % _CUTS_PER_RECORDING == 0:
                options = choices[attempt // _CUTS_PER_RECORDING % len(choices)]
                log = ground.log(body, make_disk(), options, watched=watched)
                first = next(n for n, event in enumerate(log) if isinstance(event, str))
                outcome.count("recordings")
                outcome.count("writes and flushes of the device", len(log))
            at = _moment(log, first, dice, behind)
            where = f"{lane.name(attempt)}, cut at {at} of {len(log)}, {options or 'defaults'}"

            def look(
                root: Path, history: History, where: str = where, attempt: int = attempt
            ) -> None:
                if watched:
                    _look_at_shown(root, history, outcome, where)
                else:
                    examine(root, history, outcome, where, attempt)

            ground.cut(log, at, dice, options, look, outcome, where)
    return outcome


def _moment(log: list[blocklog.Event], first: int, dice: random.Random, behind: str) -> int:
    """Choose a place in the log: anywhere, or just behind a word that must be kept from then on."""
    if not behind and dice.random() < 0.5:
        return dice.randrange(first, len(log) + 1)
    lines = [(n, event) for n, event in enumerate(log) if isinstance(event, str)]
    kind = behind or dice.choice(sorted({line.split()[0] for _, line in lines}))
    return dice.choice([n for n, line in lines if line.split()[0] == kind]) + 1


def _look_at_shown(root: Path, history: History, outcome: Outcome, where: str) -> None:
    promise = history.promises[0]
    if promise.durable:
        verify(root, promise.durable, promise.submitted, outcome, where)


def cut_power(lane: Lane) -> Outcome:
    """Cut the power of a session at random places."""
    return cut_many(lane, run_session, HonestDisk, OPTIONS)


def cut_power_behind_a_reader(lane: Lane) -> Outcome:
    """Cut the power after a reader was shown trials."""
    return cut_many(lane, _record_and_watch, HonestDisk, OPTIONS, watched=True)


# --- the rows -------------------------------------------------------------------------------------

ROWS: Final = (
    Row(
        6,
        "power cut on a real ext4 (also noauto_da_alloc, data=writeback), with a drive's cache "
        "lost in part",
        "every durable trial and pickle is there, before and after publication; recording goes on",
        lambda effort: in_lanes(cut_power, effort, effort.of(10, 520)),
    ),
    Row(
        33,
        "a reader is shown a trial, then the power is cut",
        "what a reader was shown is there",
        lambda effort: in_lanes(cut_power_behind_a_reader, effort, effort.of(8, 60)),
    ),
)
