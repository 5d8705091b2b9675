"""Rows 18 and 19: the disk is full, for the recorder or for its publisher."""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from tests.campaign.content import reader_of
from tests.campaign.frame import Outcome, Row
from tests.campaign.lanes import in_lanes
from tests.campaign.mounts import remount, require_root, tmpfs
from tests.campaign.sessions import (
    Session,
    check,
    is_published,
    judge,
    optional,
    quiet,
    record_here,
    side_by_side,
)
from tests.campaign.story import Settings, Told
from trialstore._ondisk.segments import RESERVE_BYTES
from trialstore.testing import FullDisk, use

if TYPE_CHECKING:
    from tests.campaign.frame import Effort
    from tests.campaign.lanes import Lane

Policy = Literal["wait", "raise", "drop"]
_POLICIES: Final[tuple[Policy, ...]] = ("wait", "raise", "drop")
_PLENTY: Final = 1 << 24
_SECTOR: Final = 512
_PAGE: Final = 4096
#: Room for a few trials of the model, so that a disk that is full soon fills the queue as well.
_SMALL_QUEUE: Final = 8192
#: A recorder that is to give up closes after so many seconds.
_IMPATIENCE: Final = 2.0


#: A recorder that holds waits for a second before it tries again: many can do so side by side.
_LANES: Final = 6


# --- row 18: the recorder's disk is full ----------------------------------------------------------


def run_full(effort: Effort) -> Outcome:
    """So many bytes and no more: through the disk port to the byte, and on a real tmpfs."""
    outcome = in_lanes(every_size, effort, _LANES, _LANES)
    with optional(outcome, "real file systems"):
        _run_full_tmpfs(effort, outcome)
    return outcome


def every_size(lane: Lane) -> Outcome:
    """One lane of the tries through the disk port."""
    effort, outcome = lane.effort, Outcome("full disks")
    sizes = range(0, _bytes_of_a_session(effort), _SECTOR)
    if not effort.is_full:
        sizes = sizes[1 :: len(sizes) // 2]
    for number, (policy, is_lasting, free) in enumerate(
        itertools.product(_POLICIES, (False, True), sizes)
    ):
        if number % lane.lanes == lane.number:
            # The last bytes differ from step to step, so that all are met in the end.
            odd = free + number % _SECTOR
            _try_full_port(effort, odd, policy, is_lasting, outcome)
    for spare in range(lane.number * _SECTOR, 24 * _SECTOR, lane.lanes * effort.of(3, 1) * _SECTOR):
        _try_reserve(effort, spare, outcome)
    return outcome


def _run_full_tmpfs(effort: Effort, outcome: Outcome) -> None:
    require_root()
    pages = range(RESERVE_BYTES // _PAGE + 8, RESERVE_BYTES // _PAGE + 120, effort.of(40, 2))
    tries = itertools.product(pages, _POLICIES, (False, True))
    side_by_side((partial(_try_full_tmpfs, effort, *told) for told in tries), outcome)


def _bytes_of_a_session(effort: Effort) -> int:
    with effort.workspace(memory=True) as folder, use(FullDisk(_PLENTY)) as disk, quiet():
        least = [_PLENTY]

        def hear(event: dict[str, Any]) -> None:
            least[0] = min(least[0], disk.free)

        record_here(Settings(root=str(folder / "data"), child=False), hear)
        return _PLENTY - min(least[0], disk.free) - RESERVE_BYTES


def _try_full_port(
    effort: Effort, free: int, policy: Policy, is_lasting: bool, outcome: Outcome
) -> None:
    """Record until a disk without a reserve is full; then there is room again, or never."""
    where = f"port: {free} bytes free, on_full={policy!r}{', for ever' if is_lasting else ''}"
    with effort.workspace(memory=True) as folder:
        settings = Settings(
            root=str(folder / "data"),
            child=False,
            on_full=policy,
            flush_every=3 if policy == "wait" else 0,
            queue_bytes=_SMALL_QUEUE if policy != "wait" else 1 << 28,
            lasting=is_lasting,
            close_timeout=_IMPATIENCE if is_lasting else 20.0,
        )
        told, disk = Told(), FullDisk(free)

        def hear(event: dict[str, Any]) -> None:
            told.hear(event)
            if not is_lasting and event.keys() & {"trouble", "refused", "not published"}:
                disk.add_space(_PLENTY)

        with use(disk), quiet():
            record_here(settings, hear)
        outcome.tried += 1
        _count(told, outcome)
        judge(told, settings, outcome, where, is_whole=not is_lasting, may_refuse=is_lasting)


def _try_reserve(effort: Effort, spare: int, outcome: Outcome) -> None:
    """The disk is full in the middle and stays so: the reserve is for ending cleanly."""
    where = f"port: {spare} bytes and the reserve"
    with effort.workspace(memory=True) as folder, use(FullDisk(_PLENTY)) as disk, quiet():
        settings = Settings(root=str(folder / "data"), child=False, lasting=True, close_timeout=5.0)
        told = Told()

        def hear(event: dict[str, Any]) -> None:
            told.hear(event)
            if event == {"submitted": 0}:
                disk.fill()
                disk.add_space(spare)

        record_here(settings, hear)
        outcome.tried += 1
        outcome.count("ended cleanly on the reserve", bool(told.troubles))
        for problem in told.write_failures:
            outcome.breach("broken", f"{where}: the reserve did not help: {problem}")
        found = len(reader_of(folder / "data").trials)
        if found != told.submitted:
            outcome.breach("silent", f"{where}: {found} of {told.submitted} trials are there")


def _try_full_tmpfs(
    effort: Effort, pages: int, policy: Policy, is_lasting: bool, outcome: Outcome
) -> None:
    where = f"tmpfs: {pages} pages, on_full={policy!r}{', for ever' if is_lasting else ''}"
    with effort.workspace() as folder, tmpfs(folder / "disk", f"size={pages * _PAGE}") as disk:
        settings = Settings(
            root=str(disk / "data"),
            count=24,
            bulk=_PAGE,
            on_full=policy,
            flush_every=3 if policy == "wait" else 0,
            queue_bytes=8 * _SMALL_QUEUE if policy != "wait" else 1 << 28,
            lasting=is_lasting,
            close_timeout=_IMPATIENCE if is_lasting else 20.0,
        )
        ballast = disk / "ballast"
        with ballast.open("wb") as file:
            file.write(bytes(4 * _PAGE))
        session = Session(settings, {})
        with session.reported(outcome, where):
            if session.hear("trouble", "refused", "not published") and not is_lasting:
                ballast.unlink()
                remount(disk, f"size={_PLENTY}")
            told = session.end()
            remount(disk, f"size={_PLENTY}")
            outcome.tried += 1
            _count(told, outcome)
            judge(told, settings, outcome, where, is_whole=not is_lasting, may_refuse=is_lasting)


def _count(told: Told, outcome: Outcome) -> None:
    outcome.count("refusals by on_full='raise'", told.full)
    outcome.count("trials dropped and noted by on_full='drop'", told.dropped)
    outcome.count("times that the experimenter was warned early", len(told.warnings))


# --- row 19: no room to publish -------------------------------------------------------------------


def run_unpublishable(effort: Effort) -> Outcome:
    """Room for the journal, none for its published copy."""
    require_root()
    outcome = Outcome("publications without room")
    shares = [round(0.05 * n, 2) for n in range(1, 19)] if effort.is_full else [0.2, 0.7]
    tries = itertools.product(shares, (False, True))
    side_by_side((partial(_try_unpublishable, effort, *told) for told in tries), outcome)
    return outcome


def _try_unpublishable(effort: Effort, share: float, is_in_time: bool, outcome: Outcome) -> None:
    """Give the copy only a share of its room; more comes before the task is closed, or later."""
    where = f"room for {share:.0%} of the copy; more {'before' if is_in_time else 'after'} closing"
    count, bulk = 24, 1 << 16
    size = RESERVE_BYTES + round((1.06 + share) * count * bulk)
    with effort.workspace() as folder, tmpfs(folder / "disk", f"size={size}") as disk:
        settings = Settings(
            root=str(disk / "data"),
            count=count,
            bulk=bulk,
            stops=(count,),
            close_timeout=60.0 if is_in_time else 5.0,
        )
        session = Session(settings, {})
        with session.reported(outcome, where):
            session.hear("stopped")
            outcome.tried += 1
            if len(session.told.durable) != count:
                outcome.breach("broken", f"{where}: recording did not go on: {session.told}")
            if is_in_time:
                remount(disk, f"size={_PLENTY}")
            session.go()
            told = session.end()
            outcome.count("times that the recorder had to wait for room", len(told.troubles))
            outcome.count("publications refused", len(told.publish_failures))
            check(told, settings, outcome, where)
            if is_published(settings):
                outcome.count("published by their own publisher in the end")
                return
            if is_in_time and not told.publish_failures:
                outcome.breach("broken", f"{where}: neither published nor said why not")
            remount(disk, f"size={_PLENTY}")
            judge(told, settings, outcome, where)


ROWS = (
    Row(
        18,
        "ENOSPC at every byte of free space",
        "The loop lives; recording goes on by itself when there is room again, with nothing lost; "
        "when there never is, the reserve ends it cleanly, or the trials are named; what on_full "
        "refuses is said or stored with the data.",
        run_full,
    ),
    Row(
        19,
        "ENOSPC while publishing",
        "The journal is whole and the task readable; it is published when there is room again.",
        run_unpublishable,
    ),
)
