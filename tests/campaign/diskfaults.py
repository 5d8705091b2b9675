"""Rows 15, 16, 22, 23: the n-th call fails, writes are short, signals arrive.

Faults go in at two places: at every n through the disk port, in one process; and through a shim
below a real recorder and its real publisher, which meets Python's calls and HDF5's alike.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import random
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from tests.campaign.frame import Outcome, Row
from tests.campaign.lanes import in_lanes
from tests.campaign.sessions import Session, judge, quiet, record_here, side_by_side
from tests.campaign.story import Settings, Told
from tests.shims import Action, Call, Faults
from trialstore.testing import FailingDisk, use

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import Any

    from tests.campaign.frame import Effort
    from tests.campaign.lanes import Lane
    from trialstore._ondisk.disk import Buffer
    from trialstore.testing import Kind
    from trialstore.testing._watched import Where

T = TypeVar("T")
#: How long a fault lasts: one call, until the experimenter has been told, for ever.
Length = Literal["once", "until told", "for ever"]
Moment = Literal["before", "halfway", "after"]

#: A recorder that is to give up closes after so many seconds; publishing takes a tenth of one.
_IMPATIENCE: Final = 2.0
_WRITES: Final[tuple[tuple[Kind, Moment], ...]] = (
    ("write", "before"),
    ("write", "halfway"),
    ("write", "after"),
    ("write_at", "before"),
    ("write_at", "halfway"),
    ("create", "before"),
    ("add_folder", "before"),
    ("rename", "before"),
    ("rename", "after"),
    ("remove", "before"),
)
_SYNCS: Final[tuple[tuple[Kind, Moment], ...]] = (
    ("sync", "before"),
    ("sync", "after"),
    ("sync_folder", "before"),
    ("sync_folder", "after"),
)
#: A recorder that holds waits for a second before it tries again: many can do so side by side.
_LANES: Final = 6
#: More calls of a kind than any session makes.
_MANY: Final = 10_000


class StrictDisk(FailingDisk):
    """Fails below one folder only, and notices when a failed descriptor is synced again."""

    def __init__(self, sick: Path) -> None:
        super().__init__()
        self.synced_again = 0
        self._sick = sick
        self._paths: dict[int, Path] = {}
        self._failed: set[int] = set()

    def create(self, path: Path) -> int:
        """As `FailingDisk.create`."""
        fd = super().create(path)
        self._paths[fd] = path
        return fd

    def close(self, fd: int) -> None:
        """As `FailingDisk.close`; the number may be given again."""
        self._failed.discard(fd)
        self._paths.pop(fd, None)
        super().close(fd)

    def write(self, fd: int, pieces: Sequence[Buffer]) -> None:
        """As `FailingDisk.write`."""
        with self._watching(fd):
            super().write(fd, pieces)

    def sync(self, fd: int) -> None:
        """As `FailingDisk.sync`."""
        self.synced_again += fd in self._failed
        with self._watching(fd):
            super().sync(fd)

    @contextlib.contextmanager
    def _watching(self, fd: int) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._failed.add(fd)
            raise

    def _around(
        self,
        kind: Kind,
        perform: Callable[[], T],
        *where: Where,
        partly: Callable[[], object] | None = None,
    ) -> T:
        path = self._paths.get(where[-1]) if isinstance(where[-1], int) else where[-1]
        if path is None or self._sick not in (path, *path.parents):
            return perform()
        return super()._around(kind, perform, *where, partly=partly)


# --- through the disk port ------------------------------------------------------------------------


def _try_port(
    folder: Path,
    kind: Kind,
    moment: Moment,
    nth: int,
    length: Length,
    fallback: bool,
    outcome: Outcome,
) -> bool:
    """Let one call fail; return whether there was such a call."""
    where = f"port: {kind} {nth} {moment} {length}{', fallback_root' if fallback else ''}"
    is_final = length == "for ever" and not fallback
    settings = Settings(
        root=str(folder / "data"),
        fallback=str(folder / "second") if fallback else "",
        child=False,
        lasting=is_final,
        close_timeout=_IMPATIENCE if is_final else 20.0,
    )
    told = Told()
    disk = StrictDisk(folder / "data")
    fault = disk.fail(kind, nth, times=1 if length == "once" else None, moment=moment)

    def hear(event: dict[str, Any]) -> None:
        told.hear(event)
        if length == "until told" and event.keys() & {"trouble", "refused"}:
            disk.heal()

    with use(disk), quiet():
        record_here(settings, hear)
    if fault.hits == 0:
        return False
    outcome.tried += 1
    if disk.synced_again:
        outcome.breach("broken", f"{where}: a failed descriptor was synced again")
    judge(told, settings, outcome, where, is_whole=not is_final, may_refuse=length == "for ever")
    return True


def _every_n(lane: Lane, faults: Sequence[tuple[Kind, Moment]]) -> Outcome:
    """Full: every n, every length, with and without a second disk. Quick: a part of that."""
    outcome = Outcome("failing calls")
    lengths: tuple[Length, ...] = ("once", "until told", "for ever")
    step = 1 if lane.is_full else 3
    plans = itertools.product(faults, lengths, (False, True))
    for number, ((kind, moment), length, fallback) in enumerate(plans):
        is_main = length == "once" and not fallback and moment != "after"
        if not (lane.is_full or is_main or (kind, moment) == faults[0]):
            continue
        if kind == "remove" and length != "once":
            continue  # what cannot be removed at all cannot be taken back either
        first = 1 + (lane.number + number) % lane.lanes * step
        for nth in range(first, _MANY, step * lane.lanes):
            with lane.effort.workspace(memory=True) as folder:
                if not _try_port(folder, kind, moment, nth, length, fallback, outcome):
                    break
    return outcome


def every_write(lane: Lane) -> Outcome:
    """One lane of row 15."""
    return _every_n(lane, _WRITES)


def every_sync(lane: Lane) -> Outcome:
    """One lane of row 16."""
    return _every_n(lane, _SYNCS)


# --- through the shim -----------------------------------------------------------------------------

_CALLS_15: Final = (Call.WRITE, Call.CREATE, Call.RENAME, Call.MKDIR)
_CALLS_16: Final = (Call.SYNC, Call.SYNC_FOLDER)


def _through_shim(effort: Effort, calls: Sequence[Call], outcome: Outcome) -> None:
    """Let the n-th call of the recorder, or of its publisher, fail below libc, once or for ever."""
    dice = random.Random(effort.seed)

    def attempt(call: Call, nth: int, count: int, of_publisher: bool, part: Outcome) -> int:
        with effort.workspace() as folder, Faults() as faults:
            seen = _shim_run(folder, faults, call, nth, count, part, of_publisher=of_publisher)
            faults.require_attached()
        return seen

    tries: list[Callable[[Outcome], object]] = []
    for call, of_publisher in itertools.product(calls, (False, True)):
        numbers = range(1, 1 + attempt(call, _MANY, 1, of_publisher, outcome))
        for count in (1, 0):
            # A publisher that always fails costs seconds: it is waited for, or started again.
            full = numbers if count or not of_publisher else numbers[:: max(1, len(numbers) // 12)]
            chosen = full if effort.is_full else dice.sample(numbers, min(1, len(numbers)))
            tries += [partial(attempt, call, nth, count, of_publisher) for nth in chosen]
    side_by_side(tries, outcome)


def _shim_run(
    folder: Path,
    faults: Faults,
    call: Call,
    nth: int,
    count: int,
    outcome: Outcome,
    *,
    of_publisher: bool,
) -> int:
    """Run one session; return how many calls there were."""
    root = folder / "data"
    who = "publisher" if of_publisher else "recorder"
    where = f"shim: {call.name} {nth} of the {who}{'' if count else ' and all after it'}"
    is_final = not count and not of_publisher
    # A publisher that cannot even write its answer is waited for until the deadline.
    settings = Settings(
        root=str(root),
        publish_every=6,
        lasting=is_final,
        close_timeout=20.0 if count else _IMPATIENCE,
    )
    session = Session(settings, faults.environment)
    # Its number is known only now; it needs a good part of a second to reach the disk.
    pid = session.process.pid
    rule = faults.arm(call, root, first=nth, count=count, pid=-pid if of_publisher else pid)
    with session.reported(outcome, where):
        told = session.end()
        rule.stop()
        outcome.tried += rule.hit > 0
        outcome.count(f"sessions in which the {who}'s calls failed below libc", rule.hit > 0)
        if faults.synced_again:
            outcome.breach("broken", f"{where}: a failed descriptor was synced again")
        outcome.count("publications that failed", len(told.publish_failures))
        judge(told, settings, outcome, where, is_whole=not is_final, may_refuse=is_final)
    return rule.seen


def run_writes(effort: Effort) -> Outcome:
    """EIO at the n-th write (creation, rename) of a session."""
    outcome = in_lanes(every_write, effort, _LANES, _LANES)
    _through_shim(effort, _CALLS_15, outcome)
    return outcome


def run_syncs(effort: Effort) -> Outcome:
    """EIO at the n-th fsync, of files and folders."""
    outcome = in_lanes(every_sync, effort, _LANES, _LANES)
    _through_shim(effort, _CALLS_16, outcome)
    return outcome


# --- short writes, signals ------------------------------------------------------------------------


def run_short(effort: Effort) -> Outcome:
    """Each write takes only a part of its bytes."""
    outcome = Outcome("sessions of short writes")
    for limit in (1, 2, 7, 39, 64, 511, 512, 4095) if effort.is_full else (1, 511):
        with effort.workspace(memory=True) as folder:
            settings, told = Settings(root=str(folder / "data"), child=False), Told()
            with use(FailingDisk(short_writes=limit)), quiet():
                record_here(settings, told.hear)
            outcome.tried += 1
            judge(told, settings, outcome, f"port: at most {limit} bytes a write")
    shares = [(2, 1), (0, 1), (3, 2), (0, 3)] if effort.is_full else [(2, 1), (0, 1)]
    for parts, every in shares:
        with effort.workspace() as folder, Faults() as faults:
            where = f"shim: writes take 1/{parts or 'n'} of their bytes, every {every}. time"
            settings = Settings(root=str(folder / "data"), publish_every=6)
            rule = faults.arm(
                Call.WRITE, folder, action=Action.SHORTEN, parts=parts, count=0, every=every
            )
            _expect_nothing(settings, faults, outcome, where)
            outcome.count("writes cut short below libc", rule.hit)
    return outcome


#: A handler in Python, called a thousand times a second: by a timer, in the main thread; and by
#: signals sent straight to the thread that writes.
_TIMER: Final = """
import atexit, signal
atexit.register(signal.setitimer, signal.ITIMER_REAL, 0.0)
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
"""
_PESTER: Final = """
import atexit, ctypes, os, signal, threading
over = threading.Event()
atexit.register(over.set)
signal.signal(signal.SIGUSR1, lambda *_: None)
def pester():
    libc = ctypes.CDLL(None)
    while not over.wait(0.0005):
        for thread in threading.enumerate():
            if thread.name == "trialstore disk":
                libc.tgkill(os.getpid(), thread.native_id, signal.SIGUSR1)
threading.Thread(target=pester, daemon=True).start()
"""


def run_signals(effort: Effort) -> Outcome:
    """Calls are interrupted: EINTR from below, signals from all sides."""
    outcome = Outcome("sessions under signals")
    for every in range(2, effort.of(3, 8)):
        with effort.workspace() as folder, Faults() as faults:
            calls = Call.WRITE | Call.SYNC | Call.SYNC_FOLDER
            rule = faults.arm(calls, folder, error=errno.EINTR, count=0, every=every)
            settings = Settings(root=str(folder / "data"), publish_every=6)
            _expect_nothing(settings, faults, outcome, f"shim: every {every}. call gives EINTR")
            outcome.count("calls interrupted below libc", rule.hit)
    for source, number in itertools.product((_TIMER, _PESTER), range(effort.of(1, 10))):
        with effort.workspace() as folder:
            settings = Settings(root=str(folder / "data"), count=24, bulk=2**20, publish_every=8)
            where = f"{'signals to the writing thread' if source is _PESTER else 'timer'} {number}"
            session = Session(settings, {}, before=source)
            outcome.tried += 1
            with session.reported(outcome, where):
                judge(session.end(), settings, outcome, where)
    return outcome


def _expect_nothing(settings: Settings, faults: Faults, outcome: Outcome, where: str) -> None:
    """Record under faults that must not be felt at all."""
    outcome.tried += 1
    session = Session(settings, faults.environment)
    with session.reported(outcome, where):
        told = session.end()
        faults.require_attached()
        for problem in (*told.refusals, *told.troubles, *told.publish_failures):
            outcome.breach("broken", f"{where}: was felt: {problem}")
        judge(told, settings, outcome, where)


ROWS = (
    Row(
        15,
        "EIO at the n-th write",
        "Whichever write, creation or rename fails, once or from then on, recording goes on in a "
        "new segment, or on the second disk, or in memory until the disk is well; what cannot be "
        "kept is named. A publication that fails leaves the journal whole, and is made up for.",
        run_writes,
    ),
    Row(
        16,
        "EIO at the n-th fsync, fdatasync or fsync of a folder",
        "As row 15; and a descriptor that has failed is never asked for an fsync again.",
        run_syncs,
    ),
    Row(22, "Short writes", "Every frame is whole; nobody feels anything.", run_short),
    Row(
        23,
        "EINTR and signals during writes",
        "Nothing is written twice, nothing is left out; nobody feels anything.",
        run_signals,
    ),
)
