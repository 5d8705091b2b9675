"""What the experiment's loop feels of recording, and of the publisher beside it."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from tests.benchmarks.content import (
    TICK_SAMPLES,
    TRIAL_TICKS,
    Device,
    attrs_of,
    differences,
)
from tests.benchmarks.frame import (
    Bar,
    Check,
    Outcome,
    Row,
    WrongData,
    alternate,
    median,
    ratio,
)
from tests.benchmarks.measure import conclude
from tests.benchmarks.peers import PEERS, chosen, load
from tests.benchmarks.peers.ours import Ours
from tests.benchmarks.process import measure
from tests.shims import slow_disk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tests.benchmarks.frame import Effort, Figures
    from tests.benchmarks.peers import Peer

_TICK: Final = 0.001
_LATE: Final = 0.005
#: On a shared machine the p99 of one idle loop is up to twice that of the next.
_LATENESS_PAIRS: Final = 9


# --- lateness -------------------------------------------------------------------------------------


async def paced(peer: Peer | None, seconds: float) -> tuple[NDArray[np.float64], int]:
    """Run a 1 kHz loop with absolute deadlines and store what each tick brings.

    Parameters
    ----------
    peer : Peer or None
        Where to; None for the idle loop.
    seconds : float
        How long. Ticks that were due by the end and did not come are late until the end.

    Returns
    -------
    lateness : numpy.ndarray
        Seconds from each tick's deadline to its begin.
    trials : int
        How many were written.
    """
    device = Device(TICK_SAMPLES)
    ticks = round(seconds / _TICK)
    late = np.empty(ticks)
    trials = 0
    start = time.perf_counter() + _TICK
    end = start + ticks * _TICK
    for tick in range(ticks):
        due = start + tick * _TICK
        # A late tick lets the others of the loop run as well.
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        now = time.perf_counter()
        late[tick] = now - due
        if now > end:
            late[tick:] = end - (start + np.arange(tick, ticks) * _TICK)
            break
        chunk = device.read()
        if peer is not None:
            peer.append_nowait(chunk)
            if tick % TRIAL_TICKS == TRIAL_TICKS - 1:
                await peer.write(attrs_of(trials))
                trials += 1
    return late, trials


def summary_of(late: NDArray[np.float64]) -> Figures:
    """Return the figures of a loop's lateness, times in milliseconds."""
    return {
        "p50_ms": float(np.percentile(late, 50)) * 1e3,
        "p99_ms": float(np.percentile(late, 99)) * 1e3,
        "max_ms": float(late.max()) * 1e3,
        "late": float(np.mean(late > _LATE)) * 100,
        "ticks": len(late),
    }


def lateness(peer: str, folder: str, seconds: float, verify: bool = False) -> Figures:
    """Measure one loop, in a process of its own."""
    return asyncio.run(_lateness(peer, Path(folder), seconds, verify=verify))


async def _lateness(name: str, folder: Path, seconds: float, *, verify: bool) -> Figures:
    peer = None if name == "idle" else load(name)(folder)
    if peer is not None:
        await peer.open()
    late, trials = await paced(peer, seconds)
    figures = summary_of(late)
    if peer is None or not verify:
        conclude(figures)  # closing on a slow disk takes minutes and is another row's matter
    await peer.aclose()
    found = await asyncio.to_thread(
        lambda: differences(load(name).read(folder), trials, TICK_SAMPLES, TRIAL_TICKS)
    )
    return figures | {"wrong": found}


def run_lateness(effort: Effort) -> Outcome:
    """Measure ourselves beside the idle loop on three disks, then the peers."""
    outcome = Outcome()
    seconds = effort.of(6.0, 1.5, 0.2)
    for delay_ms in (0, 20, 200):
        disk = f"{delay_ms} ms added" if delay_ms else "healthy disk"
        run = partial(_one_lateness, effort, seconds, delay_ms)
        count = effort.of(_LATENESS_PAIRS, 1, 1)
        pairs = alternate(partial(run, "idle"), partial(run, "trialstore"), count)
        what = f"p99 as a multiple of the idle loop's, {disk}"
        outcome.checks.append(Check(what, ratio(pairs, "p99_ms"), 1.25, "x", len(pairs)))
        idle, ours = ([pair[side] for pair in pairs] for side in (0, 1))
        for who, measured in (("idle loop", idle), ("trialstore", ours)):
            _lateness_bars(outcome, disk, who, measured)
        # What a thread that does nothing but write and sync costs: less cannot be had in Python.
        limit = [run("raw") for _ in range(effort.of(count, 1, 1))]
        _lateness_bars(outcome, disk, PEERS["raw"].label, limit)
        least = median(limit, "p99_ms") / median(idle, "p99_ms")
        outcome.notes.append(f"{disk}: p99 of a bare thread's loop {least:.2f} x the idle loop's")
        # With little time, only the disk on which they differ most.
        others = chosen(effort)[1:] if effort.of(True, delay_ms == 20, delay_ms == 20) else []
        for name in [other for other in others if other != "raw"]:
            _lateness_bars(outcome, disk, PEERS[name].label, [run(name)])
    verify_all(outcome, effort, chosen(effort))
    outcome.notes.append(
        f"{seconds:g} s each; peers were measured once on each disk, pairs are ours"
    )
    return outcome


def _one_lateness(effort: Effort, seconds: float, delay_ms: int, name: str) -> Figures:
    with effort.workspace() as folder:
        # The shim is below the healthy disk as well, so that it makes no difference itself.
        disk = slow_disk(delay_ms / 1000, below=folder)
        return measure(lateness, environment=disk, peer=name, folder=folder, seconds=seconds)


def _lateness_bars(outcome: Outcome, disk: str, who: str, measured: list[Figures]) -> None:
    count = len(measured)
    late, p99 = median(measured, "late"), median(measured, "p99_ms")
    outcome.bars.append(Bar(f"ticks more than 5 ms late, {disk}", who, late, "%", count))
    outcome.bars.append(Bar(f"p99 of lateness, {disk}", who, p99, "ms", count))


def verify_all(outcome: Outcome, effort: Effort, names: list[str]) -> None:
    """Record a second with each peer, read it back with its own means, compare all of it."""
    for name in names:
        with effort.workspace() as folder:
            found = measure(
                lateness, peer=name, folder=folder, seconds=effort.of(1.0, 0.5, 0.2), verify=True
            )
        require_right(outcome, PEERS[name].label, found["wrong"])


def require_right(outcome: Outcome, who: str, wrong: list[str]) -> None:
    """Note that what was read back is what was stored.

    Raises
    ------
    WrongData
        If it is not.
    """
    if wrong:
        raise WrongData(f"{who} gave back something else than was stored: {wrong[:5]}")
    outcome.verified.append(who)


# --- the publisher --------------------------------------------------------------------------------


def with_or_without(folder: str, seconds: float, publisher: bool) -> Figures:
    """Measure our lateness with the publisher's process, or without one."""
    if not publisher:
        sys.frozen = True  # type: ignore[attr-defined] # as in frozen applications: no child
    figures: Figures = asyncio.run(_lateness("trialstore", Path(folder), seconds, verify=False))
    return figures


def catch_up(folder: str, trials: int) -> Figures:
    """Record as fast as accepted; measure from durable to published, and the child's memory."""
    return asyncio.run(_catch_up(Path(folder), trials))


async def _catch_up(folder: Path, trials: int) -> Figures:
    ours = Ours(folder)
    await ours.open()
    device = Device(TICK_SAMPLES)
    for trial in range(trials):
        for _ in range(TRIAL_TICKS):
            await ours.append(device.read())
        await ours.write(attrs_of(trial))
    await ours.task.flush()
    began = time.perf_counter()
    await ours.task.publish()
    took = time.perf_counter() - began
    nbytes = trials * TRIAL_TICKS * device.read().nbytes
    await ours.aclose()
    wrong = differences(Ours.read(folder), trials, TICK_SAMPLES, TRIAL_TICKS)
    return {"mb_per_s": nbytes / took / 1e6, "seconds": took, "wrong": wrong}


def run_publisher(effort: Effort) -> Outcome:
    """Lateness with and without the child; how fast it catches up when the recorder pauses."""
    outcome = Outcome()
    seconds = effort.of(6.0, 1.5, 0.2)

    def run(publisher: bool) -> Figures:
        with effort.workspace() as folder:
            return measure(with_or_without, folder=folder, seconds=seconds, publisher=publisher)

    pairs = alternate(partial(run, publisher=False), partial(run, publisher=True), effort.pairs)
    count = len(pairs)
    outcome.checks.append(
        Check("p99 as a multiple of that without a publisher", ratio(pairs, "p99_ms"), 1.1, "x",
              count)
    )  # fmt: skip
    more = statistics.median(second["late"] - first["late"] for first, second in pairs)
    outcome.checks.append(
        Check("ticks more than 5 ms late that it adds", more, 0.1, "percent of ticks", count)
    )
    for side, who in enumerate(("without a publisher", "with the publisher")):
        chosen = [pair[side] for pair in pairs]
        outcome.bars.append(
            Bar("p99 of lateness beside the publisher", who, median(chosen, "p99_ms"), "ms", count)
        )
    caught = []
    for _ in range(effort.of(effort.pairs, 1, 1)):
        with effort.workspace() as folder:
            caught.append(measure(catch_up, folder=folder, trials=effort.of(1000, 200, 5)))
            require_right(outcome, "trialstore", caught[-1]["wrong"])
    outcome.verified = outcome.verified[:1]
    rate = median(caught, "mb_per_s")
    outcome.checks.append(
        Check("rate of catching up", rate, 300, "MB/s", len(caught), at_least=True)
    )
    outcome.bars.append(Bar("catching up", "publisher", rate, "MB/s", len(caught)))
    return outcome


ROWS: Final = (
    Row(
        "lateness",
        "Lateness of a 1 kHz loop",
        "64 channels x 40 samples float64 per tick, trials of 50 ticks; absolute deadlines; a "
        "healthy disk, and one with 20 ms and 200 ms added to every write and sync below the data "
        "folder (LD_PRELOAD)",
        "p99 at most 1.25 x the idle loop's on all three",
        run_lateness,
    ),
    Row(
        "publisher",
        "The publisher",
        "the lateness row on a healthy disk with and without the child process, all on two cores; "
        "time from durable to published after 1 GB",
        "none of the loop's lateness; catches up at >= 300 MB/s",
        run_publisher,
    ),
)
