"""Rows 17 and 35: write-back that fails, memory that runs out, a publisher that is killed."""

from __future__ import annotations

import functools
import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import numpy as np

from tests.campaign import blocklog
from tests.campaign.content import SUBJECT, TASK, reader_of, verify
from tests.campaign.examine import digest, folder_of, leftovers, published_breaches
from tests.campaign.failpoints import STATES, TRIALS, KillingDisk, live
from tests.campaign.frame import CannotRun, Outcome, Row
from tests.campaign.lanes import Child, Hung, Lane, end_process, in_lanes
from tests.campaign.recorder import hand_over, record, say
from trialstore import Storage, StorageError
from trialstore._publishing.service import publish_once

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from tests.campaign.content import Promise
    from trialstore import TaskWriter

_NEVER: Final = 10**9

# --- row 17: write-back errors --------------------------------------------------------------------

_TMPFS: Final = 9 * 2**20
_DISK: Final = 24 * 2**20
_DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")


@contextmanager
def _small_tmpfs(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_TMPFS}", "trialstore-campaign", str(folder)]
    if subprocess.run(command, capture_output=True, check=False, timeout=60).returncode != 0:
        raise CannotRun("a tmpfs cannot be mounted")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False, timeout=60)


async def _record_into_the_void(root: Path, fallback: Path | None) -> None:
    """Record until the disk has refused for longer than anybody waits."""
    storage = Storage(root, fallback_root=fallback, close_timeout=1.0)
    async with storage:
        storage.subject_id = SUBJECT
        async with storage.create_task(TASK) as task:
            say("O", 0)
            for number in range(120):
                with anyio.fail_after(3):
                    await hand_over(task, number)


def _survive(root: Path, fallback: Path | None) -> None:
    sys.frozen = True  # type: ignore[attr-defined] # what PyInstaller and its like set
    try:
        anyio.run(_record_into_the_void, root, fallback)
    except (StorageError, TimeoutError):
        say("Z", 0)


def fail_write_back(lane: Lane) -> Outcome:
    """Record on an ext4 whose device runs out of room under it; look again without caches."""
    blocklog.require()
    blocklog.sweep()
    outcome = Outcome("failing disks")
    for attempt in range(lane.count):
        dice, where = lane.random(attempt), f"row 17, {lane.name(attempt)}"
        with (
            lane.effort.workspace(memory=True) as space,
            _small_tmpfs(space / "small") as small,
        ):
            (space / blocklog.OWNER).write_text(str(os.getpid()))
            image = small / "image"
            blocklog.make_ext4(image, _DISK)
            fallback = space / "fallback" if attempt % 2 else None
            promise = _fail_once(space, image, fallback, dice, outcome, where)
            # Somebody makes room, and mounts the disk again: what was only in memory is gone.
            subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True, timeout=60)
            if _DROP_CACHES.exists():
                _DROP_CACHES.write_text("3\n")
            with blocklog.mounted(image, space / "disk") as disk:
                _look(disk / "data", promise, outcome, where)
    return outcome


def _fail_once(
    space: Path,
    image: Path,
    fallback: Path | None,
    dice: random.Random,
    outcome: Outcome,
    where: str,
) -> Promise:
    with blocklog.mounted(image, space / "disk") as disk:
        ballast = image.with_name("ballast")
        free = os.statvfs(image.parent)
        left = dice.randrange(50_000, 500_000)
        ballast.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - left)))
        body = functools.partial(_survive, disk / "data", fallback)
        outcome.tried += 1
        with Child(body, space) as child:
            try:
                code = child.wait(60)
            except Hung as error:
                code = 0
                outcome.breach("broken", f"{where}: {error}")
            if code != 0:
                outcome.breach("broken", f"{where}: ended with {code}: {child.errors}")
            if "Z 0" in child.lines():
                outcome.count("recordings that ended in an error")
            promise = child.promise()
    if promise.durable and fallback is not None and any(fallback.rglob("*.segment")):
        outcome.count("recordings that went on elsewhere")
    return promise


def _look(root: Path, promise: Promise, outcome: Outcome, where: str) -> None:
    if not promise.durable:
        return
    try:
        verify(root, promise.durable, promise.submitted, outcome, where)
    except StorageError as error:
        outcome.breach("broken", f"{where}: {error!r}")


# --- row 35: memory -------------------------------------------------------------------------------


def _limit_memory(more: int) -> None:
    """Let this process have `more` bytes beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def _lift_limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


async def _write_large(task: TaskWriter, number: int) -> None:
    """Write one trial of some megabytes that do not fit; all of it is taken, or nothing."""
    array = np.broadcast_to(np.float64(number), (4, 400_000))
    say("S", number)
    receipt = await task.write(_Plain({"n": number}, {"big": array}))
    if receipt.index != number:
        raise RuntimeError(f"trial {number} was given the number {receipt.index}")
    say("A", number)


class _Plain:
    """Anything with ``.attrs`` and ``.arrays`` is a trial."""

    def __init__(self, attrs: dict[str, object], arrays: dict[str, object]) -> None:
        self.attrs = attrs
        self.arrays = arrays


async def _run_out_of_memory(root: Path, more: int) -> None:
    async with Storage(root) as storage:
        storage.subject_id = SUBJECT
        async with storage.create_task(TASK) as task:
            say("O", 0)
            await _write_large(task, 0)
            await task.flush()
            number, refusals = 1, 0
            _limit_memory(more)
            try:
                for _ in range(12):
                    try:
                        await _write_large(task, number)
                    except MemoryError:
                        refusals += 1
                    else:
                        number += 1
            finally:
                _lift_limit()
            await _write_large(task, number)
            await task.flush()
            say("D", number)
            say("R", refusals)


def run_out_of_memory(lane: Lane) -> Outcome:
    """Let memory run out in the recorder, in publication, and kill publishers."""
    outcome = Outcome("shortages")
    for attempt in range(lane.count):
        dice, where = lane.random(attempt), f"row 35, {lane.name(attempt)}"
        with lane.effort.workspace(memory=True) as space:
            match attempt % 4:
                case 0 | 1:
                    _starve_recorder(space, dice, outcome, where)
                case 2:
                    _starve_publication(space, dice, outcome, where)
                case _:
                    _kill_publishers(space, dice, outcome, where)
        outcome.tried += 1
    return outcome


def _starve_recorder(space: Path, dice: random.Random, outcome: Outcome, where: str) -> None:
    root = space / "data"

    def body() -> None:
        sys.frozen = True  # type: ignore[attr-defined] # what PyInstaller and its like set
        anyio.run(_run_out_of_memory, root, dice.randrange(0, 60 * 2**20))

    with Child(body, space) as child:
        code = child.wait()
        if code != 0:
            outcome.breach("broken", f"{where}: ended with {code}: {child.errors}")
        told = {line[0]: int(line[2:]) for line in child.lines()}
    outcome.count("writes refused for want of memory", told.get("R", 0))
    count = told.get("A", -1) + 1
    outcome.acknowledged += count
    reader = reader_of(root)
    found = reader.trials["n"].tolist()
    if found != list(range(count)):
        outcome.breach("silent", f"{where}: trials {found}, not {count}")
    for number, array in enumerate(reader.iterarray("big")):
        if array is None or array.shape != (4, 400_000) or not (array == number).all():
            outcome.breach("wrong", f"{where}: the array of trial {number} differs")


def _starve_publication(space: Path, dice: random.Random, outcome: Outcome, where: str) -> None:
    """Publish with little memory: it may fail or die, and the next one does it."""
    root = space / "task" / "data"
    root.parent.mkdir()
    life = STATES[dice.choice(sorted(STATES))]
    with Child(live(life, root, KillingDisk(_NEVER, is_after=False)), space) as child:
        child.wait()
    clean = space / "clean" / "data"
    shutil.copytree(root.parent, clean.parent)
    publish_once(folder_of(clean), {})

    def body() -> None:
        _limit_memory(dice.randrange(0, 40 * 2**20))
        publish_once(folder_of(root), {})

    with Child(body, space) as child:
        outcome.count("publications without memory that failed", child.wait() != 0)
    verify(root, set(range(TRIALS)), TRIALS, outcome, where)
    for message in published_breaches(folder_of(root), lambda _: 0):
        outcome.breach("broken", f"{where}: {message}")
    if "journal" in leftovers(folder_of(root)):
        publish_once(folder_of(root), {})
    if digest(folder_of(root)) != digest(folder_of(clean)):
        outcome.breach("broken", f"{where}: published differently")


def _kill_publishers(space: Path, dice: random.Random, outcome: Outcome, where: str) -> None:
    """Kill the publisher, as the kernel does for want of memory; the next one takes over."""
    root, count = space / "data", 60
    body = functools.partial(record, root, count=count, publish_every=20, pause=0.005)
    with Child(lambda: anyio.run(body), space) as child:
        child.listen(30, until=b"B")
        publisher = next(int(line[2:]) for line in child.lines_so_far() if line[0] == "B")
        child.listen(dice.uniform(0, 1.0))
        end_process(publisher)
        outcome.count("publishers killed")
        code = child.wait(120)
        if code != 0:
            outcome.breach("broken", f"{where}: ended with {code}: {child.errors}")
    verify(root, set(range(count)), count, outcome, where)
    if rest := leftovers(folder_of(root)):
        outcome.breach("broken", f"{where}: left behind: {rest}")


ROWS: Final = (
    Row(
        17,
        "write-back errors of the kernel: ext4 on a device that runs out of room, caches dropped",
        "no trial that was called durable is wrong or missing, on the disk itself",
        lambda effort: in_lanes(fail_write_back, effort, effort.of(4, 20)),
    ),
    Row(
        35,
        "memory runs out (RLIMIT_AS) in the recorder and in publication; publishers are killed",
        "what was refused is refused as a whole; the journal is intact, publication is done again",
        lambda effort: in_lanes(run_out_of_memory, effort, effort.of(8, 60)),
    ),
)
