"""An experiment on a sick disk: records the model, bears every refusal, and tells what happened.

`record` runs in the calling process, over a disk of `trialstore.testing`; `Session` runs the same
in a process of its own, over a shim, a limit or a file system:

    python -m tests.campaign.sick '{"root": "...", "count": 12, ...}'
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import anyio
import anyio.to_thread
import numpy as np

from tests.campaign.content import SUBJECT, TASK, arrays_of, attrs_of, reader_of, verify
from tests.campaign.frame import Outcome
from trialstore import (
    PublishFailed,
    QueueFull,
    Storage,
    StorageError,
    TaskLocked,
    Trial,
    WriteFailed,
)
from trialstore._ondisk import manifest
from trialstore._publishing.service import publish_once

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from trialstore import Receipt, TaskWriter

    Tell = Callable[[dict[str, Any]], object]

#: A stop before each attempt to create the task.
BEFORE_CREATING: Final = -1
#: An experimenter tries three times to begin.
_ATTEMPTS: Final = 3
_TICK: Final = 0.001
#: How the warning begins that comes while there is still room.
_EARLY: Final = "the data's disk has"
#: What is told of a failure that was met without anybody's help.
_GOES_ON: Final = "recording goes on in a new segment"
_HERE: Final = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Settings:
    """What is recorded, and how.

    Parameters
    ----------
    root, fallback : str
        Where; no second disk if `fallback` is empty.
    count : int
        Trials.
    flush_every : int
        Everything must be durable after so many trials.
    publish_every : int
        Published between blocks of so many; 0: only at the end.
    bulk : int
        Bytes of one more array in each trial.
    child : bool
        Whether the publisher is a process of its own.
    lasting : bool
        Give up at the first trouble, instead of waiting until it is over.
    stops : tuple of int
        Before these trials, and before closing if `count` is among them, wait to be told to go on;
        `BEFORE_CREATING` stands for each attempt to create the task.
    late : float
        Ticks of the loop that come later than so many seconds are counted.
    """

    root: str
    fallback: str = ""
    count: int = 12
    flush_every: int = 3
    publish_every: int = 0
    bulk: int = 0
    on_full: Literal["wait", "raise", "drop"] = "wait"
    queue_bytes: int = 256 * 2**20
    close_timeout: float = 20.0
    child: bool = True
    keep_journal: bool = False
    lasting: bool = False
    stops: tuple[int, ...] = ()
    late: float = 0.1


@dataclass(slots=True)
class Told:
    """What an experiment on a sick disk has told, put together."""

    submitted: int = 0
    accepted: int = 0
    durable: set[int] = field(default_factory=set)
    published: int = 0
    refusals: list[str] = field(default_factory=list)
    half_made: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    failovers: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    failed: set[int] = field(default_factory=set)
    write_failures: list[str] = field(default_factory=list)
    publish_failures: list[str] = field(default_factory=list)
    full: int = 0
    dropped: int = 0
    is_closed: bool = False
    closing: float = 0.0
    late: float = 0.0
    times_late: int = 0
    statistics: dict[str, Any] = field(default_factory=dict)

    def hear(self, event: Mapping[str, Any]) -> None:
        """Take one event in."""
        match event:
            case {"submitted": int(number)}:
                self.submitted = max(self.submitted, number + 1)
            case {"accepted": int(count)}:
                self.accepted = count
            case {"durable": int(count)}:
                self.durable.update(range(count))
            case {"published": int(count)}:
                self.published = max(self.published, count)
            case {"refused": str(error), "left": bool(left)}:
                self.refusals.append(error)
                if left:
                    self.half_made.append(error)
            case {"warning": str(what)}:
                self.warnings.append(what)
            case {"failover": str(what)}:
                self.failovers.append(what)
            case {"trouble": str(what)}:
                self.troubles.append(what)
            case {"failed": str(error), "trials": list(trials)}:
                self.failed.update(trials)
                self.write_failures.append(error)
            case {"not published": str(error)}:
                self.publish_failures.append(error)
            case {"full": str()}:
                self.full += 1
            case {"dropped": int()}:
                self.dropped += 1
            case {"closed": True, **rest}:
                self.is_closed = True
                self.closing = rest["seconds"]
                self.late, self.times_late = rest["late"], rest["times_late"]
                self.statistics = rest["statistics"]


class _Experiment:
    """One run of `record`."""

    def __init__(
        self, settings: Settings, tell: Tell, pause: Callable[[int], Awaitable[None]] | None
    ) -> None:
        self.settings = settings
        self.tell = tell
        self.pause = pause
        self.trouble = anyio.Event()
        self.accepted = 0
        self.late, self.times_late = 0.0, 0
        self.statistics: dict[str, Any] = {}

    async def run(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._tick)
            for _ in range(_ATTEMPTS):
                if await self._enter():
                    break
            group.cancel_scope.cancel()

    async def _tick(self) -> None:
        """Find out whether somebody holds the loop."""
        while True:
            due = anyio.current_time() + _TICK
            await anyio.sleep_until(due)
            late = anyio.current_time() - due
            self.late = max(self.late, late)
            self.times_late += late > self.settings.late

    async def _enter(self) -> bool:
        """Record in a Storage; False if it could not be entered."""
        told = self.settings
        entered = False
        began = anyio.current_time()
        try:
            async with Storage(
                told.root,
                fallback_root=told.fallback or None,
                on_full=told.on_full,
                queue_bytes=told.queue_bytes,
                close_timeout=told.close_timeout,
                keep_journal=told.keep_journal,
                on_trouble=self._hook,
            ) as storage:
                entered = True
                storage.subject_id = SUBJECT
                task = await self._create(storage)
                if task is not None:
                    await self._trials(task)
                    await self._stop(told.count)
                    self.statistics = task.statistics().to_json()
                    began = anyio.current_time()
                    await self._finish(task)
        except StorageError as error:
            if not entered:
                self.tell({"refused": str(error), "left": False})
                return False
            self._note(error)
        self.tell(
            {
                "closed": True,
                "seconds": anyio.current_time() - began,
                "late": self.late,
                "times_late": self.times_late,
                "statistics": self.statistics,
            }
        )
        return True

    def _hook(self, trouble: Any) -> None:
        if trouble.what.startswith(_EARLY):
            self.tell({"warning": trouble.what})
            return
        if _GOES_ON in trouble.what:
            self.tell({"failover": trouble.what})
            return
        self.tell({"trouble": trouble.what})
        self.trouble.set()

    def _note(self, error: StorageError) -> None:
        if isinstance(error, WriteFailed):
            self.tell({"failed": str(error), "trials": list(error.trials)})
        elif isinstance(error, PublishFailed):
            self.tell({"not published": str(error)})
        else:
            raise error

    async def _create(self, storage: Storage) -> TaskWriter | None:
        folder = Path(self.settings.root, SUBJECT, TASK)
        for _ in range(_ATTEMPTS):
            await self._stop(BEFORE_CREATING)
            try:
                return await storage.create_task(TASK)
            except StorageError as error:
                left = await anyio.to_thread.run_sync(folder.exists)
                self.tell({"refused": str(error), "left": left})
        return None

    async def _stop(self, number: int) -> None:
        if self.pause is not None and number in self.settings.stops:
            await self.pause(number)

    async def _trials(self, task: TaskWriter) -> None:
        told = self.settings
        for number in range(told.count):
            await self._stop(number)
            self.tell({"submitted": number})
            if not await self._hand_over(task, number):
                return
            try:
                if told.flush_every and number % told.flush_every == told.flush_every - 1:
                    if not await self._flush(task):
                        return
                    self.tell({"durable": number + 1})
                if told.publish_every and number % told.publish_every == told.publish_every - 1:
                    await task.publish()
                    self.tell({"published": number + 1})
            except StorageError as error:
                self._note(error)

    async def _hand_over(self, task: TaskWriter, number: int) -> bool:
        """Record one trial, refused or not; False if the experiment is to be given up."""
        while True:
            try:
                receipt = await hand_over(task, number, self.settings)
            except QueueFull as error:
                self.tell({"full": str(error)})
            else:
                if receipt.index is not None:
                    self.accepted = number + 1
                    self.tell({"accepted": number + 1})
                    return True
                self.tell({"dropped": number})
            if self.settings.lasting and self.trouble.is_set():
                return False
            await anyio.sleep(0.01)

    async def _flush(self, task: TaskWriter) -> bool:
        """Wait until everything is durable, or, where the trouble is to last, for that."""
        if not self.settings.lasting:
            await task.flush()
            return True
        is_durable = False
        async with anyio.create_task_group() as group:

            async def give_up() -> None:
                await self.trouble.wait()
                group.cancel_scope.cancel()

            group.start_soon(give_up)
            await task.flush()
            is_durable = True
            group.cancel_scope.cancel()
        return is_durable

    async def _finish(self, task: TaskWriter) -> None:
        try:
            await task.aclose()
        except WriteFailed as error:
            self._note(error)
            return
        except PublishFailed as error:
            self._note(error)
        self.tell({"durable": self.accepted})


async def hand_over(task: TaskWriter, number: int, settings: Settings) -> Receipt:
    """Record trial `number` of the model, streamed or whole."""
    arrays: dict[str, list[NDArray[Any]]] = arrays_of(number)
    if settings.bulk:
        arrays["bulk"] = [bulk_of(number, settings.bulk)]
    if number % 2 and settings.on_full == "wait":
        for name, chunks in arrays.items():
            for chunk in chunks:
                await task.append(name, chunk)
        return await task.write(attrs_of(number))
    trial = Trial(attrs=attrs_of(number))
    for name, chunks in arrays.items():
        trial.add_array(name)
        for chunk in chunks:
            trial.arrays[name].stack(chunk)
    return await task.write(trial)


def bulk_of(number: int, nbytes: int) -> NDArray[np.uint8]:
    """Return the array that fills the disk."""
    return np.random.default_rng(number).integers(0, 256, (1, nbytes), dtype=np.uint8)


async def record(
    settings: Settings, tell: Tell, pause: Callable[[int], Awaitable[None]] | None = None
) -> None:
    """Record the model on a sick disk.

    Guarantee: ends by itself whatever the disk does, and tells everything that was refused.

    Parameters
    ----------
    settings : Settings
        What and where.
    tell : callable
        Hears of each event as a plain mapping; `Told.hear` understands them.
    pause : callable, optional
        Awaited before the trials in ``settings.stops``.
    """
    await _Experiment(settings, tell, pause).run()


# --- in a process of its own ----------------------------------------------------------------------


class Session:
    """`record` in a process of its own.

    Parameters
    ----------
    settings : Settings
        What and where.
    environment : dict
        Added to ours: the shims.
    before : str
        Python source that the process runs first, such as setting a timer.
    patience : float
        A recorder that has not ended by itself after so many seconds is killed.
    """

    def __init__(
        self,
        settings: Settings,
        environment: Mapping[str, str],
        *,
        before: str = "",
        patience: float = 120.0,
    ) -> None:
        self.told = Told()
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `reported`
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.campaign.sick", json.dumps(asdict(settings)), before],
            cwd=_HERE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env={**os.environ, **environment},
        )
        self._watchdog = threading.Timer(patience, self.process.kill)
        self._watchdog.start()

    def hear(self, *until: str) -> dict[str, Any] | None:
        """Hear events up to one of these kinds, and return it; None if the process ends before."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event: dict[str, Any] = json.loads(line)
            self.told.hear(event)
            if event.keys() & set(until):
                return event
        return None

    def go(self) -> None:
        """Let it go on from a stop."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()

    def end(self) -> Told:
        """Hear the rest and wait for its end.

        Raises
        ------
        RecorderFailed
            If it did not end by itself, or otherwise than it should; with its last words.
        """
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.hear()
        self.process.wait()
        if self.process.returncode == -signal.SIGKILL:
            raise RecorderFailed(f"the recorder did not end by itself: {self.told}")
        if self.process.returncode:
            self._words.seek(0)
            words = self._words.read().decode(errors="replace").strip()[-2000:]
            raise RecorderFailed(f"the recorder ended with {self.process.returncode}: {words}")
        return self.told

    @contextlib.contextmanager
    def reported(self, outcome: Outcome, where: str) -> Iterator[None]:
        """Count a recorder that hung or died as a breach; leave no process behind."""
        try:
            yield
        except (RecorderFailed, BrokenPipeError) as error:
            outcome.breach("broken", f"{where}: {error}")
        finally:
            self._watchdog.cancel()
            if self.process.poll() is None:
                self.process.kill()
            for pipe in (self.process.stdin, self.process.stdout, self._words):
                with contextlib.suppress(BrokenPipeError):
                    if pipe is not None:
                        pipe.close()
            self.process.wait()


class RecorderFailed(Exception):
    """A recorder hung, or ended with an exception or by a signal."""


def check(
    told: Told, settings: Settings, outcome: Outcome, where: str, *, whole: bool = True
) -> None:
    """Hold what is on the disk against what was told.

    Parameters
    ----------
    told : Told
        The experiment's story.
    settings : Settings
        What it recorded.
    outcome : Outcome
        Counts are added here.
    where : str
        What is needed to repeat this try.
    whole : bool, optional
        Every trial must be there; otherwise those that were acknowledged.
    """
    root = Path(settings.root)
    for refusal in told.half_made:
        outcome.breach("broken", f"{where}: a refused task left its folder behind: {refusal}")
    lost = told.durable & told.failed
    if lost:
        outcome.breach("broken", f"{where}: {sorted(lost)} were called durable and failed")
    if not told.submitted:
        if whole:
            outcome.breach("broken", f"{where}: nothing could be recorded: {told.refusals}")
        return
    found = verify(root, told.durable, told.submitted, outcome, where)
    if whole and found != settings.count:
        outcome.breach("silent", f"{where}: {found} of {settings.count} trials are there")
    if not told.is_closed:
        outcome.breach("broken", f"{where}: the experiment did not come to its end")
    reader = reader_of(root)
    named = {trial for loss in reader.losses for trial in loss.trials} | told.failed
    missing = set(range(told.accepted)) - set(reader.trials.index) - named
    if missing and not whole:
        outcome.breach("silent", f"{where}: nothing names {sorted(missing)}")
    refused = any(loss.kind == "refused" for loss in reader.losses)
    if told.dropped and told.is_closed and not told.write_failures and not refused:
        outcome.breach(
            "silent", f"{where}: {told.dropped} trials were dropped, and no loss says so"
        )
    if settings.bulk:
        _check_bulk(root, settings.bulk, found, outcome, where)


def judge(
    told: Told,
    settings: Settings,
    outcome: Outcome,
    where: str,
    *,
    is_whole: bool = True,
    may_refuse: bool = False,
) -> None:
    """Hold the disk against the story; then publish what was not, on a well disk, and again.

    Parameters
    ----------
    told, settings, outcome, where
        As for `check`.
    is_whole : bool, optional
        Every trial must be there.
    may_refuse : bool, optional
        The task need not have been opened.
    """
    if not told.submitted and may_refuse:
        outcome.count("refused at the start, clearly")
        outcome.count("folders of refused tasks that a sick disk kept", len(told.half_made))
        return
    if told.write_failures:
        outcome.count("held to the end and named by WriteFailed")
    check(told, settings, outcome, where, whole=is_whole)
    if not told.submitted or is_published(settings):
        return
    outcome.count("published on a well disk afterwards")
    problem = publish_later(settings)
    if problem is not None:
        outcome.breach("broken", f"{where}: cannot be published on a well disk: {problem}")
        return
    check(told, settings, outcome, f"{where}, then published", whole=is_whole)


def is_published(settings: Settings) -> bool:
    """Whether the task is in plain files (a reader would show it from its journal as well)."""
    described = manifest.read(Path(settings.root, SUBJECT, TASK))
    return described is not None and described.status != "recording"


def publish_later(settings: Settings, seconds: float = 30.0) -> str | None:
    """Publish a task on a well disk, as the next start does; return what went wrong.

    The publisher of the session before may still be at work, and may be the one who does it.
    """
    root = Path(settings.root)
    fallback = f"{settings.fallback}/{SUBJECT}/{TASK}/journal" if settings.fallback else None
    end = time.monotonic() + seconds
    while not is_published(settings):
        try:
            publish_once(root / SUBJECT / TASK, {"fallback": fallback})
        except (TaskLocked, FileNotFoundError) as error:
            if time.monotonic() > end:
                return repr(error)
            time.sleep(0.05)
        except (StorageError, OSError) as error:
            return repr(error)
    return None


def _check_bulk(root: Path, nbytes: int, found: int, outcome: Outcome, where: str) -> None:
    if not found:
        return
    for number, array in enumerate(reader_of(root).iterarray("bulk")):
        if array is None or not np.array_equal(array, bulk_of(number, nbytes)):
            outcome.breach("wrong", f"{where}: array 'bulk' of trial {number} differs")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the recorder's warnings, which are the point of it all, out of the way."""
    logger = logging.getLogger("trialstore")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """Be a frozen application meanwhile: no child is started, publication runs in a thread."""
    sys.frozen = True  # type: ignore[attr-defined] # what PyInstaller and its like set
    try:
        yield
    finally:
        del sys.frozen  # type: ignore[attr-defined]


def record_here(
    settings: Settings,
    tell: Tell,
    pause: Callable[[int], Awaitable[None]] | None = None,
) -> None:
    """Run `record` in this process, to its end."""
    with frozen() if not settings.child else contextlib.nullcontext():
        anyio.run(record, settings, tell, pause)


def side_by_side(tries: Iterable[Callable[[Outcome], object]], outcome: Outcome) -> None:
    """Make tries that mostly wait for processes of their own, a few at a time."""

    def one(attempt: Callable[[Outcome], object]) -> Outcome:
        part = Outcome("")
        attempt(part)
        return part

    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:
        for part in pool.map(one, tries):
            outcome.add(part)


def say(event: Mapping[str, Any]) -> None:
    """Tell the parent, in one system call."""
    os.write(1, json.dumps(event).encode() + b"\n")


async def _wait_for_parent(number: int) -> None:
    say({"stopped": number})
    await anyio.to_thread.run_sync(sys.stdin.readline)


def main() -> None:
    """Record as told on the command line."""
    told = json.loads(sys.argv[1])
    settings = Settings(**{**told, "stops": tuple(told["stops"])})
    exec(sys.argv[2], {})
    with frozen() if not settings.child else contextlib.nullcontext():
        anyio.run(record, settings, say, _wait_for_parent)


if __name__ == "__main__":
    main()
