"""Row 24: the file system becomes read-only while an experiment runs."""

from __future__ import annotations

import errno
import itertools
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.campaign.frame import Outcome, Row
from tests.campaign.mounts import break_ext4, ext4, remount, repair_ext4, require_root, tmpfs
from tests.campaign.sessions import Session, check, judge, side_by_side
from tests.campaign.story import BEFORE_CREATING, Settings
from tests.shims import Call, Faults

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.campaign.frame import Effort

_EVERYTHING: Final = (
    Call.WRITE | Call.SYNC | Call.SYNC_FOLDER | Call.CREATE | Call.RENAME | Call.MKDIR
)
#: A recorder that is to give up closes after so many seconds.
_IMPATIENCE: Final = 2.0


def run(effort: Effort) -> Outcome:
    """Between tasks by a remount, in mid-task through the shim, and for real by a broken ext4."""
    outcome = Outcome("file systems made read-only")
    stops = range(1, 12) if effort.is_full else (6,)
    tries: list[Callable[[Outcome], None]] = [
        partial(_try_shim, effort, *told) for told in itertools.product(stops, (False, True))
    ]
    side_by_side(tries, outcome)
    require_root()
    tries = [partial(_try_remount, effort)] * effort.of(1, 3)
    tries += [partial(_try_ext4, effort, *told) for told in itertools.product(stops, (False, True))]
    side_by_side(tries, outcome)
    return outcome


def _try_shim(effort: Effort, stop: int, fallback: bool, outcome: Outcome) -> None:
    """Every call that changes something gives EROFS, until the experimenter was told."""
    where = f"shim: EROFS from trial {stop} on{', with fallback_root' if fallback else ''}"
    with effort.workspace() as folder, Faults() as faults:
        settings = Settings(
            root=str(folder / "data"),
            fallback=str(folder / "second") if fallback else "",
            stops=(stop,),
            close_timeout=_IMPATIENCE if fallback else 20.0,
        )
        session = Session(settings, faults.environment)
        with session.reported(outcome, where):
            session.hear("stopped")
            faults.require_attached()
            rule = faults.arm(_EVERYTHING, folder / "data", error=errno.EROFS, count=0)
            session.go()
            if session.hear("trouble", "not published"):
                outcome.count("times held until it was writable again", not fallback)
            rule.stop()
            told = session.end()
            outcome.tried += 1
            judge(told, settings, outcome, where)


def _try_remount(effort: Effort, outcome: Outcome) -> None:
    """A real remount, which the kernel grants while no file is open for writing."""
    where = "tmpfs: read-only before the task is created"
    with effort.workspace() as folder, tmpfs(folder / "disk", "size=8m") as disk:
        settings = Settings(root=str(disk / "data"), stops=(BEFORE_CREATING,))
        session = Session(settings, {})
        with session.reported(outcome, where):
            session.hear("stopped")
            remount(disk, "ro")
            session.go()
            session.hear("stopped")
            remount(disk, "rw")
            session.go()
            told = session.end()
            outcome.tried += 1
            if len(told.refusals) != 1 or "Read-only" not in told.refusals[0]:
                outcome.breach("broken", f"{where}: not said clearly: {told.refusals}")
            judge(told, settings, outcome, where)


def _try_ext4(effort: Effort, stop: int, fallback: bool, outcome: Outcome) -> None:
    """The kernel finds an error and makes a mounted ext4 read-only; it is repaired later."""
    where = f"ext4 broken before trial {stop}{', with fallback_root' if fallback else ''}"
    with effort.workspace() as folder, ext4(folder / "disk") as disk:
        settings = Settings(
            root=str(disk / "data"),
            fallback=str(folder / "second") if fallback else "",
            stops=(stop,),
            lasting=not fallback,
            close_timeout=5.0 if fallback else _IMPATIENCE,
        )
        session = Session(settings, {})
        with session.reported(outcome, where):
            session.hear("stopped")
            break_ext4(disk)
            session.go()
            told = session.end()
            outcome.tried += 1
            outcome.count("recorded to the end on the second disk", fallback)
            outcome.count("given up, the trials named", bool(told.write_failures))
            check(told, settings, outcome, where, whole=fallback)
            repair_ext4(disk)
            judge(told, settings, outcome, f"{where}, then repaired", is_whole=fallback)


ROWS = (
    Row(
        24,
        "EROFS in mid-session",
        "Recording goes on in fallback_root, or is held and goes on when the disk is writable "
        "again; when it never is, the trials are named.",
        run,
    ),
)
