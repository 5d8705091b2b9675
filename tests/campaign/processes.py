"""Rows 27 to 29: recorders that are stopped, robbed of their lock, or forked."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
from typing import TYPE_CHECKING, Final

import anyio

from tests.campaign.content import SUBJECT, TASK, attrs_of, verify
from tests.campaign.examine import folder_of
from tests.campaign.frame import Outcome, Row
from tests.campaign.lanes import Child, Lane, end_process, in_lanes
from tests.campaign.recorder import hand_over, record, say
from trialstore import Storage, StorageError, TaskLocked, TaskReader
from trialstore._ondisk import layout
from trialstore._publishing.service import publish_once

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Coroutine
    from pathlib import Path
    from typing import Any

    from trialstore import TaskWriter


def _running(function: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Return what a child does: run on a loop, without a publisher of its own."""

    def live() -> None:
        sys.frozen = True  # type: ignore[attr-defined] # what PyInstaller and its like set
        anyio.run(function)

    return live


def _recording(root: Path, **options: Any) -> Callable[[], None]:
    return _running(functools.partial(record, root, **options))


def _durable(lines: list[str]) -> set[int]:
    last = max((int(line[2:]) for line in lines if line.startswith("D ")), default=-1)
    return set(range(last + 1))


# --- row 27 ---------------------------------------------------------------------------------------


async def _try_to_take(root: Path) -> None:
    """Try every way to become the task's recorder; tell how many were refused."""
    refused = 0
    async with Storage(root, allow_overwrite=True) as storage:
        storage.subject_id = SUBJECT
        for opening in (storage.resume_task(TASK), storage.create_task(TASK)):
            try:
                await opening
            except TaskLocked:
                refused += 1
    say("L", refused)


def stop_a_recorder(lane: Lane) -> Outcome:
    """Stop a recorder at random times; others are refused; it goes on when it is woken."""
    outcome = Outcome("stops")
    for attempt in range(lane.count):
        dice, where = lane.random(attempt), f"row 27, {lane.name(attempt)}"
        with lane.effort.workspace(memory=True) as space:
            root, other = space / "data", space / "other"
            other.mkdir()
            with Child(_recording(root), space) as first:
                first.listen(30, until=b"D")
                first.listen(dice.uniform(0, 0.03))
                first.stop()
                outcome.tried += 1
                _expect_refusals(root, other, outcome, where)
                before = len(first.lines_so_far())
                first.kill(signal.SIGCONT)
                if not _goes_on(first, before):
                    outcome.breach("broken", f"{where}: it did not go on: {first.errors}")
                first.kill()
                first.wait()
                promise = first.promise()
            verify(root, promise.durable, promise.submitted, outcome, where)
    return outcome


def _expect_refusals(root: Path, other: Path, outcome: Outcome, where: str) -> None:
    with Child(_running(functools.partial(_try_to_take, root)), other) as second:
        second.wait()
        if "L 2" not in second.lines():
            outcome.breach("broken", f"{where}: a second recorder: {second.errors}")
    try:
        publish_once(folder_of(root), {})
    except TaskLocked:
        outcome.count("refusals", 3)
    else:
        outcome.breach("broken", f"{where}: published under its recorder")


def _goes_on(child: Child, before: int) -> bool:
    """Whether it tells of a durable trial that it had not told of before."""
    known = _durable(child.lines_so_far()[:before])
    for _ in range(200):
        if _durable(child.lines_so_far()) > known:
            return True
        child.listen(0.05)
    return False


# --- row 28 ---------------------------------------------------------------------------------------


def break_the_lock(lane: Lane) -> Outcome:
    """Stop a recorder, take its lock away by force, record on; then the first one wakes."""
    outcome = Outcome("broken locks")
    for attempt in range(lane.count):
        dice, where = lane.random(attempt), f"row 28, {lane.name(attempt)}"
        with lane.effort.workspace(memory=True) as space:
            root, other = space / "data", space / "other"
            other.mkdir()
            with Child(_recording(root, epoch=1), space) as zombie:
                zombie.listen(30, until=b"D")
                zombie.listen(dice.uniform(0, 0.03))
                zombie.stop()
                zombie.listen(0.0)
                outcome.tried += 1
                _rob(root, dice, outcome)
                _succeed(root, zombie, other, dice, outcome, where)
    return outcome


def _rob(root: Path, dice: random.Random, outcome: Outcome) -> None:
    lock = folder_of(root) / layout.JOURNAL / layout.LOCK
    if dice.random() < 0.5:
        lock.unlink()
        outcome.count("locks deleted")
    else:
        stranger = lock.with_name("stranger")
        stranger.touch()
        stranger.replace(lock)
        outcome.count("locks replaced")


def _succeed(
    root: Path, zombie: Child, other: Path, dice: random.Random, outcome: Outcome, where: str
) -> None:
    before = _durable(zombie.lines_so_far())
    first = len(TaskReader(folder_of(root)).trials)
    is_closed = dice.random() < 0.5
    body = _recording(root, resume=True, first=first, epoch=2, count=20 if is_closed else None)
    with Child(body, other) as second:
        if is_closed:
            if second.wait() != 0:
                outcome.breach("broken", f"{where}: the successor: {second.errors}")
                return
            outcome.count("woken after publication")
        else:
            second.listen(30, until=b"D")
        zombie.kill(signal.SIGCONT)
        zombie.listen(dice.uniform(0.02, 0.2))
        zombie.kill()
        zombie.wait()
        if not is_closed:
            second.listen(0.05)
            second.kill()
            second.wait()
        promise = second.promise()
    late = zombie.promise().durable
    reader = TaskReader(folder_of(root))
    named = {n for loss in reader.losses if loss.kind == "superseded" for n in loss.trials}
    outcome.count("late trials named as superseded", len(named))
    for trial in sorted(late - set(range(first)) - named):
        outcome.breach("silent", f"{where}: trial {trial} of the zombie was durable, and is gone")
    if missing := before - set(range(first)):
        outcome.breach("silent", f"{where}: {missing} were durable before the stop")
    # What is named is not compared by `verify`: the number may be the successor's as well.
    rows = reader.trials.to_dict("index")
    for trial in named & promise.durable & set(range(first, promise.submitted)):
        if rows[trial]["epoch"] != 2:
            outcome.breach("wrong", f"{where}: trial {trial} of the successor is the zombie's")
    acknowledged = before | {n for n in promise.durable if n >= first}
    verify(
        root,
        acknowledged,
        max(promise.submitted, first),
        outcome,
        where,
        epoch_of=lambda trial: 1 if trial < first else 2,
    )


# --- row 29 ---------------------------------------------------------------------------------------


def _misuse(task: TaskWriter) -> None:
    """Try to write in a forked child; tell how many calls were refused."""
    refused = 0
    for call in (
        lambda: task.write_nowait(attrs_of(0)),
        lambda: task.append_nowait("emg", [[1.0]]),
    ):
        try:
            call()
        except StorageError:
            refused += 1
    say("F", refused)


async def _record_and_fork(root: Path, way: str, at: int) -> None:
    async with Storage(root) as storage:
        storage.subject_id = SUBJECT
        async with storage.create_task(TASK) as task:
            for number in range(at):
                await hand_over(task, number)
            if way == "multiprocessing":
                process = multiprocessing.get_context("fork").Process(target=_misuse, args=(task,))
                process.start()
                await anyio.to_thread.run_sync(process.join)
            else:
                _fork(task, way)
            for number in range(at, at + 8):
                await hand_over(task, number)
            if way == "linger, killed":
                await task.flush()
                say("D", at + 7)
                os.kill(os.getpid(), signal.SIGKILL)
    say("C", at + 8)


def _fork(task: TaskWriter, way: str) -> None:
    pid = os.fork()
    if pid == 0:
        _misuse(task)
        if way == "exit":
            os._exit(0)
        signal.pause()
    say("G", pid)
    if way == "exit":
        os.waitpid(pid, 0)


def fork_a_recorder(lane: Lane) -> Outcome:
    """Fork with an open recorder: the child is refused, and its life does not keep the lock."""
    outcome = Outcome("forks")
    ways = ("exit", "linger", "linger, killed", "multiprocessing")
    for attempt in range(lane.count):
        dice, where = lane.random(attempt), f"row 29, {lane.name(attempt)}"
        way, at = ways[attempt % len(ways)], dice.randrange(20)
        with lane.effort.workspace(memory=True) as space:
            root = space / "data"
            body = functools.partial(_record_and_fork, root, way, at)
            lingering = -1
            try:
                with Child(_running(body), space) as child:
                    code = child.wait()
                    # A child that lives on keeps the pipe open: hear what there is.
                    child.listen(30, until=b"F")
                    lines = child.lines_so_far()
                    while child.listen(0.0, until=b"never"):
                        lines = child.lines_so_far()
                outcome.tried += 1
                told = [int(line[2:]) for line in lines if line.startswith("G ")]
                lingering = told[0] if told and way.startswith("linger") else -1
                if code != (-signal.SIGKILL if way == "linger, killed" else 0):
                    outcome.breach("broken", f"{where}, {way}: ended with {code}: {child.errors}")
                if "F 2" not in lines:
                    outcome.breach("broken", f"{where}, {way}: the child could write: {lines}")
                _resume_beside(root, at + 8, space, outcome, f"{where}, {way}")
            finally:
                if lingering > 0:
                    end_process(lingering)
    return outcome


def _resume_beside(root: Path, first: int, space: Path, outcome: Outcome, where: str) -> None:
    """Resume while the forked child may still live: its copy of the lock must not count."""
    verify(root, set(range(first)), first, outcome, where)
    with Child(_recording(root, resume=True, first=first, count=2), space) as second:
        if second.wait() != 0:
            outcome.breach("broken", f"{where}: cannot be resumed: {second.errors}")
    verify(root, set(range(first + 2)), first + 2, outcome, f"{where}, resumed")


ROWS: Final = (
    Row(
        27,
        "the recorder is stopped (SIGSTOP) and a second one comes",
        "the second is refused, and so is a publisher; the first goes on when it is woken",
        lambda effort: in_lanes(stop_a_recorder, effort, effort.of(4, 40)),
    ),
    Row(
        28,
        "the lock of a stopped recorder is broken by force, another resumes, the first wakes",
        "the successor's trials are unharmed; what the first was told is durable is there or named",
        lambda effort: in_lanes(break_the_lock, effort, effort.of(6, 40)),
    ),
    Row(
        29,
        "fork with an open recorder (os.fork, multiprocessing)",
        "the child cannot write and keeps no lock; the parent goes on",
        lambda effort: in_lanes(fork_a_recorder, effort, effort.of(4, 40)),
    ),
)
