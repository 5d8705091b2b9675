"""Row 34: recordings that end in every way a program can end, at random times."""

from __future__ import annotations

import asyncio
import atexit
import functools
import gc
import os
import random
import signal
import sys
import warnings
from typing import TYPE_CHECKING, Any, Final

import anyio
import trio
import uvloop

from tests.campaign.content import SUBJECT, TASK, arrays_of, attrs_of, reader_of, verify
from tests.campaign.frame import Outcome, Row
from tests.campaign.lanes import Child, Hung, Lane, in_lanes
from tests.campaign.recorder import say
from trialstore import Level, Receipt, Storage, StorageError, TaskWriter, Trial

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_BACKENDS: Final[dict[str, dict[str, Any]]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}


class Experiment:
    """Writes whole trials as fast as it can, and tells what became of each by its receipt.

    Parameters
    ----------
    root : pathlib.Path
        Where to.
    queue_bytes : int
        A small queue makes writes wait, and so be cancelled while they wait.
    """

    def __init__(self, root: Path, queue_bytes: int = 1 << 16) -> None:
        self._root = root
        self._queue_bytes = queue_bytes
        self._receipts: list[Receipt] = []
        self._told = 0

    def storage(self) -> Storage:
        """Return the Storage, not yet entered."""
        return Storage(self._root, queue_bytes=self._queue_bytes)

    async def run(self, ending: Callable[[TaskWriter], Any] | None = None) -> None:
        """Record for ever, or until `ending` ends it."""
        async with self.storage() as storage:
            storage.subject_id = SUBJECT
            async with storage.create_task(TASK) as task:
                say("O", 0)
                await self.record(task, ending)

    async def record(
        self, task: TaskWriter, ending: Callable[[TaskWriter], Any] | None = None
    ) -> None:
        """Write trial after trial; `ending` is asked after each."""
        while True:
            await self.write(task)
            self.tell_durable()
            if ending is not None:
                await ending(task)

    async def write(self, task: TaskWriter) -> None:
        """Write the next trial, whole: what is cancelled leaves nothing of it behind."""
        number = len(self._receipts)
        say("S", number)
        trial = Trial(attrs=attrs_of(number))
        for name, chunks in arrays_of(number).items():
            trial.add_array(name)
            for chunk in chunks:
                trial.arrays[name].stack(chunk)
        receipt = await task.write(trial)
        self._receipts.append(receipt)
        if receipt.index != number:
            say("X", number)
        say("A", number)

    def tell_durable(self) -> None:
        """Tell of the trials that their receipts call durable by now."""
        while self._told < len(self._receipts):
            level = self._receipts[self._told].level
            if level is None or level < Level.DURABLE:
                break
            say("D", self._told)
            self._told += 1


# --- ways to end, each run in a child process -----------------------------------------------------


def _cancelled(experiment: Experiment, backend: dict[str, Any], delay: float) -> None:
    async def main() -> None:
        with anyio.move_on_after(delay):
            await experiment.run()

    anyio.run(main, **backend)


def _writes_time_out(experiment: Experiment, backend: dict[str, Any], delay: float) -> None:
    """Every write has a time-out of its own that many meet."""
    dice = random.Random(delay)

    async def main() -> None:
        async with experiment.storage() as storage:
            storage.subject_id = SUBJECT
            async with storage.create_task(TASK) as task:
                end = anyio.current_time() + delay
                while anyio.current_time() < end:
                    with anyio.move_on_after(dice.choice((0.0, 0.0005, 0.002, 1))):
                        await experiment.write(task)
                    experiment.tell_durable()

    anyio.run(main, **backend)


def _ends_by(
    leave: Callable[[], object], experiment: Experiment, backend: dict[str, Any], delay: float
) -> None:
    async def main() -> None:
        end = anyio.current_time() + delay

        async def ending(_: TaskWriter) -> None:
            if anyio.current_time() > end:
                leave()

        await experiment.run(ending)

    anyio.run(main, **backend)


def _exit() -> None:
    sys.exit(7)


def _fail() -> None:
    raise LookupError("the amplifier fell")


def _exit_at_once() -> None:
    os._exit(9)


def _for_ever(experiment: Experiment, backend: dict[str, Any], _: float) -> None:
    anyio.run(experiment.run, **backend)


def _loop_closed(experiment: Experiment, backend: dict[str, Any], delay: float) -> None:
    """An asyncio loop that is stopped and closed under everything (Jupyter, GUI toolkits)."""
    make = uvloop.new_event_loop if "backend_options" in backend else asyncio.new_event_loop
    loop: asyncio.AbstractEventLoop = make()
    _kept.append(loop.create_task(experiment.run()))
    loop.call_later(delay, loop.stop)
    loop.run_forever()
    loop.close()


def _dropped(experiment: Experiment, backend: dict[str, Any], delay: float) -> None:
    """A Storage that nobody closes, and nobody knows any more."""

    async def main() -> None:
        storage = await experiment.storage().__aenter__()
        storage.subject_id = SUBJECT
        task = await storage.create_task(TASK)
        with anyio.move_on_after(delay):
            await experiment.record(task)
        _kept.append(asyncio.current_task())

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    gc.collect()


#: What a child process must not lose before its end.
_kept: list[Any] = []

#: Ways that end as Python programs end: everything accepted is flushed.
_NORMAL: Final[dict[str, Any]] = {
    "cancelled": _cancelled,
    "writes time out": _writes_time_out,
    "sys.exit": functools.partial(_ends_by, _exit),
    "exception": functools.partial(_ends_by, _fail),
    "Ctrl-C": _for_ever,
    "Ctrl-C twice": _for_ever,
    "loop closed": _loop_closed,
    "dropped": _dropped,
}
#: Ways that end there and then: what is durable is there.
_ABRUPT: Final[dict[str, Any]] = {
    "os._exit": functools.partial(_ends_by, _exit_at_once),
    "SIGTERM": _for_ever,
}
_ASYNCIO_ONLY: Final = frozenset(("loop closed", "dropped"))
_SIGNALS: Final = {
    "Ctrl-C": signal.SIGINT,
    "Ctrl-C twice": signal.SIGINT,
    "SIGTERM": signal.SIGTERM,
}


def _live(body: Any, root: Path, queue_bytes: int, backend: str, delay: float) -> None:
    """End as an interpreter ends: whatever was raised, then what was registered for the exit."""
    sys.frozen = True  # type: ignore[attr-defined] # what PyInstaller and its like set
    warnings.simplefilter("ignore", ResourceWarning)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        body(Experiment(root, queue_bytes), _BACKENDS[backend], delay)
    except (KeyboardInterrupt, SystemExit, LookupError, asyncio.CancelledError):
        say("Z", 0)
    except trio.TrioInternalError:
        # A second Ctrl-C between two steps of trio's own, once in some hundred: what it leaves
        # behind must hold all the same.
        say("T", 0)
    finally:
        atexit._run_exitfuncs()


def end_in_every_way(lane: Lane) -> Outcome:
    """End recordings in every way on every loop; hold receipts and what is there together."""
    outcome = Outcome("ends")
    ways = [
        (way, body, backend)
        for way, body in (_NORMAL | _ABRUPT).items()
        for backend in _BACKENDS
        if not (way in _ASYNCIO_ONLY and backend == "trio")
    ]
    random.Random(lane.seed).shuffle(ways)
    for attempt in range(lane.count):
        dice = lane.random(attempt)
        way, body, backend = ways[(attempt * lane.lanes + lane.number) % len(ways)]
        where = f"row 34, {way} on {backend}, {lane.name(attempt)}"
        with lane.effort.workspace(memory=True) as space:
            _end_once(space, way, body, backend, dice, outcome, where)
        outcome.count(way)
    return outcome


def _end_once(
    space: Path,
    way: str,
    body: Any,
    backend: str,
    dice: random.Random,
    outcome: Outcome,
    where: str,
) -> None:
    root, queue_bytes = space / "data", dice.choice((4000, 1 << 16, 1 << 24))
    delay = dice.uniform(0.0, 0.08)
    live = functools.partial(_live, body, root, queue_bytes, backend, delay)
    outcome.tried += 1
    with Child(live, space) as child:
        if way in _SIGNALS:
            child.listen(30, until=b"O")
            child.listen(delay)
            child.kill(_SIGNALS[way])
            if way == "Ctrl-C twice":
                child.listen(dice.uniform(0, 0.05))
                if child.lines_so_far()[-1:] != ["Z 0"]:
                    child.kill(signal.SIGINT)
        try:
            code = child.wait()
        except Hung as error:
            outcome.breach("broken", f"{where}: {error}")
            return
        lines, promise = child.lines(), child.promise()
        expected = {"os._exit": 9, "SIGTERM": -signal.SIGTERM}.get(way, 0)
        if code != expected:
            outcome.breach("broken", f"{where}: ended with {code}: {child.errors}")
    if "T 0" in lines:
        outcome.count("trio's internal errors")
        if way != "Ctrl-C twice":
            outcome.breach("broken", f"{where}: {child.errors}")
    if any(line.startswith("X") for line in lines):
        outcome.breach("broken", f"{where}: a trial got the number of another")
    acknowledged = promise.durable if way in _ABRUPT else promise.accepted | promise.durable
    if not acknowledged:
        return
    try:
        verify(root, acknowledged, promise.submitted, outcome, where)
        if losses := reader_of(root).losses:
            outcome.breach("broken", f"{where}: losses {losses}")
    except StorageError as error:
        outcome.breach("broken", f"{where}: {error!r}")


ROWS: Final = (
    Row(
        34,
        "cancel, time-outs, closed loop, garbage collection, sys.exit, exception, Ctrl-C once and "
        "twice, SIGTERM, os._exit; on asyncio, uvloop and trio",
        "receipts tell the truth; what was accepted is there after every normal end",
        lambda effort: in_lanes(end_in_every_way, effort, effort.of(28, 200)),
    ),
)
