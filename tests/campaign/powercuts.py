"""Rows 6, 7, 8 and 33: power cuts on a real ext4, and without the syncs that guard against them."""

from __future__ import annotations

import functools
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

from tests.campaign import blocklog
from tests.campaign.content import SUBJECT, TASK, arrays_of, reader_of, verify
from tests.campaign.frame import Effort, Outcome, Row
from tests.campaign.interruptions import History, examine
from tests.campaign.lanes import Child, Lane, in_lanes
from tests.campaign.recorder import hand_over, record, say
from trialstore import Storage, StorageError
from trialstore._ondisk.disk import Disk, use
from trialstore.testing import PowerCutDisk

if TYPE_CHECKING:
    from trialstore import TaskWriter

_SIZE: Final = 24 * 2**20
_CUTS_PER_RECORDING: Final = 25
#: With each: the default, and those that take ext4's help for careless programs away.
_OPTIONS: Final = ("", "noauto_da_alloc", "noauto_da_alloc,data=writeback")


class HonestDisk(Disk):
    """The real disk, for a recorder that publishes by itself: the mutants are its subclasses."""

    reaches_children = False


class NoFolderSync(HonestDisk):
    """Forgets to sync folders."""

    def sync_folder(self, path: Path) -> None:
        """Do nothing."""


class NoFileSync(HonestDisk):
    """Forgets to sync files."""

    def sync(self, fd: int) -> None:
        """Do nothing."""


class NoPublishedSync(HonestDisk):
    """Forgets to sync files that are being built to be published; the journal is synced."""

    def sync(self, fd: int) -> None:
        """Do nothing for a hidden file."""
        if ".building" not in os.readlink(f"/proc/self/fd/{fd}"):
            super().sync(fd)


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


def _run_session(root: Path) -> None:
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


def _cut_many(
    lane: Lane,
    body: Callable[[Path], None],
    make_disk: Callable[[], Disk],
    choices: tuple[str, ...],
    *,
    watched: bool = False,
) -> Outcome:
    blocklog.require()
    blocklog.sweep()
    outcome = Outcome("power cuts")
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
            at = _moment(log, first, dice)
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


def _moment(log: list[blocklog.Event], first: int, dice: random.Random) -> int:
    """Choose a place in the log: anywhere, or just behind a word that must be kept from then on."""
    if dice.random() < 0.5:
        return dice.randrange(first, len(log) + 1)
    lines = [(n, event) for n, event in enumerate(log) if isinstance(event, str)]
    kind = dice.choice(sorted({line.split()[0] for _, line in lines}))
    return dice.choice([n for n, line in lines if line.split()[0] == kind]) + 1


def _look_at_shown(root: Path, history: History, outcome: Outcome, where: str) -> None:
    promise = history.promises[0]
    if promise.durable:
        verify(root, promise.durable, promise.submitted, outcome, where)


def cut_power(lane: Lane) -> Outcome:
    """Cut the power of a session at random places."""
    return _cut_many(lane, _run_session, HonestDisk, _OPTIONS)


def cut_power_behind_a_reader(lane: Lane) -> Outcome:
    """Cut the power after a reader was shown trials."""
    return _cut_many(lane, _record_and_watch, HonestDisk, _OPTIONS, watched=True)


def cut_power_without_folder_sync(lane: Lane) -> Outcome:
    """As `cut_power`, with a recorder that does not sync folders."""
    return _cut_many(lane, _run_session, NoFolderSync, _OPTIONS)


def cut_power_without_file_sync(lane: Lane) -> Outcome:
    """As `cut_power`, with a recorder that does not sync files."""
    return _cut_many(lane, _run_session, NoFileSync, _OPTIONS)


def cut_power_without_published_sync(lane: Lane) -> Outcome:
    """As `cut_power`, with a publisher that does not sync what it publishes."""
    return _cut_many(lane, _run_session, NoPublishedSync, _OPTIONS[1:])


# --- the same in a simulated file system ----------------------------------------------------------


class _SimulatedNoFolderSync(PowerCutDisk):
    def sync_folder(self, path: Path) -> None:
        """Do nothing."""


class _SimulatedNoFileSync(PowerCutDisk):
    def sync(self, fd: int) -> None:
        """Do nothing."""


def _simulate(lane: Lane, kind: type[PowerCutDisk]) -> Outcome:
    """Look at simulated power cuts of a short recording."""
    outcome = Outcome("simulated power cuts")
    acknowledged: list[tuple[int, int]] = []

    async def experiment(disk: PowerCutDisk, root: Path) -> None:
        async with Storage(root) as storage:
            storage.subject_id = SUBJECT
            async with storage.create_task(TASK) as task:
                for number in range(6):
                    await hand_over(task, number)
                    await task.flush()
                    acknowledged.append((disk.position, number + 1))

    with lane.effort.workspace(memory=True) as space:
        (space / "before").mkdir()
        disk = kind(space / "before")
        with use(disk):
            anyio.run(experiment, disk, space / "before" / "data")
        for number, state in enumerate(disk.states(limit=lane.count, seed=lane.seed)):
            root = disk.materialise(state, space / str(number)) / "data"
            safe = max((n for position, n in acknowledged if position <= state.position), default=0)
            outcome.tried += 1
            if not safe:
                continue
            try:
                verify(root, set(range(safe)), 6, outcome, f"{state}")
            except StorageError as error:
                outcome.breach("broken", f"{state}: {error!r}")
    return outcome


def simulate_without_folder_sync(lane: Lane) -> Outcome:
    """Simulated cuts of a recorder that does not sync folders."""
    return _simulate(lane, _SimulatedNoFolderSync)


def simulate_without_file_sync(lane: Lane) -> Outcome:
    """Simulated cuts of a recorder that does not sync files."""
    return _simulate(lane, _SimulatedNoFileSync)


# --- the rows -------------------------------------------------------------------------------------

Mutant = tuple[str, Callable[[Lane], Outcome]]


def _must_find(effort: Effort, count: int, *mutants: Mutant) -> Outcome:
    """Run what must lose data; the breach is a check that finds nothing."""
    outcome = Outcome("power cuts")
    for name, function in mutants:
        lost = in_lanes(function, effort, count)
        found = lost.silent + lost.wrong + lost.broken + lost.named
        outcome.tried += lost.tried
        outcome.figures[f"losses found: {name}"] = found
        if not found:
            outcome.breach("broken", f"{name}: {lost.tried} power cuts, and nothing was noticed")
    return outcome


def _row_7(effort: Effort) -> Outcome:
    return _must_find(
        effort,
        effort.of(30, 150),
        ("ext4", cut_power_without_folder_sync),
        ("simulated", simulate_without_folder_sync),
    )


def _row_8(effort: Effort) -> Outcome:
    return _must_find(
        effort,
        effort.of(10, 100),
        ("ext4, no file synced", cut_power_without_file_sync),
        ("ext4, published files not synced", cut_power_without_published_sync),
        ("simulated", simulate_without_file_sync),
    )


ROWS: Final = (
    Row(
        6,
        "power cut on a real ext4 (also noauto_da_alloc, data=writeback), with a drive's cache "
        "lost in part",
        "every durable trial and pickle is there, before and after publication; recording goes on",
        lambda effort: in_lanes(cut_power, effort, effort.of(10, 600)),
    ),
    Row(
        7,
        "the same without the fsync of folders (a test of the test)",
        "the losses are noticed",
        _row_7,
    ),
    Row(
        8,
        "the same without the fsync of files (a test of the test)",
        "the losses are noticed",
        _row_8,
    ),
    Row(
        33,
        "a reader is shown a trial, then the power is cut",
        "what a reader was shown is there",
        lambda effort: in_lanes(cut_power_behind_a_reader, effort, effort.of(8, 200)),
    ),
)
