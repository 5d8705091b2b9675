"""Row 36: the wall clock jumps; names must be given twice in the same second.

``python -m tests.campaign.clockfaults ROOT`` records one task again and again under a clock that
stands still.
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

from tests.campaign.content import SUBJECT, TASK, reader_of, verify
from tests.campaign.frame import Outcome, Row
from tests.campaign.recorder import heard
from tests.campaign.sessions import Session, judge, side_by_side
from tests.campaign.story import Settings
from tests.shims import JumpingClock, set_clock
from trialstore import Storage, StorageReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.campaign.frame import Effort

_SECOND: Final = 10**9
_YEAR: Final = 365 * 86400 * _SECOND
#: 2025-10-26 01:00 UTC, when clocks in Berlin went back by an hour; half a second before.
_SUMMER_ENDS: Final = 1761440400 * _SECOND - _SECOND // 2
_HERE: Final = Path(__file__).parents[2]
_COUNT: Final = 12
_AGAIN: Final = 5


def run(effort: Effort) -> Outcome:
    """Let the clock jump before every trial; resume in the past; overwrite in one second."""
    outcome = Outcome("jumps of the clock")
    tries: list[Callable[[Outcome], None]] = []
    for number in range(effort.of(2, 40)):
        dice = random.Random(f"{effort.seed}.{number}")
        tries += [partial(_try_jumps, effort, dice), partial(_try_same_second, effort, dice)]
    side_by_side(tries, outcome)
    return outcome


def _jump(control: Path, dice: random.Random) -> str:
    """Set the clock to something else; say to what."""
    match dice.randrange(6):
        case 0:
            shift = dice.randrange(-20, 20) * _YEAR
            set_clock(control, shift_ns=shift)
            return f"{shift // _YEAR} years"
        case 1:
            shift = dice.choice((-1, 1)) * dice.choice((1, 30, 3600)) * _SECOND
            set_clock(control, shift_ns=shift)
            return f"{shift // _SECOND} s"
        case 2:
            set_clock(control, standing_ns=1)
            return "standing in 1970"
        case 3:
            set_clock(control, standing_ns=_SUMMER_ENDS)
            return "standing at the end of summer time"
        case 4:
            set_clock(control, standing_ns=4 * 10**9 * _SECOND)
            return "standing in 2096"
        case _:
            set_clock(control)
            return "right"


def _try_jumps(effort: Effort, dice: random.Random, outcome: Outcome) -> None:
    """Two sessions of one task."""
    jumps = []
    with effort.workspace() as folder, JumpingClock() as clock:
        settings = Settings(
            root=str(folder / "data"), count=_COUNT, publish_every=6, stops=tuple(range(_COUNT))
        )
        environment = {**clock.environment, "TZ": "Europe/Berlin"}
        jumps.append(_jump(clock.control, dice))
        session = Session(settings, environment)
        where = f"jumps {jumps}"
        with session.reported(outcome, where):
            while session.hear("stopped"):
                jumps.append(_jump(clock.control, dice))
                outcome.tried += 1
                session.go()
            told = session.end()
            where = f"jumps {jumps}"
            judge(told, settings, outcome, where)
            _resume(folder / "data", clock, environment, outcome, f"{where}, resumed")
        _check_clock(folder / "data", outcome, where)


def _resume(
    root: Path, clock: JumpingClock, environment: dict[str, str], outcome: Outcome, where: str
) -> None:
    """Go on with the task, by a clock that says that it was not created yet."""
    set_clock(clock.control, shift_ns=-30 * _YEAR)
    outcome.tried += 1
    command = [sys.executable, "-m", "tests.campaign.recorder", str(root), "--resume"]
    command += ["--first", str(_COUNT), "--count", str(_COUNT)]
    ran = subprocess.run(
        command, cwd=_HERE, env={**os.environ, **environment}, capture_output=True, check=False
    )
    if ran.returncode:
        words = ran.stderr.decode(errors="replace")[-500:]
        outcome.breach("broken", f"{where}: the recorder ended with {ran.returncode}: {words}")
        return
    promise = heard(ran.stdout.splitlines())
    acknowledged = promise.durable | set(range(_COUNT))
    found = verify(root, acknowledged, promise.submitted, outcome, where)
    if found != 2 * _COUNT:
        outcome.breach("silent", f"{where}: {found} of {2 * _COUNT} trials are there")


def _check_clock(root: Path, outcome: Outcome, where: str) -> None:
    """Hold the recorded times against the story: the monotonic clock went on, the other jumped."""
    timing = reader_of(root).timing
    monotonic = timing["monotonic_ns"].tolist()
    if monotonic != sorted(monotonic):
        outcome.breach("broken", f"{where}: monotonic_ns does not rise: {monotonic}")
    unix = timing["unix_ns"].tolist()
    outcome.count("times that the recorded wall clock went back", _falls(unix))


def _falls(values: list[int]) -> int:
    return sum(after < before for before, after in itertools.pairwise(values))


def _try_same_second(effort: Effort, dice: random.Random, outcome: Outcome) -> None:
    """Overwrite and repeat while the clock stands: no two things get one name."""
    with effort.workspace() as folder, JumpingClock() as clock:
        moment = dice.choice((1, _SUMMER_ENDS, 4 * 10**9 * _SECOND))
        where = f"the clock stands at {moment}"
        set_clock(clock.control, standing_ns=moment)
        command = [sys.executable, "-m", "tests.campaign.clockfaults", str(folder / "data")]
        environment = {**os.environ, **clock.environment}
        ran = subprocess.run(command, cwd=_HERE, env=environment, capture_output=True, check=False)
        outcome.tried += 1
        if ran.returncode:
            words = ran.stderr.decode(errors="replace")[-500:]
            outcome.breach("broken", f"{where}: ended with {ran.returncode}: {words}")
            return
        kept = [reader_of(folder / "data").trials["n"].tolist()]
        kept += [_trials_below(path) for path in (folder / "data.trash").glob("*/*")]
        outcome.acknowledged += _AGAIN
        outcome.count("tasks of one name in the same nanosecond", _AGAIN)
        if sorted(kept) != [[number] for number in range(_AGAIN)]:
            outcome.breach("silent", f"{where}: overwritten {_AGAIN} times, kept {sorted(kept)}")
        storage = StorageReader(folder / "data")
        storage.subject_id = SUBJECT
        if len(list(storage.task_ids)) != 1 + _AGAIN:
            outcome.breach("silent", f"{where}: repeated, there are {list(storage.task_ids)}")


def _trials_below(task: Path) -> list[int]:
    """The trials of a task in the trash, by its published table: no trialstore is needed."""
    import pandas as pd

    return [int(number) for number in pd.read_csv(task / "trials.csv")["n"]]


async def _record_again(root: Path) -> None:
    async with Storage(root, allow_overwrite=True) as storage:
        storage.subject_id = SUBJECT
        for number in range(_AGAIN):
            async with storage.create_task(TASK) as task:
                await task.write({"n": number})
        for number in range(_AGAIN):
            async with storage.create_task(TASK, repeat=True) as task:
                await task.write({"n": number})


if __name__ == "__main__":
    anyio.run(_record_again, Path(sys.argv[1]))


ROWS = (
    Row(
        36,
        "The clock jumps: by years, an hour, a second; stands still; 1970",
        "The order of trials is that of their numbers, whatever the clock said; what is "
        "overwritten or repeated within one second keeps a name of its own.",
        run,
    ),
)
