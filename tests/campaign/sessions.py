"""Sick-disk experiments in processes of their own, and what must be true when they are over."""

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
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import numpy as np

from tests.campaign.content import SUBJECT, TASK, reader_of, verify
from tests.campaign.frame import CannotRun, Outcome
from tests.campaign.sick import bulk_of, frozen, record
from tests.campaign.story import Settings, Told
from trialstore import StorageError
from trialstore._ondisk import manifest
from trialstore._publishing.service import publish_once

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

    from tests.campaign.sick import Tell

_HERE: Final = Path(__file__).parents[2]


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
            If it did not end by itself, or otherwise than it should.
        """
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.hear()
        self.process.wait()
        if self.process.returncode == -signal.SIGKILL:
            raise RecorderFailed(f"the recorder did not end by itself: {self.told}")
        if self.process.returncode:
            raise RecorderFailed(f"the recorder ended with {self.process.returncode}:")
        return self.told

    def _last_words(self) -> str:
        self._words.seek(0)
        return self._words.read().decode(errors="replace").strip()[-2000:]

    @contextlib.contextmanager
    def reported(self, outcome: Outcome, where: str) -> Iterator[None]:
        """Count a recorder that hung or died as a breach; leave no process behind."""
        try:
            yield
        except (RecorderFailed, BrokenPipeError) as error:
            outcome.breach("broken", f"{where}: {error} {self._last_words()}")
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
    try:
        found = verify(root, told.durable, told.submitted, outcome, where)
    except StorageError as error:
        outcome.breach("silent", f"{where}: cannot be read: {error!r}", max(1, len(told.durable)))
        return
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


def publish_later(settings: Settings, seconds: float = 15.0) -> str | None:
    """Publish a task on a well disk, as the next start does; return what went wrong.

    The publisher of the session before may still be at work for a few seconds: the two may get in
    each other's way, and either may be the one who does it.
    """
    root = Path(settings.root)
    fallback = f"{settings.fallback}/{SUBJECT}/{TASK}/journal" if settings.fallback else None
    end = time.monotonic() + seconds
    while not is_published(settings):
        try:
            publish_once(root / SUBJECT / TASK, {"fallback": fallback})
        except (StorageError, OSError) as error:
            if time.monotonic() > end:
                return repr(error)
            time.sleep(0.05)
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


@contextlib.contextmanager
def optional(outcome: Outcome, part: str) -> Iterator[None]:
    """Leave a part of a row out where it cannot run, and say so in its figures."""
    try:
        yield
    except CannotRun as reason:
        outcome.figures[f"{part}, not tried here"] = str(reason)
