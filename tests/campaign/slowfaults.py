"""Rows 25 and 26: a disk that is slow, and one that does not answer at all."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from tests.campaign.frame import CannotRun, Outcome, Row
from tests.campaign.sessions import Session, check, judge, optional, side_by_side
from tests.campaign.story import BEFORE_CREATING, Settings, Told
from tests.shims import Action, Call, Faults, slow_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.campaign.frame import Effort

Policy = Literal["wait", "raise", "drop"]
_POLICIES: Final[tuple[Policy, ...]] = ("wait", "raise", "drop")
#: A few trials.
_SMALL_QUEUE: Final = 32 * 2**10
#: A loop that waits for the disk is late at every slow call; a computer with other work to do is
#: late now and then.
_BY_CHANCE: Final = 2


# --- row 25: slow ---------------------------------------------------------------------------------


def run_slow(effort: Effort) -> Outcome:
    """Every fsync of the recorder takes long; the queue fills; the loop feels nothing."""
    outcome = Outcome("sessions on slow disks")
    delays = (0.2, 1.0, 5.0) if effort.is_full else (0.2,)
    tries: list[Callable[[Outcome], None]] = [
        partial(_try_slow, effort, *told) for told in itertools.product(delays, _POLICIES)
    ]
    tries += [partial(_try_slow_tree, effort, delay) for delay in (0.02, 0.2)[: effort.of(1, 2)]]
    side_by_side(tries, outcome)
    return outcome


def _try_slow(effort: Effort, delay: float, policy: Policy, outcome: Outcome) -> None:
    where = f"fsync takes {delay} s, on_full={policy!r}"
    with effort.workspace() as folder, Faults() as faults:
        settings = Settings(
            root=str(folder / "data"),
            count=12 if delay > 1 else 40,
            flush_every=0,
            bulk=8192,
            on_full=policy,
            queue_bytes=_SMALL_QUEUE,
            close_timeout=120.0,
            late=0.8 * delay,
        )
        session = Session(settings, faults.environment, patience=300.0)
        rule = faults.arm(
            Call.SYNC | Call.SYNC_FOLDER,
            folder,
            action=Action.DELAY,
            seconds=delay,
            count=0,
            pid=session.process.pid,
        )
        with session.reported(outcome, where):
            told = session.end()
            faults.require_attached()
            outcome.tried += 1
            outcome.count("slow calls", rule.hit)
            outcome.count("refusals by on_full='raise'", told.full)
            outcome.count("trials dropped and noted by on_full='drop'", told.dropped)
            _check_loop(told, settings, outcome, where)
            pushed_back = {"wait": rule.hit > 1, "raise": told.full > 0, "drop": told.dropped > 0}
            if not pushed_back[policy]:
                outcome.breach("broken", f"{where}: nothing was held back")
            judge(told, settings, outcome, where)


def _check_loop(told: Told, settings: Settings, outcome: Outcome, where: str) -> None:
    outcome.peak("latest tick of a loop, ms", round(told.late * 1000))
    if told.times_late > _BY_CHANCE:
        late = f"{told.times_late} ticks were more than {settings.late:.2f} s late"
        outcome.breach("broken", f"{where}: the loop was held: {late}")
    peak = told.statistics.get("queue_peak", 0)
    if peak > settings.queue_bytes:
        outcome.breach("broken", f"{where}: the queue held {peak} of {settings.queue_bytes} bytes")


def _try_slow_tree(effort: Effort, delay: float, outcome: Outcome) -> None:
    """Recorder and publisher alike, all writes and all fsyncs, as a benchmark does it."""
    where = f"writes and fsyncs take {delay} s, for the publisher too"
    with effort.workspace() as folder:
        settings = Settings(root=str(folder / "data"), close_timeout=120.0, late=max(0.2, delay))
        session = Session(settings, slow_disk(delay, folder), patience=300.0)
        with session.reported(outcome, where):
            told = session.end()
            outcome.tried += 1
            _check_loop(told, settings, outcome, where)
            judge(told, settings, outcome, where)


# --- row 26: hung ---------------------------------------------------------------------------------

#: The disk is called hung after five seconds; twice that is a loaded computer.
_TOLD_WITHIN: Final = 12.0
_CLOSE_TIMEOUT: Final = 3.0
#: Beside the deadline: letting go, and waiting for writer, publisher and thread.
_CLOSED_WITHIN: Final = _CLOSE_TIMEOUT + 15.0

_ALL: Final = Call.WRITE | Call.SYNC | Call.SYNC_FOLDER | Call.CREATE | Call.RENAME | Call.MKDIR


def run_hung(effort: Effort) -> Outcome:
    """A call never returns: of each kind, at each stage; then a whole FUSE file system."""
    outcome = Outcome("disks that stopped answering")
    calls = [Call.WRITE, Call.SYNC, _ALL] if effort.is_full else [_ALL]
    stops = (BEFORE_CREATING, 0, 6, 12) if effort.is_full else (BEFORE_CREATING, 6)
    told = itertools.product(calls, stops, (False, True))
    tries: list[Callable[[Outcome], None]] = [partial(_try_hung, effort, *each) for each in told]
    tries.append(partial(_try_hung_from_the_start, effort))
    side_by_side(tries, outcome)
    with optional(outcome, "a FUSE file system"):
        for stop in range(1, 12, 4) if effort.is_full else (6,):
            _try_fuse(effort, stop, outcome)
    return outcome


def _try_hung(effort: Effort, call: Call, stop: int, fallback: bool, outcome: Outcome) -> None:
    kind = "every call" if call == _ALL else str(call.name)
    where = f"{kind} hangs from stop {stop} on{', with fallback_root' if fallback else ''}"
    with effort.workspace() as folder, Faults() as faults:
        settings = _settings(folder / "data", folder / "second" if fallback else None, stop)
        session = Session(settings, faults.environment)
        with session.reported(outcome, where):
            session.hear("stopped")
            faults.require_attached()
            rule = faults.arm(call, folder / "data", action=Action.HANG, count=0)
            _let_hang(session, settings, outcome, where)
            rule.stop()
            judge(session.told, settings, outcome, where, is_whole=False, may_refuse=True)


def _try_hung_from_the_start(effort: Effort, outcome: Outcome) -> None:
    """The root itself does not answer."""
    where = "every call hangs from the start"
    with effort.workspace() as folder, Faults() as faults:
        settings = _settings(folder / "data", None, 0)
        faults.arm(_ALL, folder / "data", action=Action.HANG, count=0)
        session = Session(settings, faults.environment, patience=60.0)
        with session.reported(outcome, where):
            told = session.end()
            faults.require_attached()
            outcome.tried += 1
            if not told.refusals:
                outcome.breach("broken", f"{where}: nobody was told")


def _settings(root: Path, fallback: Path | None, stop: int) -> Settings:
    return Settings(
        root=str(root),
        fallback="" if fallback is None else str(fallback),
        lasting=True,
        stops=(stop,),
        close_timeout=_CLOSE_TIMEOUT,
        late=1.0,
    )


def _let_hang(
    session: Session,
    settings: Settings,
    outcome: Outcome,
    where: str,
    *,
    heal: Callable[[], object] | None = None,
) -> None:
    """The disk hangs now: hear what the experiment says, and wait for the end of its process.

    With `heal`, the disk answers when the experiment has come to its end.
    """
    began = time.monotonic()
    session.go()
    event = session.hear("trouble", "refused", "not published")
    took = time.monotonic() - began
    while BEFORE_CREATING in settings.stops and session.hear("stopped"):
        session.go()
    if heal is not None:
        session.hear("closed")
        heal()
    told = session.end()
    outcome.tried += 1
    outcome.peak("slowest report, s", round(took, 1))
    if event is None:
        outcome.breach("broken", f"{where}: nobody was told")
    elif took > _TOLD_WITHIN:
        outcome.breach("broken", f"{where}: told after {took:.0f} s only")
    if told.closing > _CLOSED_WITHIN:
        outcome.breach("broken", f"{where}: closing took {told.closing:.0f} s")
    outcome.count("WriteFailed at the deadline", bool(told.write_failures))
    _check_loop(told, settings, outcome, where)


def _try_fuse(effort: Effort, stop: int, outcome: Outcome) -> None:
    """A real file system whose calls hang in the kernel.

    A thread that waits there for an answer cannot even be killed, and its process with it: so the
    disk answers when the experiment is over, and only then need the process end.
    """
    where = f"FUSE hangs before trial {stop}"
    with effort.workspace() as folder, _hung_fuse(folder) as (disk, gate):
        settings = _settings(disk / "data", None, stop)
        session = Session(settings, {})
        with session.reported(outcome, where):
            session.hear("stopped")
            gate.touch()
            _let_hang(session, settings, outcome, where, heal=gate.unlink)
            outcome.count("FUSE file systems that hung")
            check(session.told, settings, outcome, where, whole=False)


@contextlib.contextmanager
def _hung_fuse(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Mount it; give its folder, and the file whose being there makes it hang."""
    if importlib.util.find_spec("mfusepy") is None or shutil.which("fusermount3") is None:
        raise CannotRun("it needs mfusepy and fuse3")
    behind, disk, gate = folder / "behind", folder / "disk", folder / "gate"
    behind.mkdir()
    disk.mkdir()
    here = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.campaign.hungfuse", *map(str, (behind, disk, gate))]
    server = subprocess.Popen(command, cwd=here, stderr=subprocess.PIPE)
    try:
        while not disk.is_mount():
            if server.poll() is not None:
                words = server.communicate()[1].decode(errors="replace")
                raise CannotRun(f"FUSE cannot be mounted here: {words[-300:]}")
            time.sleep(0.02)
        yield disk, gate
    finally:
        # First of all: until the disk answers, nobody who waits for it can be ended.
        gate.unlink(missing_ok=True)
        subprocess.run(["fusermount3", "-uz", str(disk)], check=False, capture_output=True)
        server.terminate()
        server.communicate()


ROWS = (
    Row(
        25,
        "Slow disk (0.2 to 5 s for each fsync)",
        "The loop is not held; the queue keeps its bound; on_full does what it says.",
        run_slow,
    ),
    Row(
        26,
        "Hung disk (a call never returns)",
        "on_trouble is told after five seconds; the loop lives; closing ends at close_timeout and "
        "names what is not durable; the process ends by itself (where the kernel keeps a thread "
        "that waits for the disk, as soon as it lets go).",
        run_hung,
    ),
)
