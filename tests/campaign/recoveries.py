"""Rows 3 and 4: killed while recovering and publishing, again and again; the end is the same."""

from __future__ import annotations

import functools
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anyio

from tests.campaign.content import verify
from tests.campaign.examine import (
    digest,
    folder_of,
    leftovers,
    published_breaches,
    segments_below,
)
from tests.campaign.failpoints import STATES, TRIALS, KillingDisk, live, over
from tests.campaign.frame import Effort, Outcome, Row
from tests.campaign.interruptions import (
    KILLED,
    NEVER,
    Point,
    calls_of,
    note_point,
    points,
    share,
    tell_coverage,
)
from tests.campaign.lanes import Child, Lane, in_lanes
from tests.campaign.recorder import record
from trialstore._ondisk import layout
from trialstore._publishing.service import publish_once
from trialstore._publishing.task import TaskPublisher

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Any

    from tests.campaign.failpoints import Life

    Way = Callable[[Path], None]


def _publish(root: Path) -> None:
    publish_once(folder_of(root), {})


def _resume(root: Path) -> None:
    anyio.run(functools.partial(record, root, resume=True, count=0))


def _publish_between(root: Path) -> None:
    publisher = TaskPublisher(folder_of(root))
    try:
        publisher.publish()
    finally:
        publisher.close()


#: For each point of the first recovery, so many of the second, by chance.
_SECOND_KILLS: Final = 3
#: Ways to recover, each of which may be killed and be followed by another.
_WAYS: Final = {"publish": _publish, "resume": _resume}


@dataclass(slots=True)
class _Ground:
    """A task that must be recovered, as it is before, and what it must be in the end."""

    name: str
    root: Path
    calls: dict[str, int]
    expected: dict[str, Any]
    segments: dict[str, bytes]

    @classmethod
    def lay(cls, name: str, life: Life, space: Path, ways: Mapping[str, Way]) -> _Ground:
        root = space / name / "data"
        root.parent.mkdir()
        with Child(live(life, root, KillingDisk(NEVER, is_after=False)), space) as child:
            if child.wait() != KILLED:
                raise RuntimeError(f"{name}: {child.errors}")
        calls, expected = {}, {}
        copy = space / "clean" / "data"

        def recovery(recover: Way, disk: KillingDisk) -> Callable[[], None]:
            return over(disk, lambda: recover(copy))

        for way, recover in ways.items():
            shutil.copytree(root.parent, copy.parent)
            calls[way] = calls_of(functools.partial(recovery, recover), space)
            _finish(copy)
            expected = digest(folder_of(copy))
            shutil.rmtree(copy.parent)
        return cls(name, root, calls, expected, segments_below(root))


def _finish(root: Path) -> None:
    if (folder_of(root) / layout.JOURNAL).is_dir():
        publish_once(folder_of(root), {})


def kill_while_recovering(lane: Lane) -> Outcome:
    """Kill recovery at each call, then the recovery of that, then recover: one and the same end."""
    outcome, coverage = Outcome("kills"), dict[str, int]()
    with lane.effort.workspace(memory=True) as space:
        grounds = [_Ground.lay(name, life, space, _WAYS) for name, life in STATES.items()]
        tries = [
            (ground, way, point)
            for ground in grounds
            for way, calls in ground.calls.items()
            for point in points(calls)
            for _ in range(_SECOND_KILLS if lane.is_full else 1)
        ]
        for attempt, (ground, way, point) in enumerate(share(tries, lane)):
            dice = lane.random(attempt)
            root = space / "try" / "data"
            shutil.copytree(ground.root.parent, root.parent)
            where = f"row 3, {ground.name}: {way} killed {point}"
            _kill_in(_WAYS[way], root, point, outcome, coverage)
            _check(root, ground, outcome, where)
            again = dice.choice(sorted(_WAYS))
            second = dice.choice(points(ground.calls[again]))
            where += f", then {again} {second}"
            _kill_in(_WAYS[again], root, second, outcome, coverage)
            _check(root, ground, outcome, where)
            _check_end(root, ground, outcome, where)
            shutil.rmtree(root.parent)
    tell_coverage(outcome, coverage)
    return outcome


def _kill_in(
    recover: Way,
    root: Path,
    point: Point,
    outcome: Outcome,
    coverage: dict[str, int],
) -> None:
    """Recover in a child process, which is killed on its way if it gets so far."""
    if not (folder_of(root) / layout.JOURNAL).is_dir():
        outcome.count("recovered before the second kill")
        return
    with Child(over(point.disk(), lambda: recover(root)), root.parent.parent) as child:
        code = child.wait()
        note_point(child, outcome, coverage)
        if code not in (0, KILLED):
            outcome.breach("broken", f"{root}: recovery ended with {code}: {child.errors}")


def _check(root: Path, ground: _Ground, outcome: Outcome, where: str) -> None:
    """Readers give every trial, published paths are whole, no old segment was touched."""
    folder = folder_of(root)
    verify(root, set(range(TRIALS)), TRIALS, outcome, where)
    for message in published_breaches(folder, lambda _: 0):
        outcome.breach("broken", f"{where}: {message}")
    for name, data in segments_below(root, root.parent / f"{root.name}.trash").items():
        if ground.segments.get(name, data) != data:
            outcome.breach("broken", f"{where}: segment {name} was changed in place")


def _check_end(root: Path, ground: _Ground, outcome: Outcome, where: str) -> None:
    _finish(root)
    found = digest(folder_of(root))
    for part, expected in ground.expected.items():
        if found[part] != expected:
            outcome.breach("broken", f"{where}: {part} is {found[part]!r}, not {expected!r}")
    for name in leftovers(folder_of(root)):
        if name.startswith(f".{layout.JOURNAL}."):
            # Killed while a journal that was published and moved aside is deleted: nobody is
            # called for it any more; the next recorder, or `trialstore prune`, takes it away.
            outcome.count("a published journal half deleted")
        else:
            outcome.breach("broken", f"{where}: left behind: {name}")


def kill_while_publishing(lane: Lane) -> Outcome:
    """Kill publication at each call, and at random times for what happens inside HDF5."""
    outcome, coverage = Outcome("kills"), dict[str, int]()
    ways = {"publish": _publish, "publish between": _publish_between}
    with lane.effort.workspace(memory=True) as space:
        grounds = [_Ground.lay(name, life, space, ways) for name, life in STATES.items()]
        tries: list[tuple[_Ground, str, Point | None]] = [
            (ground, way, point)
            for ground in grounds
            for way, calls in ground.calls.items()
            for point in [*points(calls), *[None] * calls]
        ]
        for attempt, (ground, way, point) in enumerate(share(tries, lane)):
            root = space / "try" / "data"
            shutil.copytree(ground.root.parent, root.parent)
            where = f"row 4, {ground.name}: {way} killed {point or lane.name(attempt)}"
            if point is None:
                _kill_at_random(ways[way], root, lane.random(attempt), outcome)
            else:
                _kill_in(ways[way], root, point, outcome, coverage)
            _check(root, ground, outcome, where)
            _check_end(root, ground, outcome, where)
            shutil.rmtree(root.parent)
    tell_coverage(outcome, coverage)
    return outcome


def _kill_at_random(recover: Way, root: Path, dice: random.Random, outcome: Outcome) -> None:
    with Child(lambda: recover(root), root.parent.parent) as child:
        child.listen(dice.uniform(0.0, 0.06))
        child.kill()
        outcome.tried += 1
        outcome.count("at random times", child.wait() == KILLED)


# --- the rows -------------------------------------------------------------------------------------


def _row_3(effort: Effort) -> Outcome:
    return in_lanes(kill_while_recovering, effort, effort.of(60, 3000))


def _row_4(effort: Effort) -> Outcome:
    return in_lanes(kill_while_publishing, effort, effort.of(60, 2000))


ROWS: Final = (
    Row(
        3,
        "kill -9 during recovery, and again during the recovery of that",
        "at each point readers give every trial; the end is the same as after one clean recovery; "
        "no byte of an old segment is changed",
        _row_3,
    ),
    Row(
        4,
        "kill -9 of publication, at each step and at random times",
        "a published path holds nothing or a whole set; publishing again gives the same files",
        _row_4,
    ),
)
