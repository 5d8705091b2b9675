"""Rows 20 and 21: limits of this user are met, inodes run out."""

from __future__ import annotations

import errno
import itertools
import resource
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.campaign.frame import CannotRun, Outcome, Row
from tests.campaign.mounts import remount, require_root, tmpfs
from tests.campaign.sessions import Session, check, judge, publish_later, side_by_side
from tests.campaign.story import BEFORE_CREATING, Settings
from tests.shims import Call, Faults
from trialstore._ondisk import layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.campaign.frame import Effort

_SECTOR: Final = 512


# --- row 20: limits -------------------------------------------------------------------------------


def run_limits(effort: Effort) -> Outcome:
    """The longest file and the number of descriptors that this user may have."""
    if not sys.platform.startswith("linux"):
        raise CannotRun("limits of another process are set with prlimit, on Linux")
    outcome = Outcome("limits met")
    sizes = range(_SECTOR, 96 * _SECTOR, _SECTOR) if effort.is_full else (4096, 14000)
    tries: list[Callable[[Outcome], None]] = [partial(_try_size, effort, size) for size in sizes]
    spares = range(16) if effort.is_full else (1, 4, 9)
    tries += [partial(_try_descriptors, effort, spare) for spare in spares]
    tries += [partial(_try_failover, effort, spare) for spare in range(effort.of(2, 4))]
    side_by_side(tries, outcome)
    return outcome


def _try_size(effort: Effort, size: int, outcome: Outcome) -> None:
    """EFBIG after a short write: segments of that length, or held until the limit is lifted."""
    where = f"RLIMIT_FSIZE {size}"
    with effort.workspace() as folder:
        settings = Settings(root=str(folder / "data"), bulk=2048, stops=(0,), close_timeout=20.0)
        session = Session(settings, {})
        with session.reported(outcome, where):
            session.hear("stopped")
            _limit(session, resource.RLIMIT_FSIZE, size)
            session.go()
            if session.hear("trouble"):
                outcome.count("times held until the limit was lifted")
                _limit(session, resource.RLIMIT_FSIZE, None)
            told = session.end()
            outcome.tried += 1
            judge(told, settings, outcome, where)


def _try_descriptors(effort: Effort, spare: int, outcome: Outcome) -> None:
    """EMFILE while a task is created and the publisher started; lifted when it is refused."""
    where = f"RLIMIT_NOFILE {spare} above what is open, at create_task"
    with effort.workspace() as folder:
        settings = Settings(root=str(folder / "data"), stops=(BEFORE_CREATING, 0))
        session = Session(settings, {})
        with session.reported(outcome, where):
            session.hear("stopped")
            _limit(session, resource.RLIMIT_NOFILE, _next_descriptor(session) + spare)
            session.go()
            session.hear("stopped")
            _limit(session, resource.RLIMIT_NOFILE, None)
            session.go()
            if session.told.refusals:
                outcome.count("tasks refused for want of descriptors, clearly")
                session.go()
            told = session.end()
            outcome.tried += 1
            judge(told, settings, outcome, where)


def _try_failover(effort: Effort, spare: int, outcome: Outcome) -> None:
    """EMFILE when a new segment is needed: held until a descriptor is free."""
    where = f"RLIMIT_NOFILE {spare} above what is open, at failover"
    with effort.workspace() as folder, Faults() as faults:
        settings = Settings(root=str(folder / "data"), stops=(6,))
        session = Session(settings, faults.environment)
        with session.reported(outcome, where):
            session.hear("stopped")
            faults.require_attached()
            faults.arm(Call.SYNC, folder, holding=layout.SEGMENT_SUFFIX)
            _limit(session, resource.RLIMIT_NOFILE, _next_descriptor(session) + spare)
            session.go()
            if session.hear("trouble"):
                outcome.count("times held until a descriptor was free")
                _limit(session, resource.RLIMIT_NOFILE, None)
            told = session.end()
            outcome.tried += 1
            judge(told, settings, outcome, where)


def _limit(session: Session, what: int, soft: int | None) -> None:
    _, hard = resource.prlimit(session.process.pid, what)
    resource.prlimit(session.process.pid, what, (hard if soft is None else soft, hard))


def _next_descriptor(session: Session) -> int:
    """The number that the next file of a process will have."""
    used = {int(entry.name) for entry in Path(f"/proc/{session.process.pid}/fd").iterdir()}
    return next(number for number in itertools.count() if number not in used)


# --- row 21: inodes -------------------------------------------------------------------------------


def run_inodes(effort: Effort) -> Outcome:
    """No file can be made any more, though there is space."""
    require_root()
    outcome = Outcome("file systems short of inodes")
    numbers = range(2, 40) if effort.is_full else (3, 6, 9, 14)
    tries: list[Callable[[Outcome], None]] = [partial(_try_inodes, effort, n) for n in numbers]
    tries += [partial(_try_no_inodes_left, effort)] * effort.of(1, 4)
    side_by_side(tries, outcome)
    return outcome


def _try_inodes(effort: Effort, inodes: int, outcome: Outcome) -> None:
    """Refused at the start, clearly and without a trace, or recorded to the end."""
    where = f"tmpfs with {inodes} inodes"
    with effort.workspace() as folder, tmpfs(folder / "disk", f"nr_inodes={inodes}") as disk:
        settings = Settings(root=str(disk / "data"), stops=(BEFORE_CREATING,), close_timeout=3.0)
        session = Session(settings, {})
        with session.reported(outcome, where):
            while event := session.hear("stopped", "refused"):
                if "refused" in event:
                    remount(disk, "nr_inodes=10000")
                else:
                    session.go()
            told = session.end()
            outcome.tried += 1
            outcome.count("tasks refused at the start, clearly", len(told.refusals) > 0)
            outcome.count("publications refused", len(told.publish_failures))
            for trouble in told.troubles:
                if "publish" not in trouble:
                    outcome.breach("broken", f"{where}: failed in mid-task: {trouble}")
            check(told, settings, outcome, where)
            remount(disk, "nr_inodes=10000")
            problem = publish_later(settings)
            if problem is not None:
                outcome.breach("broken", f"{where}: cannot be published with more: {problem}")
            check(told, settings, outcome, f"{where}, then published")


def _try_no_inodes_left(effort: Effort, outcome: Outcome) -> None:
    """A new segment is needed and cannot be made: held, and gone on when one can be."""
    where = "no inodes at failover"
    with (
        effort.workspace() as folder,
        Faults() as faults,
        tmpfs(folder / "disk", "nr_inodes=60") as disk,
    ):
        settings = Settings(root=str(disk / "data"), stops=(6,))
        session = Session(settings, faults.environment)
        with session.reported(outcome, where):
            session.hear("stopped")
            faults.require_attached()
            faults.arm(Call.SYNC, folder, holding=layout.SEGMENT_SUFFIX)
            junk = _fill_with_files(disk)
            session.go()
            if session.hear("trouble"):
                outcome.count("times held until an inode was free")
            for path in junk:
                path.unlink()
            told = session.end()
            outcome.tried += 1
            judge(told, settings, outcome, where)


def _fill_with_files(folder: Path) -> list[Path]:
    made: list[Path] = []
    while True:
        path = folder / f"junk{len(made)}"
        try:
            path.touch()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return made
        made.append(path)


ROWS = (
    Row(
        20,
        "Limits: length of a file (EFBIG), number of descriptors (EMFILE)",
        "As row 18; at the start a clear refusal that leaves nothing half made.",
        run_limits,
    ),
    Row(
        21,
        "Inodes exhausted",
        "Fails at the start of a task, clearly and without a trace, never in mid-task; a failover "
        "that finds none holds and goes on.",
        run_inodes,
    ),
)
